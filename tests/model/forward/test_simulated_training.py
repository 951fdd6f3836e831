"""Training on simulated English activations, and connection dropout, against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_pairs import ARCHITECTURES, assert_same_gradients, batch, gradients, gumbel, pair
from oracle import capture, connected_logits, decide
from packed_rows import packed

from cc_model import CCConfig, connection_disabled

MAIN, PIVOT = [6, 5, 4], [8, 7, 6]  # what the defaults find in batch()


def ready(architecture="llama", per_layer=False, bias=False, **options):
    """A stock and a patched model that has a matrix and trains with the given options."""
    stock, model = pair(architecture, CCConfig(**options), matrix=True)
    layers, width = model.cc.num_layers, model.cc.hidden_size
    generator = torch.Generator().manual_seed(5)
    if per_layer:
        model.cc.transform_matrix = torch.randn(layers, width, width, generator=generator) / width**0.5
    if bias:
        shape = (layers, width) if per_layer else (width,)
        model.cc.transform_bias = torch.randn(shape, generator=generator) * 0.1
    return stock, model.train()


def oracle_step(stock, model, data, noise, simulated, skip=()):
    """Loss and gradients when the rows in `simulated` read their own mapped activations."""
    with torch.no_grad():
        english = capture(stock, data["pivot_input_ids"], data["pivot_attention_mask"], PIVOT)
        own = capture(stock, data["input_ids"], data["attention_mask"], MAIN)
        matrix, bias = model.cc.transform_matrix, model.cc.transform_bias
        mapped = torch.stack([own[i] @ (matrix if matrix.ndim == 2 else matrix[i]) for i in range(len(own))])
        if bias is not None:
            mapped = mapped + (bias if bias.ndim == 1 else bias[:, None])
        bank = torch.stack([(mapped if b in simulated else english)[:, b] for b in range(english.shape[1])], dim=1)
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    rows = stock.get_input_embeddings()(data["input_ids"])[torch.arange(3), MAIN]
    weights = decide(bank, rows, weight, noise)
    updates = [None if b in skip else (weights[b][:, None] * bank[:, b]).sum(0) for b in range(3)]
    output = connected_logits(stock, data["input_ids"], data["attention_mask"], MAIN, updates, labels=data["labels"])
    stock.zero_grad()
    output.loss.backward()
    return output.loss.detach(), {**gradients(stock), "cc.decision_maker.weight": weight.grad}


def step(model, data, noise=None):
    model.zero_grad()
    output = model(**data, gumbel_noise=noise)
    output.loss.backward()
    return output, gradients(model)


def assert_step(stock, model, data, noise, **oracle):
    output, actual = step(model, data, noise)
    loss, expected = oracle_step(stock, model, data, noise, **oracle)
    torch.testing.assert_close(output.loss.detach(), loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, expected)
    return output


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_all_rows_simulated(architecture, pivot_grad):
    stock, model = ready(architecture, simulated_share=1.0, pivot_grad=pivot_grad)
    assert_step(stock, model, batch(), gumbel(3), simulated={0, 1, 2})


@pytest.mark.parametrize("per_layer", [False, True])
def test_maps_with_a_bias(per_layer):
    stock, model = ready(per_layer=per_layer, bias=True, simulated_share=1.0)
    assert_step(stock, model, batch(), gumbel(3), simulated={0, 1, 2})


def test_some_rows_simulated():
    stock, model = ready(simulated_share=0.5)
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        chosen = frozenset((torch.rand(3) < 0.5).nonzero().flatten().tolist())
        seen.add(chosen)
        torch.manual_seed(seed)
        assert_step(stock, model, batch(), gumbel(3), simulated=chosen)
    assert len(seen) > 2, "different steps should choose different rows"


def test_trains_on_what_inference_reads():
    """The loss of simulated training is the loss of evaluation with the matrix, up to the noise of the decision."""
    _, model = ready(simulated_share=1.0)
    data = batch()
    trained = model(**data, gumbel_noise=torch.zeros(3, 4)).loss
    without_pivot = {key: value for key, value in data.items() if not key.startswith("pivot")}
    with torch.no_grad():
        evaluated = model.eval()(**without_pivot).loss
    torch.testing.assert_close(trained.detach(), evaluated, rtol=0, atol=1e-5)


def test_evaluation_and_a_disabled_connection_are_as_without():
    _, model = ready(simulated_share=1.0)
    data = batch()
    with torch.no_grad():
        plain_config = replace(model.cc.config, simulated_share=0.0)
        for context in (model.eval(), model.train()):
            disabled = not context.training
            torch.manual_seed(0)
            simulated = model(**data).logits if disabled else _disabled(model, data)
            config, model.cc.config = model.cc.config, plain_config
            torch.manual_seed(0)
            expected = model(**data).logits if disabled else _disabled(model, data)
            model.cc.config = config
            assert torch.equal(simulated, expected)


def _disabled(model, data):
    with connection_disabled(model):
        return model(**data).logits


def test_no_pivot_pass_when_all_rows_are_simulated():
    counts = {}
    for share in (0.0, 0.5, 1.0):
        _, model = ready(simulated_share=share)
        runs = []
        model.model.layers[0].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        step(model, batch())
        counts[share] = len(runs)
    assert counts == {0.0: 2, 0.5: 3, 1.0: 2}


def test_rows_without_a_pivot_stay_plain():
    stock, model = ready(simulated_share=1.0)
    data = batch()
    data["pivot_attention_mask"][1] = 0
    output = assert_step(stock, model, data, gumbel(3), simulated={0, 1, 2}, skip={1})
    assert output.decision_weights[1].eq(0).all()
    assert output.decision_weights[0].sum() == 1


def test_packed_rows():
    data, noise = batch(), gumbel(3)
    _, model = ready(simulated_share=1.0)
    expected, gradient = step(model, data, noise)
    output, actual = step(model, packed(data), noise)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradient)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    data, noise = batch(), gumbel(3)
    _, model = ready(simulated_share=1.0)
    expected, gradient = step(model, data, noise)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    output, actual = step(model, data, noise)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    assert_same_gradients(actual, gradient)


def test_needs_a_matrix():
    _, model = pair(config=CCConfig(simulated_share=0.3))
    with pytest.raises(ValueError, match=r"simulated_share: expected a Transform Matrix for 0\.3, got none"):
        model.train()(**batch())


def test_dropout_of_all_connections_is_a_plain_step():
    stock, model = ready(connection_dropout=1.0)
    data = batch()
    output, actual = step(model, data)
    stock.zero_grad()
    plain = {key: data[key] for key in ("input_ids", "attention_mask", "labels")}
    loss = stock(**plain).loss
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)
    assert output.decision_weights.eq(0).all()
    assert actual["cc.decision_maker.weight"].eq(0).all()
    del actual["cc.decision_maker.weight"]
    assert_same_gradients(actual, gradients(stock))


def test_dropout_of_some_connections():
    stock, model = ready(connection_dropout=0.5)
    torch.manual_seed(1)
    dropped = frozenset((torch.rand(3) < 0.5).nonzero().flatten().tolist())
    assert 0 < len(dropped) < 3
    torch.manual_seed(1)
    assert_step(stock, model, batch(), gumbel(3), simulated=(), skip=dropped)


@pytest.mark.parametrize("name", ["simulated_share", "connection_dropout"])
def test_config_errors(name):
    with pytest.raises(ValueError, match=rf"{name}: expected a share in \[0, 1\], got 1\.5"):
        CCConfig(**{name: 1.5})
    with pytest.raises(TypeError, match=f"{name}: expected a number, got 'half'"):
        CCConfig(**{name: "half"})
    assert CCConfig.from_dict(CCConfig(**{name: 0.25}).to_dict()) == CCConfig(**{name: 0.25})
