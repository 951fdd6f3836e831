"""LoRA around tiny patched models, for the adapter tests. Importing it skips the test file where PEFT is missing."""

from __future__ import annotations

import pytest
import torch
from model_pairs import pair

from cc_model import patch_model
from cc_model.testing import tiny_model

peft = pytest.importorskip("peft")

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**options):
    return peft.LoraConfig(**{"target_modules": PROJECTIONS, "r": 2, "modules_to_save": ["decision_maker"], **options})


def fill(model, seed=0):
    """Adapter weights that change the model: LoRA starts with B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def adapted(order="patch first", config=None, **options):
    """A stock base and an adapter around an equal patched one."""
    stock, model = pair("llama", config)
    if order == "patch first":
        return stock, fill(peft.get_peft_model(model, lora(**options)))
    weight = model.cc.decision_maker.weight
    wrapped = peft.get_peft_model(tiny_model(initializer_range=0.15), lora(modules_to_save=None, **options))
    patch_model(wrapped, config)
    with torch.no_grad():
        wrapped.get_base_model().cc.decision_maker.original_module.weight.copy_(weight)
    return stock, fill(wrapped)


def cc_of(wrapped):
    return wrapped.get_base_model().cc
