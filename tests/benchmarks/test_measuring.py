"""The instruments: FLOPs against PyTorch's counter, interleaving, counting, refusals, and the doctests."""

from __future__ import annotations

import doctest
import pkgutil
import time
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import benchmarks
from benchmarks.baselines import make_modes, random_batch
from benchmarks.baselines.base import Vanilla
from benchmarks.baselines.hooks import Hooks
from benchmarks.baselines.ours import Ours
from benchmarks.measure import agreement
from benchmarks.measure.counting import count_launches, count_ops
from benchmarks.measure.flops import body_flops, capture_flops, head_flops, prefill_ratio, training_ratio
from benchmarks.measure.interleaved import FEWEST_ROUNDS, rounds_of
from benchmarks.measure.models import build
from benchmarks.ops.cases import backward_only
from benchmarks.profile import training as profile_training
from benchmarks.show import profile_fusion as show_profile
from cc_model import patch_model
from cc_model.forward.bank import captured_bank

CPU = torch.device("cpu")
OPTIONAL = {"benchmarks.show.figure"}  # needs matplotlib
MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if "test_" not in module.name and not module.ispkg and not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    if name in OPTIONAL:
        pytest.importorskip("matplotlib")
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_flops_are_those_that_pytorch_counts(rows):
    """Of the projections; PyTorch counts attention over all keys, a causal kernel needs half of it and the diagonal."""
    model = build("tiny", CPU, torch.float32, layers=2)
    model.set_attn_implementation("eager")
    config, tokens = model.config, 10
    ids = torch.randint(2048, (rows, tokens))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    attention = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * rows
    every_key, causal = attention * tokens * tokens, attention * tokens * (tokens + 1) // 2
    counted = counter.get_flop_counts()["Global"]
    rotary = counted.pop(torch.ops.aten.bmm) - every_key  # the angles: one product of positions and frequencies
    assert 0 <= rotary <= 4 * rows * tokens * config.head_dim
    assert body_flops(config, rows, tokens) + head_flops(config, rows, tokens) == sum(counted.values()) + causal


class ProductCounter(TorchDispatchMode):
    """Floating-point operations of matrix products, without FlopCounterMode's hooks on every module."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.flops += 2 * args[0].numel() * args[1].shape[1]
        return output


def test_flops_of_a_capture():
    model: Any = build("tiny", CPU, torch.float32, layers=2)
    ids, counts = torch.randint(2048, (3, 10)), []
    for run in (lambda: model.model(ids, use_cache=False), lambda: captured_bank(model, model, ids, None, None)):
        with ProductCounter() as counter, torch.no_grad():
            run()
        counts.append(counter.flops)
        patch_model(model)
    assert counts[0] - counts[1] == body_flops(model.config, 3, 10) - capture_flops(model.config, 3, 10) > 0


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="layers: expected 1 or more, got 0"):
        build("tiny", CPU, torch.float32, layers=0)


def test_predicted_ratios():
    config = build("tiny", CPU, torch.float32, layers=2).config
    plain = 3 * (body_flops(config, 2, 8) + head_flops(config, 2, 8))
    pivot = capture_flops(config, 2, 6)
    assert training_ratio(config, 2, 8, 6) == pytest.approx(1 + pivot / plain)
    assert training_ratio(config, 2, 8, 6, pivot_grad=True) == pytest.approx(1 + 3 * pivot / plain)
    assert 1.98 < prefill_ratio(config, 1, 512, prefills=2) < 2
    # One token runs again through all layers, and 511 do not run through one feed-forward block.
    deep = build("tiny", CPU, torch.float32, layers=16).config
    assert prefill_ratio(config, 1, 512) < prefill_ratio(deep, 1, 512) < 1 < prefill_ratio(deep, 1, 8)


def test_rounds_are_interleaved_and_end_after_the_deadline():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    rounds_of(calls, CPU, rounds=4)
    assert "".join(order) == "abababab"
    samples = rounds_of(calls, CPU, rounds=100, deadline=time.monotonic() - 1)
    assert len(samples["a"]) == FEWEST_ROUNDS


def test_launches_are_counted_on_a_gpu_only_but_a_trace_is_written(tmp_path):
    trace = tmp_path / "trace.json"
    assert count_launches(lambda: torch.ones(3).sum(), CPU, str(trace)) == {}
    assert "traceEvents" in trace.read_text()


def test_backward_alone_reuses_its_graph():
    calls = []

    def square(x):
        calls.append(x)
        return x * x

    x = torch.tensor([3.0], requires_grad=True)
    backward = backward_only(square)
    assert [backward(x)[0].item() for _ in range(3)] == [6.0, 6.0, 6.0]
    assert len(calls) == 1
    assert count_ops(lambda: backward(x))["ops"] < count_ops(lambda: backward_only(square)(x))["ops"]


class Broken(Ours):
    """Another loss, and another gradient of the Decision Maker."""

    name = "broken"

    def loss(self, batch):
        return super().loss(batch) + self.maker.mean()


class Failing(Hooks):
    """Cannot run."""

    name = "failing"

    def loss(self, batch):
        raise RuntimeError("out of memory")


def test_modes_that_compute_something_else_or_fail_are_refused():
    model = build("tiny", CPU, torch.float32, layers=2)
    modes = make_modes([Vanilla, Broken, Hooks, Failing], model)
    data = random_batch(2, 6, 3, 5, 2048, 2, CPU)
    found = profile_training.profile_training(modes, data, CPU, rounds=3, progress=lambda _: None)["modes"]
    assert "differs by" in found["broken"]["refused"]
    assert found["failing"]["refused"] == "RuntimeError: out of memory"
    assert found["hooks"]["ratio"]["samples"] == 3


def test_what_is_timed_is_kept_before_it_is_counted(monkeypatch):
    """A process that is stopped while it counts has not timed in vain."""
    model = build("tiny", CPU, torch.float32, layers=2)
    data = random_batch(2, 6, 3, 5, 2048, 2, CPU)
    kept = []

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_training, "_counted", stop)
    modes = make_modes([Vanilla, Hooks], model)
    with pytest.raises(KeyboardInterrupt):
        profile_training.profile_training(modes, data, CPU, rounds=3, progress=lambda _: None, keep=kept.append)
    assert kept[0]["modes"]["hooks"]["ratio"]["samples"] == 3
    assert kept[0]["predicted"] > 1
    record = {"arguments": {"model": "tiny", "dtype": "fp32"}, "facts": {"device": "a CPU"}, "train": kept[0]}
    (table,) = show_profile.tables(record)
    assert [row[-3:] for row in table.rows] == [["–"] * 3] * 2


def test_agreement_is_one_table():
    assert agreement.allowed("gradient", torch.bfloat16) > agreement.allowed("loss", torch.bfloat16)
    with pytest.raises(ValueError, match="what: expected one of op, loss, gradient, logits, got 'tokens'"):
        agreement.allowed("tokens", torch.float32)
    nothing = torch.tensor([float("nan")])
    assert agreement.difference("loss", nothing, torch.ones(1), torch.float32) is not None


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer: expected one of adamw, sgd, none, got 'lion'"):
        profile_training.make_optimizer("lion", [], CPU)
