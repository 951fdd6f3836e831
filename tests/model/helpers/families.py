"""The models of the tests of families: each family of `SPECS`, its variants, and how their numbers are compared."""

from __future__ import annotations

import torch

from cc_model import patch_model
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
    "llama": {"gelu": {"hidden_act": "gelu"}},
}
MODELS = {name: (name, {}) for name in sorted(SPECS)}
MODELS |= {f"{name}, {kind}": (name, options) for name, kinds in VARIANTS.items() for kind, options in kinds.items()}


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


def same_gradients(found, wanted):
    """To 1e-5 of each tensor's largest entry, or of a thousandth of the model's largest where that is more.

    Some gradients are zero but for rounding, those of biases of keys for one.
    """
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        error, scale = (found[name] - gradient).abs().max().item(), gradient.abs().max().item()
        assert error <= 1e-5 * max(scale, floor), f"{name}: {error:.2e} of {scale:.2e}"
