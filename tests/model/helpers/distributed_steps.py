"""Training steps of one process of a group, and what a single process makes of the same rows.

Rank r of two takes the rows 2r and 2r + 1 of each batch; the rows of rank 1 have no English prompt.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from model_pairs import assert_same_gradients, batch, gradients, gumbel, pair
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cc_model import CCConfig, save_memory, use_pivot_graph
from cc_model.fast_paths.last_layer import narrow_obstacle
from cc_model.forward.pivot_graph import graph_work

STEPS = 3
RATE = 0.1
TOLERANCE = 1e-5  # after three steps; after one, the differences are below 1e-6


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


def training_model(
    pivot_grad: bool = False, checkpointing: bool | None = None, saves: bool = False, **overrides: Any
) -> Any:
    """A patched model in training; `checkpointing` is `use_reentrant`, None for no gradient checkpointing."""
    _, model = pair("llama", CCConfig(pivot_grad=pivot_grad), **overrides)
    save_memory(model, saves)
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
    """Sharded tensors put together, under the names that they have without wrappers."""
    put_together = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    return {name.replace("_checkpoint_wrapped_module.", ""): tensor for name, tensor in put_together.items()}


def fsdp(bf16: bool = False, offload: bool = False, count: int = STEPS, **options: Any) -> dict[str, Any]:
    """As `one_process`, in this process of an FSDP2 group; the losses are this rank's."""
    model = sharded(training_model(**options), bf16, offload)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        loss = model(**share(dist.get_rank(), step)).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": losses, "gradients": whole(grads), "weights": whole(model.state_dict())}


def bf16_process() -> dict[str, Any]:
    """One step as FSDP2's mixed precision makes it: bf16 parameters for each rank, their gradients averaged in fp32."""
    model = training_model()
    low = copy.deepcopy(model)
    for parameter in low.parameters():  # not the rotary buffers, which stay fp32 under FSDP2
        parameter.data = parameter.data.bfloat16()
    losses, sums = [], {}
    for rank in (0, 1):
        low.zero_grad()
        loss = low(**share(rank, 0)).loss
        loss.backward()
        losses.append(loss.item())
        for name, gradient in gradients(low).items():
            sums[name] = sums.get(name, 0) + gradient.float() / 2
    return {"losses": losses, "gradients": sums}


def accelerate_fsdp(activation_checkpointing: bool = False, **options: Any) -> dict[str, Any]:
    """As `fsdp`, sharded by `Accelerator.prepare`, which gives embedding, and norm with head, groups of their own."""
    model = training_model(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    accelerator = Accelerator(cpu=True)
    # On a CPU accelerate chooses DDP whatever it is asked for; everything behind that choice runs here.
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
        activation_checkpointing=activation_checkpointing,
    )
    try:
        model, optimizer = accelerator.prepare(model, optimizer)
        losses = []
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = model(**share(dist.get_rank(), step)).loss
            accelerator.backward(loss)
            losses.append(loss.item())
            grads = whole({name: parameter.grad for name, parameter in model.named_parameters()})
            optimizer.step()
        return {"losses": losses, "gradients": grads, "weights": whole(model.state_dict())}
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def assert_same_training(ranks: list[dict[str, Any]], expected: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    """Each rank's own losses; gradients and weights equal to one process's, and bit-equal between the ranks."""
    for rank, result in enumerate(ranks):
        own = torch.tensor([both[rank] for both in expected["losses"]])
        torch.testing.assert_close(torch.tensor(result["losses"]), own, rtol=0, atol=tolerance)
        assert_same_gradients(result["gradients"], expected["gradients"], tolerance)
        assert_same_gradients(result["weights"], expected["weights"], tolerance)
    for name, weight in ranks[0]["weights"].items():
        assert torch.equal(weight, ranks[1]["weights"][name]), name
    assert expected["losses"][0] != expected["losses"][-1], "it trains"


def fsdp_graph_obstacles() -> list[str | None]:
    """Why the pivot pass of a sharded model is no CUDA graph, at rest and in a forward."""
    model = use_pivot_graph(sharded(pair()[1]))
    at_rest = graph_work(model.model).obstacle
    model.train()(**share(0, 0))
    return [at_rest, model.model.cc_pivot_graphs.reason]


def fsdp_narrow_obstacle() -> str | None:
    """Why the last layer of a sharded model runs on all tokens, if it does."""
    return narrow_obstacle(sharded(pair()[1]).model)
