"""Turning the cases of an op into pytest-benchmark tests: one for each model, case, implementation and cache state.

Each test first compares its implementation with the reference, then times calls that are synchronised inside. On a GPU
the inputs of a "cold" test are several times the L2 cache, so that none of them is in it; a "warm" one repeats its own.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest
import torch

from benchmarks.measure.models import NAMES, shape_of
from benchmarks.measure.record import facts, synchronize
from benchmarks.measure.timing import copies_for, copy_bandwidth, device_time
from benchmarks.ops.cases import Case, disagreement
from cc_kernels.aot.shapes import ModelShape

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
# On a CPU the large shapes would take minutes and say nothing about the kernels, which do not run there.
MODELS = NAMES if DEVICE.type == "cuda" else ("tiny",)
ROUNDS, WARM_UP = 30, 5


@dataclass(frozen=True)
class Entry:
    """One implementation of one case, with inputs that are in the L2 cache or not."""

    case: Case
    implementation: str
    cache: str  # "warm" or "cold"

    @property
    def call(self) -> Callable[..., Any]:
        """The implementation."""
        return {**self.case.implementations, **self.case.eager_only}[self.implementation]


def entries(
    model_cases: Callable[[ModelShape, torch.device, torch.dtype], Iterator[Case]], models: tuple[str, ...] = MODELS
) -> Iterator[Any]:
    """pytest parameters, named after model, case, implementation and, on a GPU, cache state."""
    caches = ("warm", "cold") if DEVICE.type == "cuda" else ("warm",)
    for model in models:
        for case in model_cases(shape_of(model), DEVICE, DTYPE):
            for name, cache in itertools.product({**case.implementations, **case.eager_only}, caches):
                label = "-".join((model, case.name, name, *([cache] if DEVICE.type == "cuda" else [])))
                yield pytest.param(Entry(case, name, cache), id=label.replace(" ", "_"))


@lru_cache
def _copy_bandwidth() -> float:
    return copy_bandwidth(DEVICE, 2**30 if DEVICE.type == "cuda" else 2**26)


@lru_cache
def _facts() -> dict[str, Any]:
    return facts(DEVICE)


def run(benchmark: Any, entry: Entry) -> None:
    """Compare with the reference, time, and put bytes, GB/s, share of the copy bandwidth and versions beside the time.

    Raises:
        AssertionError: the implementation computes something else; nothing is timed then.
    """
    case, call = entry.case, entry.call
    copies = copies_for(case.cost.bytes, DEVICE) if entry.cache == "cold" else 1
    sets = [case.inputs(seed) for seed in range(copies)]
    problem = disagreement(call(*sets[0]), case.reference(*case.inputs(0)))
    assert problem is None, f"{case.name}, {entry.implementation}: {problem}"
    following = itertools.cycle(sets)

    def synchronised() -> None:
        call(*next(following))
        synchronize(DEVICE)

    benchmark.group = case.name if DEVICE.type != "cuda" else f"{case.name}, {entry.cache} L2"
    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=max(WARM_UP, copies))
    benchmark.extra_info |= {"implementation": entry.implementation, "cache": entry.cache, "bytes": case.cost.bytes}
    benchmark.extra_info |= _facts()
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = statistics.median(benchmark.stats.stats.data)
    if DEVICE.type == "cuda" and entry.implementation in case.implementations:
        timing = device_time([partial(call, *inputs) for inputs in sets], DEVICE)
        benchmark.extra_info["device_us"] = timing.median
        seconds = timing.median * 1e-6
    reached = case.cost.bytes / seconds
    benchmark.extra_info |= {"gb_per_s": reached / 1e9, "share_of_copy": reached / _copy_bandwidth()}
