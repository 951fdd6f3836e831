"""What stands around the stock `generate`: the state that follows it, and the modes that are refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from cc_model.compat import cache_of
from cc_model.connection.adapters import has_virtual_tokens
from cc_model.connection.notices import say_once
from cc_model.data.columns import (
    BATCH_SHAPE,
    PIVOT_ARGUMENTS,
    check_connection_arguments,
    check_whole,
    has_pivots,
    refuse_orphans,
)
from cc_model.data.modalities import refuse_other_modalities

logger = logging.getLogger("cc_model")

CONNECTING_MODES = frozenset(
    {
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
        GenerationMode.ASSISTED_GENERATION,
    }
)


PACKED_BY = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")  # by these a caller says that rows are packed


class GenerationState:
    """Follows the forwards of one `generate` call, so that it connects once, in the forward that holds the index.

    Positions count from the start of the whole sequence, tokens in a given cache included.

    Args:
        owner: the model that generates; forwards of other models in the same thread are not this call's.
        start: number of tokens already in the cache.
        index: `(B,)` connection index; −1 for a row without a connection. Or the one index of all rows.
        bounds: smallest and largest connection index; an empty range when no row connects.
        pivot: arguments of `PivotCall`, when the English prompt is given.
    """

    def __init__(
        self,
        owner: Any,
        start: int,
        index: Tensor | int,
        bounds: tuple[int, int],
        pivot: dict[str, Any] | None = None,
    ) -> None:
        self.owner = owner
        self.position = start
        self.index = index
        self.first_index, self.last_index = bounds
        self.pivot = pivot
        self.places_tokens = False  # whether the caller gives one of `PACKED_BY`
        self.compile_config: Any = None  # how transformers compiles the decode steps, once it has said so
        self.connected = self.last_index < self.first_index  # no row wants a connection: there is nothing to miss
        self.done = False  # compiled decode steps read this flag only, not positions that differ from call to call

    def enter(self, length: int, cached: bool) -> int | None:
        """The position of the first of `length` tokens about to run, when they hold a connection index; else None.

        Without a cache every forward runs all tokens, and each of them connects at the same place.
        """
        if not cached:
            return 0
        if self.done:
            return None
        start = self.position
        self.position = start + length
        self.done = self.position > self.last_index
        holds_index = start <= self.last_index and self.first_index < self.position
        return start if holds_index else None

    def check_prefill(self) -> None:
        """Raise when the prompt has run and nothing was connected; reads no tensor."""
        if not self.connected:
            raise RuntimeError(
                "generate: expected a connection in the prompt, but the prompt has run without one: something replaced "
                "prepare_inputs_for_generation of the model after patch_model, or gave it other tokens; call "
                "unpatch_model and patch_model again, or wrap the call in cc_model.connection_disabled(model)"
            )

    def local_index(self, window: int, rows: int) -> Tensor | int:
        """The connection index within the tokens from `window` on: `(rows,)`, repeated for beams, or that of all."""
        if isinstance(self.index, int):
            return self.index - window
        return self.index.repeat_interleave(rows // self.index.shape[0]) - window


class _Running(threading.local):
    """The innermost `generate` of this thread. Present from the start: torch.compile guards on presence, too."""

    def __init__(self) -> None:
        self.generation: GenerationState | None = None


_running = _Running()


def current_generation(owner: Any) -> GenerationState | None:
    """The running `generate` of `owner` in this thread."""
    state = _running.generation
    return state if state is not None and state.owner is owner else None


def connected_generate(model: Any, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `PatchedCausalLM.generate` does; see there for arguments, modes and errors.

    Args:
        model: the patched model.
        stock: its stock `generate`.
        args: positional arguments of `generate`.
        kwargs: its keyword arguments, ours among them.
    """
    index = kwargs.pop("connection_index", None)
    pivot = {name: kwargs.pop(name, None) for name in (*PIVOT_ARGUMENTS, BATCH_SHAPE)}
    connection = model.cc
    enabled, fitted = connection.enabled, connection.transform_matrix is not None
    has_pivot = any(value is not None for value in pivot.values()) and has_pivots(pivot)
    if enabled and not has_pivot:
        if any(value is not None for value in pivot.values()):
            refuse_orphans(pivot, training=False)
        if not fitted and say_once(connection, "no matrix"):
            logger.warning("generate: no Transform Matrix is set, so this is the plain model (fit_transform_matrix)")
        if fitted and model.training and say_once(connection, "training"):
            logger.warning("generate: the model is in training mode, where it does not connect; call model.eval()")
    if not enabled or not (has_pivot or (fitted and not model.training)):
        return stock(*args, **kwargs)
    _refuse_unsupported_arguments(kwargs)
    _refuse_virtual_tokens(model)
    state = _state(model, args, kwargs, index, pivot if has_pivot else None)
    state.places_tokens = any(kwargs.get(name) is not None for name in PACKED_BY)
    previous, _running.generation = _running.generation, state
    try:
        output = stock(*args, **kwargs)
    finally:
        _running.generation = previous
    state.check_prefill()
    return output


def _state(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: Any, pivot: dict[str, Tensor | None] | None
) -> GenerationState:
    """Where the prompt starts and ends and where it connects, checked."""
    prompt = args[0] if args else kwargs.get("inputs")
    if kwargs.get("inputs_embeds") is not None:
        prompt = kwargs["inputs_embeds"]
    elif prompt is None:
        prompt = kwargs.get("input_ids")
    rows, given = (1, 1) if prompt is None else prompt.shape[:2]
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    if isinstance(mask, Tensor) and mask.ndim == 2 and not bool((mask[:, -1] != 0).all()):
        raise ValueError(
            "attention_mask: expected left-padded prompts (padding_side='left'), got right padding: generated tokens "
            "would follow the padding and the connection"
        )
    if mask is None and kwargs.get("inputs_embeds") is None and prompt is not None and given > 0:
        _refuse_padding_at_the_end(model, prompt, kwargs)
    past = 0 if cache is None else int(cache.get_seq_length())
    english = _pivot_arguments(model, pivot, rows)
    end = mask.shape[1] if isinstance(mask, Tensor) and kwargs.get("inputs_embeds") is None else given
    if index is None:
        return GenerationState(model, past, end - 1, (end - 1, end - 1), english)
    return GenerationState(model, past, *_given_index(index, rows, given, end, past), english)


def _refuse_padding_at_the_end(model: Any, ids: Tensor, kwargs: dict[str, Any]) -> None:
    """Raise for a prompt that ends in the padding token, when no mask says whether it is one."""
    own = model.generation_config
    sources = (kwargs.get("pad_token_id"), getattr(kwargs.get("generation_config"), "pad_token_id", None))
    pad = next(
        (x for x in (*sources, own.pad_token_id, getattr(model.config, "pad_token_id", None)) if x is not None), -1
    )
    padded = ids[:, -1] == int(pad)
    if bool(padded.any()):
        row = int(padded.int().argmax())
        raise ValueError(
            f"input_ids: expected left-padded prompts (padding_side='left'), got the padding token {int(pad)} at the "
            f"end of row {row}, and no attention_mask; pass the tokenizer's attention_mask, of ones where the token "
            "belongs to the prompt"
        )


def _given_index(index: Any, rows: int, given: int, end: int, past: int) -> tuple[Tensor, tuple[int, int]]:
    """A `connection_index` argument as positions in the whole sequence, and their smallest and largest."""
    if not isinstance(index, Tensor) or index.is_floating_point() or tuple(index.shape) != (rows,):
        got = tuple(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"connection_index: expected integers of shape (B,) = ({rows},), got {got}")
    low, high = int(index.amin()), int(index.amax())
    if low < -1 or high >= given:
        raise ValueError(f"connection_index: expected −1 or an index in [0, {given}), got {low} … {high}")
    offset = end - given
    absolute = torch.where(index >= 0, index + offset, -1)
    connected = absolute[index >= 0]
    if connected.numel() == 0:
        return absolute, (0, -1)
    bounds = int(connected.amin()), int(connected.amax())
    if bounds[0] < past:
        raise ValueError(
            f"connection_index: expected a token that is not in the cache yet (index {past - offset} or later), "
            f"got {bounds[0] - offset}"
        )
    return absolute, bounds


def _pivot_arguments(model: Any, pivot: dict[str, Tensor | None] | None, rows: int) -> dict[str, Tensor | None] | None:
    """Checked arguments of `PivotCall`."""
    if pivot is None:
        return None
    check_whole(pivot)
    check_connection_arguments(pivot, rows, model.cc.num_layers)
    return pivot


def _refuse_unsupported_arguments(kwargs: dict[str, Any]) -> None:
    """Arguments that lead away from the stock decoding loops, or away from text."""
    refuse_other_modalities(kwargs)
    for name, allowed in (("custom_generate", None), ("negative_prompt_ids", None)):
        if kwargs.get(name) is not allowed:
            raise ValueError(_refusal(name))
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError(_refusal("cache_implementation='paged'"))


def _refuse_virtual_tokens(model: Any) -> None:
    """Raise for an adapter that puts virtual tokens before the prompt while it generates.

    PEFT does so in a `prepare_inputs_for_generation` of its own, which it sets on the model for the time of the call.
    """
    wrapper = getattr(model.__dict__.get("prepare_inputs_for_generation"), "__self__", None)
    if wrapper is not None and has_virtual_tokens(wrapper):
        raise ValueError(_refusal("an adapter with virtual tokens before the prompt (prompt, prefix or p-tuning)"))


def refuse_unsupported_mode(model: Any, mode: GenerationMode, generation_config: Any) -> None:
    """Raise for a resolved generation mode in which the connection would be made never or more than once."""
    if current_generation(model) is None:
        return
    if mode not in CONNECTING_MODES:
        raise ValueError(_refusal(f"generation mode {mode.value!r}"))
    guidance = getattr(generation_config, "guidance_scale", None)
    if guidance is not None and guidance != 1:
        raise ValueError(_refusal("guidance_scale"))
    if getattr(generation_config, "assistant_early_exit", None) is not None:
        raise ValueError(_refusal("assistant_early_exit"))
    if getattr(generation_config, "cache_implementation", None) == "paged":
        raise ValueError(_refusal("cache_implementation='paged'"))
    if getattr(generation_config, "token_healing", False):
        raise ValueError(_refusal("token_healing"))


def _refusal(what: str) -> str:
    return (
        f"generate: {what} is not supported with the cross-lingual connection; leave it out, or wrap the call in "
        "cc_model.connection_disabled(model)"
    )
