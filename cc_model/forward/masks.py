"""The main pass's attention mask, made before the pivot pass.

From a 2-dimensional mask transformers makes the causal one in every pass, and asks the device whether any token is
padding. Asked in the main pass, when the pivot pass is queued, the host would wait for all of that pass. So the mask is
made first and handed over ready.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_model.compat import cache_of, causal_mask


def with_ready_mask(body: Any, named: dict[str, Any], embeds: Tensor) -> dict[str, Any]:
    """`named` with the mask that the body would make of its 2-dimensional one, or as it is where that is not known.

    A mask that is not needed becomes None, but only in a pass that keeps a cache: without one and without a mask,
    transformers looks for packed rows, and asks the device for that.
    """
    mask = named.get("attention_mask")
    if not (isinstance(mask, Tensor) and mask.ndim == 2 and makes_one_mask(body)) or cache_of(named) is not None:
        return named
    if torch.compiler.is_compiling():  # nobody waits there
        return named
    ready = causal_mask(body.config, embeds, mask, named.get("position_ids"))
    if ready is None:
        use_cache = named.get("use_cache")
        keeps = body.config.use_cache if use_cache is None else use_cache
        if not keeps or getattr(body, "gradient_checkpointing", False):
            return named
    return {**named, "attention_mask": ready}


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


__all__ = ["makes_one_mask", "with_ready_mask"]
