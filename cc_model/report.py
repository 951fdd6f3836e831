"""`report(model)`: which path each layer takes, and why."""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, StaticCache

from cc_kernels.backend import triton_serves
from cc_kernels.ops.gate_up_swiglu import MOST_ROWS
from cc_model.distributed import is_partitioned
from cc_model.fast_paths.few_tokens import OP, obstacle
from cc_model.fast_paths.fused import SILU, fallback_reason
from cc_model.fast_paths.last_layer import narrow_obstacle
from cc_model.fast_paths.pivot_graph import ATTRIBUTE
from cc_model.fast_paths.product import FLAG
from cc_model.fast_paths.rollback import ways_by_type
from cc_model.forward.pivot_graph import graph_work
from cc_model.patching.classes import is_patched
from cc_model.patching.projection import plain_weights
from cc_model.specs import ModelSpec, addend_of, block_of, body_of, layers_of, spec_of, unwrap


@dataclass(frozen=True)
class LayerReport:
    """One decoder layer: `path` is `"fused"` or `"fallback"`, `reason` says why.

    `few_tokens` says how gate and up projections run at inference with a few tokens: by one kernel, or why by modules.
    """

    index: int
    path: str
    reason: str
    few_tokens: str


@dataclass(frozen=True)
class Report:
    """The state of a patched model; `str(report)` is a table. `kernels` says what runs the ops of `cc_kernels`."""

    kernels: str
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """One line for each run of equal layers, then the notes."""
        lines = []
        for (path, reason, few_tokens), run in groupby(self.layers, key=lambda layer: astuple(layer)[1:]):
            indices = [layer.index for layer in run]
            lines.append(f"{_span(indices)}: {path} ({reason}); few tokens at inference: {few_tokens}")
        return "\n".join([f"kernels: {self.kernels}", *lines, *self.notes])


def report(model: nn.Module) -> Report:
    """What runs the ops; per layer fused or fallback, and why; then what inference does.

    A fallback layer computes the same, by the stock forward or another library's, and the connection works in both.

    Args:
        model: a patched model, also inside a PEFT model.

    Raises:
        TypeError: `model` is no torch module.
        ValueError: the model is not patched.

    Example:
        >>> from cc_model import patch_model, report
        >>> from cc_model.testing import tiny_model
        >>> print(report(patch_model(tiny_model("llama"))))
        kernels: plain PyTorch, for tensors on cpu
        layers 0-3: fused (SwiGLU through cc_kernels); few tokens at inference: modules (no Triton kernel on cpu)
        connection: into the feed-forward output of layer 0; hard; pivot pass without gradient
        inference: no Transform Matrix is set, so generate is the plain model's
        captures: the last layer's feed-forward block runs on the captured tokens alone
    """
    inner: Any = unwrap(model)
    if "cc" not in inner._modules:
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    spec = spec_of(inner)
    layers = []
    for index, layer in enumerate(layers_of(inner)):
        block = block_of(layer, spec)
        reason = _fallback(block, addend_of(layer, spec), spec)
        path = "fallback" if reason else "fused"
        few_tokens = "modules" if reason else _few_tokens(block)
        layers.append(LayerReport(index, path, reason or f"{block.cc_fused}{_training(block)}", few_tokens))
    weight = inner.cc.decision_maker.weight
    kernels = f"{'Triton' if triton_serves('swiglu', weight) else 'plain PyTorch'}, for tensors on {weight.device.type}"
    body = body_of(inner)
    notes = (
        *_notes(inner.cc),
        *(_cache_notes(body) if inner.cc.transform_matrix is not None else []),
        _capture_note(body),
        *_memory_notes(layers_of(inner), layers, spec),
        *_graph_notes(body),
    )
    return Report(kernels, tuple(layers), notes)


def _training(block: Any) -> str:
    """Whether `PatchedFeedForward` trains a fused block as one function, for tensors where the weights are."""
    fused = block.cc_fused
    weights = (
        plain_weights(*(getattr(block, name) for name in (fused.gate, fused.up, fused.down))) if fused.up else None
    )
    op = "swiglu" if fused.activation == SILU else "geglu"
    whole = weights is not None and triton_serves(op, weights[0])
    return ", in training one function that keeps no product" if whole else ""


def _few_tokens(block: Any) -> str:
    """How `PatchedFeedForward` runs its projections for up to `MOST_ROWS` tokens at inference."""
    fused = block.cc_fused
    if fused.activation != SILU:
        return "modules (GeGLU)"
    gate = getattr(block, fused.gate)
    reason = obstacle(gate, getattr(block, fused.up) if fused.up else None)
    if reason is None and not triton_serves(OP, gate.weight):
        reason = f"no Triton kernel on {gate.weight.device.type}"
    return f"modules ({reason})" if reason else f"gate, up and SwiGLU in one kernel, up to {MOST_ROWS} tokens"


def _fallback(block: Any, addend: Any, spec: ModelSpec) -> str | None:
    for name, module in (("block", block), ("module whose output is added", addend)):
        if not is_patched(module):
            return f"the {name} was replaced by {type(module).__name__}: connected forwards raise"
    forward = block.__dict__.get("_old_forward", block.__dict__.get("forward"))
    if forward is not None and getattr(forward, "__func__", None) is not type(block).forward:
        return f"an instance-level forward runs: {getattr(forward, '__qualname__', repr(forward))}"
    return fallback_reason(block, spec)


def _capture_note(body: Any) -> str:
    """How a pass whose result nobody reads runs the last feed-forward block."""
    obstacle = narrow_obstacle(body)
    tokens = "the captured tokens alone" if obstacle is None else f"all tokens ({obstacle})"
    return f"captures: the last layer's feed-forward block runs on {tokens}"


def _cache_notes(body: Any) -> list[str]:
    """How each type of layer in the caches that `generate` makes takes the prompt's last tokens back."""
    caches = {
        "dynamic": DynamicCache(config=body.config),
        "static": StaticCache(config=body.config, max_cache_len=sys.maxsize),  # layers get their tensors later
    }
    ways = {name: ways_by_type(cache).items() for name, cache in caches.items()}
    return [f"{name} cache: {'; '.join(f'{kind} {way}' for kind, way in found)}" for name, found in ways.items()]


def _memory_notes(layers: Any, reports: list[LayerReport], spec: ModelSpec) -> list[str]:
    """Which down projections do without their saved input, after `save_memory`, and why others do not."""
    outcomes = []
    for layer, described in zip(layers, reports):
        block = block_of(layer, spec)
        if getattr(block, FLAG, False):
            outcomes.append((_kept_because(layer, block, described, spec), described.index))
    notes = []
    for reason, run in groupby(outcomes, key=lambda outcome: outcome[0]):
        span = _span([index for _, index in run])
        if reason is None:
            notes.append(f"memory: the down projections of {span} compute their input again in the backward")
        else:
            notes.append(f"memory: the down projections of {span} keep their input ({reason})")
    return notes


def _kept_because(layer: Any, block: Any, described: LayerReport, spec: ModelSpec) -> str | None:
    """Why training keeps the down projection's input, or why nothing is left to gain."""
    if described.path == "fallback":
        return described.reason
    if layer._compiled_call_impl is not None:
        return "it is compiled, and the compiler chooses what is kept"
    if is_partitioned(getattr(block, spec.down)):
        return "ZeRO-3 partitions its parameters"
    if getattr(layer, "gradient_checkpointing", False):
        return "of one layer at a time, by gradient checkpointing"
    return None


def _graph_notes(body: Any) -> list[str]:
    """How the pivot pass runs after `use_pivot_graph`."""
    graphs = body.__dict__.get(ATTRIBUTE)
    if graphs is None:
        return []
    obstacle = graph_work(body).obstacle or graphs.failure
    return [f"pivot graph: not used ({obstacle})" if obstacle is not None else f"pivot graph: {graphs}"]


def _span(indices: list[int]) -> str:
    return f"layer {indices[0]}" if len(indices) == 1 else f"layers {indices[0]}-{indices[-1]}"


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
