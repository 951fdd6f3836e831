"""The connected forward without an English prompt: one prefill, a decision, and the last tokens again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import CompileConfig

from cc_kernels import capture_rows
from cc_model.compat import CACHE
from cc_model.connection.notices import notices_of, say_once
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.positions import Places, mark_skipped
from cc_model.fast_paths.last_layer import narrow_obstacle
from cc_model.fast_paths.rollback import Ways, roll_back, second_prefill, ways_of
from cc_model.fast_paths.snapshot import keep
from cc_model.fast_paths.waiting import waiting
from cc_model.forward.calls import Body, BodyOutput, ConnectedCall, asks_for, flatten, hidden_of, keeps_cache
from cc_model.forward.parts import Parts
from cc_model.forward.passes import CapturePass, LayerSlot
from cc_model.forward.replay import connected_replay

logger = logging.getLogger("cc_model")

STARTS_ANEW = frozenset({"jamba"})
"""Families of transformers 5.17 … 5.24 whose state spaces start anew in a forward of several tokens."""


class SimulatedCall(ConnectedCall):
    """Evaluation without an English prompt: the Transform Matrix maps the prompt's own activations.

    The tokens run once with capture. Then those from the first connection index on are taken back from the cache, and
    they alone run again, with the connection: attention is causal, so everything before is unchanged. Where a layer of
    the cache has a state that cannot go back, the tokens before the connection run first, and their state is kept.

    Args:
        first_index: smallest connection index of the batch if it is known without reading tensors.
        logits_to_keep: as the stock forward got it; hidden states that no logit needs are not put together.
        compile_config: how the running `generate` compiles its decode steps; None when it does not.
    """

    def __init__(
        self,
        connection: CrossLingualConnection,
        slots: list[LayerSlot],
        shape: tuple[int, int],
        first_index: int | None = None,
        logits_to_keep: int | Tensor = 0,
        compile_config: CompileConfig | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(connection, slots, shape, **shared)
        self.first_index = first_index
        self.logits_to_keep = logits_to_keep
        self.compile_config = compile_config

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """Capture, decide, run again from the first connection index on."""
        device = (named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]).device
        index = self.index if isinstance(self.index, int) else self.connection_index(named, device)
        places = Places(index, self.rows, self.length, device)
        cache = named.get(CACHE)
        rolled = cache if cache is not None else DynamicCache(config=body.config)
        obstacle = self.obstacle(named)
        start = 0 if obstacle is not None else self.first_row(places)
        ways = second_prefill(obstacle) if obstacle is not None else self.ways(body, rolled, start)
        start = start if ways.obstacle is None else 0
        self.note_prefills(ways)
        if ways.obstacle is not None:
            return self.in_two_prefills(body, stock, named, places)
        if ways.keeps:
            return self.in_two_parts(body, stock, named, places, start)
        with waiting(rolled, ways) if ways.waits else nullcontext():
            return self.rolled_back(body, stock, {**named, CACHE: rolled}, places, start, ways.waits)

    def rolled_back(
        self, body: Any, stock: Body, named: dict[str, Any], places: Places, start: int, waits: bool
    ) -> BodyOutput:
        """One run of all tokens, of which the cache drops those from `start` on."""
        length, cache = self.length, named[CACHE]
        parts = Parts(named, body.config, cache, self.compile_config is not None)
        capture = CapturePass(places.flat(), self.slots, body, self.reads(body, named, start))
        first = self.captured(stock, {**named, "use_cache": True}, capture)
        roll_back(cache, length - start)
        again = {**parts.tokens(start, length, cache), "use_cache": True}
        # What waits grows with every prompt, so that each length would compile a graph of its own.
        config = None if waits else self.compile_config
        output = connected_replay(body, again, *self.decided(body, named, capture, places, start), config)
        return self.joined(first, output, start, length, keeps_cache(body, named))

    def in_two_parts(self, body: Any, stock: Body, named: dict[str, Any], places: Places, start: int) -> BodyOutput:
        """The tokens before `start`; the others with capture; then the cache as it was at `start`, and these again."""
        length, cache = self.length, named.get(CACHE)
        parts = Parts(named, body.config, cache, self.compile_config is not None)
        first = None
        if start:
            before = {**parts.tokens(0, start, cache), "use_cache": True}
            first = self.captured(stock, before, PrefixPass(self.slots, body, self.reads(body, named, start)))
            cache = first[CACHE]
        put_back = keep(cache) if cache is not None else None
        rest = {**parts.tokens(start, length, cache), CACHE: cache, "use_cache": cache is not None}
        capture = CapturePass(places.flat(start), self.slots, body)
        self.captured(stock, rest, capture)
        if put_back is not None:
            put_back(length - start)
        again = {**rest, "use_cache": cache is not None or keeps_cache(body, named)}
        decided = self.decided(body, named, capture, places, start)
        output = connected_replay(body, again, *decided, self.compile_config)
        return self.joined(first, output, start, start, keeps_cache(body, named))

    def in_two_prefills(self, body: Any, stock: Body, named: dict[str, Any], places: Places) -> BodyOutput:
        """All tokens beside the cache, with capture; then all of them again."""
        cache = named.get(CACHE)
        capture = CapturePass(places.flat(), self.slots, body)
        self.captured(stock, {**named, CACHE: probing_cache(cache, named), "use_cache": cache is not None}, capture)
        keeps = keeps_cache(body, named)
        decided = self.decided(body, named, capture, places, 0)
        output = connected_replay(body, {**named, "use_cache": keeps}, *decided, self.compile_config)
        return self.joined(None, output, 0, self.length, keeps)

    def note_prefills(self, ways: Ways) -> None:
        """Keep for the report how the prompt ran; say once that it ran twice."""
        notices_of(self.connection).prefills = ways.prefills
        if ways.obstacle is not None and say_once(self.connection, ways.obstacle):
            logger.warning("the connection needs a second prefill: %s", ways.obstacle)

    def obstacle(self, named: dict[str, Any]) -> str | None:
        """Why a second prefill is needed, whatever the cache is; None when it is not."""
        if torch.compiler.is_exporting():
            return "torch.export takes no length that is read from a tensor"
        if torch.is_grad_enabled():
            return "gradients are enabled; use torch.no_grad()"
        if not isinstance(named.get("attention_mask"), (Tensor, dict, type(None))):
            return "an attention mask of a type that cannot be sliced"
        return None

    def ways(self, body: Any, cache: Cache, start: int) -> Ways:
        """How the tokens from `start` on are taken back from `cache`, or why they are not."""
        ways = ways_of(cache, self.length)
        if ways.keeps:
            config = body.config.get_text_config(decoder=True)
            if config.model_type in STARTS_ANEW and start > 0 and self.length - start > 1:
                return second_prefill(f"{config.model_type} forgets its state in a forward of several tokens")
            if config.model_type == "minimax" and config.layer_types[0] != "full_attention":
                return second_prefill("MiniMax's cache counts its tokens in the first layer, which keeps none here")
        if torch.compiler.is_compiling() and (ways.keeps or ways.waits):
            return second_prefill("compiled code does not exchange the layers of a cache")
        return ways

    def reads(self, body: Any, named: dict[str, Any], start: int) -> bool:
        """Whether the result holds hidden states of tokens before `start`."""
        if not start:
            return False
        return self.keeps_before(start, self.length) or asks_for("output_hidden_states", body, named)

    def captured(self, stock: Body, named: dict[str, Any], capture: CapturePass | PrefixPass) -> BodyOutput:
        """The first run, without a gradient."""
        with torch.no_grad():
            return stock(**named, cc_pass=capture)

    def keeps_before(self, start: int, length: int) -> bool:
        """Whether the result has logits of tokens before `start`."""
        kept = self.logits_to_keep
        return not (isinstance(kept, int) and 0 < kept <= length - start)

    def first_row(self, places: Places) -> int:
        """Smallest connection index of the batch; reads it from the device once unless it is known."""
        return places.first() if self.first_index is None else self.first_index

    def decided(
        self, body: Any, named: dict[str, Any], capture: CapturePass, places: Places, start: int
    ) -> tuple[Tensor, Tensor]:
        """Where in the flattened tokens from `start` on something is added, `(B,)`, and what, `(B, d)`."""
        tokens, skip = places.flat(), places.skipped()
        device = self.connection.device_like(tokens)
        with torch.no_grad():
            if named.get("inputs_embeds") is not None:
                embeds = capture_rows(flatten(named["inputs_embeds"]), tokens, assume_valid=True)
            else:
                embeds = body.get_input_embeddings()(named["input_ids"].flatten()[tokens])
            own = None if skip is None else mark_skipped(torch.arange(self.rows, device=tokens.device), skip)
            transform = {"matrix": self.connection.transform_matrix, "bias": self.connection.transform_bias}
            update = self.decide(capture.collect(device), embeds, own, **transform)
        return mark_skipped(places.flat(start) if start else tokens, skip), update

    def joined(self, first: Any, second: BodyOutput, start: int, ran: int, keep_cache: bool) -> BodyOutput:
        """The result over all tokens, of the body's own class: those before `start` from the first run, of `ran`."""
        hidden = hidden_of(second)
        if start and self.keeps_before(start, self.length):
            hidden = torch.cat([hidden_of(first)[:, :start], hidden], dim=1)
        fields = dict(second.items())
        if start:
            fields = {name: joined_states(first.get(name), value, name, start, ran) for name, value in fields.items()}
        return type(second)(**{**fields, "last_hidden_state": hidden, CACHE: second.get(CACHE) if keep_cache else None})


class PrefixPass:
    """The run of the tokens before the connection: nothing is captured, and the last block runs for one token alone.

    Args:
        slots: the slots of all layers, in order.
        body: the decoder body that runs.
        read: somebody reads the result of the run; then all blocks run for all tokens.
    """

    def __init__(self, slots: list[LayerSlot], body: Any, read: bool) -> None:
        self.slots = slots
        self.narrow = not read and narrow_obstacle(body) is None

    def feed_forward(self, slot: LayerSlot, output: Tensor, block: Any) -> Tensor:
        """`output` as it is."""
        return output

    def narrowed(self, slot: LayerSlot, block: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Zeros for all tokens `(B, T, d)`; the block runs once, since sharded weights wait for every block's run."""
        block(hidden[:1, :1])
        return hidden.new_zeros(hidden.shape)


def joined_states(first: Any, second: Any, name: str, start: int, ran: int) -> Any:
    """A field of tensors per layer: its first `start` tokens from `first`, the others from `second`; else `second`.

    Hidden states are `(B, T, d)` and attentions `(B, H, T, keys)`. What else a family returns per layer has its tokens
    in front, flat `(B * T, ...)` as router logits, or `(B, T, ...)`. The first run had `ran` tokens.
    """
    if not isinstance(second, (tuple, list)):
        return second
    return tuple(_joined_tokens(a, b, name, start, ran) for a, b in zip(first, second))


def _joined_tokens(first: Any, second: Any, name: str, start: int, ran: int) -> Any:
    if not isinstance(second, Tensor):
        return second
    if name == "attentions":
        if first.shape[-2] != ran:  # MiniMax gives the state of linear attention, which the second run has ended
            return second
        first = first.narrow(-2, 0, start)
        if first.shape[-1] != second.shape[-1]:  # in two parts: the first knows no later keys, the second no old ones
            width = first.shape[-1] + second.shape[-2]
            first = F.pad(first, (0, width - first.shape[-1]))
            second = F.pad(second, (width - second.shape[-1], 0))
        return torch.cat([first, second], dim=-2)
    if second.ndim == 2:
        rows = first.shape[0] // ran
        first, second = first.unflatten(0, (rows, ran)), second.unflatten(0, (rows, second.shape[0] // rows))
        return torch.cat([first[:, :start], second], dim=1).flatten(0, 1)
    return torch.cat([first[:, :start], second], dim=1)


def probing_cache(cache: Cache | None, named: dict[str, Any]) -> Cache | None:
    """A cache for a first run that leaves no trace in `cache`: none if it holds nothing that the run needs."""
    mask = named.get("attention_mask")
    plain_mask = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if cache is None or (plain_mask and int(cache.get_seq_length()) == 0):
        return None
    held = (part for layer in cache.layers for part in vars(layer).values())
    with_graph = {id(part): part.detach().clone() for part in held if isinstance(part, Tensor) and not part.is_leaf}
    return copy.deepcopy(cache, with_graph)  # what has a graph cannot be copied: this run has none
