"""The parts of the vLLM plugin that need no vLLM: rows, wishes, salted hashes. The rest is in tests/serving."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cc_model import patch_model
from cc_model.integrations.vllm.families import FAMILIES, stock_architecture
from cc_model.integrations.vllm.requests import connection_index, salted
from cc_model.integrations.vllm.rows import Rows
from cc_model.testing import random_matrix, tiny_model


@pytest.fixture
def model():
    made = patch_model(tiny_model("llama"))
    made.cc.transform_matrix = random_matrix(made)
    return made


@pytest.fixture
def rows(model):
    return Rows(model.cc, 3, torch.float32, torch.device("cpu"), model.get_input_embeddings())


@torch.no_grad()
def test_a_token_is_captured_and_then_added_to(model, rows):
    layers = [rows.of_layer(number) for number in range(4)]
    rows.begin("a", index=2, token=7)
    rows.begin("b", index=0, token=9)
    assert rows.plan({"a": 1}, [0, 4], [0, 0], [4, 2]) == {}, "its token has not come yet"
    assert rows.plan({"a": 1, "b": 0}, [0, 4], [0, 0], [4, 5]) == {"a": 3, "b": 4}
    x = torch.randn(4, 9, 64)
    seen = x.clone()
    for layer, values in zip(layers, x):
        layer.apply_(values[None])  # transformers' layers have a batch of one
    assert x.equal(seen), "the first run only reads"
    rows.finish()
    bank = torch.stack([seen[:, 6], seen[:, 0]], dim=1)
    assert rows.plan({"b": 0, "a": 1}, [0, 1], [0, 2], [1, 3]) == {}
    for layer, values in zip(layers, x):
        layer.apply_(values)
    embeds = model.get_input_embeddings()(torch.tensor([7, 9]))
    update, _ = model.cc.decision_maker(bank, embeds, None, model.cc.config, None, model.cc.transform_matrix)
    changed = seen.clone()
    changed[0, 1] += update[0]
    changed[0, 0] += update[1]
    torch.testing.assert_close(x, changed)
    assert rows.plan({"b": 0, "a": 1}, [0, 1], [1, 5], [1, 1]) == {}
    assert rows.idle, "nothing is left to do for either"


def test_weights_that_were_never_loaded_are_noticed(model, rows):
    """A format of vLLM's that fills modules itself knows nothing of the connection."""
    model.cc.transform_matrix = None
    with pytest.raises(RuntimeError, match=r"load_format: .* got a model without a matrix"):
        rows.begin("a", index=2, token=7)


@torch.no_grad()
def test_a_request_that_begins_anew_is_captured_again(rows):
    for _ in range(5):  # more often than there are slots
        rows.begin("a", index=1, token=3)
        assert rows.plan({"a": 0}, [0], [0], [2]) == {"a": 1}
    rows.forget("a")
    assert rows.plan({"a": 0}, [0], [1], [1]) == {}
    for name in "bcd":
        rows.begin(name, index=0, token=1)
    assert rows.plan({"b": 0, "c": 1, "d": 2}, [0, 1, 2], [0, 0, 0], [1, 1, 1]) == {"b": 1, "c": 1, "d": 1}


@torch.no_grad()
def test_a_request_that_has_connected_leaves_its_slot(rows):
    for number in range(5):  # more than there are slots
        rows.begin(str(number), index=0, token=1)
        assert rows.plan({str(number): 0}, [0], [0], [1]) == {str(number): 1}
        rows.plan({str(number): 0}, [0], [0], [1])
        assert not rows.idle
        rows.plan({str(number): 0}, [0], [0], [1])
        assert rows.idle, "it connects once"


@torch.no_grad()
def test_a_forward_without_a_plan_changes_nothing(rows):
    rows.begin("a", index=0, token=1)
    rows.begin("b", index=0, token=2)
    rows.plan({"a": 0}, [0], [0], [1])
    rows.plan({"a": 0, "b": 1}, [0, 1], [0, 0], [1, 1])
    assert (rows.captured >= 0).sum() == (rows.added >= 0).sum() == 1
    rows.finish()
    bank = rows.bank.clone()
    for number in range(4):
        rows.of_layer(number).apply_(torch.randn(2, 64))
    assert rows.bank.equal(bank)
    assert (rows.captured < 0).all()
    assert (rows.added < 0).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"cc": "yes"}, r"extra_args\['cc'\]: expected true or false, got 'yes'"),
        ({"cc_index": 5}, r"extra_args\['cc_index'\]: expected an int in \[0, 5\), got 5"),
        ({"cc_index": -1}, "got -1"),
        ({"cc_index": 1.0}, "got 1.0"),
        ({"cc_index": True}, "got True"),
        ({"cc": False, "cc_index": 0}, "expected none beside cc: false, got 0"),
        ({"ccindex": 0}, "expected cc or cc_index, got 'ccindex'"),
    ],
)
def test_wishes_that_cannot_be(extra, message):
    with pytest.raises(ValueError, match=message):
        connection_index(extra, 5)


def test_numbers_stand_for_true_and_false():
    """As the HTTP server hands them on."""
    assert connection_index({"cc": 0}, 5) is None
    assert connection_index({"cc": 1.0, "other": 3}, 5) == 4


def test_hashes_are_salted_from_a_block_on():
    tokens = [b"one", b"two", b"three", b"four"]
    hasher = lambda request: [hashlib.sha256(t).digest() for t in tokens[len(request.block_hashes) :]]  # noqa: E731
    fresh = SimpleNamespace(block_hashes=[])
    stock, first, second = hasher(fresh), salted(hasher, 2, "1")(fresh), salted(hasher, 2, "2")(fresh)
    assert first[:2] == second[:2] == stock[:2]
    assert len({*stock[2:], *first[2:], *second[2:]}) == 6
    assert all(len(value) == 32 for value in first)
    assert salted(hasher, 2, "1")(SimpleNamespace(block_hashes=stock[:3])) == first[3:]


def test_families_have_names_of_their_own():
    assert {stock_architecture("CC" + name) for name in FAMILIES} == set(FAMILIES)
    assert stock_architecture("CCMambaForCausalLM") is None


def test_the_document_names_each_family():
    document = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in document] == []
