"""The state of a cache before the connection, kept while the last tokens run and then put back.

Linear attention, state spaces and convolutions sum up what they have read, so that nothing can be dropped from them.
Their states are small and written in place: they are copied, and the copies are written back to the same memory, which
CUDA graphs know. A sliding window that grows by concatenation leaves its old tensors alone: they are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, StaticSlidingWindowLayer

from cc_model.fast_paths.rollback import ATTENTION_BESIDE, drop, is_minimax

_STATES = (
    *("conv_states", "recurrent_states", "conv_kernel_size"),
    *("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state"),
)
_WINDOW = ("keys", "values", "is_initialized", "cumulative_length")

PutBack = Callable[[int], None]


def keep(cache: Cache) -> PutBack:
    """Keep what `cache` holds. Called with the number of tokens that came since, the result takes them back, in place.

    Layers that can drop entries drop them; only the others are kept.
    """
    own: Any = cache
    if getattr(cache, "offloading", False):
        own.prefetch_stream.synchronize()  # what is copied here may still be on its way
    kept = [(layer, *_kept(layer)) for layer in cache.layers]
    states = list(own.linear_cache) if is_minimax(cache) else None

    def put_back(count: int) -> None:
        for layer, attributes, attention in kept:
            if attention is not None:
                drop(layer, attention, count)
            for name, value in attributes.items():
                setattr(layer, name, _restored(value))
        del cache.layers[len(kept) :]  # made since
        if states is not None:
            own.linear_cache = states

    return put_back


def _kept(layer: Any) -> tuple[dict[str, Any], Any]:
    """What is put back of `layer`, by name, and the type of the attention layer in it that drops entries, if any."""
    kind = type(layer)
    attention = ATTENTION_BESIDE.get(kind, kind)
    attributes = {name: _copied(getattr(layer, name)) for name in _STATES} if kind in ATTENTION_BESIDE else {}
    if attention is None:
        return attributes, None
    if issubclass(attention, DynamicSlidingWindowLayer):
        return attributes | {name: getattr(layer, name) for name in _WINDOW}, None
    if issubclass(attention, StaticSlidingWindowLayer):
        names = (*_WINDOW, "cumulative_length_int")
        return attributes | {name: _copied(getattr(layer, name)) for name in names}, None
    return attributes, attention


class _Copy:
    """A tensor that is written in place, and a copy of its values."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.values = tensor, tensor.clone()


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return _Copy(value) if isinstance(value, Tensor) else value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _restored(part) for name, part in value.items()}
    return value.tensor.copy_(value.values) if isinstance(value, _Copy) else value


__all__ = ["PutBack", "keep"]
