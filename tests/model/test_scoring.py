"""Log-likelihoods of choices: equal to a forward per choice, with one shared prefill."""

import pytest
import torch
from families import made
from generation_helpers import TokenCounter
from model_pairs import pair
from oracle import capture, connected_logits, decide

from cc_model import CCConfig, connection_disabled
from cc_model.scoring import _repeats_caches, score_choices
from cc_model.testing import random_matrix, tiny_model

PROMPTS = [[9, 200, 31, 7, 88, 3], [5], [17, 17, 4]]
CHOICES = [[[1], [2, 3, 4], [2, 3]], [[7, 8]], [[9], [9, 9, 9, 9]]]


def summed(logits, prompt, choice):
    """Log-probability of `choice` in the logits `(1, T, V)` over prompt and choice, and whether it is the arg-max."""
    predicted = logits[0, len(prompt) - 1 :][: len(choice)]
    picked = predicted.log_softmax(-1)[range(len(choice)), choice]
    return float(picked.sum()), predicted.argmax(-1).tolist() == choice


@torch.no_grad()
def oracle_score(stock, model, prompt, choice, index=None, hard=True):
    """A choice alone, by hooks on a stock model and without a cache."""
    ids, q = torch.tensor([prompt + choice]), len(prompt) - 1 if index is None else index
    bank = capture(stock, ids[:, : len(prompt)], None, [q]) @ model.cc.transform_matrix
    weights = decide(bank, stock.get_input_embeddings()(ids)[:, q], model.cc.decision_maker.weight, hard=hard)
    update = (weights[0][:, None] * bank[:, 0]).sum(0)
    return summed(connected_logits(stock, ids, None, [q], [update]).logits, prompt, choice)


def assert_scores(scores, expected):
    assert [len(row) for row in scores] == [len(row) for row in expected]
    for row, wanted in zip(scores, expected):
        for score, (logprob, greedy) in zip(row, wanted):
            assert score.logprob == pytest.approx(logprob, abs=2e-5)
            assert score.greedy == greedy


@pytest.mark.parametrize("hard", [True, False])
def test_equals_the_oracle(architecture, hard):
    stock, model = pair(architecture, CCConfig(hard=hard), matrix=True)
    expected = [
        [oracle_score(stock, model, prompt, choice, hard=hard) for choice in given]
        for prompt, given in zip(PROMPTS, CHOICES)
    ]
    assert_scores(score_choices(model, PROMPTS, CHOICES), expected)


@pytest.mark.parametrize("per_layer", [False, True])
def test_equals_a_forward_per_choice(architecture, per_layer):
    _, model = pair(architecture, matrix=True)
    if per_layer:
        model.cc.transform_matrix = torch.stack([random_matrix(model, seed) for seed in range(4)])
    last = [len(prompt) - 1 for prompt in PROMPTS]
    assert_scores(score_choices(model, PROMPTS, CHOICES), in_whole(model, CHOICES, last))


STATES = ["lfm2", "qwen3_next", "qwen3_5_text", "qwen3_5", "jamba", "olmo_hybrid", "falcon_h1", "minimax"]


@pytest.mark.parametrize("family", STATES)
def test_families_whose_cache_cannot_be_repeated(family):
    """The scores are those of whole sequences, patched, unpatched and with the connection moved."""
    stock, model = made(family)
    assert not _repeats_caches(model)
    one_token = [[choice[:1] for choice in row] for row in CHOICES]
    for choices in (CHOICES, one_token):
        for index in ([5, 0, 2], [2, 0, 1]):
            given = None if index == [5, 0, 2] else index
            assert_scores(score_choices(model, PROMPTS, choices, given), in_whole(model, choices, index))
        assert_scores(score_choices(stock, PROMPTS, choices), in_whole(stock, choices))
        with connection_disabled(model):
            assert_scores(score_choices(model, PROMPTS, choices), in_whole(stock, choices))


def test_which_caches_can_be_repeated():
    """MiniMax's is of its own class, also where no layer has a state."""
    full = tiny_model("minimax", layer_types=["full_attention"] * 4)
    assert not _repeats_caches(full)
    assert_scores(score_choices(full, PROMPTS, CHOICES), in_whole(full, CHOICES))
    assert all(map(_repeats_caches, (tiny_model("llama"), tiny_model("gemma2"))))


@torch.no_grad()
def in_whole(model, choices, index=None):
    """The scores by a forward for each choice over its prompt and it."""
    expected = []
    for row, (prompt, given) in enumerate(zip(PROMPTS, choices)):
        at = {} if index is None else {"connection_index": torch.tensor([index[row]])}
        logits = [model(torch.tensor([prompt + choice]), **at).logits for choice in given]
        expected.append([summed(each, prompt, choice) for each, choice in zip(logits, given)])
    return expected


def test_the_connection_changes_scores_and_can_be_moved_or_left_out():
    stock, model = pair(matrix=True)
    connected = score_choices(model, PROMPTS, CHOICES)
    plain = score_choices(stock, PROMPTS, CHOICES)
    with connection_disabled(model):
        assert_scores(score_choices(model, PROMPTS, CHOICES), plain)
    assert all(abs(a.logprob - b.logprob) > 1e-3 for x, y in zip(connected, plain) for a, b in zip(x, y))
    moved = score_choices(model, PROMPTS, CHOICES, connection_index=[2, 0, 1])
    expected = [
        [oracle_score(stock, model, prompt, choice, index) for choice in given]
        for prompt, given, index in zip(PROMPTS, CHOICES, [2, 0, 1])
    ]
    assert_scores(moved, expected)


def test_greedy_is_what_generate_says():
    _, model = pair(matrix=True)
    answer = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, do_sample=False)[0, len(PROMPTS[0]) :]
    right, other = answer.tolist(), [*answer[:2].tolist(), (int(answer[2]) + 1) % 256]
    assert [score.greedy for score in score_choices(model, PROMPTS[:1], [[right, other, right[:1]]])[0]] == [
        *(True, False, True)
    ]


@pytest.mark.parametrize(
    ("choices", "lengths"),
    [([[[1], [2]], [[3], [4]]], [6, 1]), ([[[1, 2], [3]], [[4, 5, 6], [7]]], [6, 1, 2])],
    ids=["one token each", "several tokens"],
)
def test_one_prefill_for_all_choices(choices, lengths):
    _, model = pair(matrix=True)
    counter = TokenCounter(model)
    score_choices(model, PROMPTS[:1] + PROMPTS[2:], choices)
    # The prompts, the connected token again, and at most one forward for what follows the first token of the choices.
    assert counter.lengths == lengths


def test_a_sliding_window_in_use():
    stock, model = pair("mistral", matrix=True, sliding_window=4)
    expected = [
        [oracle_score(stock, model, prompt, choice) for choice in given] for prompt, given in zip(PROMPTS, CHOICES)
    ]
    assert_scores(score_choices(model, PROMPTS, CHOICES), expected)


@pytest.mark.parametrize(
    ("prompts", "choices", "index", "message"),
    [
        ([[1], []], [[[1]], [[1]]], None, "prompts: expected at least one token in every prompt, got none in row 1"),
        ([[1]], [[[1], []]], None, "choices: expected choices of at least one token each, got an empty one in row 0"),
        ([[1]], [[]], None, "choices: expected choices of at least one token each"),
        ([[1]], [], None, "choices: expected one list for each of at least 1 prompt, got 0/1"),
        ([], [], None, "at least 1 prompt, got 0/0"),
        ([[1]], [[[1]]], [0, 0], "connection_index: expected 1 indices, got 2"),
        ([[1]], [[[1]]], [1], r"connection_index: expected an index in \[0, 1\) in row 0, got 1"),
    ],
)
def test_errors(prompts, choices, index, message):
    _, model = pair(matrix=True)
    with pytest.raises(ValueError, match=message):
        score_choices(model, prompts, choices, index)


def test_training_mode_raises():
    _, model = pair(matrix=True)
    with pytest.raises(ValueError, match="model: expected evaluation mode, got training mode"):
        score_choices(model.train(), PROMPTS, CHOICES)
