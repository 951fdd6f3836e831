"""The connection's arguments: the columns of a batch that a patched forward takes besides the stock ones.

| name | shape | dtype | meaning |
|---|---|---|---|
| `pivot_input_ids` | (B, S) | integer | the English prompts |
| `pivot_attention_mask` | (B, S) | any | 0 at padding; None: all attended |
| `connection_index` | (B,) | int64 or int32 | the token of the main row that is connected; −1: none |
| `pivot_index` | (B,) | int64 or int32 | the captured token of the pivot; −1: none |
| `gumbel_noise` | (B, L) | floating point | noise of the decision |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PIVOT_COLUMNS = ("pivot_input_ids", "pivot_attention_mask", "pivot_index")
INDEX = "connection_index"
NOISE = "gumbel_noise"
BATCH_COLUMNS = (*PIVOT_COLUMNS, INDEX)  # what a collator gives
CONNECTION_ARGUMENTS = (*BATCH_COLUMNS, NOISE)
PACKED_HINT = "; packed rows need one pivot and one connection_index per example"


def check_connection_arguments(taken: Mapping[str, Any], rows: int, layers: int) -> None:
    """Raise unless the given ones of `CONNECTION_ARGUMENTS` have the types and shapes of the table above.

    Args:
        taken: the arguments by name; a missing one, and None, is not given.
        rows: B.
        layers: L.

    Raises:
        TypeError: an argument is no tensor, or has the wrong dtype.
        ValueError: an argument has the wrong shape, or a pivot row has no token.
    """
    pivot = taken.get("pivot_input_ids")
    width = pivot.shape[1] if isinstance(pivot, Tensor) and pivot.ndim == 2 else 0
    for name, shape, meaning in (
        ("pivot_input_ids", (rows, width), "(B, S)"),
        ("pivot_attention_mask", (rows, width), "(B, S)"),
        ("pivot_index", (rows,), "(B,)"),
        (INDEX, (rows,), "(B,)"),
        (NOISE, (rows, layers), "(B, L)"),
    ):
        value = taken.get(name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if tuple(value.shape) != shape:
            hint = PACKED_HINT if name == "pivot_input_ids" else ""
            raise ValueError(f"{name}: expected shape {meaning} = {shape}, got {tuple(value.shape)}{hint}")
        if name == NOISE and not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        if name not in (NOISE, "pivot_attention_mask") and value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: expected int64 or int32, got {value.dtype}")
    if isinstance(pivot, Tensor) and width == 0:
        raise ValueError(f"pivot_input_ids: expected at least one token per row, got shape {tuple(pivot.shape)}")


def refuse_orphans(taken: Mapping[str, Any], training: bool) -> None:
    """Raise for arguments that mean nothing without the English prompt: they must not be dropped silently."""
    if taken.get("pivot_input_ids") is not None:
        return
    for name in (*PIVOT_COLUMNS[1:], INDEX, NOISE) if training else PIVOT_COLUMNS[1:]:
        if taken.get(name) is not None:
            raise ValueError(f"{name}: expected together with pivot_input_ids, got it without")
