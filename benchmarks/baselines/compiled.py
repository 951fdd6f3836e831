"""The same under `torch.compile`, one decoder layer at a time, which is how large models are compiled in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.base import Vanilla
from benchmarks.baselines.hooks import Hooks, decide_and_select
from benchmarks.baselines.ours import Ours

BACKEND = "inductor"
RECOMPILATIONS = 64  # three modes compile the same layer class, with and without gradient


def compile_layers(model: Any) -> None:
    """Every decoder layer of `model` compiled in place; layers of one kind share their code."""
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    # By default the code compiled for a layer without hooks is taken for the same layer with hooks, silently.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for layer in model.model.layers:
        layer.compile(dynamic=False, backend=BACKEND)


class CompiledVanilla(Vanilla):
    """Vanilla with compiled layers: what the compiled modes are compared with."""

    name = "vanilla+compile"
    compiles = True

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        compile_layers(model)


class CompiledHooks(Hooks):
    """The hooks with compiled layers, hooks included, and a compiled decision."""

    name = "hooks+compile"
    compiles = True

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        self.decide = torch.compile(decide_and_select, dynamic=False, fullgraph=True, backend=BACKEND)
        compile_layers(model)


class CompiledOurs(Ours):
    """The patched model with compiled layers."""

    name = "ours+compile"
    compiles = True

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        compile_layers(model)
