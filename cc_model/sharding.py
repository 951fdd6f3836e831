"""What wrappers for several processes did to a model."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
else:  # such as a build for one process
    DTensor = FSDPModule = ()  # type: ignore[assignment, misc]


def in_one_piece(model: nn.Module) -> bool:
    """Whether each process holds whole parameters, so that a forward of one needs no other process.

    Not so with FSDP2 and tensor parallelism, whose parameters are DTensors, and with DeepSpeed's ZeRO-3, which marks
    them with `ds_id`.
    """
    return not any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def refuse_fsdp(model: nn.Module, action: str) -> None:
    """Raise when `fully_shard` was applied: the Decision Maker would be outside of what it shards and reduces."""
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            raise ValueError(
                f"model: expected a model that is not sharded yet, got fully_shard (FSDP2) on "
                f"{name or type(module).__name__!r}; call {action} before fully_shard or Accelerator.prepare"
            )


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, `torch.compile` and DeepSpeed's engine; their forwards add nothing
    that a forward without a gradient needs."""
    wrapped: Any = model
    while True:
        if isinstance(wrapped, nn.parallel.DistributedDataParallel) or type(wrapped).__name__ == "DeepSpeedEngine":
            wrapped = wrapped.module
        elif "_orig_mod" in getattr(wrapped, "_modules", {}):
            wrapped = wrapped._orig_mod
        else:
            return wrapped
