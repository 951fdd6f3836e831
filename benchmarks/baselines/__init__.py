"""Ways to run CC-Tuning that ours is measured against. Each one is tested to compute the same thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.baselines.base import Batch, Mode, TwoForwards, Vanilla, random_batch
from benchmarks.baselines.compiled import CompiledHooks, CompiledOurs, CompiledVanilla
from benchmarks.baselines.hooks import Hooks
from benchmarks.baselines.interventions import NNsight
from benchmarks.baselines.labelled import VanillaLossOnly, VanillaTRL
from benchmarks.baselines.ours import Ours, OursGraph, OursPlain, OursUnshared
from benchmarks.baselines.published import Published
from benchmarks.measure.models import twin

# Every way to train. A new one is a class and a line here.
MODES: tuple[type[Mode], ...] = (
    Vanilla,
    VanillaLossOnly,
    VanillaTRL,
    TwoForwards,
    Published,
    Hooks,
    NNsight,
    Ours,
    OursGraph,
    OursUnshared,
    OursPlain,
    CompiledVanilla,
    CompiledHooks,
    CompiledOurs,
)

# Whose generation is profiled, and whose also with a static cache; the others are ways to train.
GENERATING: tuple[type[Mode], ...] = (Vanilla, Published, Hooks, Ours)
STATIC: tuple[type[Mode], ...] = (Vanilla, Ours)


def make_modes(wanted: list[type[Mode]], model: Any, pivot_grad: bool = False, seed: int = 0) -> list[Mode]:
    """The wanted modes that are available, on twins of `model`: one set of weights, Decision Maker and matrix for all.

    Example:
        >>> from benchmarks.measure.models import build
        >>> model = build("tiny", torch.device("cpu"), torch.float32, layers=2)
        >>> [mode.name for mode in make_modes([Vanilla, Ours], model)]
        ['vanilla', 'ours']
    """
    config, like = model.config, model.get_input_embeddings().weight
    generator = torch.Generator(like.device).manual_seed(seed)
    width = config.hidden_size
    options: dict[str, Any] = {"generator": generator, "device": like.device, "dtype": like.dtype}
    maker = nn.Parameter(torch.randn(config.num_hidden_layers, width, **options) * width**-0.5)
    matrix = torch.randn(width, width, **options) * width**-0.5
    return [kind(twin(model), maker, matrix, pivot_grad) for kind in wanted if kind.available]


__all__ = ["GENERATING", "MODES", "STATIC", "Batch", "Mode", "make_modes", "random_batch"]
