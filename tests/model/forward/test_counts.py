"""What a training forward costs in ops and host synchronisations: counted, not timed, so that it cannot flake."""

from __future__ import annotations

import pytest
import torch
from model_pairs import gumbel, pair
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from benchmarks.measure.counting import SYNCHRONISING, OpCounter
from cc_model import CCConfig
from cc_model.compat import cache_of
from cc_model.forward import masks

LAYERS, ROWS, MAIN, PIVOT = 32, 16, 48, 40


def counted(function) -> OpCounter:
    with OpCounter() as counter:
        function()
    return counter


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(256, (ROWS, MAIN), generator=generator)
    labels = ids.clone()
    labels[:, :20] = -100
    pivot = torch.randint(256, (ROWS, PIVOT), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pivot_input_ids": pivot,
        "pivot_attention_mask": torch.ones_like(pivot),
    }


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_added_ops_and_synchronisations(pivot_grad):
    stock, model = pair("llama", CCConfig(pivot_grad=pivot_grad), num_hidden_layers=LAYERS)
    stock.train(), model.train()
    data = inputs()
    main = {name: value for name, value in data.items() if not name.startswith("pivot")}
    pivot = {"input_ids": data["pivot_input_ids"], "attention_mask": data["pivot_attention_mask"]}
    model(**data), stock(**main)  # first-call work is not counted
    plain = counted(lambda: (stock(**pivot), stock(**main)))
    connected = counted(lambda: model(**data))
    added = connected.ops.total() - plain.ops.total()
    print(f"non-view ops added: {added}, views added: {connected.views - plain.views}")
    assert added <= 2 * LAYERS + 20
    assert added <= 24, "one gather for each layer, less the pivot pass's cache and head, and a fixed rest"
    assert connected.synchronisations == plain.synchronisations
    assert plain.ops["aten.mm.default"] - connected.ops["aten.mm.default"] == 0, "head of the pivot pass ↔ decision"


class Order(TorchDispatchMode):
    """The names of matrix products and of ops that a GPU would make the host wait for, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) in {"aten.mm.default", *SYNCHRONISING}:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def padded(side):
    data = inputs()
    padding = slice(0, 3) if side == "left" else slice(-3, None)
    for name in ("attention_mask", "pivot_attention_mask"):
        data[name][::2, padding] = 0
    data["labels"][data["attention_mask"] == 0] = -100
    return data


def without_mask():
    return {name: value for name, value in inputs().items() if "mask" not in name} | {"use_cache": False}


ASKING = {
    "left padding": padded("left"),
    "right padding": padded("right"),
    "full mask": inputs() | {"use_cache": False},
    "full mask, with a cache": inputs() | {"use_cache": True},
    "no mask": without_mask(),
    "positions": without_mask() | {"position_ids": torch.arange(MAIN).expand(ROWS, -1)},
}


@pytest.mark.parametrize("name", ASKING)
def test_nobody_waits_for_the_pivot_pass(name):
    """Whatever asks the device does so before the first layer of the first pass; the results are those without."""
    _, model = pair("llama", num_hidden_layers=2, attn_implementation="sdpa")
    data = ASKING[name]
    model.train()
    with Order() as order:
        output = model(**data, gumbel_noise=gumbel(ROWS, 2))
    assert any(name in SYNCHRONISING for name in order.names), (
        "transformers asks no more: this test has lost its object"
    )
    first_layer = order.names.index("aten.mm.default")
    assert not SYNCHRONISING & set(order.names[first_layer:])
    model.set_attn_implementation("eager")  # which asks nothing, so that its mask is made where it always was
    expected = model(**data, gumbel_noise=gumbel(ROWS, 2))
    torch.testing.assert_close(expected.loss, output.loss, rtol=0, atol=1e-6)
    assert expected.keys() == output.keys()


def test_the_empty_cache_leaves_no_trace_in_an_output():
    hidden = torch.ones(1, 2, 3)
    output = masks.without_empty_cache(BaseModelOutputWithPast(hidden, masks._EMPTY))
    assert list(output) == ["last_hidden_state"]
    assert output.past_key_values is None
    assert output.to_tuple() == (hidden,)
    own = DynamicCache()
    assert masks.without_empty_cache(BaseModelOutputWithPast(hidden, own)).past_key_values is own


def test_no_cache_is_shown_that_holds_nothing(architecture):
    """An output has the cache of the call, and none where the caller asked for none."""
    stock, model = pair(architecture, num_hidden_layers=2, attn_implementation="sdpa")
    data = without_mask()
    main = {name: value for name, value in data.items() if "pivot" not in name}
    assert cache_of(model(**data)) is None
    asked = cache_of(model(**{**data, "use_cache": True}))
    assert asked.get_seq_length() == cache_of(stock(**{**main, "use_cache": True})).get_seq_length() == MAIN


def test_checkpointing_is_given_no_cache_to_warn_of(caplog):
    _, model = pair("llama", num_hidden_layers=2, attn_implementation="sdpa")
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    model(**without_mask()).loss.backward()
    assert "Caching is incompatible" not in caplog.text


def test_positions_with_a_gap_are_no_packed_rows():
    """Without a mask and a cache transformers would read a gap as the start of another example; the mask stays."""
    _, model = pair("llama", num_hidden_layers=2, attn_implementation="sdpa")
    positions = torch.arange(MAIN)
    positions[30:] += 5
    data = {**inputs(), "position_ids": positions.expand(ROWS, -1), "gumbel_noise": gumbel(ROWS, 2), "use_cache": False}
    loss = model.train()(**data).loss
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**data).loss, loss, rtol=0, atol=1e-6)


def test_decode_step_adds_nothing():
    """Once connected, a decode step is the plain model's."""
    stock, model = pair(matrix=True)
    ids = inputs()["input_ids"][:2]
    options = {"do_sample": False, "eos_token_id": None}

    model.generate(ids, max_new_tokens=1, **options)  # folds the matrix, once

    def steps(generating, count):
        return counted(lambda: generating.generate(ids, max_new_tokens=count, **options)).ops

    ours = steps(model, 6) - steps(model, 3)
    plain = steps(stock, 6) - steps(stock, 3)
    assert ours == plain


def test_generation_synchronises_no_more_than_the_plain_model():
    stock, model = pair(matrix=True)
    ids = inputs()["input_ids"][:2]
    mask = torch.ones_like(ids)
    ours, plain = (
        counted(lambda m=m: m.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False))
        for m in (model, stock)
    )
    # One is the check for right padding; transformers 5.17 reads the mask once in every forward, 5.23 does not.
    assert ours.synchronisations <= plain.synchronisations + 2
