"""Supported versions of transformers: the cache under either name, and no deprecation warning of our making."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from generation_helpers import GREEDY, prompts
from model_pairs import at_end, batch, pair
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from cc_model import connection_disabled
from cc_model.compat import CACHE, OLD_CACHE, with_cache


@pytest.fixture
def said(monkeypatch):
    """What transformers says once in a process, said again at every call."""
    heard = []
    logger = type(transformers_logging.get_logger("transformers"))
    monkeypatch.setattr(logger, "warning_once", lambda self, message, *args, **kwargs: heard.append(message))
    return heard


def with_turns(model, ids, count):
    cache = DynamicCache(config=model.config)
    with connection_disabled(model), torch.no_grad():
        model(ids[:, :count], use_cache=True, **{CACHE: cache})
    return cache


def test_name_is_that_of_the_stock_forward():
    stock, _ = pair()
    for module in (stock, stock.model):
        assert CACHE in inspect.signature(module.forward).parameters


def test_nothing_deprecated_is_used(said, architecture):
    _, model = pair(architecture, matrix=True)
    ids, mask = prompts()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model.train()(**batch()).loss.backward()
        model.eval().generate(ids, attention_mask=mask, **GREEDY)
        model.generate(ids[:1], **{CACHE: with_turns(model, ids[:1], 4)}, **GREEDY)
        model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY)
        model(ids, attention_mask=mask, **at_end(ids))
    assert not [message for message in said if OLD_CACHE in str(message)]


@pytest.mark.filterwarnings(f"ignore:`{OLD_CACHE}` is deprecated:FutureWarning")
def test_old_name_still_connects():
    """Both forwards and `generate` take `past_key_values` as the stock model does, and see that the cache is filled."""
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    assert with_cache({OLD_CACHE: 1}, None) == {CACHE: None}
    expected = model.generate(ids, **{CACHE: with_turns(model, ids, 4)}, **GREEDY)
    assert torch.equal(model.generate(ids, **{OLD_CACHE: with_turns(model, ids, 4)}, **GREEDY), expected)
    with torch.no_grad():
        plain = model(ids[:, 4:], **{OLD_CACHE: with_turns(model, ids, 4)})
        assert "decision_weights" not in plain  # earlier tokens are in the cache, so this is not a prompt
        hidden = model.model(ids[:, 4:], **{OLD_CACHE: with_turns(model, ids, 4)}).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), plain.logits)
