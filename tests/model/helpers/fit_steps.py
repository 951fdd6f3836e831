"""Fitting the Transform Matrix in one process of a group, on this process's share of prompt pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from distributed_steps import sharded
from model_pairs import pair
from torch.nn.parallel import DistributedDataParallel

from cc_model import fit_transform_matrix

WRAPPERS = {
    "none": lambda model: model,
    "ddp": DistributedDataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "fsdp2": sharded,
}


def prompt_pairs(count: int = 30, rows: int = 6) -> list[dict[str, Any]]:
    """Batches of prompt pairs of several lengths, right-padded; one pair has no English prompt."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for start in range(0, count, rows):
        size = min(rows, count - start)
        batch: dict[str, Any] = {}
        for side, length in (("", 9), ("pivot_", 7)):
            batch[f"{side}input_ids"] = torch.randint(256, (size, length), generator=generator)
            last = length - 1 - torch.arange(size) % 3
            batch[f"{side}attention_mask"] = (torch.arange(length) <= last[:, None]).long()
        made.append(batch)
    made[0]["pivot_attention_mask"][1] = 0
    return made


def _failing(batches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from batches
    raise OSError("the disk is full")


def fitted(
    wrapper: str, counts: list[int], fail: bool = False, of_rank_1: Any = None, **options: Any
) -> dict[str, Any]:
    """Fit on `counts[rank]` batches; with `fail`, the batches of rank 1 end with an error; it may have other options.

    Returns:
        Matrix, bias and report, or the error; whether the connection was left as it was.
    """
    _, model = pair()
    model = WRAPPERS[wrapper](model)
    start = sum(counts[: dist.get_rank()])
    mine = prompt_pairs()[start : start + counts[dist.get_rank()]]
    connection = next(module for name, module in model.named_modules() if name.endswith("cc"))
    options |= of_rank_1 or {} if dist.get_rank() == 1 else {}
    try:
        batches = _failing(mine) if fail and dist.get_rank() == 1 else iter(mine)
        report = fit_transform_matrix(model, batches, progress=False, **options)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "untouched": connection.transform_matrix is None}
    return {"matrix": connection.transform_matrix, "bias": connection.transform_bias, "report": report}


def fitted_by_rank_0() -> bool:
    """Fit in one process of two, while the other does something else."""
    if dist.get_rank() == 0:
        _, model = pair()
        fit_transform_matrix(model, prompt_pairs(), progress=False, process_group=None)
    return True
