"""English prompts that rows share: losses and gradients are those of a pivot for each row, and of the oracle."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, gradients, gumbel, pair
from oracle import training_forward
from packed_rows import packed
from shared_pivots import MAIN, READ, ROWS, shared_batch, unshared

from cc_model import CCConfig, connection_disabled, fit_transform_matrix, pivot_bank

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def step(model, data, seed=None, **extra):
    """Output and gradients of a training step; noise, dropout and simulated rows are drawn from `seed`, if given."""
    noise = {} if seed is not None else {"gumbel_noise": gumbel(ROWS)}
    torch.manual_seed(seed or 0)
    model.train().zero_grad()
    output = model(**{**data, **noise, **extra})
    output.loss.backward()
    return output, gradients(model)


def assert_same_step(model, shared, alone, seed=None, tolerance=1e-6):
    output, actual = step(model, shared, seed)
    expected, gradients_expected = step(model, alone, seed)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=tolerance)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(actual, gradients_expected, tolerance)
    return output


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_matches_oracle(architecture, pivot_grad, hard):
    """A prompt that three rows read collects all their gradients."""
    stock, model = pair(architecture, CCConfig(pivot_grad=pivot_grad, hard=hard))
    data = shared_batch()
    output, actual = step(model, data)
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    alone = unshared(data)
    alone["pivot_attention_mask"][3] = 1  # what the oracle reads of the skipped row must not matter
    ends = [8, 7, 6]  # the last attended token of each pivot
    loss = training_forward(
        stock,
        weight,
        alone,
        gumbel(ROWS),
        MAIN,
        [ends[max(row, 0)] for row in READ],
        skip={3},
        pivot_grad=pivot_grad,
        hard=hard,
    )
    loss.backward()
    torch.testing.assert_close(output.loss.detach(), loss.detach(), rtol=0, atol=1e-6)
    # Against fp64 either is off by 3e-5 where the gradient is 0.8; the two round alike but for the order of sums.
    assert_same_gradients(actual, {**gradients(stock), "cc.decision_maker.weight": weight.grad}, tolerance=1e-5)
    assert not output.decision_weights[3].any()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_equals_a_pivot_for_each_row(left, indices, pivot_grad):
    if left and indices:
        pytest.skip("the indices are those of right padding")
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data = shared_batch(left, indices)
    output = assert_same_step(model, data, unshared(data))
    assert output.decision_weights.sum(1).tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert model.cc.decision_maker.weight.grad.any()


CASES = {
    "int32": lambda data: data.update(pivot_row=data["pivot_row"].int()),
    "nobody reads one": lambda data: data.update(pivot_row=torch.tensor([-1, 1, -1, -1, 1])),
    "all read one": lambda data: data.update(pivot_row=torch.tensor([1] * 5)),
    "more pivots than rows": lambda data: data.update(
        pivot_input_ids=data["pivot_input_ids"].repeat(3, 1),
        pivot_attention_mask=data["pivot_attention_mask"].repeat(3, 1),
        pivot_row=torch.tensor([8, 0, 4, -1, 7]),
    ),
    "no mask": lambda data: data.update(pivot_attention_mask=None),
    "one pivot is empty": lambda data: data["pivot_attention_mask"][0].zero_(),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_who_reads_what(case, pivot_grad):
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data = shared_batch()
    CASES[case](data)
    assert_same_step(model, data, unshared(data))


@pytest.mark.parametrize("row", [3, 2**31, -2])
def test_a_pivot_row_out_of_range_reads_nothing(row):
    """The forward may not look at it, so the row is skipped, as one without a pivot."""
    _, model = pair()
    data = shared_batch()
    expected, gradients_expected = step(model, data)
    output, actual = step(model, {**data, "pivot_row": torch.tensor([0, 1, 0, row, 0])})
    assert torch.equal(output.loss, expected.loss)
    assert_same_gradients(actual, gradients_expected, tolerance=0)


def test_rows_without_english_only():
    """P = 1 with an empty mask, as the collator sends it: the plain step, with exact zeros for the Decision Maker."""
    stock, model = pair()
    data = shared_batch()
    main = {name: data[name] for name in ("input_ids", "attention_mask", "labels")}
    empty = torch.zeros(1, 1, dtype=torch.long)
    none = {"pivot_input_ids": empty, "pivot_attention_mask": empty, "pivot_row": torch.full((ROWS,), -1)}
    output, actual = step(model, {**main, **none})
    stock.train()(**main).loss.backward()
    assert torch.equal(actual.pop("cc.decision_maker.weight"), torch.zeros(4, 64))
    assert_same_gradients(actual, gradients(stock))
    assert not output.decision_weights.any()


def test_nan_in_a_pivot_that_nobody_reads_stays_there():
    _, model = pair()
    data = shared_batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[255] = float("nan")
    data["input_ids"].clamp_(max=254)
    data["pivot_input_ids"].clamp_(max=254)
    data["pivot_input_ids"][2] = 255
    output, grads = step(model, data)
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(gradient).all() for gradient in grads.values())


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_packed_rows(pivot_grad, rows):
    """`pivot_row` has an entry for each example; what two packed rows share is read once."""
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data = shared_batch()
    made = packed({**data, **unshared(data)}, MAIN, rows)
    for name in ("pivot_input_ids", "pivot_attention_mask"):
        made[name] = data[name]
    made["pivot_row"] = data["pivot_row"].repeat(rows)
    repeated = {name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in unshared(data).items()}
    noise = {"gumbel_noise": gumbel(ROWS * rows)}
    output, actual = step(model, made, **noise)
    expected, gradients_expected = step(model, repeated, **noise)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert torch.equal(output.decision_weights, expected.decision_weights)
    assert_same_gradients(actual, gradients_expected)


@pytest.mark.parametrize(
    "options",
    [
        {"simulated_share": 0.5},
        {"simulated_share": 1.0},
        {"connection_dropout": 0.5},
        {"simulated_share": 0.5, "connection_dropout": 0.3, "pivot_grad": True},
    ],
)
def test_rows_drawn_at_random(options):
    """The same seed draws the same rows, whoever shares a prompt with whom."""
    _, model = pair("llama", CCConfig(**options), matrix=True)
    data = shared_batch()
    seeds = range(1, 5)
    chosen = {
        tuple(assert_same_step(model, data, unshared(data), s).decision_weights.flatten().tolist()) for s in seeds
    }
    assert len(chosen) > 1 or options == {"simulated_share": 1.0}


@pytest.mark.parametrize(("pivot_grad", "reentrant"), [(False, False), (True, False), (False, True)])
def test_gradient_checkpointing(pivot_grad, reentrant):
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    data = shared_batch()
    expected, gradients_expected = step(model, unshared(data))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    output, actual = step(model, data)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def test_evaluation():
    _, model = pair()
    data = shared_batch()
    with torch.no_grad():
        output, expected = model.eval()(**data), model(**unshared(data))
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5)
    assert torch.equal(output.decision_weights, expected.decision_weights)


def test_disabled_connection_ignores_them():
    stock, model = pair()
    data = shared_batch()
    main = {name: data[name] for name in ("input_ids", "attention_mask", "labels")}
    with connection_disabled(model):
        assert torch.equal(model.train()(**data).logits, stock.train()(**main).logits)


def test_the_default_connection_index_needs_no_labels():
    _, model = pair()
    data = {name: value for name, value in shared_batch().items() if name != "labels"}
    expected = model(**unshared(data))
    torch.testing.assert_close(model(**data).logits, expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
        {"use_cache": False},
    ],
    ids=["greedy", "beams", "several beams returned", "several samples", "no cache"],
)
@pytest.mark.parametrize("bank", [False, True])
def test_generate(options, bank):
    """Beams and returned sequences repeat the rows, and with them who reads what."""
    _, model = pair()
    data = shared_batch()
    ids = data["input_ids"][:, :8]
    alone = {name: value for name, value in unshared(data).items() if name.startswith("pivot")}
    shared = {name: data[name] for name in ("pivot_input_ids", "pivot_attention_mask", "pivot_row")}
    if bank:
        shared = {"pivot_bank": pivot_bank(model, shared), "pivot_row": data["pivot_row"]}
    found = []
    for pivots in (alone, shared):
        torch.manual_seed(0)
        found.append(model.generate(ids, **pivots, **{**GREEDY, **options}))
    assert torch.equal(*found)
    with connection_disabled(model):
        torch.manual_seed(0)
        assert not torch.equal(model.generate(ids, **{**GREEDY, **options}), found[0]), "the connection should show"


def test_generate_reads_no_pivot_row_twice():
    """P rows run once, whatever the number of beams."""
    _, model = pair()
    data = shared_batch()
    shared = {name: data[name] for name in ("pivot_input_ids", "pivot_attention_mask", "pivot_row")}
    seen = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    model.generate(data["input_ids"][:, :8], num_beams=3, **shared, max_new_tokens=2, do_sample=False)
    assert seen.count((3, 9)) == 1


@pytest.mark.parametrize("per_layer", [False, True])
def test_fit(per_layer):
    """The fit reads each English prompt once, too, and its matrix is that of a pivot for each row."""
    fitted = []
    for change in (unshared, dict):
        _, model = pair()
        batches = [change(shared_batch(seed=seed)) for seed in range(40)]
        report = fit_transform_matrix(model, batches, ridge=1e-3, per_layer=per_layer)
        fitted.append((model.cc.transform_matrix, report.overall.r2))
    torch.testing.assert_close(fitted[1][0], fitted[0][0], rtol=1e-4, atol=1e-5)
    assert fitted[1][1] == pytest.approx(fitted[0][1], abs=1e-5)


def test_tokens_of_the_pivot_pass():
    """A regression guard: each layer reads the P prompts once, and the B main rows once."""
    _, model = pair()
    data, seen = shared_batch(), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2].numel()))
    step(model, data)
    assert sorted(seen) == sorted([3 * 9, 5 * 12] * 4)
    seen.clear()
    step(model, unshared(data))
    assert sorted(seen) == sorted([5 * 9, 5 * 12] * 4)
