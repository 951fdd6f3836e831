"""`generate`: connected once, in one prefill where the cache allows it, in every decoding mode, or refused."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from model_pairs import batch, pair
from oracle import capture, connected_logits, decide, greedy
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from cc_model import CCConfig, connection_disabled, patch_model
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 6, "do_sample": False}
SCORES = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}


def prompts(lengths=(9, 6, 1), seed=0):
    """Left-padded prompts `(B, T)` and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (len(lengths), max(lengths)), generator=generator)
    mask = torch.ones_like(ids)
    for b, length in enumerate(lengths):
        mask[b, : ids.shape[1] - length] = 0
    return ids, mask


def oracle_tokens(stock, model, ids, mask, steps=6, **options):
    """Greedy tokens of each row alone, without padding, by the oracle."""
    weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
    return [greedy(stock, weight, matrix, row[keep.bool()][None], steps, **options) for row, keep in zip(ids, mask)]


def new_tokens(sequences, ids):
    return sequences[:, ids.shape[1] :].tolist()


class TokenCounter:
    """Counts the tokens that the first decoder layer processes in each forward."""

    def __init__(self, model):
        self.lengths: list[int] = []
        layer = model.model.layers[0].self_attn.q_proj
        self.handle = layer.register_forward_hook(lambda module, args, output: self.lengths.append(args[0].shape[1]))


def test_batch_with_left_padding_equals_two_pass_oracle(architecture):
    stock, model = pair(architecture, matrix=True)
    ids, mask = prompts()
    expected = oracle_tokens(stock, model, ids, mask)
    assert new_tokens(model.generate(ids, attention_mask=mask, **GREEDY), ids) == expected
    plain = new_tokens(stock.generate(ids, attention_mask=mask, **GREEDY), ids)
    assert plain != expected, "the matrix should change the answers, else this test shows nothing"


def test_one_prefill(architecture):
    """T tokens, then one again with the connection, then one for each new token but the last."""
    _, model = pair(architecture, matrix=True)
    ids, mask = prompts()
    counter = TokenCounter(model)
    model.generate(ids, attention_mask=mask, **GREEDY)
    assert counter.lengths == [9, 1, 1, 1, 1, 1, 1]
    assert model.cc.prefills == "one prefill"


def test_connection_index(architecture):
    stock, model = pair(architecture, matrix=True)
    ids, mask = prompts((9, 9))
    index = torch.tensor([5, 7])
    counter = TokenCounter(model)
    actual = new_tokens(model.generate(ids, attention_mask=mask, connection_index=index, **GREEDY), ids)
    assert counter.lengths[:3] == [9, 4, 1], "the smallest index of the batch and everything behind it runs again"
    weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
    assert actual == [greedy(stock, weight, matrix, ids[b : b + 1], 6, index=int(index[b])) for b in range(2)]


def test_connection_index_minus_one_is_plain():
    stock, model = pair(matrix=True)
    ids, _ = prompts((9, 9))
    plain = new_tokens(stock.generate(ids, **GREEDY), ids)
    both = new_tokens(model.generate(ids, **GREEDY), ids)
    mixed = new_tokens(model.generate(ids, connection_index=torch.tensor([-1, 8]), **GREEDY), ids)
    assert mixed == [plain[0], both[1]]
    assert new_tokens(model.generate(ids, connection_index=torch.tensor([-1, -1]), **GREEDY), ids) == plain


def test_eval_forward_equals_oracle_and_replays_differing_indices(architecture):
    """`model(...)` in evaluation: logits of all positions, right padding, an index of its own in each row."""
    stock, model = pair(architecture, matrix=True)
    data = batch()
    index = [6, 5, 4]
    ids, mask = data["input_ids"], data["attention_mask"]
    with torch.no_grad():
        bank = capture(stock, ids, mask, index) @ model.cc.transform_matrix
        embeds = torch.stack([stock.get_input_embeddings()(ids)[b, q] for b, q in enumerate(index)])
        weights = decide(bank, embeds, model.cc.decision_maker.weight)
        updates = [bank[weights[b].argmax(), b] for b in range(3)]
        expected = connected_logits(stock, ids, mask, index, updates, labels=data["labels"])
        output = model(ids, mask, labels=data["labels"])
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert torch.equal(output.decision_weights.argmax(1), weights.argmax(1))


def test_eval_forward_outputs_are_joined():
    _, model = pair(matrix=True, attn_implementation="eager")
    ids = batch()["input_ids"]
    index = torch.tensor([6, 5, 4])
    options = {"connection_index": index, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        one = model(ids, **options)
    two = model(ids, **options)  # with gradients enabled: two full passes
    assert model.cc.prefills.startswith("two prefills: gradients are enabled")
    assert len(one.hidden_states) == 5
    for a, b in zip(
        [one.logits, *one.hidden_states, *one.attentions], [two.logits, *two.hidden_states, *two.attentions]
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with torch.no_grad():
        last = model(ids, connection_index=index, logits_to_keep=2).logits
        assert model(ids, connection_index=index, use_cache=False).past_key_values is None
        assert model(ids, connection_index=index, use_cache=True).past_key_values.get_seq_length() == 12
    torch.testing.assert_close(last, two.logits[:, -2:], rtol=0, atol=1e-5)


def test_eval_gradient_treats_the_update_as_constant():
    stock, model = pair(matrix=True)
    data = {name: value for name, value in batch().items() if not name.startswith("pivot")}
    model(**data).loss.backward()
    assert model.cc.decision_maker.weight.grad is None
    assert stock.model.layers[0].mlp.up_proj.weight.shape == model.model.layers[0].mlp.up_proj.weight.grad.shape


def test_sampling_uses_connected_logits():
    _, model = pair(matrix=True)
    ids, mask = prompts()
    expected = model.generate(ids, attention_mask=mask, **SCORES)
    torch.manual_seed(0)
    sampled = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=True,
        top_k=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    torch.testing.assert_close(sampled.logits[0], expected.logits[0])
    torch.manual_seed(0)
    again = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=True, top_k=0)
    assert torch.equal(again, sampled.sequences)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beam_search(options):
    """Each row alone gives what it gives in a batch, and a beam of one is greedy search."""
    _, model = pair(matrix=True)
    ids, mask = prompts((9, 6))
    returned = options.get("num_return_sequences", 1)
    index = torch.tensor([8, 8])
    together = model.generate(ids, attention_mask=mask, connection_index=index, **options, **GREEDY)
    assert together.shape[0] == 2 * returned
    for b in range(2):
        row = ids[b][mask[b].bool()][None]
        alone = model.generate(row, **options, **GREEDY)
        assert new_tokens(together[b * returned : (b + 1) * returned], ids) == new_tokens(alone, row)
    with connection_disabled(model):
        plain = model.generate(ids, attention_mask=mask, **options, **GREEDY)
    assert not torch.equal(plain, together)


def test_beam_prefill_is_connected_like_greedy():
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    greedy_logits = model.generate(ids, **SCORES).logits[0]
    beam = model.generate(ids, num_beams=2, **SCORES)
    torch.testing.assert_close(beam.logits[0][:1], greedy_logits)


def test_several_returned_samples():
    _, model = pair(matrix=True)
    ids, _ = prompts((9, 9))
    torch.manual_seed(0)
    options = {**SCORES, "do_sample": True, "num_return_sequences": 3}
    output = model.generate(ids, connection_index=torch.tensor([8, 4]), **options)
    expected = model.generate(ids, connection_index=torch.tensor([8, 4]), **SCORES).logits[0]
    torch.testing.assert_close(output.logits[0], expected.repeat_interleave(3, dim=0))


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
            model(ids[:, :past], past_key_values=cache, use_cache=True)
        counter = TokenCounter(model)
        given = ids if form == "whole" else ids[:, past:]
        output = model.generate(given, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)
        assert new_tokens(output, given) == oracle_tokens(stock, model, ids, torch.ones_like(ids))
        assert counter.lengths[:2] == [9 - past, 1]
        counter.handle.remove()


def test_connection_index_already_in_the_cache():
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    cache = DynamicCache(config=model.config)
    with connection_disabled(model), torch.no_grad():
        model(ids[:, :4], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="connection_index: expected a token that is not in the cache yet"):
        model.generate(ids, past_key_values=cache, connection_index=torch.tensor([3]), **GREEDY)


def test_static_cache_rolls_back_in_place():
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    counter = TokenCounter(model)
    actual = model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY)
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask)
    assert counter.lengths[:3] == [9, 1, 1]
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        model(ids[:1], past_key_values=cache, use_cache=True, connection_index=torch.tensor([5]))
    keys = cache.layers[0].keys
    assert keys.shape[2] == 20
    assert int(cache.get_seq_length()) == 9


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("implementation", [None, "static", "no cache"])
def test_sliding_window_in_use_needs_two_prefills(architecture, implementation, caplog):
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
    assert counter.lengths[:3] == ([9, 9, 10] if implementation == "no cache" else [9, 9, 1])
    assert model.cc.prefills.startswith("two prefills: ")
    assert "second prefill" in caplog.text


def test_sliding_window_not_yet_in_use_needs_one():
    stock, model = pair("mistral", matrix=True, sliding_window=12)
    ids, mask = prompts((9, 9))
    actual = model.generate(ids, attention_mask=mask, **{**GREEDY, "max_new_tokens": 8})
    assert new_tokens(actual, ids) == oracle_tokens(stock, model, ids, mask, steps=8)
    assert model.cc.prefills == "one prefill"


class UnknownLayer(DynamicLayer):
    """Stands for every layer type that the library does not know, the quantised ones included."""


@pytest.mark.parametrize("past", [0, 4])
def test_cache_of_unknown_type_needs_two_prefills(past):
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))

    def cache():
        made = Cache(layers=[UnknownLayer() for _ in range(4)])
        if past:
            with connection_disabled(model), torch.no_grad():
                model(ids[:, :past], past_key_values=made, use_cache=True)
        return made

    used = cache()
    counter = TokenCounter(model)
    output = model.generate(ids, past_key_values=used, **SCORES)
    assert counter.lengths[:3] == [9 - past, 9 - past, 1]
    assert "UnknownLayer cannot be rolled back" in model.cc.prefills
    assert used.get_seq_length() == 9 + 5
    exact = model.generate(ids, **SCORES)
    torch.testing.assert_close(torch.cat(output.logits), torch.cat(exact.logits), rtol=0, atol=2e-5)


def test_english_prompt_instead_of_the_matrix():
    stock, model = pair()
    ids, mask = prompts((9, 6))
    pivot, pivot_mask = prompts((7, 4), seed=3)
    weight = model.cc.decision_maker.weight
    expected = [
        greedy(stock, weight, None, row[m.bool()][None], 6, pivot=p[pm.bool()][None])
        for row, m, p, pm in zip(ids, mask, pivot, pivot_mask)
    ]
    options = {"pivot_input_ids": pivot, "pivot_attention_mask": pivot_mask}
    assert new_tokens(model.generate(ids, attention_mask=mask, **options, **GREEDY), ids) == expected
    counter = TokenCounter(model)
    beams = model.generate(ids, attention_mask=mask, num_beams=2, **options, **SCORES)
    assert counter.lengths == [7, 9, 1, 1, 1, 1, 1]
    single = model.generate(ids, attention_mask=mask, **options, **SCORES)
    torch.testing.assert_close(beams.logits[0][::2], single.logits[0])


def test_all_padding_pivot_is_plain():
    stock, model = pair()
    ids, _ = prompts((9, 9))
    pivot, pivot_mask = prompts((7, 7), seed=3)
    pivot_mask[0] = 0
    output = model.generate(ids, pivot_input_ids=pivot, pivot_attention_mask=pivot_mask, **SCORES).logits[0]
    plain = stock.generate(ids, **SCORES).logits[0]
    torch.testing.assert_close(output[0], plain[0])
    assert not torch.allclose(output[1], plain[1])


def test_prompt_lookup_decoding():
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    ids = torch.cat([ids, ids], dim=1)  # repeats, so that candidates are found
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **GREEDY), expected)


def test_assisted_generation():
    _, model = pair(matrix=True)
    _, assistant = pair(matrix=True, num_hidden_layers=2)
    ids, _ = prompts((9,))
    expected = model.generate(ids, **GREEDY)
    for helper in (assistant, tiny_model(num_hidden_layers=1)):
        assert torch.equal(model.generate(ids, assistant_model=helper, **GREEDY), expected)


def test_prompt_as_embeddings():
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    expected = new_tokens(model.generate(ids, **GREEDY), ids)
    output = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY)
    assert output.tolist() == expected


def test_repeated_calls_and_threads():
    _, model = pair(matrix=True)
    ids, mask = prompts()
    expected = [model.generate(ids[b : b + 1], attention_mask=mask[b : b + 1], **GREEDY) for b in range(2)]
    assert torch.equal(model.generate(ids[:1], attention_mask=mask[:1], **GREEDY), expected[0])
    found: list = [[], []]

    def work(b):
        for _ in range(5):
            found[b].append(model.generate(ids[b : b + 1], attention_mask=mask[b : b + 1], **GREEDY))

    threads = [threading.Thread(target=work, args=(b,)) for b in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for b in range(2):
        assert len(found[b]) == 5
        assert all(torch.equal(output, expected[b]) for output in found[b])


@pytest.mark.parametrize("shape", ["per layer", "affine", "per layer and affine"])
def test_matrix_forms(shape):
    stock, model = pair()
    layers = torch.stack([random_matrix(model, seed=s) for s in range(4)])
    model.cc.transform_matrix = layers if "per layer" in shape else layers[0]
    if "affine" in shape:
        bias = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
        model.cc.transform_bias = bias if "per layer" in shape else bias[0]
    ids, _ = prompts((9,))
    expected = greedy(
        stock, model.cc.decision_maker.weight, model.cc.transform_matrix, ids, 6, bias=model.cc.transform_bias
    )
    assert new_tokens(model.generate(ids, **GREEDY), ids) == [expected]


@pytest.mark.parametrize("per_layer", [False, True])
def test_soft_mixing_in_inference(per_layer):
    _, model = pair("llama", CCConfig(hard=False))
    matrix = torch.stack([random_matrix(model, seed=s) for s in range(4)])
    model.cc.transform_matrix = matrix if per_layer else matrix[0]
    maker = model.cc.decision_maker
    bank, embeds = torch.randn(4, 3, 64), torch.randn(3, 64)
    with torch.no_grad():
        update, weights = maker(bank, embeds, None, model.cc.config, matrix=model.cc.transform_matrix)
        mapped = bank @ model.cc.transform_matrix
        expected = torch.softmax((mapped.mean(0) + embeds) @ maker.weight.T, -1)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(update, torch.einsum("bl,lbd->bd", expected, mapped), rtol=1e-4, atol=1e-4)


def test_folded_matrix_follows_its_parts():
    _, model = pair(matrix=True)
    maker, matrix = model.cc.decision_maker, model.cc.transform_matrix
    first = maker.folded(matrix)
    assert maker.folded(matrix) is first, "kept while nothing changes"
    with torch.no_grad():
        matrix.mul_(2)
    torch.testing.assert_close(maker.folded(matrix), 2 * first)
    with torch.no_grad():
        maker.weight.mul_(3)
    torch.testing.assert_close(maker.folded(matrix), 6 * first)
    model.cc.transform_matrix = matrix.clone().zero_()
    assert not maker.folded(model.cc.transform_matrix).any()


def test_without_matrix_is_plain_and_says_so_once(caplog):
    stock, model = pair()
    ids, mask = prompts()
    with caplog.at_level(logging.WARNING, "cc_model"):
        for _ in range(2):
            output = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(output, stock.generate(ids, attention_mask=mask, **GREEDY))
    assert caplog.text.count("no Transform Matrix is set") == 1


def test_disabled_is_plain():
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    with connection_disabled(model):
        output = model.generate(ids, attention_mask=mask, connection_index=torch.tensor([8, 8, 8]), **GREEDY)
    assert torch.equal(output, stock.generate(ids, attention_mask=mask, **GREEDY))


def test_training_mode_is_plain_and_says_so(caplog):
    stock, model = pair(matrix=True)
    ids, _ = prompts((9,))
    with caplog.at_level(logging.WARNING, "cc_model"):
        output = model.train().generate(ids, **GREEDY)
    assert torch.equal(output, stock.generate(ids, **GREEDY))
    assert "training mode" in caplog.text


REMOTE = {"trust_remote_code": True}
REFUSED = {
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale is not supported"),
    "custom": ({"custom_generate": lambda *a, **k: None}, "custom_generate is not supported"),
    "negative": ({"negative_prompt_ids": torch.zeros(1, 2, dtype=torch.long)}, "negative_prompt_ids is not supported"),
    "paged": ({"cache_implementation": "paged"}, "paged' is not supported"),
    "contrastive": (
        {"penalty_alpha": 0.6, "top_k": 4, **REMOTE},
        "'contrastive_search' is not supported",
    ),
    "dola": ({"dola_layers": "low", **REMOTE}, "generation mode 'dola_generation' is not supported"),
    "index range": (
        {"connection_index": torch.tensor([9])},
        r"connection_index: expected −1 or an .*\[0, 9\), got 9",
    ),
    "index shape": ({"connection_index": torch.tensor([1, 2])}, r"connection_index: expected integers of shape \(B,\)"),
    "index type": ({"connection_index": [1]}, "connection_index: expected integers of shape.*got list"),
    "right padding": (
        {"attention_mask": torch.tensor([[1] * 8 + [0]])},
        "attention_mask: expected left-padded",
    ),
    "orphan": ({"pivot_index": torch.tensor([1])}, "pivot_index: expected together with pivot_input_ids"),
    "pivot rows": (
        {"pivot_input_ids": torch.zeros(2, 3, dtype=torch.long)},
        "pivot_input_ids: expected integers of shape",
    ),
    "pivot mask": (
        {"pivot_input_ids": torch.zeros(1, 3, dtype=torch.long), "pivot_attention_mask": torch.ones(1, 4)},
        "pivot_attention_mask: expected shape",
    ),
    "token healing": ({"token_healing": True}, "token_healing is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **{**GREEDY, **options})


def test_continuous_batching_is_refused():
    _, model = pair(matrix=True)
    with pytest.raises(NotImplementedError, match="generate_batch"):
        model.generate_batch([[1, 2, 3]])


def test_matrix_assignment_is_checked():
    model = patch_model(tiny_model())
    for value, error, message in [
        (
            torch.zeros(64, 63),
            ValueError,
            r"transform_matrix: expected shape \(64, 64\) or \(4, 64, 64\), got",
        ),
        (torch.zeros(64, 64, dtype=torch.long), TypeError, "transform_matrix: expected a floating-point dtype"),
        (torch.full((64, 64), float("nan")), ValueError, "transform_matrix: expected numbers that are finite"),
        ([[0.0]], TypeError, "transform_matrix: expected a tensor or None, got list"),
    ]:
        with pytest.raises(error, match=message):
            model.cc.transform_matrix = value
    with pytest.raises(ValueError, match="transform_bias: expected shape"):
        model.cc.transform_bias = torch.zeros(3)
    assert model.cc.transform_matrix is None
    model.cc.transform_matrix = torch.eye(64, dtype=torch.float64)
    assert model.cc.transform_matrix.dtype == torch.float32
    model.cc.transform_matrix = None
    assert not model.cc.simulates
