"""Cache layers that wait: a stand-in keeps a prompt's keys and values until its last tokens have run again.

A sliding window drops what its next tokens do not need, and a quantised layer rounds. Neither can go back, so neither
sees the prompt before it is final: it is then filled in one piece, by its own `update`, as a plain prefill fills it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    QuantizedLayer,
    StaticSlidingWindowLayer,
)

from cc_model.fast_paths.rollback import WAITS, Ways


class StandIn(DynamicLayer):
    """Keeps every token that comes, behind what `layer` would show them of its own.

    Its mask sizes are those of `layer` for all of the new tokens, so that masks made for the whole prompt fit the
    prompt's last tokens, too.
    """

    keys: Any
    values: Any

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.is_sliding = layer.is_sliding
        self.rounds = False
        if layer.is_initialized:
            self.keys, self.values = _held(layer)
            self.device, self.dtype, self.is_initialized = layer.device, self.keys.dtype, True
            # A layer in 8-bit floats rounds what follows its first tokens before it shows it.
            self.rounds = hasattr(layer, "_quantized_keys") and not isinstance(layer, QuantizedLayer)
        self.held = super().get_seq_length()
        self.before = int(layer.get_seq_length()) - self.held  # tokens that `layer` does not show any more

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the new tokens `(B, H, T, D)` and return all that the attention reads."""
        if self.rounds:
            layer = self.layer
            key_states = layer._dequantize(layer._quantize(key_states, scale=layer._quantized_keys[1]))
            value_states = layer._dequantize(layer._quantize(value_states, scale=layer._quantized_values[1]))
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """The tokens that have run, those that are not kept included."""
        return self.before + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys that the next tokens read, and the position of the first of them."""
        return super().get_seq_length() + query_length, self.before

    def new_tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, H, T, D)` of the tokens that came."""
        return self.keys[:, :, self.held :], self.values[:, :, self.held :]


def _held(layer: Any) -> tuple[Tensor, Tensor]:
    """What `layer` shows to its next tokens, more than one, before their own keys and values."""
    kind = type(layer)
    if kind is DynamicSlidingWindowLayer:
        return layer.keys[:, :, -layer.sliding_window + 1 :], layer.values[:, :, -layer.sliding_window + 1 :]
    if kind is StaticSlidingWindowLayer:
        length = layer.cumulative_length_int
        shown = slice(1, None) if length >= layer.max_cache_len else slice(0, length)
        return layer.keys[:, :, shown], layer.values[:, :, shown]
    keys, values = layer._dequantize(layer._quantized_keys), layer._dequantize(layer._quantized_values)
    if not issubclass(kind, QuantizedLayer):
        return keys, values
    if getattr(layer, "_pending_beam_idx", None) is not None:  # from 5.24 on
        keys, values = layer._apply_pending_reorder(keys, values)
    return torch.cat([keys, layer.keys], dim=-2), torch.cat([values, layer.values], dim=-2)


@contextmanager
def waiting(cache: Cache, ways: Ways) -> Iterator[None]:
    """Stand-ins in the place of the layers that wait; at the end these get the tokens, unless an error left none."""
    waits = {index: layer for index, layer in enumerate(cache.layers) if ways.layers[index] == WAITS}
    stand_ins = {index: StandIn(layer) for index, layer in waits.items()}
    try:
        for index, stand_in in stand_ins.items():
            cache.layers[index] = stand_in
        yield
    finally:
        for index, layer in waits.items():
            cache.layers[index] = layer
    offloads = getattr(cache, "offloading", False)
    for index, stand_in in stand_ins.items():
        if offloads:
            stand_in.prefetch()
            waits[index].prefetch()
        cache.update(*stand_in.new_tokens(), index)


__all__ = ["StandIn", "waiting"]
