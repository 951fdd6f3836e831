"""The connected forward without an English prompt: one prefill, a decision, and the last tokens again."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import CompileConfig

from cc_kernels import capture_rows
from cc_model.compat import CACHE
from cc_model.connection.notices import notices_of, say_once
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.positions import flat_rows, in_range, located, mark_skipped
from cc_model.fast_paths.rollback import roll_back, rollback_obstacle
from cc_model.forward.calls import Body, BodyOutput, ConnectedCall, asks_for, flatten, hidden_of
from cc_model.forward.passes import CapturePass, LayerSlot
from cc_model.forward.replay import connected_replay

logger = logging.getLogger("cc_model")


class SimulatedCall(ConnectedCall):
    """Evaluation without an English prompt: the Transform Matrix maps the prompt's own activations.

    The tokens run once with capture. Then the entries from the first connection index on are dropped from the cache,
    and only those tokens run again, with the connection: attention is causal, so everything before is unchanged.

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
        length = self.length
        use_cache = named.get("use_cache")
        keep_cache = body.config.get_text_config(decoder=True).use_cache if use_cache is None else use_cache
        cache = named.get(CACHE)
        device = (named["input_ids"] if named.get("input_ids") is not None else named["inputs_embeds"]).device
        index = self.connection_index(named, device)
        rolled = cache if cache is not None else DynamicCache(config=body.config)
        two_prefills = self.obstacle(named, rolled, length)
        start = 0 if two_prefills is not None else self.first_row(index, length)
        read = start > 0 and (self.keeps_before(start, length) or asks_for("output_hidden_states", body, named))
        capture = CapturePass(flat_rows(index, length), self.slots, body, read)
        if two_prefills is None:
            cache = rolled
            first = self.captured(stock, {**named, CACHE: cache, "use_cache": True}, capture)
            roll_back(cache, length - start)
        else:
            probe = {**named, CACHE: probing_cache(cache, named), "use_cache": cache is not None}
            first = self.captured(stock, probe, capture)
        self.note_prefills(two_prefills)
        tokens, update = self.decided(body, named, capture, index, length, start)
        again = sliced(named, start, length)
        again |= {CACHE: cache, "use_cache": two_prefills is None or keep_cache}
        output = connected_replay(body, again, tokens, update, self.compile_config)
        return self.joined(first, output, start, length, keep_cache)

    def note_prefills(self, obstacle: str | None) -> None:
        """Keep for the report how the prompt ran; say once that it ran twice."""
        notices_of(self.connection).prefills = "one prefill" if obstacle is None else f"two prefills: {obstacle}"
        if obstacle is not None and say_once(self.connection, obstacle):
            logger.warning("the connection needs a second prefill: %s", obstacle)

    def obstacle(self, named: dict[str, Any], cache: Cache, length: int) -> str | None:
        """Why a second prefill is needed; None when rolling back the cache does."""
        if torch.compiler.is_exporting():
            return "torch.export takes no length that is read from a tensor"
        if torch.is_grad_enabled():
            return "gradients are enabled; use torch.no_grad()"
        if not isinstance(named.get("attention_mask"), (Tensor, dict, type(None))):
            return "an attention mask of a type that cannot be sliced"
        return rollback_obstacle(cache, length)

    def captured(self, stock: Body, named: dict[str, Any], capture: CapturePass) -> BodyOutput:
        """The first run, without a gradient."""
        with torch.no_grad():
            return stock(**named, cc_pass=capture)

    def keeps_before(self, start: int, length: int) -> bool:
        """Whether the result has logits of tokens before `start`."""
        kept = self.logits_to_keep
        return not (isinstance(kept, int) and 0 < kept <= length - start)

    def first_row(self, index: Tensor, length: int) -> int:
        """Smallest connection index of the batch; reads it from the device once unless it is known."""
        if self.first_index is not None:
            return self.first_index
        return int(torch.where(in_range(index, length), index, length - 1).amin())

    def decided(
        self, body: Any, named: dict[str, Any], capture: CapturePass, index: Tensor, length: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """Where in the flattened tokens from `start` on something is added, `(B,)`, and what, `(B, d)`."""
        device = self.connection.device_like(index)
        tokens, keep = located(index, length)
        with torch.no_grad():
            if named.get("inputs_embeds") is not None:
                embeds = capture_rows(flatten(named["inputs_embeds"]), tokens, assume_valid=True)
            else:
                embeds = body.get_input_embeddings()(named["input_ids"].flatten()[tokens])
            own = mark_skipped(torch.arange(index.shape[0], device=index.device), ~keep)
            transform = {"matrix": self.connection.transform_matrix, "bias": self.connection.transform_bias}
            update = self.decide(capture.collect(device), embeds, own, **transform)
        return mark_skipped(flat_rows(index - start, length - start), ~keep), update

    def joined(self, first: BodyOutput, second: BodyOutput, start: int, length: int, keep_cache: bool) -> BodyOutput:
        """The result over all tokens, of the body's own class: those before `start` from the first run."""
        hidden = hidden_of(second)
        if start and self.keeps_before(start, length):
            hidden = torch.cat([hidden_of(first)[:, :start], hidden], dim=1)
        fields = {name: joined_states(first.get(name), value, name, start, length) for name, value in second.items()}
        return type(second)(**{**fields, "last_hidden_state": hidden, CACHE: second.get(CACHE) if keep_cache else None})


def joined_states(first: Any, second: Any, name: str, start: int, length: int) -> Any:
    """A field of tensors per layer: its first `start` tokens from `first`, the others from `second`; else `second`.

    Hidden states are `(B, T, d)` and attentions `(B, H, T, keys)`. What else a family returns per layer has its tokens
    in front, flat `(B * T, ...)` as router logits, or `(B, T, ...)`.
    """
    if not start or not isinstance(second, (tuple, list)):
        return second
    return tuple(_joined_tokens(a, b, name, start, length) for a, b in zip(first, second))


def _joined_tokens(first: Any, second: Any, name: str, start: int, length: int) -> Any:
    if not isinstance(second, Tensor):
        return second
    if name == "attentions":
        return torch.cat([first.narrow(-2, 0, start), second], dim=-2)
    if second.ndim == 2:
        rows = first.shape[0] // length
        first, second = first.unflatten(0, (rows, length)), second.unflatten(0, (rows, length - start))
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


def sliced(named: dict[str, Any], start: int, length: int) -> dict[str, Any]:
    """The arguments for the tokens from `start` on; masks over keys keep their length."""
    if start == 0:
        return dict(named)
    kept = dict(named)
    for name in ("input_ids", "inputs_embeds", "per_layer_inputs"):
        if kept.get(name) is not None:
            kept[name] = kept[name][:, start:]
    if kept.get("position_ids") is not None:
        kept["position_ids"] = kept["position_ids"][..., start:]
    mask = kept.get("attention_mask")
    if isinstance(mask, dict):
        kept["attention_mask"] = {name: sliced_mask(part, start) for name, part in mask.items()}
    else:
        kept["attention_mask"] = sliced_mask(mask, start)
    return kept


def sliced_mask(mask: Tensor | None, start: int) -> Tensor | None:
    """A `(B, 1, T, keys)` mask without the first `start` queries; a `(B, keys)` mask as it is."""
    return mask[:, :, start:] if mask is not None and mask.ndim == 4 else mask
