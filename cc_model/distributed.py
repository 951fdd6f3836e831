"""Several processes: sums over them, errors that none of them waits on forever, and what wrappers did to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
else:  # such as a build for one process
    DTensor = FSDPModule = ()  # type: ignore[assignment, misc]

Item = TypeVar("Item")


class OtherProcessError(RuntimeError):
    """Another process failed; this one stops with it."""


class Processes:
    """The processes of a group. Without `torch.distributed`, and with `group=None`, this process alone.

    Args:
        group: a process group, `"default"` for the default group where there is one, or None.

    Raises:
        ValueError: another string.

    Example:
        >>> Processes("default").size  # torch.distributed is not initialised here
        1
    """

    def __init__(self, group: Any = "default") -> None:
        if isinstance(group, str) and group != "default":
            raise ValueError(f"process_group: expected a process group, 'default' or None, got {group!r}")
        started = dist.is_available() and dist.is_initialized()
        self.group = (dist.group.WORLD if started else None) if isinstance(group, str) else group
        self.size: int = 1 if self.group is None else dist.get_world_size(self.group)
        self.rank: int = 0 if self.group is None else dist.get_rank(self.group)

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in place."""
        self._in_place(tensors, lambda tensor: dist.all_reduce(tensor, group=self.group))

    def broadcast(self, *tensors: Tensor) -> None:
        """Replace each tensor by that of rank 0, in place."""
        self._in_place(tensors, lambda tensor: dist.broadcast(tensor, group=self.group, group_src=0))

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in order of rank, in every process; for small values that can be pickled."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """When the block fails in one process it fails in all, which would otherwise wait for that one forever.

        Every process enters and leaves. Inside, `in_step` is the only communication of the group.

        Raises:
            OtherProcessError: in the processes that did not fail, naming the one that did.
        """
        try:
            yield
        except OtherProcessError:
            raise
        except Exception as error:
            # The answer to whatever exchange the others are in, or come to.
            self.gather((f"{type(error).__name__}: {error}", False))
            raise
        self._running(False)

    def in_step(self, items: Iterable[Item]) -> Iterator[Item | None]:
        """This process's items, then None until the others have had theirs: for work in which all must take part."""
        iterator = iter(items)
        while True:
            item = next(iterator, None)
            if not self._running(item is not None):
                return
            yield item

    def _running(self, here: bool) -> bool:
        """Whether any process still has work."""
        states = self.gather((None, here))
        for rank, (failure, _) in enumerate(states):
            if failure is not None:
                raise OtherProcessError(f"rank {rank} of {self.size} failed: {failure}")
        return any(running for _, running in states)

    def _in_place(self, tensors: tuple[Tensor, ...], collective: Callable[[Tensor], Any]) -> None:
        if self.size == 1:
            return
        for tensor in tensors:
            sent = tensor.to(self._served(tensor.device)).contiguous()
            collective(sent)
            if sent is not tensor:
                tensor.copy_(sent)

    def _served(self, device: torch.device) -> torch.device:
        """`device` if the group's backend takes its tensors, else one whose it takes: NCCL takes none on the CPU."""
        backends = dist.get_backend_config(self.group).split(",")  # such as ["cpu:gloo", "cuda:nccl"]
        types = [backend.split(":")[0] for backend in backends]
        return device if device.type in types else torch.device(types[0], torch.accelerator.current_device_index())


def in_one_piece(model: nn.Module) -> bool:
    """Whether each process holds whole parameters, so that a forward of one needs no other process.

    Not so with FSDP2 and tensor parallelism, whose parameters are DTensors, and with DeepSpeed's ZeRO-3, which marks
    them with `ds_id`.
    """
    return not any(isinstance(p, DTensor) for p in model.parameters()) and not is_partitioned(model)


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 holds the parameters: its own engine gathers and releases their memory around each module."""
    return any(hasattr(p, "ds_id") for p in module.parameters())


def refuse_fsdp(model: nn.Module, action: str) -> None:
    """Raise when `fully_shard` was applied: the Decision Maker would be outside of what it shards and reduces."""
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            raise ValueError(
                f"model: expected a model that is not sharded yet, got fully_shard (FSDP2) on "
                f"{name or type(module).__name__!r}; call {action} before fully_shard or Accelerator.prepare"
            )


def refuse_shards(model: nn.Module, state_dict: Any, is_main_process: bool) -> None:
    """Raise when a save would write the shards of one process, or nothing, in the place of whole weights."""
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    gathered = "get_model_state_dict of torch.distributed.checkpoint.state_dict with full_state_dict=True"
    shards = sharded and any(isinstance(value, DTensor) for value in (state_dict or {}).values())
    if shards or (state_dict is None and (sharded or is_partitioned(model))):
        raise ValueError(
            f"state_dict: expected the whole weights of a sharded model, got {'shards' if shards else None}; all "
            f"processes gather them ({gathered}, or Accelerator.get_state_dict), then rank 0 saves"
        )
    if sharded and is_main_process and not state_dict:
        raise ValueError(
            f"state_dict: expected the whole weights of a sharded model, got none of them; {gathered} gives them to "
            "rank 0 alone, so save there alone, or with is_main_process=False elsewhere"
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


__all__ = [
    *("OtherProcessError", "Processes", "in_one_piece", "is_partitioned", "refuse_fsdp", "refuse_shards"),
    "without_wrappers",
]
