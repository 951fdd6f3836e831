"""Training steps of one process of a group, and what a single process makes of the same rows.

Rank r of two takes the rows 2r and 2r + 1 of each batch; the rows of rank 1 have no English prompt.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from model_pairs import batch, gradients, gumbel, pair
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from cc_model import CCConfig

STEPS = 3
RATE = 0.1


def share(rank: int, step: int, count: int = 2, pivots: bool = True) -> dict[str, Any]:
    """The batch of rank `rank` of `count` in step `step`, with its noise."""
    data = batch(rows=4, seed=step)
    data["gumbel_noise"] = gumbel(4, seed=step)
    data["pivot_attention_mask"][2:] = 0
    if not pivots:
        for name in ("pivot_input_ids", "pivot_attention_mask", "gumbel_noise"):
            del data[name]
    rows = 4 // count
    return {name: value[rank * rows : (rank + 1) * rows] for name, value in data.items()}


def training_model(pivot_grad: bool = False, checkpointing: bool | None = None, **overrides: Any) -> Any:
    """A patched model in training; `checkpointing` is `use_reentrant`, None for no gradient checkpointing."""
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad), **overrides)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    return model.train()


def one_process(accumulate: int = 1, pivots: bool = True, **options: Any) -> dict[str, Any]:
    """Losses of both ranks' rows in each step, the gradients of the last step, and the weights after it."""
    model = training_model(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            both = []
            for rank in (0, 1):
                loss = model(**share(rank, step * accumulate + part, pivots=pivots)).loss
                (loss / (2 * accumulate)).backward()
                both.append(loss.item())
            losses.append(both)
        optimizer.step()
    return {"losses": losses, "gradients": gradients(model), "weights": dict(model.state_dict())}


def ddp(accumulate: int = 1, pivots: bool = True, wrapper: dict[str, Any] | None = None, **options: Any) -> Any:
    """As `one_process`, in this process of a DDP group; the losses are this rank's."""
    model = DistributedDataParallel(training_model(**options), **(wrapper or {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            last = part == accumulate - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss = model(**share(dist.get_rank(), step * accumulate + part, pivots=pivots)).loss
                (loss / accumulate).backward()
            losses.append(loss.item())
        optimizer.step()
    return {"losses": losses, "gradients": gradients(model.module), "weights": model.module.state_dict()}


def sharded(model: Any, bf16: bool = False, offload: bool = False) -> Any:
    """`model` with `fully_shard` on every layer and on the whole."""
    options: dict[str, Any] = {}
    if bf16:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)  # pinning needs an accelerator
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Sharded tensors put together."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in tensors.items()
    }


def fsdp(bf16: bool = False, offload: bool = False, **options: Any) -> dict[str, Any]:
    """As `one_process`, in this process of an FSDP2 group; the losses are this rank's."""
    model = sharded(training_model(**options), bf16, offload)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(**share(dist.get_rank(), step)).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": losses, "gradients": whole(grads), "weights": whole(model.state_dict())}
