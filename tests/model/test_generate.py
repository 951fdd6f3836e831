"""`generate`: connected once, in one prefill where the cache allows it, in every decoding mode, or refused."""

from __future__ import annotations

import threading

import pytest
import torch
from generation_helpers import GREEDY, SCORES, TokenCounter, new_tokens, oracle_tokens, prompts
from model_pairs import batch, pair
from oracle import capture, connected_logits, decide, greedy

from cc_model import connection_disabled
from cc_model.compat import CACHE
from cc_model.testing import tiny_model


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
        assert model(ids, connection_index=index, use_cache=False).get(CACHE) is None
        assert model(ids, connection_index=index, use_cache=True)[CACHE].get_seq_length() == 12
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
