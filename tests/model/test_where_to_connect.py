"""Where a forward or a `generate` with the Transform Matrix connects: where it is told, or an error."""

from __future__ import annotations

import math
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from generation_helpers import GREEDY, SCORES, prompts
from model_pairs import at_end, batch, pair
from transformers import DynamicCache, GenerationConfig

from cc_model import connection_disabled
from cc_model.compat import CACHE

MESSAGE = "connection_index: expected the token of each row to connect, got neither connection_index nor labels"


def prefilled(model, ids, **options):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, use_cache=True, **{CACHE: cache}, **options)
    return cache


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", ["ids", "mask", "embeddings", "empty cache", "logits_to_keep"])
def test_a_forward_that_says_nothing_raises(form, gradients, architecture):
    _, model = pair(architecture, matrix=True)
    ids = batch()["input_ids"]
    given = {"input_ids": ids}
    if form == "mask":
        given["attention_mask"] = batch()["attention_mask"]
    elif form == "embeddings":
        given = {"inputs_embeds": model.get_input_embeddings()(ids)}
    elif form == "empty cache":
        given |= {CACHE: DynamicCache(config=model.config), "use_cache": True}
    elif form == "logits_to_keep":
        given["logits_to_keep"] = 1
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match=MESSAGE) as raised:
        model(**given)
    for name in ("connection_index=", "labels", "connection_disabled(model)", "generate", "score_choices"):
        assert name in str(raised.value)


def test_what_says_it_is_plain():
    stock, model = pair(matrix=True)
    ids = batch()["input_ids"]
    expected = stock(ids).logits
    with connection_disabled(model):
        assert torch.equal(model(ids).logits, expected)
    torch.testing.assert_close(model(ids, connection_index=torch.full((3,), -1)).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(model.train()(ids).logits, expected)
    model.eval().cc.transform_matrix = None
    assert torch.equal(model(ids).logits, expected)


def test_labels_say_where():
    _, model = pair(matrix=True)
    data = {name: value for name, value in batch().items() if not name.startswith("pivot")}
    given = model(**{**data, "labels": None}, connection_index=torch.tensor([6, 5, 4]))
    assert torch.equal(model(**data).logits, given.logits)


@pytest.mark.parametrize("past", [1, 4, 8])
def test_an_index_after_earlier_turns(past):
    """Given with a filled cache it counts within the new tokens, as in `generate`; without it, the cache goes on."""
    _, model = pair(matrix=True)
    ids, _ = prompts((9,))
    with connection_disabled(model):
        caches = [prefilled(model, ids[:, :past]) for _ in range(3)]
        with torch.no_grad():
            plain = model(ids[:, past:], **{CACHE: caches[0]}).logits
    expected = model.generate(ids, **{CACHE: caches[1]}, **SCORES).logits[0]
    with torch.no_grad():
        found = model(ids[:, past:], **{CACHE: caches[2]}, **at_end(ids[:, past:]))
        again = model(torch.tensor([[5]]), **{CACHE: caches[2]})
    torch.testing.assert_close(found.logits[:, -1], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found.logits[:, -1], plain[:, -1], atol=1e-3)
    assert "decision_weights" not in again


@pytest.mark.parametrize("length", [1, 5, 8])
def test_a_shared_prefix(length):
    """Run once as the plain model, its cache gives the answers that the whole prompt gives; as a prompt it raises."""
    _, model = pair(matrix=True)
    for seed in range(3):
        ids, _ = prompts((9,), seed=seed)
        expected = model.generate(ids, **SCORES)
        with pytest.raises(ValueError, match=MESSAGE):
            prefilled(model, ids[:, :length])
        with connection_disabled(model):
            cache = prefilled(model, ids[:, :length])
        found = model.generate(ids, **{CACHE: cache}, **SCORES)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)


def logprob(model, data, **options):
    logits = model(data["input_ids"], data["attention_mask"], **options).logits[:, :-1].log_softmax(-1)
    labels = data["labels"][:, 1:]
    picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels == -100, 0.0, picked).sum(1)


def test_policy_and_reference_are_the_same_model_at_step_0():
    """The loss of DPO is ln 2 there; the reference in evaluation raises unless it is told to be plain."""
    _, model = pair(matrix=True)
    chosen, rejected = batch(seed=0), batch(seed=1)
    with pytest.raises(ValueError, match=MESSAGE):
        logprob(model, chosen)
    with connection_disabled(model), torch.no_grad():
        reference = [logprob(model.eval(), data) for data in (chosen, rejected)]
    policy = [logprob(model.train(), data) for data in (chosen, rejected)]
    loss = -F.logsigmoid(0.1 * ((policy[0] - policy[1]) - (reference[0] - reference[1]))).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("matrix", [False, True])
def test_a_plain_step_beside_a_matrix_says_that_a_reference_connects(matrix, caplog):
    """TRL's trainers give labels to policy and reference, so the reference does not raise."""
    _, model = pair(matrix=matrix)
    data = {name: value for name, value in batch().items() if not name.startswith("pivot")}
    with connection_disabled(model):
        model.train()(**data)
    assert "Transform Matrix" not in caplog.text
    for _ in range(2):
        model(**data)
    assert caplog.text.count("a Transform Matrix is set: forwards in evaluation with the same labels connect") == matrix


PAD = 7
SOURCES = {
    "the call": ({"pad_token_id": PAD}, {}),
    "a generation config": ({"generation_config": GenerationConfig(pad_token_id=PAD, max_new_tokens=6)}, {}),
    "the model's generation config": ({}, {"generation_config": PAD}),
    "the config": ({}, {"config": PAD}),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"connection_index": torch.tensor([8, 4])}])
def test_right_padding_without_a_mask(options, source):
    _, model = pair(matrix=True)
    given, of_the_model = SOURCES[source]
    for name, value in of_the_model.items():
        getattr(model, name).pad_token_id = value
    ids = prompts((9, 9))[0].masked_fill(prompts((9, 9))[0] == PAD, PAD + 1)
    padded = ids.clone()
    padded[1, 5:] = PAD
    with pytest.raises(ValueError, match=r"input_ids: expected left-padded .* padding token 7 at the end of row 1"):
        model.generate(padded, **given, **options, **GREEDY)
    model.generate(ids, **given, **options, **GREEDY)  # nothing is padded
    mask = torch.ones_like(padded)
    model.generate(padded, attention_mask=mask, **given, **options, **GREEDY)  # the token is the prompt's own
    with connection_disabled(model):
        model.generate(padded, **given, **{k: v for k, v in options.items() if "index" not in k}, **GREEDY)


def test_left_padding_without_a_mask():
    """The stock `generate` makes the mask of the padding token."""
    _, model = pair(matrix=True)
    ids, mask = prompts((9, 6))
    ids = ids.masked_fill(ids == PAD, PAD + 1).masked_fill(mask == 0, PAD)
    expected = model.generate(ids, attention_mask=mask, pad_token_id=PAD, **GREEDY)
    assert torch.equal(model.generate(ids, pad_token_id=PAD, **GREEDY), expected)


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "chunks": {"prefill_chunk_size": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("english", [False, True])
def test_a_prompt_that_ran_without_a_connection_raises(english, earlier, mode):
    """Somebody's own inputs for `generate`, which are no step of ours: an error instead of a plain answer."""
    _, model = pair(matrix=not english)
    stock = type(model).cc_stock_class.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = MethodType(stock, model)
    ids, _ = prompts((9,))
    options = {**GREEDY, **MODES[mode]}
    if earlier:
        if mode in ("static cache", "no cache") or "beams" in mode:
            pytest.skip("this mode makes its own cache, or takes one of as many rows as it has beams")
        with connection_disabled(model):
            options[CACHE] = prefilled(model, ids[:, :4])
    if english:
        options["pivot_input_ids"] = ids
    seen = []
    silent = english or earlier  # otherwise the forward itself raises: nothing says where to connect
    error, message = (RuntimeError, "the prompt has run without one") if silent else (ValueError, MESSAGE)
    with pytest.raises(error, match=message):
        model.generate(ids, logits_processor=[lambda tokens, scores: seen.append(tokens) or scores], **options)
    assert not seen or mode == "prompt lookup"  # which updates its inputs at the end of a round
    del model.prepare_inputs_for_generation
    with connection_disabled(model):
        model.generate(ids, **GREEDY)


def test_no_row_wants_a_connection():
    stock, model = pair(matrix=True)
    ids, _ = prompts((9, 9))
    found = model.generate(ids, connection_index=torch.tensor([-1, -1]), **GREEDY)
    assert torch.equal(found, stock.generate(ids, **GREEDY))
