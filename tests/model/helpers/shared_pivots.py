"""Batches whose rows share English prompts, written twice: each prompt once, and once for each row that reads it."""

from __future__ import annotations

import torch
from model_pairs import batch

ROWS, PIVOTS = 5, 3
READ = [0, 1, 0, -1, 0]  # the pivot that each row reads; pivot 2 is read by nobody
MAIN = [6, 5, 4, 3, 2]  # what the defaults find in batch(rows=5)


def shared_batch(left: bool = False, indices: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Five rows that read three pivots of different lengths; `left` pads main rows and pivots on the left."""
    main, pivots = batch(rows=ROWS, seed=seed), batch(rows=PIVOTS, seed=seed + 1)
    data = {name: main[name] for name in ("input_ids", "attention_mask", "labels")}
    data |= {name: pivots[name] for name in ("pivot_input_ids", "pivot_attention_mask")}
    data["pivot_row"] = torch.tensor(READ)
    if indices:
        data["connection_index"], data["pivot_index"] = torch.tensor(MAIN), torch.tensor([8, 3, 6])
    if left:
        data = {name: _rolled(value) for name, value in data.items()}
        data["position_ids"] = (data["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return data


def unshared(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same batch with a pivot of its own for each row; a row without one has a mask of zeros."""
    made = {name: value for name, value in data.items() if name != "pivot_row"}
    rows = data["pivot_row"]
    read = rows.clamp(min=0).long()
    for name in ("pivot_input_ids", "pivot_attention_mask", "pivot_index"):
        if data.get(name) is not None:
            made[name] = data[name][read].clone()
    if made.get("pivot_attention_mask") is None:
        made["pivot_attention_mask"] = torch.ones_like(made["pivot_input_ids"])
    made["pivot_attention_mask"][rows < 0] = 0
    return made


def loss_rows_of(labels: torch.Tensor, pad: int = 0) -> torch.Tensor:
    """Flattened tokens whose next token has a label, found with loops; then `pad` times −1."""
    length = labels.shape[1]
    found = [b * length + t for b in range(len(labels)) for t in range(length - 1) if labels[b, t + 1] != -100]
    return torch.tensor(found + [-1] * pad, dtype=torch.long)


def with_rows(data: dict[str, torch.Tensor], pad: int = 2) -> dict[str, torch.Tensor]:
    """A batch with the `loss_rows` of its labels."""
    return {**data, "loss_rows": loss_rows_of(data["labels"], pad)}


def _rolled(value: torch.Tensor) -> torch.Tensor:
    if value.ndim == 1:
        return value
    return torch.stack([row.roll(b) for b, row in enumerate(value)])  # row b has b padding tokens at its end
