"""Offloaded caches on a machine without a second device: which layer is where is followed, nothing moves.

Streams are stand-ins. A layer that is read while it is away is an error, as it would be one of two devices.
"""

from __future__ import annotations

import pytest
import torch
from families import made
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from cc_model import connection_disabled
from cc_model.compat import CACHE
from cc_model.fast_paths.waiting import StandIn
from cc_model.forward.simulated_call import SimulatedCall

LENGTH = 40
WINDOWS = (DynamicSlidingWindowLayer, StaticSlidingWindowLayer)


class Stream:
    """Knows no device; everything has happened already."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def wait_stream(self, other):
        """Nothing to wait for."""

    def synchronize(self):
        """Nothing to wait for."""


@pytest.fixture
def offloading(monkeypatch):
    """Makes a cache offload; returns the layers that were away when they were filled."""
    early = []

    def away(value):
        return lambda layer: layer.__dict__.__setitem__("away", value)

    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: Stream())
    for kind in (CacheLayerMixin, *CacheLayerMixin.__subclasses__()):
        monkeypatch.setattr(kind, "offload", away(True), raising=False)
        monkeypatch.setattr(kind, "prefetch", away(False), raising=False)

    def watched(stock):
        def read(layer, *args, **kwargs):
            if layer.__dict__.get("away"):
                early.append(layer)
            return stock(layer, *args, **kwargs)

        return read

    for kind in (DynamicLayer, StaticLayer, *WINDOWS):
        monkeypatch.setattr(kind, "update", watched(kind.update))
    monkeypatch.setattr(StandIn, "new_tokens", watched(StandIn.new_tokens))

    def made(stand_in, layer, stock=StandIn.__init__):
        stock(stand_in, layer)
        stand_in.away = layer.is_initialized and layer.__dict__.get("away", False)

    monkeypatch.setattr(StandIn, "__init__", made)

    def start(cache):
        cache.offloading, cache.only_non_sliding, cache.prefetch_stream = True, False, Stream()
        return cache

    start.early = early
    return start


@pytest.mark.parametrize("past", [0, 20])
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("family", ["llama", "gemma2", "ministral", "qwen3_next"])
def test_offloaded(offloading, family, kind, past, monkeypatch):
    _, model = made(family)
    ids = torch.randint(200, (2, LENGTH), generator=torch.Generator().manual_seed(0))

    def run(offloads):
        cache = kind(config=model.config, **({"max_cache_len": LENGTH + 8} if kind is StaticCache else {}))
        cache = offloading(cache) if offloads else cache
        named = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        if past:
            with connection_disabled(model), torch.no_grad():
                model(ids[:, :past], use_cache=True, **{CACHE: cache})
        output = model.generate(ids, **{CACHE: cache}, **named)
        assert not any(isinstance(layer, StandIn) for layer in cache.layers)
        return output

    actual = run(True)
    assert model.cc.prefills.startswith("one prefill")
    assert not offloading.early
    monkeypatch.setattr(SimulatedCall, "obstacle", lambda self, named: "the test asks for it")
    expected = run(False)
    assert torch.equal(actual.sequences, expected.sequences)
    for one, other in zip(actual.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
