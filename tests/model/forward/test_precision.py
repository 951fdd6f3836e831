"""Autocast, default dtypes and deterministic mode: the same results, or as exact as the stock model is there."""

from __future__ import annotations

import contextlib

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from oracle import greedy, training_forward

from cc_model import CCConfig, fit_transform_matrix, patch_model
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 6, "do_sample": False}
INDICES = ([6, 5, 4], [8, 7, 6])  # connection and pivot indices of batch()
CLEAR = (0, 3, 5, 6, 8, 9)  # seeds whose decisions are so far from a tie that 16 bits do not change them


def oracle_step(stock, weight, data, noise, pivot_grad, dtype=None):
    stock.zero_grad()
    weight = weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
        loss = training_forward(stock, weight, data, noise, *INDICES, pivot_grad=pivot_grad)
    loss.backward()
    return loss.detach(), {**gradients(stock), "cc.decision_maker.weight": weight.grad}


def squared_error(actual, expected):
    """Squared errors of the loss, of the Decision Maker's gradient and of all gradients, each relative."""
    parts = [({"loss": actual[0]}, {"loss": expected[0]})]
    parts += [({n: step[1][n] for n in ("cc.decision_maker.weight",)} for step in (actual, expected))]
    parts += [(actual[1], expected[1])]
    found = []
    for got, true in map(tuple, parts):
        error = sum((got[name] - true[name]).square().sum() for name in true)
        found.append(error / sum(true[name].square().sum() for name in true))
    return torch.stack(found)


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_autocast_is_as_exact_as_the_oracle_under_autocast(architecture, pivot_grad):
    """bf16 against fp32: over six batches at most twice the error of hooks on the stock model, for every part."""
    stock, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    weight = model.cc.decision_maker.weight
    ours, theirs = torch.zeros(3), torch.zeros(3)
    for seed in CLEAR:
        data, noise = batch(seed=seed), gumbel(3, seed=seed)
        true = oracle_step(stock, weight, data, noise, pivot_grad)
        theirs += squared_error(oracle_step(stock, weight, data, noise, pivot_grad, torch.bfloat16), true)
        model.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**data, gumbel_noise=noise)
        output.loss.backward()
        ours += squared_error((output.loss.detach(), gradients(model)), true)
        assert output.decision_weights.dtype == torch.float32
    assert (ours.sqrt() <= 2 * theirs.sqrt() + 1e-6).all(), (ours.sqrt(), theirs.sqrt())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_autocast_generates():
    """Connected, and in a cache of autocast's dtype, in which the last token runs again."""
    stock, model = pair(matrix=True)
    ids = batch()["input_ids"][:1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = greedy(stock, model.cc.decision_maker.weight, model.cc.transform_matrix, ids, 6)
        assert model.generate(ids, **GREEDY)[0, 12:].tolist() == expected
    assert model.cc.prefills == "one prefill"


@pytest.fixture
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def run_everything(model_type="llama"):
    """Train, fit, generate; the model stays fp32 whatever the default is."""
    model = tiny_model(model_type, initializer_range=0.15, dtype=torch.float32)
    torch.manual_seed(0)
    patch_model(model, CCConfig(pivot_grad=True))
    with torch.no_grad():
        model.cc.decision_maker.weight.normal_(generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    output = model.train()(**batch())  # draws its own noise
    output.loss.backward()
    ids, pivot = (torch.randint(256, (40, 9), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    fitted = fit_transform_matrix(model, [{"input_ids": ids, "pivot_input_ids": pivot}], progress=False)
    tokens = model.eval().generate(ids[:2], **GREEDY)
    return output, gradients(model), model.cc.transform_matrix, fitted, tokens


@pytest.mark.parametrize("default_dtype", [torch.bfloat16, torch.float64], indirect=True, ids=str)
def test_default_dtype_changes_nothing(default_dtype):
    other, other_gradients, other_matrix, _, other_tokens = run_everything()
    torch.set_default_dtype(torch.float32)
    output, expected, matrix, _, tokens = run_everything()
    assert other.loss.dtype == torch.float32
    assert torch.equal(other.decision_weights, output.decision_weights)
    torch.testing.assert_close(other.loss, output.loss, rtol=0, atol=1e-6)
    assert_same_gradients(other_gradients, expected)
    torch.testing.assert_close(other_matrix, matrix, rtol=0, atol=1e-4)
    assert torch.equal(other_tokens, tokens)


@pytest.mark.parametrize("default_dtype", [torch.bfloat16, torch.float64], indirect=True, ids=str)
def test_drawn_noise_is_fp32(default_dtype):
    """In bf16 the noise would have 8 bits, and ties."""
    _, model = pair()
    assert model.cc.gumbel_noise(2, torch.device("cpu")).dtype == torch.float32


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_mode_changes_nothing(architecture, request):
    """It fills fresh memory with NaN, too, which must not reach anything."""
    output, expected, matrix, _, tokens = run_everything(architecture)
    request.getfixturevalue("deterministic")
    again = [run_everything(architecture) for _ in range(2)]
    for other, other_gradients, other_matrix, _, other_tokens in again:
        torch.testing.assert_close(other.loss, output.loss, rtol=0, atol=1e-6)
        assert_same_gradients(other_gradients, expected)
        torch.testing.assert_close(other_matrix, matrix, rtol=0, atol=1e-4)
        assert torch.equal(other_tokens, tokens)
    first, second = again
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert torch.equal(first[2], second[2])


@pytest.mark.usefixtures("deterministic")
def test_deterministic_beams_and_static_cache():
    _, model = pair(matrix=True)
    model.cc.transform_matrix = random_matrix(model)
    ids = batch()["input_ids"]
    for options in ({"num_beams": 2}, {"cache_implementation": "static"}):
        output = model.generate(ids, **options, **GREEDY)
        torch.use_deterministic_algorithms(False)
        expected = model.generate(ids, **options, **GREEDY)
        torch.use_deterministic_algorithms(True)
        assert torch.equal(output, expected)
