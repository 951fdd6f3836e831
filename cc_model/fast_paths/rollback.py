"""Dropping the newest entries of a key/value cache, where that restores it exactly."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
)


def rollback_obstacle(cache: Cache, new_tokens: int) -> str | None:
    """Why `cache` could not be rolled back exactly after `new_tokens` more tokens; None when it could.

    Known layer types only: a type that this function does not know is an obstacle, never a guess.
    """
    if getattr(cache, "offloading", False):
        return "the cache is offloaded"
    if type(cache) not in (Cache, DynamicCache, StaticCache):  # MiniMax's holds more than its layers
        return f"a cache of type {type(cache).__name__} cannot be rolled back"
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        kind = type(layer)
        if kind is DynamicSlidingWindowLayer:
            if layer.get_seq_length() + new_tokens >= layer.sliding_window:
                return f"the sliding window of {layer.sliding_window} tokens is in use"
        elif kind is not DynamicLayer and kind is not StaticLayer:
            return f"cache layers of type {kind.__name__} cannot be rolled back"
    return None


def roll_back(cache: Cache, count: int) -> None:
    """Drop the newest `count` entries of every layer, in place.

    A static layer keeps its tensors: its length counter goes back, the entries behind it are hidden by the causal
    mask, and the tokens that are run again overwrite them.
    """
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        if type(layer) is StaticLayer:
            layer.cumulative_length.sub_(count)
        else:
            layer.crop(-count)
