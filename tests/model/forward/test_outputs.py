"""What a connected forward and `generate` return besides logits, `logits_to_keep`, and calls that overlap."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from generation_helpers import GREEDY, SCORES, new_tokens, oracle_tokens, prompts
from model_pairs import at_end, batch, gumbel, pair
from oracle import capture, connected_logits, decide
from torch.utils._pytree import tree_map
from transformers import StoppingCriteria, pipeline
from word_tokenizers import make_tokenizer

from cc_model import connection_disabled
from cc_model.generation import current_generation
from cc_model.testing import random_matrix, tiny_model

INDEX, PIVOT_INDEX = [6, 5, 4], [8, 7, 6]  # of batch()
STATES = {"output_hidden_states": True, "output_attentions": True}


def oracle_output(stock, weight, data, noise, **options):
    """The stock model's output with the update added by hooks."""
    bank = capture(stock, data["pivot_input_ids"], data["pivot_attention_mask"], PIVOT_INDEX)
    embeds = torch.stack([stock.get_input_embeddings()(data["input_ids"])[b, q] for b, q in enumerate(INDEX)])
    chosen = decide(bank, embeds, weight, noise).argmax(1)
    updates = [bank[chosen[b], b] for b in range(3)]
    return connected_logits(stock, data["input_ids"], data["attention_mask"], INDEX, updates, **options)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_hidden_states_and_attentions_with_an_english_prompt(architecture, mode):
    """Those of the main pass, as long as its tokens; the pivot pass leaves none."""
    stock, model = pair(architecture, attn_implementation="eager")
    data, noise = batch(), gumbel(3)
    output = model.train(mode == "train")(**data, gumbel_noise=noise, **STATES)
    expected = oracle_output(stock, model.cc.decision_maker.weight, data, noise, **STATES)
    assert [len(output[name]) for name in ("hidden_states", "attentions")] == [5, 4]
    for name in ("hidden_states", "attentions"):
        for actual, wanted in zip(output[name], expected[name]):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(output.hidden_states[1:], stock(**main(data)).hidden_states[1:]))


def test_an_output_knows_its_field():
    """So that what takes outputs apart, as the gather of DataParallel and accelerate's do, can put them together."""
    _, model = pair()
    output = model(**batch())
    assert "decision_weights" in {field.name for field in dataclasses.fields(output)}
    again = tree_map(lambda x: x, output)
    assert type(again) is type(output)
    assert again.decision_weights is output.decision_weights


def test_rows_that_skip_the_simulated_connection_have_no_weights():
    _, model = pair(matrix=True)
    with torch.no_grad():
        weights = model(batch()["input_ids"], connection_index=torch.tensor([6, -1, 4])).decision_weights
    assert weights.sum(1).tolist() == [1.0, 0.0, 1.0]


def main(data):
    return {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"], **STATES}


KEEP = {
    "last": 1,
    "several": 5,
    "from before the connection": 10,
    "all": 0,
    "tensor": torch.tensor([0, 6, 11]),
    "none after it": torch.tensor([2]),
}


@pytest.mark.parametrize("kept", KEEP)
def test_logits_to_keep_in_training(kept):
    stock, model = pair()
    data, noise = batch(), gumbel(3)
    labels = data.pop("labels")
    data["connection_index"] = torch.tensor(INDEX)
    logits = model.train()(**data, gumbel_noise=noise, logits_to_keep=KEEP[kept]).logits
    expected = oracle_output(stock, model.cc.decision_maker.weight, data, noise, logits_to_keep=KEEP[kept]).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert labels.shape[1] != logits.shape[1] or kept == "all"


@pytest.mark.parametrize("kept", KEEP)
@pytest.mark.parametrize("gradients", [False, True], ids=["one prefill", "two prefills"])
def test_logits_to_keep_in_evaluation(kept, gradients):
    """Also positions before the connection, of which the second run makes no hidden states."""
    _, model = pair(matrix=True)
    ids, index = batch()["input_ids"], torch.tensor(INDEX)
    with torch.set_grad_enabled(gradients):
        every = model(ids, connection_index=index).logits
        logits = model(ids, connection_index=index, logits_to_keep=KEEP[kept]).logits
    wanted = every[:, -KEEP[kept] :] if isinstance(KEEP[kept], int) else every[:, KEEP[kept]]
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_generate_returns_states_of_every_token(architecture):
    """Of the prompt in one piece, although its last token ran twice; equal to a model that has no cache."""
    stock, model = pair(architecture, matrix=True, attn_implementation="eager")
    ids, mask = prompts((9, 9))
    options = {**SCORES, **STATES}
    output = model.generate(ids, attention_mask=mask, **options)
    plain = stock.generate(ids, attention_mask=mask, **options)
    exact = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    for name in ("hidden_states", "attentions"):
        steps = getattr(output, name)
        assert [[state.shape for state in step] for step in steps] == [
            [state.shape for state in step] for step in getattr(plain, name)
        ]
        for actual, wanted in zip(steps[0], getattr(exact, name)[0]):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-5)
        for actual, wanted in zip(steps[-1], getattr(exact, name)[-1]):
            torch.testing.assert_close(actual, wanted[:, ..., -1:, :], rtol=0, atol=2e-5)


def test_chunked_prefill_with_an_english_prompt():
    _, model = pair()
    ids, mask = prompts((9, 6))
    pivot, pivot_mask = prompts((7, 4), seed=3)
    options = {"attention_mask": mask, "pivot_input_ids": pivot, "pivot_attention_mask": pivot_mask, **GREEDY}
    expected = model.generate(ids, **options)
    for chunk in (1, 4, 9):
        assert torch.equal(model.generate(ids, prefill_chunk_size=chunk, **options), expected)
    early = {**options, "connection_index": torch.tensor([4, 7])}
    expected = model.generate(ids, **early)
    assert torch.equal(model.generate(ids, prefill_chunk_size=3, **early), expected)


@pytest.mark.parametrize("helper", ["stock", "patched", "itself"])
def test_speculative_decoding_with_an_early_connection(helper):
    """Candidates are checked in forwards of several tokens, which must not connect again."""
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    assistant = {"stock": tiny_model(num_hidden_layers=2, initializer_range=0.15), "itself": model}.get(helper)
    if helper == "patched":
        _, assistant = pair(matrix=True, num_hidden_layers=2)
    for extra in ({}, {"connection_index": torch.tensor([5])}):
        expected = model.generate(ids, **extra, **GREEDY)
        assert torch.equal(model.generate(ids, assistant_model=assistant, **extra, **GREEDY), expected)


def test_speculative_sampling():
    """With one admissible token at every step sampling is greedy search, through the code that accepts or resamples."""
    _, model = pair(matrix=True)
    _, assistant = pair(matrix=True, num_hidden_layers=2)
    ids, _ = prompts((9,))
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 1}
    assert torch.equal(model.generate(ids, assistant_model=assistant, **options), model.generate(ids, **GREEDY))


class Interrupts(StoppingCriteria):
    """Raises while `generate` runs."""

    def __call__(self, input_ids, scores, **kwargs):
        raise KeyboardInterrupt


def test_calls_in_a_row_leave_nothing_behind():
    """Another prompt, English prompts, the plain model, and an interrupted call in between."""
    stock, model = pair(matrix=True)
    ids, mask = prompts()
    expected = oracle_tokens(stock, model, ids, mask)
    pivot, _ = prompts((7, 7, 7), seed=3)
    english = model.generate(ids, attention_mask=mask, pivot_input_ids=pivot, **GREEDY)
    for _ in range(2):
        assert new_tokens(model.generate(ids, attention_mask=mask, **GREEDY), ids) == expected
        assert torch.equal(model.generate(ids, attention_mask=mask, pivot_input_ids=pivot, **GREEDY), english)
        with pytest.raises(KeyboardInterrupt):
            model.generate(ids, attention_mask=mask, stopping_criteria=[Interrupts()], **GREEDY)
        assert current_generation(model) is None
        with connection_disabled(model):
            plain = model.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(plain, stock.generate(ids, attention_mask=mask, **GREEDY))
        with torch.no_grad():
            model(ids[:1], **at_end(ids[:1]))  # a forward of its own between two calls


def test_two_models_in_two_threads():
    """Each thread alternates between the models, so that a state of the process or of the class would be mixed up."""
    models = [pair(matrix=True)[1], pair("qwen2", matrix=True)[1]]
    models[1].cc.transform_matrix = random_matrix(models[1], seed=5)
    ids, mask = prompts()
    expected = [model.generate(ids, attention_mask=mask, **GREEDY) for model in models]
    assert not torch.equal(*expected)
    found: list = [[], []]

    def work(own):
        for turn in range(6):
            which = (own + turn) % 2
            found[own].append((which, models[which].generate(ids, attention_mask=mask, **GREEDY)))

    threads = [threading.Thread(target=work, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(results) for results in found] == [6, 6]
    assert all(torch.equal(output, expected[which]) for results in found for which, output in results)


def test_training_in_one_thread_and_generating_in_another():
    """Two copies of a model; the running pass and the running `generate` belong to their thread."""
    _, learner = pair()
    _, speaker = pair(matrix=True)
    data, noise = batch(), gumbel(3)
    ids, mask = prompts()
    loss = learner.train()(**data, gumbel_noise=noise).loss
    tokens = speaker.generate(ids, attention_mask=mask, **GREEDY)
    losses: list = []
    thread = threading.Thread(target=lambda: losses.extend(learner(**data, gumbel_noise=noise).loss for _ in range(10)))
    thread.start()
    for _ in range(5):
        assert torch.equal(speaker.generate(ids, attention_mask=mask, **GREEDY), tokens)
    thread.join()
    assert len(losses) == 10
    assert all(torch.equal(other, loss) for other in losses)


def test_text_generation_pipeline():
    tokenizer = make_tokenizer("plain")
    _, model = pair(vocab_size=len(tokenizer), matrix=True, pad_token_id=tokenizer.pad_token_id)
    tokenizer.padding_side = "left"
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    texts = ["eins zwei", "drei eins zwei drei"]
    answers = generate(texts, batch_size=2, max_new_tokens=5, do_sample=False, return_full_text=False)
    assert model.cc.prefills == "one prefill"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = model.generate(**encoded, max_new_tokens=5, do_sample=False)
    decoded = tokenizer.batch_decode(expected[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer[0]["generated_text"].strip() for answer in answers] == [text.strip() for text in decoded]
