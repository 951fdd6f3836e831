"""Head and loss on the labelled tokens alone: losses and gradients are those of the whole head, and of the oracle."""

from __future__ import annotations

import pytest
import torch
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from oracle import training_forward
from packed_rows import packed
from shared_pivots import loss_rows_of, with_rows
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.counting import OpCounter
from cc_model import CCConfig, connection_disabled

MAIN, PIVOT = [6, 5, 4], [8, 7, 6]  # what the defaults find in batch()


def step(model, data, **extra):
    model.train().zero_grad()
    output = model(**data, **extra)
    output.loss.backward()
    return output, gradients(model)


def assert_same_step(model, data, pad=2, **extra):
    """The logits of the labelled tokens alone, and the loss and all gradients of the whole head."""
    given = with_rows(data, pad)
    output, actual = step(model, given, **extra)
    expected, gradients_expected = step(model, data, **extra)
    rows = given["loss_rows"]
    assert output.logits.shape == (1, len(rows), model.config.vocab_size)
    wanted = expected.logits.flatten(0, 1)[rows[rows >= 0]]
    torch.testing.assert_close(output.logits[0][rows >= 0], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)
    return output


@pytest.mark.parametrize("pivot_grad", [False, True])
def test_matches_oracle(architecture, pivot_grad):
    stock, model = pair(architecture, CCConfig(pivot_grad=pivot_grad))
    data, noise = batch(), gumbel(3)
    output, actual = step(model, with_rows(data), gumbel_noise=noise)
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    loss = training_forward(stock, weight, data, noise, MAIN, PIVOT, pivot_grad=pivot_grad)
    loss.backward()
    torch.testing.assert_close(output.loss.detach(), loss.detach(), rtol=0, atol=1e-6)
    assert_same_gradients(actual, {**gradients(stock), "cc.decision_maker.weight": weight.grad})


@pytest.mark.parametrize("pad", [0, 1, 6])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_padding_and_dtype(pad, dtype):
    _, model = pair()
    output = assert_same_step(model, batch(), pad, gumbel_noise=gumbel(3))
    rows = loss_rows_of(batch()["labels"], pad).to(dtype)
    again, _ = step(model, batch(), loss_rows=rows, gumbel_noise=gumbel(3))
    assert torch.equal(again.loss, output.loss)


def test_their_order_does_not_matter():
    _, model = pair()
    rows = loss_rows_of(batch()["labels"], pad=3)
    expected, gradients_expected = step(model, batch(), loss_rows=rows, gumbel_noise=gumbel(3))
    output, actual = step(model, batch(), loss_rows=rows.flip(0), gumbel_noise=gumbel(3))
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def left_padded(data):
    made = {name: torch.stack([row.roll(b) for b, row in enumerate(value)]) for name, value in data.items()}
    return {**made, "position_ids": (made["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def test_left_padding():
    _, model = pair()
    assert_same_step(model, left_padded(batch()), gumbel_noise=gumbel(3))


@pytest.mark.parametrize("rows", [1, 2])
def test_packed_rows(rows):
    _, model = pair()
    assert_same_step(model, packed(batch(), rows=rows), gumbel_noise=gumbel(3 * rows))


def test_labels_on_the_first_token():
    """Nothing comes before the first token of a row: its label is not read, least of all by the row above."""
    _, model = pair()
    data = batch()
    data["labels"][1, 0] = 7
    data["labels"][2] = data["input_ids"][2]
    assert_same_step(model, data, gumbel_noise=gumbel(3))


def test_a_last_token_has_no_next_one():
    """A row of tokens named by the user at its end has no label; that of the next row must not slip in."""
    _, model = pair()
    data = batch(prompt=3)
    data["labels"][1, 0] = data["labels"][2, 0] = 7
    rows = torch.cat([loss_rows_of(data["labels"]), torch.tensor([11, 23, 35])])
    expected, gradients_expected = step(model, data, gumbel_noise=gumbel(3))
    output, actual = step(model, data, loss_rows=rows, gumbel_noise=gumbel(3))
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


@pytest.mark.parametrize("bad", [36, 10**9, -2])
def test_rows_out_of_range_count_as_padding(bad):
    """The forward may not look at them, so they are left out."""
    _, model = pair()
    rows = loss_rows_of(batch()["labels"])
    expected, gradients_expected = step(model, batch(), loss_rows=rows, gumbel_noise=gumbel(3))
    rows = torch.cat([torch.tensor([bad]), rows])
    output, actual = step(model, batch(), loss_rows=rows, gumbel_noise=gumbel(3))
    assert not output.logits[0, 0].any()
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert_same_gradients(actual, gradients_expected)


def test_no_label_at_all():
    """The stock loss of no token: nan as a mean, 0 when the number of tokens of the whole step is given."""
    stock, model = pair()
    data = batch()
    data["labels"].fill_(-100)
    given = {**data, "loss_rows": torch.full((8,), -1)}
    main = {name: data[name] for name in ("input_ids", "attention_mask", "labels")}
    stock.train(), model.train()
    assert torch.isnan(model(**given).loss)
    assert torch.isnan(stock(**main).loss)
    output, grads = step(model, given, num_items_in_batch=torch.tensor(5))
    assert output.loss == stock(**main, num_items_in_batch=torch.tensor(5)).loss == 0
    assert not any(gradient.any() for gradient in grads.values())


def test_counts_tokens_like_the_stock_loss():
    """One step of 4 rows is 4 of one row, when the Trainer's `num_items_in_batch` is passed."""
    _, model = pair()
    data, noise = batch(rows=4), gumbel(4)
    items = (data["labels"][:, 1:] != -100).sum()
    _, whole = step(model, with_rows(data), gumbel_noise=noise, num_items_in_batch=items)
    _, expected = step(model, data, gumbel_noise=noise, num_items_in_batch=items)
    assert_same_gradients(whole, expected)
    model.zero_grad()
    for b in range(4):
        row = with_rows({name: value[b : b + 1] for name, value in data.items()}, pad=1)
        model(**row, gumbel_noise=noise[b : b + 1], num_items_in_batch=items).loss.backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize(("pivot_grad", "reentrant"), [(False, False), (True, False), (False, True)])
def test_gradient_checkpointing(pivot_grad, reentrant):
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(model, batch(), gumbel_noise=gumbel(3))


def test_evaluation_gives_all_logits():
    _, model = pair()
    data = batch()
    with torch.no_grad():
        expected, output = model.eval()(**data), model(**with_rows(data))
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("case", ["no pivots", "disabled"])
def test_without_a_connection(case):
    """Plain steps, too: head and loss do not depend on what connects."""
    stock, model = pair()
    data = with_rows(batch())
    main = {name: data[name] for name in ("input_ids", "attention_mask", "labels")}
    stock.train()(**main).loss.backward()
    if case == "disabled":
        with connection_disabled(model):
            output, actual = step(model, data)
    else:
        output, actual = step(model, {**main, "loss_rows": data["loss_rows"]})
    assert output.logits.shape[1] == len(data["loss_rows"])
    assert not hasattr(output, "decision_weights")
    assert_same_gradients(actual, gradients(stock))


def test_without_labels_all_logits_are_made():
    """Trainer takes the labels away for label smoothing and `compute_loss_func`, which read all logits."""
    _, model = pair()
    data = {**batch(), "connection_index": torch.tensor(MAIN)}
    given = with_rows(data)
    del given["labels"], data["labels"]
    model.train()
    expected = model(**data, gumbel_noise=gumbel(3))
    assert torch.equal(model(**given, gumbel_noise=gumbel(3)).logits, expected.logits)


def test_as_many_as_tokens_is_the_whole_head():
    _, model = pair()
    data = batch()
    rows = loss_rows_of(data["labels"], pad=36)[:36]
    output, _ = step(model, data, loss_rows=rows, gumbel_noise=gumbel(3))
    assert output.logits.shape == (3, 12, 256)


def test_tuple_output_and_embeddings():
    _, model = pair()
    data, noise = with_rows(batch()), gumbel(3)
    expected = model.train()(**data, gumbel_noise=noise)
    data["inputs_embeds"] = model.get_input_embeddings()(data.pop("input_ids"))
    output = model(**data, gumbel_noise=noise, return_dict=False)
    assert torch.equal(output[0], expected.loss)
    assert torch.equal(output[1], expected.logits)
    assert torch.equal(output[-1], expected.decision_weights)


def test_hidden_states_stay_whole():
    _, model = pair()
    output, _ = step(model, with_rows(batch()), output_hidden_states=True)
    assert {tuple(state.shape) for state in output.hidden_states[:-1]} == {(3, 12, 64)}


def test_a_head_that_scales_and_caps_its_logits():
    """The stock head runs as it is, on fewer tokens; here one as Gemma 2 and Granite have it."""
    stock, model = pair()

    def capped(module, args, logits):
        return 5.0 * torch.tanh(logits / 3.0 / 5.0)

    for each in (stock, model):
        each.lm_head.register_forward_hook(capped)
    data, noise = batch(), gumbel(3)
    output = assert_same_step(model, data, gumbel_noise=noise)
    assert output.logits.abs().max() < 5.0
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    loss = training_forward(stock, weight, data, noise, MAIN, PIVOT)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)


def test_flops_of_the_head():
    """A regression guard: forward and backward of the head are three products of K rows, not of B · T."""
    _, model = pair()
    data = with_rows(batch(), pad=0)
    counted = {}
    for name, given in (("all", batch()), ("labelled", data)):
        with FlopCounterMode(display=False) as counter:
            step(model, given)
        counted[name] = sum(counter.get_flop_counts()["LlamaForCausalLM.lm_head"].values())
    per_row = 3 * 2 * 64 * 256
    assert counted == {"all": 36 * per_row, "labelled": len(data["loss_rows"]) * per_row}


def test_nothing_waits_and_little_is_added():
    _, model = pair()
    data, noise = with_rows(batch()), gumbel(3)
    counters = []
    for given in (batch(), data):
        model.train()(**given, gumbel_noise=noise)
        with OpCounter() as counter:
            model(**given, gumbel_noise=noise)
        counters.append(counter)
    assert counters[1].synchronisations == counters[0].synchronisations
    assert counters[1].ops.total() - counters[0].ops.total() <= 20


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("what", ["layers", "model"])
def test_compiled(what, fresh_compiler):
    _, eager = pair(num_hidden_layers=2)
    _, model = pair(num_hidden_layers=2, use_cache=False)
    called = model
    if what == "layers":
        for layer in model.model.layers:
            layer.compile(fullgraph=True, backend="aot_eager")
    else:
        called = torch.compile(model, backend="aot_eager", fullgraph=True)
    for seed in (0, 1):  # the second one has another K
        data, noise = with_rows(batch(seed=seed), pad=seed), gumbel(3, 2)
        expected, gradients_expected = step(eager, data, gumbel_noise=noise)
        called.train().zero_grad()
        output = called(**data, gumbel_noise=noise)
        output.loss.backward()
        torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-5)
        assert_same_gradients(gradients(model), gradients_expected, tolerance=1e-5)


def test_keeping_all_logits_is_no_conflict():
    _, model = pair()
    output, _ = step(model, with_rows(batch()), logits_to_keep=0, shift_labels=None)
    assert output.logits.shape[0] == 1
