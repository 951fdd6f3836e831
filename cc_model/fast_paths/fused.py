"""Which feed-forward blocks run through `cc_kernels`: their projections and their activation, read from the instance.

A block qualifies when it computes `down(act(gate(x)) * up(x))`, with SiLU or GELU, and nothing more. Liger-Kernel's
modules do, too; nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from cc_model.specs import ModelSpec

SILU, GELU_TANH, GELU = "silu", "gelu_tanh", "gelu"
_NAMES = {SILU: "SwiGLU", GELU_TANH: "GeGLU, tanh", GELU: "GeGLU"}
_ACTIVATIONS = {
    "SiLUActivation": SILU,
    "SiLU": SILU,
    "GELUTanh": GELU_TANH,
    "PytorchGELUTanh": GELU_TANH,
    "GELUActivation": GELU,
}
# Liger's modules have no activation of their own: each class computes one.
_LIGER = {"LigerSwiGLUMLP": SILU, "LigerPhi3SwiGLUMLP": SILU, "LigerGEGLUMLP": GELU_TANH}


@dataclass(frozen=True)
class FusedBlock:
    """How a feed-forward block runs: the names of its projections, and its activation.

    `up` is empty where `gate` makes both halves, the gate in front.
    """

    gate: str
    up: str
    down: str
    activation: str

    def __str__(self) -> str:
        """What `report` says of it."""
        halves = "" if self.up else ", gate and up in one projection"
        return f"{_NAMES[self.activation]} through cc_kernels{halves}"


def fused_block(block: nn.Module, spec: ModelSpec) -> FusedBlock | None:
    """How `block` runs through `cc_kernels`; None when it runs its own forward."""
    activation = _activation(block, spec)
    if activation is None or fallback_reason(block, spec) is not None:
        return None
    return FusedBlock(spec.gate_up or spec.gate, "" if spec.gate_up else spec.up, spec.down, activation)


def fallback_reason(block: nn.Module, spec: ModelSpec) -> str | None:
    """Why a feed-forward block runs its stock forward; None when it runs through `cc_kernels`."""
    if hasattr(block, "experts"):
        return f"{type(block).__name__} is a mixture of experts"
    projections = (spec.gate_up or spec.gate, spec.gate_up or spec.up, spec.down)
    missing = [name for name in projections if not hasattr(block, name)]
    if missing:
        return f"no projection named {missing[0]}"
    if _activation(block, spec) is None:
        activation = getattr(block, spec.activation, None) if spec.activation else None
        if activation is not None:
            return f"activation {type(activation).__name__}, not SiLU or GELU"
        return f"{type(block).__name__} has no activation {spec.activation!r}"
    if spec.scaled:
        return spec.scaled
    if spec.dropout and getattr(block, spec.dropout):
        return f"dropout of the output ({spec.dropout})"
    return None


def _activation(block: nn.Module, spec: ModelSpec) -> str | None:
    for cls in type(block).__mro__:
        if cls.__name__ in _LIGER:
            return _LIGER[cls.__name__]
    if not spec.activation:
        return SILU
    module: Any = getattr(block, spec.activation, None)
    if type(module) is nn.GELU:
        return GELU_TANH if module.approximate == "tanh" else GELU
    return _ACTIVATIONS.get(type(module).__name__) if isinstance(module, nn.Module) else None


__all__ = ["GELU", "GELU_TANH", "SILU", "FusedBlock", "fallback_reason", "fused_block"]
