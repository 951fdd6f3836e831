"""A cache of every kind, the way that each goes, and layers that stand for what is not installed or not known."""

from __future__ import annotations

import torch
from transformers import DynamicCache, StaticCache, cache_utils
from transformers.cache_utils import Cache, DynamicLayer, QuantizedLayer
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from cc_model.specs import layers_of

LENGTH, STEPS, WINDOW = 40, 5, 16


FP8 = getattr(cache_utils, "Fp8QuantizedLayer", None)


class Rounded(QuantizedLayer):
    """Stands for the quantised layers of quanto and HQQ: their bookkeeping, another rounding."""

    def _quantize(self, tensor, axis):
        scale = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-6) / 7
        return (tensor / scale).round().to(torch.int8), scale

    def _dequantize(self, q_tensor):
        values, scale = q_tensor
        return values * scale


class Unknown(DynamicLayer):
    """Stands for every layer type that the library does not know."""


def dynamic(model):
    return DynamicCache(config=model.config)


def static(model):
    return StaticCache(config=model.config, max_cache_len=2 * LENGTH + STEPS)


def rounded(model):
    return Cache(layers=[Rounded(residual_length=8) for _ in layers_of(model)])


def fp8(model):
    return Cache(layers=[FP8() for _ in layers_of(model)])


def windows_beside_states(model):
    kind = cache_utils.LinearAttentionAndSlidingWindowAttentionLayer
    return Cache(layers=[kind(sliding_window=100) for _ in layers_of(model)])


def static_windows_beside_states(model):
    kind = cache_utils.LinearAttentionAndStaticSlidingWindowAttentionLayer
    return Cache(layers=[kind(max_cache_len=100, sliding_window=100) for _ in layers_of(model)])


def unknown(model):
    return Cache(layers=[Unknown() for _ in layers_of(model)])


def minimax(model):
    return MiniMaxCache()


DROPPED, WAITED, PARTS, TWICE = ("drops", "waits", "parts", "twice")


# Family, cache, way.
CACHES = {
    "full attention": ("llama", dynamic, DROPPED),
    "full attention, layers made on the way": ("llama", lambda model: DynamicCache(), DROPPED),
    "full attention, static": ("llama", static, DROPPED),
    "full attention, static, masks by layer type": ("qwen3", static, DROPPED),
    "windows": ("ministral", dynamic, WAITED),
    "windows, static": ("ministral", static, WAITED),
    "windows beside full attention": ("gemma2", dynamic, WAITED),
    "windows beside full attention, static": ("gemma2", static, WAITED),
    "shared keys": ("gemma4_text, shared keys", dynamic, WAITED),
    "chunks": ("llama4_text", dynamic, WAITED),
    "quantised": ("llama", rounded, WAITED),
    "8-bit floats": ("llama", fp8, WAITED),
    "linear attention": ("qwen3_next", dynamic, PARTS),
    "linear attention, static": ("qwen3_5_text", static, PARTS),
    "state space": ("jamba", dynamic, PARTS),
    "state space beside attention in a layer": ("falcon_h1", dynamic, PARTS),
    "state space beside attention in a layer, static": ("falcon_h1", static, PARTS),
    "state space beside a window in a layer": ("falcon_h1", windows_beside_states, PARTS),
    "state space beside a static window in a layer": ("falcon_h1", static_windows_beside_states, PARTS),
    "convolutions": ("lfm2", dynamic, PARTS),
    "lightning attention, a cache of its own": ("minimax", minimax, PARTS),
    "unknown": ("llama", unknown, TWICE),
}
