"""The main pass's attention mask, settled before the pivot pass.

transformers asks the device about the mask in every pass: whether a 2-dimensional one has padding, and, where there is
neither mask nor cache, whether the positions are those of packed rows. Asked in the main pass, when the pivot pass is
queued, the host would wait for all of that pass. So it is asked first, and the main pass gets the answer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from cc_model.compat import CACHE, causal_mask
from cc_model.forward.calls import BodyOutput, keeps_cache


class _KeepsNothing(DynamicCache):
    """A cache that stays empty. Where there is one, the stock model takes it that no rows are packed."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values of the call itself."""
        return key_states, value_states


_EMPTY = _KeepsNothing()  # one for all: it holds nothing


def with_ready_mask(body: Any, named: dict[str, Any], embeds: Tensor) -> dict[str, Any]:
    """`named` with the mask that the body would make, or as it is where that is not known.

    A mask that is not needed becomes None. Without one the body must not look for packed rows, so it gets a cache that
    keeps nothing where it has none of its own; `without_empty_cache` takes that from the output.
    """
    mask, positions = named.get("attention_mask"), named.get("position_ids")
    known = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if not known or named.get(CACHE) is not None or not makes_one_mask(body):
        return named
    if torch.compiler.is_compiling() or body.layers[0]._compiled_call_impl is not None:  # nobody waits there
        return named
    keeps = keeps_cache(body, named)
    # Without a mask, packed rows are looked for only where positions are given and there is no cache.
    asks = mask is not None or (positions is not None and not keeps)
    ready = causal_mask(body.config, embeds, mask, positions) if asks else None
    if ready is not None:
        return {**named, "attention_mask": ready}
    if getattr(body, "gradient_checkpointing", False):  # where a cache is taken out again, with a warning
        return named
    main = {**named, "attention_mask": None}
    return main if keeps else {**main, CACHE: _EMPTY}


def without_empty_cache(output: BodyOutput) -> BodyOutput:
    """The body's output without the cache that `with_ready_mask` gave it."""
    if output.get(CACHE) is not _EMPTY:
        return output
    # An output refuses to lose a field; this one is the call's own, and building another one takes longer.
    OrderedDict.__delitem__(output, CACHE)
    object.__setattr__(output, CACHE, None)
    return output


def makes_one_mask(body: Any) -> bool:
    """Whether the body makes one causal mask for all layers and takes a ready one in its place.

    Known for the attention of PyTorch (SDPA), the one that asks, and for families without windows.
    """
    config = body.config
    if config.model_type not in ("llama", "mistral", "qwen2", "qwen3") or config._attn_implementation != "sdpa":
        return False
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return all(kind == "full_attention" for kind in kinds)


__all__ = ["makes_one_mask", "with_ready_mask", "without_empty_cache"]
