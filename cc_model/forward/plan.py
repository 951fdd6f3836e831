"""Deciding what a forward of a patched model does, from its arguments alone: nothing here reads a tensor's data."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from cc_model.compat import CACHE
from cc_model.connection.notices import say_once
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.columns import (
    BATCH_SHAPE,
    CONNECTION_ARGUMENTS,
    INDEX,
    LOSS_ROWS,
    NOISE,
    check_connection_arguments,
    check_whole,
    entries_of,
    has_pivots,
    refuse_orphans,
)
from cc_model.data.modalities import refuse_other_modalities
from cc_model.data.positions import before_first_label
from cc_model.forward.calls import PlainCall, input_shape, keeps_cache
from cc_model.forward.head import labelled_rows
from cc_model.forward.packing import PACKED, check_packed, refuse_packing
from cc_model.forward.pivot_call import PivotCall
from cc_model.forward.simulated_call import SimulatedCall
from cc_model.generation import GenerationState
from cc_model.specs import spec_of

logger = logging.getLogger("cc_model")

WHERE_TO_CONNECT = (
    "connection_index: expected the token of each row to connect, got neither connection_index nor labels. In "
    "evaluation with a Transform Matrix a forward does not guess where the prompt ends. Pass connection_index= (B,), "
    "the index of each prompt's last token (−1: no connection in this row), or labels, before whose first one it "
    "connects; or call it inside cc_model.connection_disabled(model) for the plain model, as for the reference of DPO "
    "or a prefix whose cache goes into generate. generate and cc_model.scoring.score_choices connect by themselves"
)

GENERATION_STEP = "cc_generation"  # marks the inputs of a forward as a step of the running `generate`


def plan(model: Any, named: dict[str, Any]) -> PlainCall:
    """The call for the arguments `named`, from which the connection's own are taken out.

    Given pivots, it connects. Without them: never in training; in evaluation, when a Transform Matrix is set, as the
    running `generate` says, at a given `connection_index`, or, with an empty cache, before the first label. In
    training, head and loss read the tokens of `loss_rows` alone.

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
    if taken[BATCH_SHAPE] is not None:
        check_whole(taken)
    call = _connected(model, named, taken, generation)
    if connection.training and taken[LOSS_ROWS] is not None:
        call.loss_rows = labelled_rows(named, taken[LOSS_ROWS], *input_shape(named))
    return call


def _connected(
    model: Any, named: dict[str, Any], taken: dict[str, Any], generation: GenerationState | None
) -> PlainCall:
    """The call, as far as the connection decides it."""
    connection = model.cc
    if not connection.enabled:
        return PlainCall()
    if generation is not None:
        return _plan_generation(model, named, generation, taken)
    english = has_pivots(taken)
    if not english:
        refuse_orphans(taken, connection.training)
        if connection.training:
            _warn_of_plain_step(connection, named)
        if connection.training or not connection.simulates:
            return PlainCall()
    refuse_other_modalities(named)
    tokens = named.get("input_ids")
    rows, length = (named["inputs_embeds"] if tokens is None else tokens).shape[:2]
    entries = entries_of(taken, rows)
    packed = entries != rows
    check_connection_arguments(taken, entries, connection.num_layers)
    if packed:
        check_packed(entries, named, rows)
    elif not PACKED.isdisjoint(named):
        refuse_packing(named)
    index, labels = taken[INDEX], named.get("labels")
    if index is None and isinstance(labels, Tensor):
        index = before_first_label(labels)
    if connection.training:
        _warn_of_mistakes(connection, index)
    shared: dict[str, Any] = {"shape": (rows, length), "index": index, "noise": taken[NOISE]}
    if english:
        return PivotCall(connection, model.cc_slots(), pivots=taken, packed=packed, **shared)
    if taken[INDEX] is None:
        cache = named.get(CACHE)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return PlainCall()
        if index is None:
            raise ValueError(WHERE_TO_CONNECT)
    slots, kept = model.cc_slots(), 0 if spec_of(model).cuts else named.get("logits_to_keep", 0)
    return SimulatedCall(connection, slots, logits_to_keep=kept, **shared)


def _plan_generation(
    model: Any, named: dict[str, Any], generation: GenerationState, taken: dict[str, Any]
) -> PlainCall:
    """The call of one step of `generate`: connected when its tokens hold a connection index."""
    if generation.pivot is None and (model.cc.training or model.cc.transform_matrix is None):
        return PlainCall()  # the matrix was dropped, or the mode changed, in the middle of the call
    tokens = named.get("input_ids")
    rows, length = (named["inputs_embeds"] if tokens is None else tokens).shape[:2]
    cached = named.get(CACHE) is not None or keeps_cache(model, named)  # some bodies make their cache themselves
    window = generation.enter(length, cached)
    if window is None:
        return PlainCall()
    generation.connected = True
    if taken[NOISE] is not None:
        check_connection_arguments(taken, rows, model.cc.num_layers)
    if generation.places_tokens:
        refuse_packing(named)
    index = generation.local_index(window, rows)
    shared: dict[str, Any] = {"shape": (rows, length), "index": index, "noise": taken[NOISE]}
    if generation.pivot is not None:
        return PivotCall(model.cc, model.cc_slots(), pivots=generation.pivot, **shared)
    first = generation.first_index - window if generation.first_index >= window else 0
    # Families that cut by the length of what the body returns need all of it.
    slots, kept = model.cc_slots(), 0 if spec_of(model).cuts else named.get("logits_to_keep", 0)
    options: dict[str, Any] = {"logits_to_keep": kept, "compile_config": generation.compile_config}
    return SimulatedCall(model.cc, slots, first_index=first, **options, **shared)


def _warn_of_mistakes(connection: CrossLingualConnection, index: Tensor | None) -> None:
    """Say once what trains, but hardly as it was meant."""
    if index is None and say_once(connection, "no index"):
        logger.warning(
            "training without labels and without connection_index: each row connects at its last attended token. "
            "Trainer takes the labels away with label smoothing and with compute_loss_func; ParallelCollator gives "
            "the index"
        )
    if torch.is_grad_enabled() and not _learns(connection.decision_maker) and say_once(connection, "frozen"):
        logger.warning(
            "the Decision Maker is frozen (requires_grad=False) and keeps its values; an adapter freezes it unless it "
            "is told modules_to_save=['decision_maker']"
        )


def _learns(maker: Any) -> bool:
    weight = maker._parameters.get("weight")  # the quick way; an adapter's wrapper keeps it in a module of its own
    return (weight is not None and weight.requires_grad) or any(x.requires_grad for x in maker.parameters())


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
