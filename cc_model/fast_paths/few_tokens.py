"""Whether a feed-forward block may read the weights of its projections itself, in one kernel for a few tokens.

A projection is called as a module wherever anything could be attached to it. Only exactly `nn.Linear` without a bias,
hooks or a `forward` of its own may be bypassed; that is checked at every call, and shown by `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cc_kernels.backend import device_type
from cc_kernels.ops.gate_up_swiglu import MOST_ROWS
from cc_model.fast_paths.hooks import call_is_observed, global_hooks

OP = "gate_up_swiglu"


def streamed(gate: Any, up: Any, x: Tensor, known: Sequence[Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """The weights `(I, d)` of gate and up that `gate_up_swiglu` reads in this call of a block; None where modules run.

    It does for at most `MOST_ROWS` tokens where no obstacle is found. The caller asks whether its kernel would run.

    Args:
        gate, up: the projections. Without `up` `gate` makes both: the weights are the halves of its own `(2 I, d)`.
        x: `(..., d)`.
        known: their weights, where the caller has seen that nobody would miss the calls.
    """
    if not 0 < x.numel() <= MOST_ROWS * x.shape[-1] or torch.is_autocast_enabled(device_type(x)):
        return None
    if known is not None:
        first, second = known[0], known[1]
        if first.dtype != second.dtype or first.shape != second.shape or first.device != second.device:
            return None
    elif obstacle(gate, up) is not None:
        return None
    else:
        weight = gate._parameters["weight"]
        first, second = (weight, up._parameters["weight"]) if up is not None else weight.chunk(2)
    return (first, second) if x.dtype == first.dtype and x.device == first.device else None


def obstacle(gate: Any, up: Any) -> str | None:
    """Why the weights of the projections must not be read past their modules; None when they may."""
    weights = []
    for name, module in (("gate", gate), ("up", up)) if up is not None else (("gate and up", gate),):
        if type(module) is not nn.Linear:
            return f"the {name} projection is a {type(module).__name__}, not nn.Linear"
        attributes = module.__dict__
        parameters = attributes["_parameters"]
        if parameters.get("bias") is not None or "bias" in attributes:
            return f"the {name} projection has a bias"
        if call_is_observed(attributes):
            return f"the {name} projection has hooks"
        if "forward" in attributes:
            return f"the {name} projection has a forward of its own"
        weight = parameters.get("weight")
        if type(weight) is not nn.Parameter and type(weight) is not Tensor:
            return f"the weight of the {name} projection is a {type(weight).__name__}"
        weights.append(weight)
    if global_hooks(forward_only=True):
        return "global forward hooks are registered"
    first, second = weights[0], weights[-1]
    if first.dtype != second.dtype or first.shape != second.shape:
        return "gate and up projections have weights of different dtypes or shapes"
    if first.device != second.device:
        return "gate and up projections lie on different devices"
    return None if first.is_floating_point() else f"weights of dtype {first.dtype}"
