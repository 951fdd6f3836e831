"""The pass that only captures, as a CUDA graph where `use_pivot_graph` asked for one and nothing stands against it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from cc_model.fast_paths import pivot_graph
from cc_model.fast_paths.pivot_graph import ATTRIBUTE, Buffers, PivotGraphs
from cc_model.fast_paths.same_work import Work, work_of
from cc_model.forward.calls import Body, BodyOutput
from cc_model.forward.masks import makes_one_mask
from cc_model.forward.passes import CapturePass, LayerSlot


def replayed_bank(
    body: Any, stock: Body, slots: list[LayerSlot], ids: Tensor, mask: Tensor | None, tokens: Tensor
) -> Tensor | None:
    """The bank `(L, P, d)` by a graph, in memory of its own; None where the pass has to run as it is.

    Args:
        body: the decoder body.
        stock: its stock forward.
        slots: the slots of all layers.
        ids: `(P, S)`.
        mask: `(P, S)` or None.
        tokens: `(P,)` the captured tokens of the flattened `(P * S)`, all in range.
    """
    graphs: PivotGraphs | None = body.__dict__.get(ATTRIBUTE)
    if graphs is None or torch.compiler.is_compiling():
        return None
    work = graph_work(body)
    graphs.reason = work.obstacle or _obstacle_now(ids, work, graphs)
    if graphs.reason is not None:
        return None
    autocast = _autocast(ids.device)

    def call(buffers: Buffers) -> Tensor:
        # What autocast casts here it must not keep for later, nor take from before: the graph casts at every replay.
        with torch.autocast(ids.device.type, dtype=autocast[1], enabled=autocast[0], cache_enabled=False):
            return bank_of(body, stock, slots, buffers)

    bank = graphs.run(work.state, autocast, (ids, mask, tokens), call)
    graphs.reason = graphs.failure or graphs.reason
    return bank


def graph_work(body: Any) -> Work:
    """Why no graph may stand for the pass, as far as the model decides it, and what a graph of it is valid for."""
    if not makes_one_mask(body):
        return Work(
            f"{body.config.model_type} with {body.config._attn_implementation} attention is not known to take a ready "
            "mask and to ask the device for nothing"
        )
    work = work_of(body)
    if work.obstacle is not None or work.device is None:
        return work
    return work._replace(obstacle=pivot_graph.CudaGraph.obstacle(work.device))


def hidden_without_meaning(bank: Tensor, ids: Tensor) -> BodyOutput:
    """What a body returns, for a pass whose hidden states `(P, S, d)` nobody reads."""
    return BaseModelOutputWithPast(last_hidden_state=bank.new_zeros(()).expand(*ids.shape, bank.shape[-1]))


def _obstacle_now(ids: Tensor, work: Work, graphs: PivotGraphs) -> str | None:
    """What stands against a graph in this call."""
    if graphs.failure is not None:
        return graphs.failure
    if torch.is_grad_enabled():
        return "a gradient goes through the pass"
    if ids.device != work.device:
        return f"the prompts are on {ids.device}, the model on {work.device}"
    return None


def _autocast(device: torch.device) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def bank_of(body: Any, stock: Body, slots: list[LayerSlot], buffers: Buffers) -> Tensor:
    """The bank of the prompts in the buffers; padding sees itself, so that every token's numbers are finite."""
    positions = buffers.positions[0]
    causal, itself = positions[:, None] >= positions, positions[:, None] == positions
    capture = CapturePass(buffers.tokens, slots, body)
    stock(
        input_ids=buffers.ids,
        attention_mask=causal & (buffers.attended[:, None, None] | itself),  # (P, 1, S, S)
        position_ids=buffers.positions,
        use_cache=False,
        output_hidden_states=False,
        output_attentions=False,
        cc_pass=capture,
    )
    return capture.collect(buffers.ids.device)


__all__ = ["bank_of", "graph_work", "hidden_without_meaning", "replayed_bank"]
