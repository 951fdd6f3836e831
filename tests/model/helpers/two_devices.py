"""A patched model on two devices of a machine that has none: shapes and devices are followed, numbers are not.

Run as a program, because it registers a device with PyTorch. An operation on tensors of two devices is an error of
`FakeTensorMode`, as it is on two GPUs. Only forwards: the backward needs devices that exist.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from model_pairs import batch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from cc_model import CCConfig, patch_model
from cc_model.forward.bank import captured_bank
from cc_model.forward.plan import plan
from cc_model.testing import tiny_model

PLACES = {
    **{"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 0},
    **{"model.layers.2": 1, "model.layers.3": 1, "model.norm": 1, "lm_head": 1},
}


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def place(model: Any, index: int) -> None:
    """Move parameters and buffers, and add accelerate's hook, which moves the inputs."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(parameter.detach().to(f"fake:{index}"))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(f"fake:{index}")
    add_hook_to_module(model, AlignDevicesHook(execution_device=torch.device(f"fake:{index}")))


def run(before: bool, config: CCConfig, decision: int) -> None:
    """Training, simulated and capturing forwards; patched before the model is placed, or after."""
    model: Any = tiny_model(use_cache=False)
    if before:
        patch_model(model, config)
        place(model.cc, decision)
    for name, index in PLACES.items():
        place(model.get_submodule(name), index)
    patch_model(model, config)
    assert model.cc.decision_maker.weight.device == torch.device(f"fake:{decision}")
    data = {name: torch.empty_like(value, device="fake:0") for name, value in batch().items()}
    noise = torch.empty(3, 4, device="fake:0")
    output = model.train()(**data, gumbel_noise=noise)
    assert output.logits.device == torch.device("fake:1")
    assert output.loss.requires_grad
    elsewhere = torch.empty(3, dtype=torch.long, device="fake:1")  # indices that somebody made on the last device
    assert model(**data, gumbel_noise=noise, connection_index=elsewhere).logits.shape == (3, 12, 256)
    model.eval()
    for shape in ((64, 64), (4, 64, 64)):
        model.cc._buffers["transform_matrix"] = torch.empty(shape, device=f"fake:{decision}")
        named = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
        call: Any = plan(model, {**named, "connection_index": elsewhere})
        call.first_index = 9  # which is read from the tokens otherwise, and there are none
        assert model(**named, cc_call=call).logits.shape == (3, 12, 256)
    bank, usable = captured_bank(model, model, torch.empty_like(data["input_ids"], device="cpu"), None, None)
    assert bank.device == usable.device == torch.device(f"fake:{decision}")


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend("fake", backend_module=Backend())
    with FakeTensorMode():
        for config in (CCConfig(pivot_grad=True), CCConfig(inject_layer=3)):
            run(before=True, config=config, decision=0)
            run(before=True, config=config, decision=1)
            run(before=False, config=config, decision=0)
    print("placed")
