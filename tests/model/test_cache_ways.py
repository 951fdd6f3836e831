"""Every kind of cache: how a prompt runs, how many tokens each layer sees, and equality with two passes over it.

The reference is the same model with a second prefill, which the other tests hold against the oracle, and, where a cache
loses nothing, the oracle itself.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from caches import CACHES, DROPPED, FP8, LENGTH, PARTS, STEPS, TWICE, WAITED, WINDOW, dynamic, fp8
from families import made
from generation_helpers import SCORES, prompts
from transformers.cache_utils import QuantizedLayer

from cc_model import connection_disabled
from cc_model.compat import CACHE
from cc_model.fast_paths.rollback import is_quantised
from cc_model.forward.simulated_call import SimulatedCall
from cc_model.specs import layers_of


@pytest.fixture(params=CACHES)
def cached(request):
    """A stock and a patched model, a function that makes a cache, and its way."""
    family, make, way = CACHES[request.param]
    if make is fp8 and FP8 is None:
        pytest.skip("the installed transformers has no cache in 8-bit floats")
    stock, model = made(family)
    return stock, model, lambda: make(model), way


def tokens_per_layer(model):
    """The tokens of every run of each layer, by layer, while the list is alive."""
    runs = [[] for _ in layers_of(model)]
    for layer, seen in zip(layers_of(model), runs):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, s=seen: s.append(hidden(args, kwargs)), with_kwargs=True
        )
    return runs


def hidden(args, kwargs):
    return (args[0] if args else kwargs["hidden_states"]).shape[1]


def options(cache, **more):
    return {**SCORES, "max_new_tokens": STEPS, CACHE: cache, **more}


def both_ways(model, run):
    """`run()` as it is, and with two passes over the prompt."""
    actual = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedCall, "obstacle", lambda self, named: "the test asks for it")
        expected = run()
    assert model.cc.prefills == "two prefills: the test asks for it"
    return actual, expected


def assert_same(actual, expected):
    assert torch.equal(actual.sequences, expected.sequences)
    for one, other in zip(actual.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def expected_runs(way, length, count):
    return {
        DROPPED: [length, count],
        WAITED: [length, count],
        PARTS: [length - count, count, count],
        TWICE: [length, length],
    }[way]


def test_tokens_of_each_layer_and_of_the_answer(cached):
    """T + 1 tokens where entries can be dropped or wait, T + 1 after a state was put back, and the oracle's answer."""
    stock, model, make, way = cached
    ids = torch.randint(200, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    actual, expected = both_ways(model, lambda: model.generate(ids, **options(make())))
    assert_same(actual, expected)
    if not any(map(is_quantised, make().layers)):
        weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
        assert actual.sequences[0, LENGTH:].tolist() == oracle.greedy(stock, weight, matrix, ids, STEPS)
    runs = tokens_per_layer(model)
    model.generate(ids, **options(make()))
    for seen in runs:
        assert seen == [*expected_runs(way, LENGTH, 1), *[1] * (STEPS - 1)]
    with connection_disabled(model):
        plain = model.generate(ids, **options(make()))
    assert (plain.logits[0] - actual.logits[0]).abs().max() > 1e-3


def test_padding_and_an_index_for_each_row(cached):
    """Left padding; the connections are before the prompts' ends, so that several tokens run again."""
    _, model, make, way = cached
    ids, mask = prompts((LENGTH, LENGTH - 9, LENGTH - 1))
    ids %= 200
    index = torch.tensor([LENGTH - 1, LENGTH - 6, LENGTH - 3])
    runs = tokens_per_layer(model)

    def run():
        return model.generate(ids, attention_mask=mask, connection_index=index, **options(make()))

    assert_same(*both_ways(model, run))
    twice = way is TWICE or model.config.model_type == "jamba"
    wanted = expected_runs(TWICE if twice else way, LENGTH, 6)
    assert all(seen[: len(wanted)] == wanted for seen in runs)


def test_padding_behind_the_first_connection(cached):
    """A row connects before another one begins."""
    _, model, make, _ = cached
    ids, mask = prompts((LENGTH, 5))
    index = torch.tensor([12, LENGTH - 1])
    run = lambda: model.generate(ids % 200, attention_mask=mask, connection_index=index, **options(make()))  # noqa: E731
    assert_same(*both_ways(model, run))


@pytest.mark.parametrize("length", [1, 2, WINDOW, WINDOW + 1])
def test_short_prompts(cached, length):
    """A prompt of one token, of two, as long as a window, and longer by one."""
    _, model, make, _ = cached
    ids = torch.randint(200, (2, length), generator=torch.Generator().manual_seed(length))
    assert_same(*both_ways(model, lambda: model.generate(ids, **options(make()))))


@pytest.mark.parametrize("past", [7, 23])
def test_earlier_turns(cached, past):
    """The cache holds some of the prompt, less than a window or more; the connection goes to the end."""
    _, model, make, way = cached
    ids = torch.randint(200, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    runs = tokens_per_layer(model)

    def run():
        cache = make()
        with connection_disabled(model), torch.no_grad():
            model(ids[:, :past], use_cache=True, **{CACHE: cache})
        return model.generate(ids, **options(cache))

    assert_same(*both_ways(model, run))
    wanted = [past, *expected_runs(way, LENGTH - past, 1)]
    assert runs[0][: len(wanted)] == wanted


def test_chunked_prefill(cached):
    """The chunk that holds the index connects; its last token stands in the middle of the chunk."""
    _, model, make, _ = cached
    if model.config.model_type == "jamba":
        pytest.skip("jamba forgets its state in a forward of several tokens, connected or not")
    ids = torch.randint(200, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    index = torch.tensor([LENGTH - 5, LENGTH - 3])

    def run():
        return model.generate(ids, connection_index=index, prefill_chunk_size=9, **options(make()))

    assert_same(*both_ways(model, run))


def test_beams(cached):
    _, model, make, _ = cached
    if not hasattr(QuantizedLayer, "_apply_pending_reorder") and any(map(is_quantised, make().layers)):
        pytest.skip("the installed transformers cannot reorder quantised layers")
    ids, mask = prompts((LENGTH, LENGTH - 4))

    def run():
        return model.generate(ids % 200, attention_mask=mask, num_beams=3, **options(make(), output_scores=True))

    actual, expected = both_ways(model, run)
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.sequences_scores, expected.sequences_scores, rtol=0, atol=1e-5)


def test_assisted_decoding(cached):
    """With proposals of the prompt's own tokens, where the stock model takes them with this cache."""
    _, model, make, _ = cached
    if any(map(is_quantised, make().layers)):
        pytest.skip("quantised layers cannot drop the proposals that are turned down")
    ids = torch.randint(200, (1, 10), generator=torch.Generator().manual_seed(0)).repeat(1, 4)
    more = {"prompt_lookup_num_tokens": 3}
    with connection_disabled(model):
        try:
            model.generate(ids, **options(make(), **more))
        except (ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError) as error:
            pytest.skip(f"not in the stock model: {error}")
        stock = model.generate(ids, **options(make(), **more)).sequences
        if not torch.equal(stock, model.generate(ids, **options(make())).sequences):
            pytest.skip("the stock model gives other tokens with proposals")
    expected = model.generate(ids, **options(make()))
    actual = model.generate(ids, **options(make(), **more))
    assert torch.equal(actual.sequences, expected.sequences)


def test_hidden_states_and_attentions_are_joined(cached):
    _, model, make, _ = cached
    model.set_attn_implementation("eager")
    ids = torch.randint(200, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    index = torch.tensor([LENGTH - 1, LENGTH - 4])
    index = index.clamp(min=LENGTH - 1) if model.config.model_type == "jamba" else index
    named = {"connection_index": index, "output_hidden_states": True, "output_attentions": True}

    def run():
        with torch.no_grad():
            return model(ids, use_cache=True, **named, **{CACHE: make()})

    actual, expected = both_ways(model, run)
    for name in ("hidden_states", "attentions"):
        assert len(actual[name]) == len(expected[name]) > 0
        for one, other in zip(actual[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)
    assert actual[CACHE].get_seq_length() == LENGTH


@pytest.mark.parametrize("past", [0, 9])
@pytest.mark.parametrize("family", ["llama", "qwen3_next", "falcon_h1"])
def test_a_mask_for_pairs_of_tokens(family, past):
    """A caller's own, in which a query reads only some keys: cut in both of its last dimensions for parts."""
    _, model = made(family)
    ids = torch.randint(200, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    new = LENGTH - past
    reads = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    reads[20:, 5:8] = False
    mask = reads[past:].expand(2, 1, new, LENGTH)

    def run():
        cache = dynamic(model)
        with torch.no_grad():
            if past:
                with connection_disabled(model):
                    model(ids[:, :past], use_cache=True, **{CACHE: cache})
            index = torch.tensor([new - 1, new - 3])
            return model(ids[:, past:], attention_mask=mask, connection_index=index, use_cache=True, **{CACHE: cache})

    actual, expected = both_ways(model, run)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["ministral", "gemma2", "qwen3_next", "jamba", "falcon_h1", "lfm2", "minimax"])
def test_without_a_cache(family):
    """`generate` without one, and a forward that makes its own."""
    stock, model = made(family)
    ids = torch.randint(200, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
    actual = model.generate(ids, use_cache=False, max_new_tokens=STEPS, do_sample=False)
    assert actual[0, LENGTH:].tolist() == oracle.greedy(stock, weight, matrix, ids, STEPS)

    def run(keeps, at):
        with torch.no_grad():
            output = model(ids, connection_index=torch.tensor([at]), use_cache=keeps)
        assert (output.get(CACHE) is not None) == keeps
        return output

    for keeps in (True, False):
        for at in (0, LENGTH - 1):
            one, other = both_ways(model, lambda keeps=keeps, at=at: run(keeps, at))
            torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-5)
    assert run(True, LENGTH - 1)[CACHE].get_seq_length() == LENGTH


def test_an_error_leaves_the_layers_in_the_cache(monkeypatch):
    _, model = made("ministral")
    cache = dynamic(model)
    layers = list(cache.layers)
    monkeypatch.setattr(SimulatedCall, "decided", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        model(torch.arange(LENGTH)[None], connection_index=torch.tensor([LENGTH - 1]), **{CACHE: cache})
    assert cache.layers == layers
    assert cache.get_seq_length() == 0
