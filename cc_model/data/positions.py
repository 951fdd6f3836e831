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


class Places:
    """The connected token of each of B rows of T tokens.

    Where all rows connect at one index, as the last tokens of left-padded prompts, nothing has to be worked out on the
    device: their places are one range.

    Args:
        index: `(B,)`, or the one index of all rows, in [0, T).
        rows, length: B and T.
        device: of the places.
    """

    def __init__(self, index: Tensor | int, rows: int, length: int, device: torch.device) -> None:
        self.index, self.rows, self.length, self.device = index, rows, length, device

    def flat(self, start: int = 0) -> Tensor:
        """`(B,)`: the tokens in the flattened ones from `start` on; those out of range are clamped into their rows."""
        length = self.length - start
        if isinstance(self.index, int):
            return torch.arange(self.index - start, self.rows * length, length, device=self.device)
        return flat_rows(self.index - start if start else self.index, length)

    def skipped(self) -> Tensor | None:
        """`(B,)` bool: the rows whose index is out of range, which do not connect; None: all rows connect."""
        return None if isinstance(self.index, int) else ~in_range(self.index, self.length)

    def first(self) -> int:
        """The smallest index in range, or the last token; reads an index on the device once."""
        if isinstance(self.index, int):
            return self.index
        return int(torch.where(in_range(self.index, self.length), self.index, self.length - 1).amin())


def mark_skipped(rows: Tensor, skip: Tensor | None) -> Tensor:
    """`rows` with −1 where `skip` is True; None: nowhere."""
    return rows if skip is None else rows.masked_fill(skip, -1)
