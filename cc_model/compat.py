"""What differs between the supported versions of transformers: names of the key/value cache and of mask arguments.

Forwards and outputs call it `past_key_values` up to 5.23 and `cache` from 5.24 on, where forwards still take the old
name and warn. Inside a patched model it is called `CACHE`, so that no warning is of our making.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

OLD_CACHE = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else OLD_CACHE

RENAMED = CACHE != OLD_CACHE  # callers may then use either name


def cache_of(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among a caller's arguments, under either name that the installed transformers takes.

    Example:
        >>> cache_of({"input_ids": None}) is None
        True
    """
    cache = arguments.get(CACHE)
    return cache if cache is not None else arguments.get(OLD_CACHE)


def with_cache(arguments: Mapping[str, Any], cache: Cache | None) -> dict[str, Any]:
    """`arguments` with `cache` in the place of the one that they hold.

    Example:
        >>> from transformers import DynamicCache
        >>> cache = DynamicCache()
        >>> list(with_cache({"past_key_values": None}, cache)) == [CACHE]
        True
    """
    return {**{name: value for name, value in arguments.items() if name != OLD_CACHE}, CACHE: cache}


_MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters


def causal_mask(config: Any, embeds: Tensor, mask: Tensor | None, position_ids: Tensor | None) -> Any:
    """transformers' own causal mask for tokens `embeds` `(B, T, d)` without a cache.

    `mask` `(B, T)` is 0 at padding; without one, packed rows are found by `position_ids` `(B, T)` that restart.

    Returns:
        `(B, 1, T, T)`, or None where the attention needs none.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(attn_implementation="eager")
        >>> causal_mask(config, torch.zeros(1, 2, 4), torch.tensor([[0, 1]]), None).shape
        torch.Size([1, 1, 2, 2])
    """
    named = {"config": config, "attention_mask": mask, "position_ids": position_ids}
    named["inputs_embeds" if "inputs_embeds" in _MASK_ARGUMENTS else "input_embeds"] = embeds
    named[CACHE if CACHE in _MASK_ARGUMENTS else OLD_CACHE] = None
    if "cache_position" in _MASK_ARGUMENTS:
        named["cache_position"] = torch.arange(embeds.shape[1], device=embeds.device)
    return create_causal_mask(**{name: value for name, value in named.items() if name in _MASK_ARGUMENTS})


def keys_ignored_at_inference(config: Any) -> list[str]:
    """The outputs that Trainer leaves out of its predictions: the config's own list, or Trainer's default.

    Example:
        >>> from transformers import LlamaConfig
        >>> keys_ignored_at_inference(LlamaConfig()) == [CACHE]
        True
    """
    return list(getattr(config, "keys_to_ignore_at_inference", [CACHE]))
