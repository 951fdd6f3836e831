"""Static caches: what is compiled, and what is launched from the prompt to the first token, counted.

On a GPU transformers turns decode steps into CUDA graphs. Here the compiler hands its graphs to plain PyTorch, so that
their number is the same and nothing needs a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from families import made
from transformers import CompileConfig, StaticCache

from benchmarks.measure.counting import OpCounter
from cc_model import connection_disabled, patch_model
from cc_model.compat import CACHE
from cc_model.forward.parts import Parts
from cc_model.specs import SPECS
from cc_model.testing import random_matrix, tiny_model

# Family: graphs beyond the stock model's, and runs of the last token beyond its first.
FAMILIES = {
    "llama": (1, 1),
    "qwen3": (1, 1),
    "gemma2": (0, 1),  # windows wait while the prompt runs, and the token that runs again is not compiled
    "ministral": (0, 1),
    "qwen3_next": (1, 2),
    "falcon_h1": (1, 2),
    "lfm2": (1, 2),
}
STATIC = {"cache_implementation": "static", "max_cache_len": 64, "do_sample": False}


def prompt(length, padded):
    ids = torch.randint(200, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, : 3 if padded else 0] = 0
    return {"input_ids": ids, "attention_mask": mask}


def off(model, whether):
    return connection_disabled(model) if whether else nullcontext()


def graphs_of(model, plain):
    """Graphs that were compiled for prompts of several lengths, with padding and without."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiled._compile_all_devices = True
    with off(model, plain):
        for length in (24, 30, 37):
            for padded in (False, True):
                given = {**prompt(length, padded), **STATIC, "max_new_tokens": 5}
                eager = model.generate(**given, disable_compile=True)
                assert torch.equal(model.generate(**given, compile_config=compiled), eager)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs(family):
    """One more than the stock model's, for the token that runs again; none for another prompt, padded or not."""
    _, model = made(family)
    plain, connected = graphs_of(model, True), graphs_of(model, False)
    torch._dynamo.reset()
    assert connected - plain == FAMILIES[family][0]


def ops_of(model, new_tokens, plain, padded):
    given = {**prompt(30, padded), **STATIC, "max_new_tokens": new_tokens, "disable_compile": True}
    with off(model, plain):
        model.generate(**given)
        with OpCounter() as counter:
            model.generate(**given)
    return counter.ops.total(), counter.synchronisations


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ops_to_the_first_token(family, padded):
    """As many more than the stock model's as decode steps launch, and a decision; the host waits once more."""
    _, model = made(family)
    (plain, waits), (two, _) = (ops_of(model, count, True, padded) for count in (1, 2))
    connected, waits_connected = ops_of(model, 1, False, padded)
    assert connected - plain <= FAMILIES[family][1] * (two - plain) + 40
    assert waits_connected <= waits + 1


@pytest.mark.parametrize("family", sorted(SPECS))
def test_every_family(family):
    """With room in the cache and no padding, where masks that the prompt does without are made for its last tokens."""
    _, model = made(family)
    for index in ([29, 29], [20, 27]):
        named = {**prompt(30, False), "output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 3}
        named["do_sample"] = False
        try:
            with connection_disabled(model):
                model.generate(**named, cache_implementation="static")
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            pytest.skip(f"the stock model has no static cache: {error}")
        found = model.generate(**named, cache_implementation="static", connection_index=torch.tensor(index))
        expected = model.generate(**named, connection_index=torch.tensor(index))
        assert torch.equal(found.sequences, expected.sequences)
        for one, other in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("at", [20, 29])
def test_a_forward_without_a_mask(family, at):
    """A window of 16 tokens is in use where the family has one."""
    model = patch_model(tiny_model(family, sliding_window=16, initializer_range=0.15))
    model.cc.transform_matrix = random_matrix(model)
    ids = prompt(30, False)["input_ids"]
    index = torch.full((2,), at)
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=64)
        found = model(ids, connection_index=index, use_cache=True, **{CACHE: cache}).logits
        assert model.cc.prefills.startswith("one prefill")
    expected = model(ids, connection_index=index).logits  # with gradients: two passes, without a cache
    assert model.cc.prefills.startswith("two prefills")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_mask_that_no_layer_reads():
    """Gemma 3 makes masks of two kinds where pictures could be, also when all of its layers have windows."""
    _, model = made("gemma3")
    assert set(model.config.get_text_config().layer_types) == {"sliding_attention"}
    given = {**prompt(30, False), **STATIC, "max_new_tokens": 4}
    expected = model.generate(**given)
    assert torch.equal(model.generate(**given, token_type_ids=torch.zeros(2, 30, dtype=torch.long)), expected)


def test_a_mask_of_an_unknown_type():
    _, model = made("qwen3")
    mask = {"full_attention": None, "folded_attention": None}
    wanted = "attention_mask: expected masks of full_attention, .*, got 'folded_attention'"
    with torch.no_grad(), pytest.raises(ValueError, match=wanted):
        model(prompt(9, False)["input_ids"], attention_mask=mask, connection_index=torch.tensor([8, 8]))


@pytest.mark.parametrize(("window", "made_ready"), [(None, True), (16, False)])
def test_a_mask_is_made_ready_only_where_attention_is_causal_alone(window, made_ready):
    """The token that runs again is compiled with a mask, as decode steps are; a window's mask is the body's to make."""
    config = tiny_model("mistral", sliding_window=window).config
    cache = StaticCache(config=config, max_cache_len=64)
    ids = prompt(30, False)["input_ids"]
    for compiled in (True, False):
        again = Parts({"input_ids": ids}, config, cache, compiled).tokens(29, 30, cache)
        assert (again.get("attention_mask") is not None) == (made_ready and compiled)
