"""How the last tokens of a prompt are taken back from a key/value cache, so that they can run again, layer by layer.

There are three ways, and each is exact:

- `DROPS`: the layer's newest entries are dropped.
- `WAITS`: the layer would lose what its oldest tokens left there, or round it. A stand-in that keeps everything takes
  its place, and hands the tokens on when they are final (`cc_model.fast_paths.waiting`).
- `KEPT`: the layer holds a state that cannot be run backwards. So the tokens before the connection run first, and
  their state is kept and put back (`cc_model.fast_paths.snapshot`).

A layer or a cache of a type that is not known here is an obstacle, never a guess.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    QuantizedCache,
    QuantizedLayer,
    StaticCache,
    StaticIndexedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

DROPS = "drops its newest entries"
WAITS = "is filled when the prompt has run"
KEPT = "gets back its state before the connection"

DummyLayer: Any = getattr(cache_utils, "DummyLayer", None)  # from 5.18 on
Fp8QuantizedLayer: Any = getattr(cache_utils, "Fp8QuantizedLayer", None)  # from 5.24 on

_DROP = frozenset({DynamicLayer, DynamicIndexedLayer, StaticLayer, StaticIndexedLayer, DummyLayer})
# Layers with a state, and how their attention, where they have any, keeps keys and values.
ATTENTION_BESIDE: dict[type, type | None] = {
    LinearAttentionLayer: None,
    LinearAttentionAndFullAttentionLayer: DynamicLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: DynamicSlidingWindowLayer,
    LinearAttentionAndStaticFullAttentionLayer: StaticLayer,
    LinearAttentionAndStaticSlidingWindowAttentionLayer: StaticSlidingWindowLayer,
}
_BOOKKEEPING = ("update", "lazy_initialization", "get_seq_length", "get_mask_sizes")


class Ways(NamedTuple):
    """The way of each layer of a cache, or why the cache needs a second prefill.

    Attributes:
        prefills: what the prompt costs, for the report.
        obstacle: why the whole prompt runs twice; None when it does not.
        layers: the way of each layer.
        keeps: the tokens before the connection run on their own, because a layer's state is kept.
        waits: some layers have a stand-in while the prompt runs.
    """

    prefills: str
    obstacle: str | None = None
    layers: tuple[str, ...] = ()
    keeps: bool = False
    waits: bool = False


def second_prefill(obstacle: str) -> Ways:
    """The whole prompt runs twice."""
    return Ways(f"two prefills: {obstacle}", obstacle)


def ways_of(cache: Cache, new_tokens: int) -> Ways:
    """How the newest of `new_tokens` tokens could be taken back from `cache`, which does not hold them yet."""
    own_state = is_minimax(cache)
    if type(cache) not in (Cache, DynamicCache, StaticCache, QuantizedCache) and not own_state:
        return second_prefill(f"a cache of type {type(cache).__name__} cannot be rolled back")
    made = getattr(cache, "layer_class_to_replicate", None)
    if made is not None and made is not DynamicLayer:
        return second_prefill(f"cache layers of type {made.__name__} cannot be rolled back")
    ways = []
    if not own_state and _DROP.issuperset(map(type, cache.layers)):
        return Ways("one prefill", None, (DROPS,) * len(cache.layers))
    for layer in cache.layers:
        way = _way(layer, new_tokens)
        if way is None:
            return second_prefill(f"cache layers of type {type(layer).__name__} cannot be rolled back")
        ways.append(way)
    if own_state or KEPT in ways:
        if any(is_quantised(layer) for layer in cache.layers):
            return second_prefill("the cache has quantised layers beside linear attention")
        return Ways(
            "one prefill, and the last tokens once more: linear attention keeps its state", None, (*ways,), True
        )
    if WAITS in ways:
        return Ways("one prefill, after which windows and quantised layers are filled", None, (*ways,), False, True)
    return Ways("one prefill", None, (*ways,))


def ways_by_type(cache: Cache) -> dict[str, str]:
    """The way of each type of layer in `cache` when a prompt is longer than any window, in words."""
    return {type(layer).__name__: _way(layer, sys.maxsize) or "needs a second prefill" for layer in cache.layers}


def _way(layer: Any, new_tokens: int) -> str | None:
    kind = type(layer)
    if kind in _DROP:
        return DROPS
    if kind is DynamicSlidingWindowLayer:
        return DROPS if layer.get_seq_length() + new_tokens < layer.sliding_window else WAITS
    if kind is StaticSlidingWindowLayer:
        return DROPS if layer.cumulative_length_int + new_tokens <= layer.max_cache_len else WAITS
    if is_quantised(layer):
        return WAITS
    return KEPT if kind in ATTENTION_BESIDE else None


def is_quantised(layer: Any) -> bool:
    """Whether `layer` is one of transformers' quantised layers, of any quantiser, with their own bookkeeping."""
    kind: Any = type(layer)
    for base in (QuantizedLayer, Fp8QuantizedLayer):
        if base is not None and issubclass(kind, base):
            return all(getattr(kind, name) is getattr(base, name) for name in _BOOKKEEPING)
    return False


def is_minimax(cache: Cache) -> bool:
    """Whether `cache` is that of MiniMax, whose linear attention keeps its states beside the layers."""
    kind = type(cache)
    return kind.__name__ == "MiniMaxCache" and kind.__module__ == "transformers.models.minimax.modeling_minimax"


def roll_back(cache: Cache, count: int) -> None:
    """Drop the newest `count` entries of every layer, in place."""
    for layer in cache.layers:
        if type(layer) is DynamicLayer and layer.is_initialized:
            layer.crop(-count)
        else:
            drop(layer, type(layer), count)


def drop(layer: Any, kind: Any, count: int) -> None:
    """Drop the newest `count` entries of what `layer` keeps as a layer of type `kind`.

    A static layer keeps its tensors: its length counter goes back, the entries behind it are hidden by the causal
    mask, and the tokens that are run again overwrite them. In 5.17 it has no `crop`.
    """
    if not layer.is_initialized:  # it stands for no attention, or nothing has come yet
        return
    if not issubclass(kind, StaticLayer):
        kind.crop(layer, -count)
        return
    layer.cumulative_length.sub_(count)
    if issubclass(kind, StaticSlidingWindowLayer):
        layer.cumulative_length_int -= count
    elif issubclass(kind, StaticIndexedLayer) and layer.is_indexer_initialized:
        layer.indexer_cumulative_length.sub_(count)


__all__ = [
    "ATTENTION_BESIDE",
    "DROPS",
    "KEPT",
    "WAITS",
    "Ways",
    "drop",
    "is_minimax",
    "is_quantised",
    "roll_back",
    "second_prefill",
    "ways_by_type",
    "ways_of",
]
