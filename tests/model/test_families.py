"""Every family of `SPECS` against the oracle by hooks: loss, the gradient of every weight, greedy tokens.

What `generate` gives with a cache is what it gives without one.

Adding a family is a line in `SPECS` and, where its names differ, one in the oracle. The models are tiny and random; a
family that the installed transformers does not know is skipped by name.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from families import LAYERS, MODELS, made, same_gradients, tiny
from model_pairs import batch, gradients, gumbel
from transformers import AutoConfig

from cc_model import CCConfig, connection_disabled, patch_model, unpatch_model
from cc_model.specs import block_of, layers_of, spec_of
from cc_model.testing import random_matrix

BROKEN = {"llama4": "its own forward raises: its text model's output has no image_outputs"}


@pytest.fixture(params=MODELS)
def family(request):
    """The name in `MODELS` of each family that the installed transformers has and can run."""
    name = MODELS[request.param][0]
    try:
        AutoConfig.for_model(name)
    except ValueError:
        pytest.skip(f"the installed transformers has no {name}")
    try:
        tiny(request.param)(torch.tensor([[5, 6]]))
    except AttributeError as error:
        if name in BROKEN:
            pytest.skip(f"{name}: {BROKEN[name]} ({error})")
        raise
    return request.param


@pytest.mark.parametrize("pivot_grad", [False, True], ids=["", "pivot_grad"])
def test_loss_and_gradients(family, pivot_grad):
    """In training mode, with dropout wherever the family has any: it is drawn as in the stock model."""
    stock, model = made(family, CCConfig(pivot_grad=pivot_grad), dropout=0.1)
    stock.train(), model.train()
    rows = {name: ids % 250 if name.endswith("ids") else ids for name, ids in batch().items()}  # no picture tokens
    noise, main_index, pivot_index = gumbel(3, LAYERS), [6, 5, 4], [8, 7, 6]
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    torch.manual_seed(0)
    expected = oracle.training_forward(stock, weight, rows, noise, main_index, pivot_index, pivot_grad=pivot_grad)
    expected.backward()
    torch.manual_seed(0)
    output = model(**rows, gumbel_noise=noise)
    output.loss.backward()
    assert abs(output.loss.item() - expected.item()) <= 1e-6
    found = gradients(model)
    wanted = {**gradients(stock), "cc.decision_maker.weight": weight.grad}
    same_gradients(found, wanted)
    with connection_disabled(model):
        torch.manual_seed(0)
        plain = model(input_ids=rows["input_ids"], labels=rows["labels"]).loss
    torch.manual_seed(0)
    assert plain.item() == stock(input_ids=rows["input_ids"], labels=rows["labels"]).loss.item()
    assert abs(plain.item() - expected.item()) > 1e-5  # the connection matters


@torch.no_grad()
def test_the_layer_adds_it(family):
    """More of the addend's output is as much more of the layer's, but for one factor: nothing reads it but the sum."""
    stock = tiny(family)
    layer, addend = oracle.layers(stock)[0], oracle.added(stock)[0]
    layer.hidden_size_per_layer_input = 0  # Gemma 4 adds something more, computed from the sum
    ids = torch.tensor([[5, 6, 7]])
    delta = torch.randn(3, addend_width(stock), generator=torch.Generator().manual_seed(0))
    outputs = []

    def more(module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        changed = tensor + delta.view_as(tensor)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    layer.register_forward_hook(lambda module, args, output: outputs.append(first(output).clone()))
    stock(ids)
    addend.register_forward_hook(more)
    stock(ids)
    change = outputs[1] - outputs[0]
    factor = (change[0] * delta).sum() / (delta * delta).sum()
    assert factor > 0.01
    torch.testing.assert_close(change[0], factor * delta, rtol=0, atol=1e-5)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def addend_width(model):
    return model.config.get_text_config(decoder=True).hidden_size


@torch.no_grad()
def test_fused_blocks_compute_what_the_stock_ones_do(family):
    """On inputs so large that every activation, and each form of GELU, differs from the others."""
    stock, model = made(family)
    x = 10 * torch.randn(5, addend_width(stock), generator=torch.Generator().manual_seed(0))[None]
    for theirs, ours in zip(oracle.layers(stock), layers_of(model)):
        block = block_of(ours, spec_of(model))
        if block.cc_fused is None:
            continue
        expected = block_of(theirs, spec_of(model))(x)
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        assert expected.abs().max() > 0.1


@torch.no_grad()
def test_greedy_tokens(family):
    stock, model = made(family)
    weight, matrix = model.cc.decision_maker.weight, model.cc.transform_matrix
    for length in (1, 9, 40):
        ids = torch.randint(200, (1, length), generator=torch.Generator().manual_seed(length))
        expected = oracle.greedy(stock, weight, matrix, ids, steps=4)
        tokens = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False
        )[0, length:]
        assert tokens.tolist() == expected, length
    unpatch_model(model)
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_the_cache_changes_nothing(family):
    """It connects once, in the prompt; without a cache each forward runs the prompt again, and connects in it.

    The matrix is large, so that a second connection would be seen, and there are more steps than tokens in the prompt.
    """
    model = patch_model(tiny(family))
    model.cc.transform_matrix = random_matrix(model, scale=100.0)
    ids = torch.tensor([[5, 6]])
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    options |= {"attention_mask": torch.ones_like(ids), "do_sample": False}
    cached, again = model.generate(ids, **options), model.generate(ids, use_cache=False, **options)
    assert torch.equal(cached.sequences, again.sequences)
    for one, other in zip(cached.logits, again.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
