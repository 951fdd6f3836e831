"""Quantised linears: called as modules, alone and under LoRA."""

from __future__ import annotations

import pytest
import torch
from adapters import PROJECTIONS, cc_of, fill, lora, peft
from model_pairs import assert_same_gradients, batch, gumbel, pair
from oracle import training_forward
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from cc_model import patch_model
from cc_model.testing import tiny_model

GREEDY = {"max_new_tokens": 4, "do_sample": False}


class RoundedLinear(nn.Module):
    """Stands for a quantised linear: no `nn.Linear`, packed weights of another dtype, a forward of its own."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def quantised(model):
    for block in (layer.mlp for layer in model.model.layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(block, name, RoundedLinear(getattr(block, name)))
    return model


def test_quantised_linears_are_called_as_modules():
    """In training, in evaluation, and in decode steps, where plain linears may have a faster path."""
    stock, model = pair(matrix=True)
    quantised(stock), quantised(model)
    data, noise = batch(), gumbel(3)
    weight = model.cc.decision_maker.weight.detach().clone().requires_grad_()
    loss = training_forward(stock, weight, data, noise, [6, 5, 4], [8, 7, 6])
    output = model.train()(**data, gumbel_noise=noise)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)
    loss.backward(), output.loss.backward()
    assert_same_gradients({"w": model.cc.decision_maker.weight.grad}, {"w": weight.grad})
    linears = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    before = [linear.calls for linear in linears]
    model.eval().generate(data["input_ids"][:1], **GREEDY)
    forwards = 1 + 1 + 3  # prompt, its last token again, three more tokens
    assert [linear.calls - was for linear, was in zip(linears, before)] == [forwards] * 12


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_with_bitsandbytes(bits, tmp_path):
    """Real quantised weights, gradient checkpointing, LoRA around them: the oracle's loss and gradients."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install bitsandbytes)")
    # 192 is a multiple of the blocks of 64 weights that 4-bit quantisation packs.
    tiny_model(initializer_range=0.15, intermediate_size=192).save_pretrained(tmp_path)
    options = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)
    models = []
    for patched in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=options, device_map="cpu")
        model = peft.prepare_model_for_kbit_training(
            model, gradient_checkpointing_kwargs={"use_reentrant": False}, use_gradient_checkpointing=patched
        )
        adapter = lora(modules_to_save=["decision_maker"] if patched else None)
        models.append(fill(peft.get_peft_model(patch_model(model) if patched else model, adapter)))
    stock, wrapped = models
    assert type(wrapped.get_base_model().model.layers[0].mlp.gate_proj.base_layer) is not nn.Linear
    data, noise = batch(), gumbel(3)
    weight = cc_of(wrapped).decision_maker.weight.detach().clone().requires_grad_()
    wrapped_lora = {name: value for name, value in wrapped.state_dict().items() if "lora_" in name}
    stock.load_state_dict(wrapped_lora, strict=False)
    loss = training_forward(stock.train().get_base_model(), weight, data, noise, [6, 5, 4], [8, 7, 6])
    output = wrapped.train()(**data, gumbel_noise=noise)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-6)
    loss.backward(), output.loss.backward()
    assert_same_gradients({"w": cc_of(wrapped).decision_maker.weight.grad}, {"w": weight.grad})
    expected = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    actual = {name: p.grad for name, p in wrapped.named_parameters() if name in expected}
    assert {name.split(".")[-4] for name in expected} == set(PROJECTIONS)
    assert_same_gradients(actual, expected)
