"""Head and loss on the tokens that have a label, in training.

`loss_rows` names them. The body's result is cut to them before the stock head and the stock loss run, so both do the
same work on fewer tokens. Labels for these tokens are shifted already: the stock loss takes them as `shift_labels`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_model.data.positions import IGNORE_INDEX

SHIFTED = "shift_labels"


def labelled_rows(named: dict[str, Any], given: Any, rows: int, length: int) -> Tensor | None:
    """The checked `loss_rows` `(K,)` of a training step, whose labels are put into `named`; None: all tokens are read.

    All are read where there are no labels in the forward (Trainer takes them away for label smoothing and for
    `compute_loss_func`, which want all logits), and where K is not below the number of tokens.

    Raises:
        TypeError: `loss_rows` is no tensor, or not int64 or int32.
        ValueError: it has not one axis, or the caller shifted labels, too, or wants `logits_to_keep`.
    """
    if given is None:
        return None
    if not isinstance(given, Tensor):
        raise TypeError(f"loss_rows: expected a tensor, got {type(given).__name__}")
    if given.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"loss_rows: expected int64 or int32, got {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"loss_rows: expected shape (K,), got {tuple(given.shape)}")
    labels = named.get("labels")
    if not isinstance(labels, Tensor) or given.shape[0] >= rows * length:
        return None
    for name, empty in ((SHIFTED, None), ("logits_to_keep", 0)):
        value = named.get(name)
        if value is not None and (isinstance(value, Tensor) or value != empty):
            raise ValueError(f"{name}: expected none together with loss_rows, got one; leave one of the two out")
    kept = torch.where((given >= 0) & (given < rows * length), given, -1)
    named[SHIFTED] = shifted_labels(labels, kept.to(labels.device))
    return kept


def shifted_labels(labels: Tensor, rows: Tensor) -> Tensor:
    """`(1, K)`: the label of the token after each of `rows`; −100 for a −1, and behind the end of a row of tokens."""
    length, flat = labels.shape[-1], labels.reshape(-1)
    after = (rows + 1).clamp(0, flat.shape[0] - 1)
    inside = (rows >= 0) & ((rows + 1) % length != 0)
    return torch.where(inside, flat[after], IGNORE_INDEX)[None]


__all__ = ["SHIFTED", "labelled_rows", "shifted_labels"]
