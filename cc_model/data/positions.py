"""Token positions, found on the device from masks and labels: no synchronisation, no loop over rows."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100


def before_first_label(labels: Tensor) -> Tensor:
    """`(B,)`: the token before the first label ≠ −100; −1 for a row without labels or with its first label at 0."""
    # argmax, which takes no bool, gives the first maximum, and 0 for a row without any label: both become −1.
    return (labels != IGNORE_INDEX).view(torch.uint8).argmax(dim=1).sub_(1)


def last_attended(mask: Tensor) -> Tensor:
    """`(B,)`: the last position that `mask` `(B, T)` attends to; −1 for an all-zero row."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask != 0, positions, -1).amax(dim=1)


def last_tokens(mask: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """`(B,)` on `device`: the last attended of the newest `length` tokens, which is the last one without a mask.

    `mask` `(B, ≥ length)` may also cover tokens before these; a row of zeros gives −1.
    """
    if mask is None:
        return torch.full((rows,), length - 1, device=device)
    return last_attended(mask[:, -length:]).to(device)


def in_range(index: Tensor, length: int) -> Tensor:
    """`(B,)` bool: whether each index lies in [0, length)."""
    return (index >= 0) & (index < length)


def flat_rows(index: Tensor, length: int) -> Tensor:
    """Indices into a flattened `(B * length)` axis; an index out of range is clamped into its own row."""
    starts = torch.arange(0, index.shape[0] * length, length, device=index.device)
    return index.clamp(0, length - 1) + starts


def located(index: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`index` `(B,)` as tokens of the flattened `(B * length)` axis, and which of them are in range, `(B,)`."""
    clamped = index.clamp(0, length - 1)
    starts = torch.arange(0, index.shape[0] * length, length, device=index.device)
    return starts + clamped, clamped == index


def mark_skipped(rows: Tensor, skip: Tensor) -> Tensor:
    """`rows` with −1 where `skip` is True."""
    return rows.masked_fill(skip, -1)
