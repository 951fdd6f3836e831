"""`report(model)`: which path each layer takes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from cc_model.classes import is_patched
from cc_model.patch import fallback_reason, unwrap
from cc_model.specs import ModelSpec, layers_of, spec_of


@dataclass(frozen=True)
class LayerReport:
    """One decoder layer: `path` is `"fused"` or `"fallback"`, `reason` says why."""

    index: int
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The state of a patched model; `str(report)` is a table."""

    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """One line for each run of equal layers, then the notes."""
        lines = []
        for (path, reason), run in groupby(self.layers, key=lambda layer: (layer.path, layer.reason)):
            indices = [layer.index for layer in run]
            span = f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]}-{indices[-1]}"
            lines.append(f"{span}: {path} ({reason})")
        return "\n".join([*lines, *self.notes])


def report(model: nn.Module) -> Report:
    """Per layer: fused or fallback, and why; then what inference does.

    A fallback layer computes the same, by the stock forward or another library's, and the connection works in both.

    Raises:
        ValueError: the model is not patched.

    Example:
        >>> from cc_model import patch_model, report
        >>> from cc_model.testing import tiny_model
        >>> print(report(patch_model(tiny_model("llama"))))
        layers 0-3: fused (SwiGLU through cc_kernels)
        connection: into the feed-forward output of layer 0; hard; pivot pass without gradient
        inference: no Transform Matrix is set, so generate is the plain model's
    """
    inner: Any = unwrap(model)
    if "cc" not in inner._modules:
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    spec = spec_of(inner)
    layers = []
    for index, layer in enumerate(layers_of(inner)):
        reason = _fallback(getattr(layer, spec.mlp), spec)
        layers.append(LayerReport(index, "fallback" if reason else "fused", reason or "SwiGLU through cc_kernels"))
    return Report(tuple(layers), tuple(_notes(inner.cc)))


def _fallback(block: Any, spec: ModelSpec) -> str | None:
    if not is_patched(block):
        return f"the block was replaced by {type(block).__name__}: connected forwards raise"
    forward = block.__dict__.get("_old_forward", block.__dict__.get("forward"))
    if forward is not None and getattr(forward, "__func__", None) is not type(block).forward:
        return f"an instance-level forward runs: {getattr(forward, '__qualname__', repr(forward))}"
    return fallback_reason(block, spec)


def _notes(connection: Any) -> list[str]:
    config = connection.config
    gradient = "with" if config.pivot_grad else "without"
    notes = [
        f"connection: into the feed-forward output of layer {config.inject_layer}; "
        f"{'hard' if config.hard else 'soft'}; pivot pass {gradient} gradient"
    ]
    if not any(parameter.requires_grad for parameter in connection.decision_maker.parameters()):
        notes.append("connection: the Decision Maker is frozen")
    if not connection.enabled:
        notes.append("connection: disabled")
    if connection.transform_matrix is None:
        return [*notes, "inference: no Transform Matrix is set, so generate is the plain model's"]
    form = "one matrix" if connection.transform_matrix.ndim == 2 else "one matrix per layer"
    form += ", with a bias" if connection.transform_bias is not None else ""
    notes.append(f"inference: simulated by the Transform Matrix ({form})")
    if connection.prefills is not None:
        notes.append(f"last connected prompt: {connection.prefills}")
    return notes


__all__ = ["LayerReport", "Report", "report"]
