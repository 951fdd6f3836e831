"""The arguments of a call for some of its tokens, in a row: the masks are those of the whole call, cut to fit.

A mask of two dimensions is the caller's own, and the decoder body makes the others of it, run by run. Masks that are
ready were made for all tokens at once. `generate` makes them so for static caches. Which keys their columns stand for
follows from the cache; where such a mask is missing, because a run over all tokens needs none, it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticCache

from cc_model.forward.calls import input_shape

_TOKENS = ("input_ids", "inputs_embeds", "per_layer_inputs")
_LOCAL = ("linear_attention", "conv")  # masks of these count the call's own tokens
_PATTERNS = ("layer_types", "sliding_window", "attention_chunk_size")  # where attention is not causal alone
# The layer types whose attention reads a mask of this name, besides those of the name itself.
_HYBRID = {"full_attention": "hybrid", "sliding_attention": "hybrid_sliding", "chunked_attention": None}


class Parts:
    """Cuts the arguments of a call; made before its first run, when the cache holds what came before the call.

    Args:
        named: the arguments.
        config: of the decoder body.
        cache: that the runs will use; None for one that a run makes.
        compiled: whether decode steps are compiled, which then get ready masks, too.
    """

    def __init__(self, named: dict[str, Any], config: Any, cache: Cache | None, compiled: bool = False) -> None:
        self.named = named
        self.compiled = compiled
        self.config = config.get_text_config(decoder=True)
        self.causal = not any(getattr(self.config, name, None) for name in _PATTERNS)
        self.rows, self.length = input_shape(named)
        self.whole: dict[str | None, tuple[int, int]] = {}
        self.layers = {kind: self.layer_of(kind) for kind in self.ready_masks()}
        for kind, layer in self.layers.items():
            if layer is not None:
                self.whole[kind] = (self.length, 0) if cache is None else cache.get_mask_sizes(self.length, layer)

    def ready_masks(self) -> list[str | None]:
        """The types of layers for which there is a mask of pairs of tokens; None: one for all layers."""
        mask = self.named.get("attention_mask")
        if isinstance(mask, Mapping):
            return [kind for kind in mask if kind not in _LOCAL]
        return [None] if isinstance(mask, Tensor) and mask.ndim == 4 else []

    def layer_of(self, kind: str | None) -> int | None:
        """The first layer that reads the mask of this type; None where no layer of this model does.

        Raises:
            ValueError: layers of a type that is not known here may read it.
        """
        kinds = getattr(self.config, "layer_types", None)
        if kind is None or kinds is None:
            return 0
        found = [index for index, name in enumerate(kinds) if name in (kind, _HYBRID.get(kind, kind))]
        if not found and kind not in _HYBRID:
            raise ValueError(f"attention_mask: expected masks of {', '.join((*_HYBRID, *_LOCAL))}, got {kind!r}")
        return found[0] if found else None

    def tokens(self, start: int, stop: int, cache: Cache | None) -> dict[str, Any]:
        """The arguments for the tokens in [start, stop), with `cache` holding all that came before them."""
        kept = dict(self.named)
        if stop - start == self.length:
            return kept
        for name in _TOKENS:
            if kept.get(name) is not None:
                kept[name] = kept[name][:, start:stop]
        if kept.get("position_ids") is not None:
            kept["position_ids"] = kept["position_ids"][..., start:stop]
        mask = kept.get("attention_mask")
        if isinstance(mask, Mapping):
            kept["attention_mask"] = {kind: self._cut(kind, part, start, stop, cache) for kind, part in mask.items()}
        elif isinstance(mask, Tensor):
            kept["attention_mask"] = self._cut(None, mask, start, stop, cache)
        elif self.compiled and isinstance(cache, StaticCache) and self.causal:
            # The body would make it, but within the compiled run: that is another graph than that of padded prompts.
            kept["attention_mask"] = self._cut(None, None, start, stop, cache)
        return kept

    def _cut(self, kind: str | None, mask: Any, start: int, stop: int, cache: Cache | None) -> Any:
        if kind in _LOCAL:
            # As in the decode steps: whether a mask is there would be another graph.
            return None if mask is None or stop - start == 1 else mask[:, start:stop]
        if kind is None and mask is not None and mask.ndim == 2:  # of the caller, for all keys
            return mask[:, : mask.shape[1] - (self.length - stop)]
        layer = self.layers.get(kind, 0)
        if layer is None:  # nobody reads it
            return mask
        keys, first = (stop, 0) if cache is None else cache.get_mask_sizes(stop - start, layer)
        if mask is None:
            return self._causal(keys, first, stop - start, start, cache)
        whole_keys, whole_first = self.whole[kind]
        if mask.shape[-1] == whole_keys:
            mask = mask[..., first - whole_first : first - whole_first + keys]
        return mask[:, :, start:stop] if mask.ndim == 4 else mask

    def _causal(self, keys: int, first: int, queries: int, start: int, cache: Cache | None) -> Tensor | None:
        """`(B, 1, queries, keys)`: which key each query reads, when none is padding and no window cuts them.

        Attention without a mask reads all keys of a single query, and lines several queries up with the first keys.
        """
        if self.config._attn_implementation != "sdpa":  # the others make a mask always, or line up with the last keys
            return None
        tokens = self.named.get("input_ids")
        device = (self.named["inputs_embeds"] if tokens is None else tokens).device
        before = start if cache is None else cache.get_seq_length()  # a tensor on the device for static caches
        reads = (
            torch.arange(first, first + keys, device=device) <= torch.arange(queries, device=device)[:, None] + before
        )
        return reads.expand(self.rows, 1, queries, keys)


__all__ = ["Parts"]
