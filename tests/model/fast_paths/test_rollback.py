"""Which way the layers of a cache go, what is an obstacle, and where that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from caches import LENGTH, WINDOW, Rounded, Unknown, dynamic
from families import made
from transformers import DynamicCache, StaticCache, cache_utils
from transformers.cache_utils import Cache

from cc_model import report
from cc_model.fast_paths.rollback import DROPS, KEPT, WAITS, ways_of
from cc_model.specs import SPECS
from cc_model.testing import tiny_config


def test_ways_of_layers():
    assert ways_of(DynamicCache(), 3).layers == ()
    window = DynamicCache(config=made("ministral")[1].config)
    assert set(ways_of(window, WINDOW - 1).layers) == {DROPS}
    assert set(ways_of(window, WINDOW).layers) == {WAITS}
    static_window = StaticCache(config=made("ministral")[1].config, max_cache_len=100)
    assert set(ways_of(static_window, WINDOW).layers) == {DROPS}
    assert set(ways_of(static_window, WINDOW + 1).layers) == {WAITS}
    assert KEPT in ways_of(dynamic(made("qwen3_next")[1]), 3).layers


class Counting(Rounded):
    """A quantised layer with bookkeeping of its own."""

    def update(self, *args, **kwargs):
        return super().update(*args, **kwargs)


def test_what_is_not_known_is_an_obstacle():
    class Own(DynamicCache):
        """A cache class of another library."""

    assert ways_of(Own(), 1).obstacle == "a cache of type Own cannot be rolled back"
    assert ways_of(Cache(layers=[Counting()]), 1).obstacle == "cache layers of type Counting cannot be rolled back"
    lazy = Cache(layer_class_to_replicate=Unknown)
    assert ways_of(lazy, 1).obstacle == "cache layers of type Unknown cannot be rolled back"
    mixed = Cache(layers=[Rounded(), cache_utils.LinearAttentionLayer()])
    assert ways_of(mixed, 1).obstacle == "the cache has quantised layers beside linear attention"


def test_the_report_says_which_way_a_cache_goes():
    window = made("gemma2")[1]
    notes = report(window).notes
    fills = "DynamicSlidingWindowLayer is filled when the prompt has run; DynamicLayer drops its newest entries"
    assert f"dynamic cache: {fills}" in notes
    assert f"static cache: {fills.replace('Dynamic', 'Static')}" in notes
    window.generate(torch.arange(LENGTH)[None], max_new_tokens=1)
    assert (
        "last connected prompt: one prefill, after which windows and quantised layers are filled"
        in report(window).notes
    )
    assert "LinearAttentionLayer gets back its state before the connection" in str(report(made("qwen3_next")[1]))
    window.cc.transform_matrix = None
    assert not any(note.startswith("dynamic cache") for note in report(window).notes)


@pytest.mark.parametrize("family", sorted(SPECS))
def test_no_cache_that_a_family_makes_needs_a_second_prefill(family):
    config = tiny_config(family)
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=100)):
        assert ways_of(cache, 200).obstacle is None


def test_the_table_names_every_class_of_transformers():
    """docs/method.md: the layers and caches of the installed version, and of the classes in the files of models."""
    text = (Path(__file__).parents[3] / "docs/method.md").read_text(encoding="utf-8")
    bases = (cache_utils.CacheLayerMixin, cache_utils.LinearAttentionCacheLayerMixin, Cache)
    classes = [kind for kind in vars(cache_utils).values() if isinstance(kind, type) and issubclass(kind, bases)]
    names = {kind.__name__ for kind in classes if not kind.__name__.endswith("Mixin")}
    names -= {"BaseQuantizedLayer", "QuantizedLayer"}  # what quantisers share
    assert len(names) > 18
    assert not {name for name in names if f"`{name}`" not in text}
