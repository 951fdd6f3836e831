"""The Transform Matrix in generation: its forms, its folded product, what is plain, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from generation_helpers import GREEDY, new_tokens, prompts
from model_pairs import pair
from oracle import greedy
from transformers import GenerationConfig

from cc_model import CCConfig, connection_disabled, patch_model
from cc_model.testing import random_matrix, tiny_model


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
    matrix.data.mul_(5)  # past the version counter
    model.eval()
    torch.testing.assert_close(maker.folded(matrix), 30 * first)
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
    "paged in a config": (
        {"generation_config": GenerationConfig(cache_implementation="paged", max_new_tokens=2)},
        "paged' is not supported",
    ),
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
        "pivot_input_ids: expected shape",
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
