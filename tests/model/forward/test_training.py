"""The training forward against the oracle, its defaults, its skipped rows, and its errors."""

from __future__ import annotations

import contextlib

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from oracle import training_forward

from cc_model import CCConfig, connection_disabled

MAIN, PIVOT = [6, 5, 4], [8, 7, 6]  # what the defaults find in batch()


def oracle_step(stock, model, data, noise, **options):
    """Loss and gradients by the oracle, under the patched model's parameter names."""
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    stock.zero_grad()
    loss = training_forward(
        stock, weight, data, noise, options.pop("main", MAIN), options.pop("pivot", PIVOT), **options
    )
    loss.backward()
    return loss.detach(), {**gradients(stock), "cc.decision_maker.weight": weight.grad}


def step(model, data, **extra):
    model.zero_grad()
    output = model(**data, **extra)
    output.loss.backward()
    return output, gradients(model)


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_matches_oracle(architecture, pivot_grad):
    stock, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    output, actual = step(model.train(), data, gumbel_noise=noise)
    loss, expected = oracle_step(stock, model, data, noise, pivot_grad=pivot_grad)
    torch.testing.assert_close(output.loss.detach(), loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, expected)
    assert output.decision_weights.argmax(1).unique().numel() > 1, "the noise should make rows choose differently"


@pytest.mark.parametrize("options", [{"hard": False}, {"inject_layer": 2}])
def test_options_match_oracle(options):
    config = CCConfig(pivot_grad=True, **options)
    stock, model = pair("llama", config)
    data, noise = batch(), gumbel(3)
    output, actual = step(model.train(), data, gumbel_noise=noise)
    loss, expected = oracle_step(
        stock, model, data, noise, pivot_grad=True, hard=config.hard, layer=config.inject_layer
    )
    torch.testing.assert_close(output.loss.detach(), loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, expected)


def test_temperature_changes_gradient_not_choice():
    data, noise = batch(), gumbel(3)
    results = []
    for temperature in (1.0, 4.0):
        _, model = pair("llama", CCConfig(temperature=temperature))
        output, grads = step(model.train(), data, gumbel_noise=noise)
        results.append((output.decision_weights.argmax(1), grads["cc.decision_maker.weight"]))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1], results[1][1])


def test_explicit_indices_equal_defaults():
    _, model = pair()
    data, noise = batch(), gumbel(3)
    model.train()
    default = model(**data, gumbel_noise=noise)
    explicit = model(**data, gumbel_noise=noise, connection_index=torch.tensor(MAIN), pivot_index=torch.tensor(PIVOT))
    assert torch.equal(default.logits, explicit.logits)


def test_default_without_labels_is_last_attended():
    _, model = pair()
    data = {name: value for name, value in batch().items() if name != "labels"}
    default = model(**data)
    explicit = model(**data, connection_index=torch.tensor([11, 10, 9]))
    assert torch.equal(default.logits, explicit.logits)


def test_left_and_right_padding_agree(architecture):
    _, model = pair(architecture)
    right, noise = batch(), gumbel(3)
    left = {name: value.clone() for name, value in right.items()}
    for b in range(3):  # row b has b padding tokens at its end
        for name in left:
            left[name][b] = left[name][b].roll(b)
    positions = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    model.train()
    a, b = model(**right, gumbel_noise=noise), model(**left, gumbel_noise=noise, position_ids=positions)
    assert torch.equal(a.decision_weights, b.decision_weights)
    torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=2e-6)


SKIPPED = {
    "pivot mask of zeros": lambda data: data["pivot_attention_mask"][1].zero_(),
    "no label": lambda data: data["labels"][1].fill_(-100),
    "first label at 0": lambda data: data["labels"][1, :].copy_(data["input_ids"][1]),
    "connection index -1": lambda data: data.update(connection_index=torch.tensor([6, -1, 4])),
    "pivot index -1": lambda data: data.update(pivot_index=torch.tensor([8, -1, 6])),
    "connection index past the end": lambda data: data.update(connection_index=torch.tensor([6, 12, 4])),
    "pivot index past the end": lambda data: data.update(pivot_index=torch.tensor([8, 9, 6])),
}


@pytest.mark.parametrize("case", SKIPPED)
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_skipped_row(case, pivot_grad):
    """Row 1 gets no connection: exact zeros, the other rows as ever, and finite gradients."""
    stock, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    SKIPPED[case](data)
    output, actual = step(model.train(), data, gumbel_noise=noise)
    assert torch.equal(output.decision_weights[1], torch.zeros(4))
    assert output.decision_weights[[0, 2]].sum(1).tolist() == [1.0, 1.0]
    for index in ("connection_index", "pivot_index"):
        data.pop(index, None)
    data["pivot_attention_mask"][1] = 1  # what the oracle reads of the skipped row must not matter
    loss, expected = oracle_step(stock, model, data, noise, skip={1}, pivot_grad=pivot_grad)
    torch.testing.assert_close(output.loss.detach(), loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, expected)


def test_batch_without_any_pivot_is_the_plain_step():
    """Every rank runs the same modules: the Decision Maker gets a gradient, and it is zero."""
    stock, model = pair()
    data = batch()
    data["pivot_attention_mask"].zero_()
    output, actual = step(model.train(), data)
    plain = {name: value for name, value in data.items() if not name.startswith("pivot")}
    stock(**plain).loss.backward()
    assert torch.equal(actual.pop("cc.decision_maker.weight"), torch.zeros(4, 64))
    assert_same_gradients(actual, gradients(stock))
    assert not output.decision_weights.any()


def test_nan_in_a_skipped_row_stays_there():
    """Neither the loss nor a gradient sees what a skipped row captured."""
    _, model = pair()
    data = batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[255] = float("nan")
    data["input_ids"].clamp_(max=254)
    data["pivot_input_ids"].clamp_(max=254)
    data["pivot_input_ids"][1] = 255
    data["pivot_attention_mask"][1] = 0
    output, grads = step(model.train(), data)
    assert torch.isfinite(output.loss)
    assert torch.isfinite(output.logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in grads.values())
    assert grads["cc.decision_maker.weight"].any()


def test_plain_step_without_pivot():
    stock, model = pair()
    plain = {name: value for name, value in batch().items() if not name.startswith("pivot")}
    model.train(), stock.train()
    output = model(**plain)
    assert torch.equal(output.logits, stock(**plain).logits)
    assert not hasattr(output, "decision_weights")


def test_disabled_connection_ignores_pivots():
    stock, model = pair()
    data = batch()
    plain = {name: value for name, value in data.items() if not name.startswith("pivot")}
    with connection_disabled(model):
        assert torch.equal(model.train()(**data).logits, stock.train()(**plain).logits)
    with contextlib.suppress(ZeroDivisionError), connection_disabled(model):
        raise ZeroDivisionError
    assert model.cc.enabled, "the switch comes back after an exception"


def test_noise_only_in_training():
    _, model = pair()
    data = batch()
    first, second = model(**data).decision_weights, model(**data).decision_weights
    assert torch.equal(first, second)
    model.train()
    torch.manual_seed(0)
    drawn = {tuple(model(**data).decision_weights.argmax(1).tolist()) for _ in range(20)}
    assert len(drawn) > 1
    torch.manual_seed(7)
    again = model(**data).decision_weights
    torch.manual_seed(7)
    assert torch.equal(again, model(**data).decision_weights), "the noise comes from the default generator"


def test_gumbel_noise_distribution():
    _, model = pair()
    torch.manual_seed(0)
    noise = model.cc.gumbel_noise(20000, torch.device("cpu"))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.05)


def test_gradient_accumulation_counts_tokens():
    """1 × 4 rows equals 4 × 1 row when the Trainer's `num_items_in_batch` is passed."""
    _, model = pair()
    data, noise = batch(rows=4), gumbel(4)
    model.train()
    items = (data["labels"][:, 1:] != -100).sum()
    _, whole = step(model, data, gumbel_noise=noise, num_items_in_batch=items)
    model.zero_grad()
    for b in range(4):
        row = {name: value[b : b + 1] for name, value in data.items()}
        model(**row, gumbel_noise=noise[b : b + 1], num_items_in_batch=items).loss.backward()
    assert_same_gradients(gradients(model), whole)


def test_second_backward_gives_the_same():
    _, model = pair("llama", CCConfig(pivot_grad=True))
    loss = model.train()(**batch(), gumbel_noise=gumbel(3)).loss
    loss.backward(retain_graph=True)
    first = gradients(model)
    model.zero_grad()
    loss.backward()
    assert_same_gradients(gradients(model), first, tolerance=0)


def test_inputs_embeds():
    _, model = pair()
    data, noise = batch(), gumbel(3)
    expected = model.train()(**data, gumbel_noise=noise).logits
    data["inputs_embeds"] = model.get_input_embeddings()(data.pop("input_ids"))
    assert torch.equal(model(**data, gumbel_noise=noise).logits, expected)


def test_positional_arguments_and_tuple_output():
    _, model = pair()
    data = batch()
    labels = data.pop("labels")
    ids, mask = data.pop("input_ids"), data.pop("attention_mask")
    expected = model(input_ids=ids, attention_mask=mask, labels=labels, **data)
    output = model(ids, mask, labels=labels, **data, return_dict=False)
    assert torch.equal(output[0], expected.loss)
    assert torch.equal(output[-1], expected.decision_weights)


def test_autocast_keeps_decision_in_fp32():
    _, model = pair()
    data, noise = batch(), gumbel(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.train()(**data, gumbel_noise=noise)
    assert output.decision_weights.dtype == torch.float32
    output.loss.backward()
    assert torch.isfinite(model.cc.decision_maker.weight.grad).all()


def test_bf16_model():
    _, model = pair()
    model.to(torch.bfloat16).train()
    output = model(**batch(), gumbel_noise=gumbel(3))
    output.loss.backward()
    assert model.cc.decision_maker.weight.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)
