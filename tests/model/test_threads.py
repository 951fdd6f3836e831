"""`connection_disabled` in several threads: each thread is plain inside its own blocks, and nowhere else."""

from __future__ import annotations

import copy
import importlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from generation_helpers import GREEDY, prompts
from model_pairs import assert_same_gradients, at_end, batch, gradients, gumbel, pair

from cc_model import connection_disabled

replication = importlib.import_module("torch.nn.parallel.replicate")  # the package has a function of that name


@pytest.fixture
def answers():
    """A model, a prompt, and what it answers with and without the connection."""
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    connected = model.generate(ids, **GREEDY)
    with connection_disabled(model):
        plain = model.generate(ids, **GREEDY)
    assert not torch.equal(connected, plain)
    return model, ids, connected, plain


class Thread:
    """A thread that runs one function after the other and hands each result back."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(max_workers=1)

    def __call__(self, function, *args):
        return self.pool.submit(function, *args).result(timeout=60)


@pytest.mark.parametrize("order", ["nested in time", "overlapping"])
def test_two_threads(order, answers):
    model, ids, connected, plain = answers
    first, second = Thread(), Thread()
    blocks = [connection_disabled(model), connection_disabled(model)]
    answer = lambda: model.generate(ids, **GREEDY)  # noqa: E731
    first(blocks[0].__enter__)
    assert torch.equal(first(answer), plain)
    assert torch.equal(second(answer), connected)
    second(blocks[1].__enter__)
    assert torch.equal(second(answer), plain)
    assert torch.equal(answer(), connected), "the main thread entered none"
    ends = [(first, blocks[0]), (second, blocks[1])]
    (ended, block), (other, last) = ends if order == "overlapping" else ends[::-1]
    ended(block.__exit__, None, None, None)
    assert torch.equal(ended(answer), connected)
    assert torch.equal(other(answer), plain)
    other(last.__exit__, None, None, None)
    for thread in (first, second):
        assert torch.equal(thread(answer), connected)
        assert thread(lambda: model.cc.enabled)


def test_nested_blocks(answers):
    model, ids, connected, plain = answers
    with connection_disabled(model):
        with pytest.raises(KeyError), connection_disabled(model):
            raise KeyError
        assert not model.cc.enabled
        assert torch.equal(model.generate(ids, **GREEDY), plain)
    assert torch.equal(model.generate(ids, **GREEDY), connected)


def test_blocks_that_overlap_in_one_thread(answers):
    """As those of two coroutines do."""
    model, *_ = answers
    first, second = connection_disabled(model), connection_disabled(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.cc.enabled
    second.__exit__(None, None, None)
    assert model.cc.enabled


def test_a_block_is_of_one_model(answers):
    model, *_ = answers
    _, other = pair(matrix=True)
    with connection_disabled(model):
        assert other.cc.enabled


def test_a_thread_that_starts_inside_of_a_block(answers):
    """It is outside, as the documentation says; inside of a block of its own it is plain."""
    model, ids, connected, plain = answers
    found = {}

    def stream(name, block):
        if block:
            with connection_disabled(model):
                found[name] = model.generate(ids, **GREEDY)
        else:
            found[name] = model.generate(ids, **GREEDY)

    with connection_disabled(model):
        for name, block in (("outside", False), ("inside", True)):
            thread = threading.Thread(target=stream, args=(name, block))
            thread.start()
            thread.join()
    assert torch.equal(found["outside"], connected)
    assert torch.equal(found["inside"], plain)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_in_a_block_connects(twin, answers):
    model, ids, connected, _ = answers
    with connection_disabled(model):
        other = twin(model)
    assert other.cc.enabled
    assert torch.equal(other.generate(ids, **GREEDY), connected)
    with connection_disabled(other):
        assert model.cc.enabled


def test_the_switch_is_not_assigned():
    _, model = pair()
    with pytest.raises(AttributeError, match="enabled"):
        model.cc.enabled = False


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recompute_in_another_thread_reads_no_switch(reentrant, disabled):
    """A backward on a GPU runs in a thread of its own: the recompute repeats the forward that it belongs to."""
    _, expected = pair()
    _, model = pair()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    data, noise = batch(), gumbel(3)
    for one in (expected, model):
        if disabled:
            with connection_disabled(one):
                loss = one.train()(**data, gumbel_noise=noise).loss
            Thread()(loss.backward)
        else:
            loss = one.train()(**data, gumbel_noise=noise).loss
            with connection_disabled(one):
                Thread()(loss.backward)
    assert_same_gradients(gradients(model), gradients(expected), tolerance=1e-5)
    assert ("cc.decision_maker.weight" in gradients(model)) != disabled


def replicas_of(model, monkeypatch, count=2):
    """What `nn.DataParallel` makes of a model; on a CPU there is nothing to copy to."""
    same = lambda tensors, devices, detach=False: [list(tensors) for _ in devices]  # noqa: E731
    monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", same)
    monkeypatch.setattr(replication, "_get_device_index", lambda device, optional: device)
    return replication.replicate(model, list(range(count)))


@pytest.mark.parametrize("mode", ["english", "matrix"])
def test_replicas_of_data_parallel_follow_the_calling_thread(mode, monkeypatch):
    _, model = pair(matrix=mode == "matrix")
    data = batch()
    if mode == "matrix":
        data = {"input_ids": data["input_ids"], **at_end(data["input_ids"])}

    def run():
        return [Thread()(lambda r=replica: r(**data)) for replica in replicas_of(model, monkeypatch)]

    expected = model(**data)
    with connection_disabled(model):
        plain, outputs = model(**data), run()
    for output in outputs:
        assert "decision_weights" not in output
        assert torch.equal(output.logits, plain.logits)
    for output in run():
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    assert not torch.equal(plain.logits, expected.logits)


def test_compiled_code_reads_the_switch_of_its_thread():
    _, model = pair(num_hidden_layers=2)
    data = {**batch(), "gumbel_noise": gumbel(3, 2)}
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = model(**data).logits
        with connection_disabled(model):
            plain = model(**data).logits
        other = Thread()
        for _ in range(2):
            torch.testing.assert_close(compiled(**data).logits, expected, rtol=0, atol=1e-5)
            with connection_disabled(model):
                torch.testing.assert_close(compiled(**data).logits, plain, rtol=0, atol=1e-5)

                def elsewhere():
                    with torch.no_grad():
                        return compiled(**data).logits

                torch.testing.assert_close(other(elsewhere), expected, rtol=0, atol=1e-5)
