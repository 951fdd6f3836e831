"""`generate` with caches, as its options make them; each kind of layer and of way stands in `test_cache_ways.py`."""

from __future__ import annotations

import logging

import pytest
import torch
from families import made
from generation_helpers import GREEDY, SCORES, TokenCounter, new_tokens, oracle_tokens, prompts
from model_pairs import pair
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from cc_model import connection_disabled
from cc_model.compat import CACHE


def test_without_cache():
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    actual = new_tokens(model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY), ids)
    assert actual == oracle_tokens(stock, model, ids, mask)


@pytest.mark.parametrize("chunk", [1, 4, 8, 9, 100])
def test_chunked_prefill(chunk):
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    actual = model.generate(ids, attention_mask=mask, prefill_chunk_size=chunk, **GREEDY)
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask)


def test_chunked_prefill_with_indices_in_different_chunks():
    _, model = pair(matrix=True)
    ids, _ = prompts((9, 9))
    index = torch.tensor([2, 7])
    expected = model.generate(ids, connection_index=index, **GREEDY)
    assert torch.equal(model.generate(ids, connection_index=index, prefill_chunk_size=3, **GREEDY), expected)


@pytest.mark.parametrize("form", ["whole", "new tokens"])
def test_cache_with_earlier_turns(form):
    """The connection goes to the last token of the new prompt, although the cache is not empty."""
    stock, model = pair(matrix=True)
    ids, _ = prompts((9,))
    for past in (4, 8):
        cache = DynamicCache(config=model.config)
        with connection_disabled(model), torch.no_grad():
            model(ids[:, :past], use_cache=True, **{CACHE: cache})
        counter = TokenCounter(model)
        given = ids if form == "whole" else ids[:, past:]
        output = model.generate(given, attention_mask=torch.ones_like(ids), **{CACHE: cache}, **GREEDY)
        assert new_tokens(output, given) == oracle_tokens(stock, model, ids, torch.ones_like(ids))
        assert counter.lengths[:2] == [9 - past, 1]
        counter.handle.remove()


def test_connection_index_already_in_the_cache():
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    cache = DynamicCache(config=model.config)
    with connection_disabled(model), torch.no_grad():
        model(ids[:, :4], use_cache=True, **{CACHE: cache})
    with pytest.raises(ValueError, match="connection_index: expected a token that is not in the cache yet"):
        model.generate(ids, connection_index=torch.tensor([3]), **{CACHE: cache}, **GREEDY)


def test_static_cache_rolls_back_in_place():
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    counter = TokenCounter(model)
    actual = model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY)
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask)
    assert counter.lengths[:3] == [9, 1, 1]
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        model(ids[:1], use_cache=True, connection_index=torch.tensor([5]), **{CACHE: cache})
    keys = cache.layers[0].keys
    assert keys.shape[2] == 20
    assert int(cache.get_seq_length()) == 9


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("implementation", [None, "static", "no cache"])
def test_sliding_window_in_use_needs_one_prefill(architecture, implementation, caplog):
    overrides = {"sliding_window": 5}
    if architecture != "mistral":
        overrides |= {"use_sliding_window": True, "max_window_layers": 2, "layer_types": None}
    stock, model = pair(architecture, matrix=True, **overrides)
    ids, mask = prompts((9, 9))
    counter = TokenCounter(model)
    with caplog.at_level(logging.WARNING, "cc_model"):
        option = {"use_cache": False} if implementation == "no cache" else {"cache_implementation": implementation}
        actual = model.generate(ids, attention_mask=mask, **option, **GREEDY)
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask)
    assert counter.lengths[:3] == ([9, 1, 10] if implementation == "no cache" else [9, 1, 1])
    assert model.cc.prefills == "one prefill, after which windows and quantised layers are filled"
    assert "second prefill" not in caplog.text


def test_sliding_window_not_yet_in_use():
    stock, model = pair("mistral", matrix=True, sliding_window=12)
    ids, mask = prompts((9, 9))
    actual = model.generate(ids, attention_mask=mask, **{**GREEDY, "max_new_tokens": 8})
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask, steps=8)
    assert model.cc.prefills == "one prefill"


class UnknownLayer(DynamicLayer):
    """Stands for every layer type that the library does not know."""


@pytest.mark.parametrize("past", [0, 4])
def test_cache_of_unknown_type_needs_two_prefills(past):
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))

    def cache():
        made = Cache(layers=[UnknownLayer() for _ in range(4)])
        if past:
            with connection_disabled(model), torch.no_grad():
                model(ids[:, :past], use_cache=True, **{CACHE: made})
        return made

    used = cache()
    counter = TokenCounter(model)
    output = model.generate(ids, **{CACHE: used}, **SCORES)
    assert counter.lengths[:3] == [9 - past, 9 - past, 1]
    assert "UnknownLayer cannot be rolled back" in model.cc.prefills
    assert used.get_seq_length() == 9 + 5
    exact = model.generate(ids, **SCORES)
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(exact.logits), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("use_cache", "times"), [(True, 1), (False, 5)])
@pytest.mark.parametrize("family", ["llama", "minimax"])  # MiniMax's body makes its cache itself
@pytest.mark.parametrize("english", [False, True])
def test_how_often_it_connects(family, use_cache, times, english):
    """Once with a cache, and without one in each forward, which runs the prompt again."""
    _, model = made(family)
    ids, seen = torch.tensor([[5, 6]]), []
    model.cc.decision_maker.register_forward_hook(lambda *args: seen.append(1))
    given = {"pivot_input_ids": torch.tensor([[7, 8, 9]])} if english else {}
    model.generate(ids, use_cache=use_cache, max_new_tokens=5, min_new_tokens=5, do_sample=False, **given)
    assert len(seen) == times
