"""Deciding what a forward of a patched model does, from its arguments alone: nothing here reads a tensor's data."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from cc_model.compat import cache_of
from cc_model.connection.notices import say_once
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.columns import CONNECTION_ARGUMENTS, INDEX, check_connection_arguments, refuse_orphans
from cc_model.data.positions import before_first_label
from cc_model.forward.calls import ConnectedCall, PlainCall, input_shape
from cc_model.forward.packing import check_packed, is_packed, refuse_packing
from cc_model.forward.pivot_call import PivotCall
from cc_model.forward.simulated_call import SimulatedCall
from cc_model.generation import GenerationState

logger = logging.getLogger("cc_model")

WHERE_TO_CONNECT = (
    "connection_index: expected the token of each row to connect, got neither connection_index nor labels. In "
    "evaluation with a Transform Matrix a forward does not guess where the prompt ends. Pass connection_index= (B,), "
    "the index of each prompt's last token (−1: no connection in this row), or labels, before whose first one it "
    "connects; or call it inside cc_model.connection_disabled(model) for the plain model, as for the reference of DPO "
    "or a prefix whose cache goes into generate. generate and cc_model.scoring.score_choices connect by themselves"
)

GENERATION_STEP = "cc_generation"  # marks the inputs of a forward as a step of the running `generate`


def plan(model: Any, named: dict[str, Any]) -> PlainCall | ConnectedCall:
    """The call for the arguments `named`, from which the connection's own are taken out.

    Given pivot tensors, it connects. Without them: never in training; in evaluation, when a Transform Matrix is set, as
    the running `generate` says, at a given `connection_index`, or, with an empty cache, before the first label.

    Raises:
        ValueError: in evaluation with a matrix and an empty cache nothing says where to connect.
    """
    taken = {name: named.pop(name, None) for name in CONNECTION_ARGUMENTS}
    generation = named.pop(GENERATION_STEP, None)
    connection = model.cc
    if not isinstance(connection, CrossLingualConnection):
        raise RuntimeError(
            f"model.cc: expected the connection, got {type(connection).__name__}; an adapter wrapped it. Use "
            "modules_to_save=['decision_maker']"
        )
    if not connection.enabled:
        return PlainCall()
    pivot_ids = taken["pivot_input_ids"]
    if pivot_ids is None and (generation is None or generation.pivot is None):
        refuse_orphans(taken, connection.training)
        if connection.training:
            _warn_of_plain_step(connection, named)
        if connection.training or not connection.simulates:
            return PlainCall()
    if generation is not None:
        return _plan_generation(model, named, generation, taken)
    rows = input_shape(named)[0]
    packed = is_packed(taken, rows)
    examples = taken["pivot_input_ids"].shape[0] if packed else rows
    check_connection_arguments(taken, examples, connection.num_layers)
    if packed:
        check_packed(taken, named, rows)
    else:
        refuse_packing(named)
    index = _default_index(taken["connection_index"], named)
    if connection.training:
        _warn_of_mistakes(connection, index)
    shared: dict[str, Any] = {"index": index, "noise": taken["gumbel_noise"]}
    if pivot_ids is not None:
        pivot = (pivot_ids, taken["pivot_attention_mask"], taken["pivot_index"])
        return PivotCall(connection, model.cc_slots(), *pivot, packed=packed, **shared)
    if taken[INDEX] is None:
        cache = cache_of(named)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return PlainCall()
        if index is None:
            raise ValueError(WHERE_TO_CONNECT)
    return SimulatedCall(connection, model.cc_slots(), logits_to_keep=named.get("logits_to_keep", 0), **shared)


def _plan_generation(
    model: Any, named: dict[str, Any], generation: GenerationState, taken: dict[str, Tensor | None]
) -> PlainCall | ConnectedCall:
    """The call of one step of `generate`: connected when its tokens hold a connection index."""
    rows, length = input_shape(named)
    check_connection_arguments(taken, rows, model.cc.num_layers)
    window = generation.enter(length, cached=cache_of(named) is not None)
    if window is None:
        return PlainCall()
    generation.connected = True
    refuse_packing(named)
    index = generation.local_index(window, rows)
    shared: dict[str, Any] = {"index": index, "noise": taken["gumbel_noise"]}
    if generation.pivot is not None:
        return PivotCall(model.cc, model.cc_slots(), **generation.pivot, **shared)
    first = generation.first_index - window if generation.first_index >= window else 0
    return SimulatedCall(
        model.cc,
        model.cc_slots(),
        first_index=first,
        logits_to_keep=named.get("logits_to_keep", 0),
        compile_config=generation.compile_config,
        **shared,
    )


def _warn_of_mistakes(connection: CrossLingualConnection, index: Tensor | None) -> None:
    """Say once what trains, but hardly as it was meant."""
    if index is None and say_once(connection, "no index"):
        logger.warning(
            "training without labels and without connection_index: each row connects at its last attended token. "
            "Trainer takes the labels away with label smoothing and with compute_loss_func; ParallelCollator gives "
            "the index"
        )
    trains = any(parameter.requires_grad for parameter in connection.decision_maker.parameters())
    if torch.is_grad_enabled() and not trains and say_once(connection, "frozen"):
        logger.warning(
            "the Decision Maker is frozen (requires_grad=False) and keeps its values; an adapter freezes it unless it "
            "is told modules_to_save=['decision_maker']"
        )


def _warn_of_plain_step(connection: CrossLingualConnection, named: dict[str, Any]) -> None:
    """Say once that a training step has no English prompts: a plain step is allowed, but seldom meant."""
    trains = torch.is_grad_enabled() and named.get("labels") is not None
    if trains and say_once(connection, "no pivots"):
        logger.warning(
            "training without pivot_input_ids: this is plain fine-tuning. ParallelCollator gives pivots for every "
            "batch. Of tokenised rows TRL's SFTTrainer, and Trainer with use_liger_kernel, drop the pivot columns "
            "unless they are told remove_unused_columns=False"
        )
        if connection.transform_matrix is not None:
            logger.warning(
                "a Transform Matrix is set: forwards in evaluation with the same labels connect, these steps do not. "
                "A trainer that compares the two (DPO, KTO) belongs inside of cc_model.connection_disabled(model), "
                "for the policy and for a patched reference"
            )


def _default_index(index: Tensor | None, named: dict[str, Any]) -> Tensor | None:
    """The given index, the one before the first label, or None for the last attended token."""
    labels = named.get("labels")
    return before_first_label(labels) if index is None and isinstance(labels, Tensor) else index
