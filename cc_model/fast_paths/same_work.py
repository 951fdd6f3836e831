"""Whether a decoder body does the same work at every call, so that a recording of one call may stand for the next.

A recording repeats kernels, with the addresses and the Python numbers of the call that it was made of. It sees new
values in the same memory, as an optimizer writes them, and nothing else that is new. So whatever could decide
differently at the next call is an obstacle, and whatever may change from time to time is part of the body's state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cc_kernels.backend import requested
from cc_model.distributed import FSDPModule
from cc_model.fast_paths.hooks import global_hooks, has_own_forward, numbers_are_observed

_KNOWN = ("torch.nn.", "transformers.models.", "transformers.activations", "peft.tuners.lora.")
_STEADY_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the others follow the length of the prompt
_ADAPTER = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling", "fan_in_fan_out")


class Work(NamedTuple):
    """Why a recording may not stand for a call of the body (None: it may), and what a recording is valid for."""

    obstacle: str | None
    state: tuple[Any, ...] = ()
    device: torch.device | None = None


def work_of(body: nn.Module) -> Work:
    """Look at every module, parameter and buffer of `body` once; nothing is read from a device."""
    if body.__dict__.get("_is_replica", False):
        return Work("it is a replica of nn.DataParallel")
    if global_hooks():
        return Work("global hooks are registered")
    state: list[Any] = [requested()]
    device: torch.device | None = None
    for module in body.modules():
        attributes = module.__dict__
        obstacle = _obstacle(module, attributes)
        if obstacle is not None:
            return Work(obstacle)
        state.append(type(module))
        if "merged_adapters" in attributes:
            state.append(repr([attributes.get(name) for name in _ADAPTER]))
        for tensor in (*attributes["_parameters"].values(), *attributes["_buffers"].values()):
            if tensor is None:
                continue
            if type(tensor) not in (nn.Parameter, nn.Buffer, Tensor):
                return Work(f"a parameter is a {type(tensor).__name__}, which may be sharded or quantised")
            if hasattr(tensor, "ds_id"):
                return Work("ZeRO-3 partitions its parameters")
            if device is not None and tensor.device != device:
                return Work(f"its parameters lie on {device} and {tensor.device}")
            device = tensor.device
            state += (tensor.data_ptr(), tensor.dtype, tensor.shape)
    return Work(None, tuple(state), device)


def _obstacle(module: nn.Module, attributes: dict[str, Any]) -> str | None:
    """What may make one module do something else at the next call."""
    name = type(module).__name__
    if isinstance(module, FSDPModule):
        return f"FSDP2 shards {name}"
    if "_hf_hook" in attributes:
        return f"accelerate's hooks, as for offloading, are on {name}"
    if numbers_are_observed(module):
        return f"a hook is registered on {name}"
    if has_own_forward(module):
        return f"{name} has a forward of its own"
    if module._compiled_call_impl is not None:
        return f"{name} is compiled"
    if not type(module).__module__.startswith(_KNOWN):
        return f"{name} is of a library that is not known to do the same work at every call"
    if module.training:
        # Of a module with dropout, or of attention, which reads the number itself.
        rate = attributes.get("p", 0) if isinstance(module, _DropoutNd) else attributes.get("attention_dropout", 0)
        if rate:
            return f"{name} drops out at random"
    if attributes.get("rope_type", "default") not in _STEADY_ROTATIONS:
        return f"its rotary embedding ({attributes['rope_type']}) follows the length of the prompt"
    return None


__all__ = ["Work", "work_of"]
