"""Lists of token ids as tensors, and what a batch notes about itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cc_model.data.columns import BATCH_SHAPE, INDEX, LOSS_ROWS
from cc_model.data.positions import IGNORE_INDEX


def padded(rows: list[list[int]], fill: int, width: int, left: bool) -> Tensor:
    """`rows` as `(B, width)`, padded with `fill`."""
    made = []
    for row in rows:
        padding = [fill] * (width - len(row))
        made.append(padding + row if left else row + padding)
    return torch.tensor(made, dtype=torch.int64)


def stacked(rows: list[list[int]], fill: int, multiple: int | None, left: bool) -> tuple[Tensor, Tensor, list[int]]:
    """Ids and mask `(B, T)`, with T rounded up to a multiple, and where each row starts."""
    step = multiple or 1
    width = -(-max(1, *map(len, rows)) // step) * step
    mask = padded([[1] * len(row) for row in rows], 0, width, left)
    return padded(rows, fill, width, left), mask, [width - len(row) if left else 0 for row in rows]


def loss_rows(labels: Tensor) -> Tensor:
    """`(K,)`: the flattened tokens of `labels` `(B, T)` whose next token has a label, then −1.

    K is rounded up, to a multiple of 8 and by a sixteenth at most beyond that, so that few shapes occur.
    """
    followed = torch.zeros_like(labels, dtype=torch.bool)
    followed[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    rows = followed.flatten().nonzero()[:, 0]
    step = max(8, 1 << max(rows.shape[0].bit_length() - 5, 0))
    count = max(step, -(-rows.shape[0] // step) * step)
    return F.pad(rows, (0, count - rows.shape[0]), value=-1)


def with_shape(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its shape noted (`columns.check_whole`), where its rows share pivots or labelled tokens."""
    if "pivot_row" not in batch and LOSS_ROWS not in batch:
        return batch
    labelled = batch[LOSS_ROWS].shape[0] if LOSS_ROWS in batch else 0
    counted = [batch[name].shape[0] for name in ("input_ids", INDEX, "pivot_input_ids")]
    return {**batch, BATCH_SHAPE: torch.empty((*counted, labelled, 0), dtype=torch.int64)}


__all__ = ["loss_rows", "padded", "stacked", "with_shape"]
