"""Every family of `SPECS` against the oracle by hooks: loss, the gradient of every weight, greedy tokens.

Adding a family is a line in `SPECS` and, where its names differ, one in the oracle. The models are tiny and random; a
family that the installed transformers does not know is skipped by name.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from model_pairs import batch, gradients, gumbel
from transformers import AutoConfig

from cc_model import CCConfig, connection_disabled, patch_model, unpatch_model
from cc_model.specs import SPECS
from cc_model.testing import random_matrix, tiny_model

LAYERS = 3
DROPOUTS = (
    *("attention_dropout", "hidden_dropout", "residual_dropout", "resid_pdrop", "resid_dropout", "activation_dropout"),
    *("embd_pdrop", "embd_dropout", "attn_pdrop", "dropout"),
)
# One more model of a family, where its config leads to other layers.
VARIANTS = {
    "bloom": {"residual after the norm": {"apply_residual_connection_post_layernorm": True}},
    "falcon": {
        "alibi": {"alibi": True},
        "new": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "one after the other": {"parallel_attn": False},
    },
    "gemma4_text": {
        "experts": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
        "shared keys": {
            "num_kv_shared_layers": 1,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    },
    "gpt_neox": {"one after the other": {"use_parallel_residual": False}},
    "llama4_text": {"all experts": {"interleave_moe_layer_step": 1}},
    "phi3": {"gelu": {"hidden_act": "gelu"}},
    "gemma": {"erf": {"hidden_activation": "gelu", "hidden_act": "gelu"}},
}
MODELS = {name: (name, {}) for name in sorted(SPECS)}
MODELS |= {f"{name}, {kind}": (name, options) for name, kinds in VARIANTS.items() for kind, options in kinds.items()}
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


def tiny(family):
    name, options = MODELS[family]
    return tiny_model(name, **{"num_hidden_layers": LAYERS, **options})


def made(family, config=None, dropout=0.0):
    """A stock and a patched model, with all weights drawn, biases and norms too, so that everything has an effect."""
    models = []
    for _ in range(2):
        model = tiny(family)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        text = model.config.get_text_config(decoder=True)
        for module in model.modules():
            for name in DROPOUTS:
                if isinstance(module.__dict__.get(name), float):
                    module.__dict__[name] = dropout
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        for name in DROPOUTS:
            if isinstance(getattr(text, name, None), float):
                setattr(text, name, dropout)
        models.append(model)
    stock, model = models
    patch_model(model, config)
    with torch.no_grad():
        model.cc.decision_maker.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.cc.transform_matrix = random_matrix(model)
    return stock, model


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
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():  # some are zero but for rounding, those of biases of keys for one
        error, scale = (found[name] - gradient).abs().max().item(), gradient.abs().max().item()
        assert error <= 1e-5 * max(scale, floor), f"{name}: {error:.2e} of {scale:.2e}"
    with connection_disabled(model):
        torch.manual_seed(0)
        plain = model(input_ids=rows["input_ids"], labels=rows["labels"]).loss
    torch.manual_seed(0)
    assert plain.item() == stock(input_ids=rows["input_ids"], labels=rows["labels"]).loss.item()
    assert abs(plain.item() - expected.item()) > 1e-5  # the connection matters


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
