"""The connection's arguments: the columns of a batch that a patched forward takes besides the stock ones.

| name | shape | dtype | meaning |
|---|---|---|---|
| `pivot_input_ids` | (P, S) | integer | the English prompts; P = B unless `pivot_row` says who reads which |
| `pivot_attention_mask` | (P, S) | any | 0 at padding; None: all attended |
| `pivot_index` | (P,) | int64 or int32 | the captured token of the pivot; −1: none |
| `pivot_row` | (B,) | int64 or int32 | the pivot that a row reads; −1: none |
| `pivot_bank` | (L, P, d) | floating point | captured activations in the place of the three pivot tensors |
| `connection_index` | (B,) | int64 or int32 | the token of the main row that is connected; −1: none |
| `gumbel_noise` | (B, L) | floating point | noise of the decision |
| `loss_rows` | (K,) | int64 or int32 | flattened tokens whose next token has a label; −1: padding |
| `batch_shape` | (B, N, P, K, 0) | any | no number: its shape tells whether something cut the batch (`check_whole`) |

N is B, but for packed rows, which have N examples in B rows: N then stands for B in the connection's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIVOT_COLUMNS = ("pivot_input_ids", "pivot_attention_mask", "pivot_index")
BATCH_SHAPE = "batch_shape"
LOSS_ROWS = "loss_rows"
INDEX = "connection_index"
NOISE = "gumbel_noise"
PIVOT_ARGUMENTS = (*PIVOT_COLUMNS, "pivot_row", "pivot_bank")
CONNECTION_ARGUMENTS = (*PIVOT_ARGUMENTS, INDEX, NOISE, LOSS_ROWS, BATCH_SHAPE)
# What `ParallelCollator` gives beside the stock columns; a vanilla model must not get them.
COLLATED = (*PIVOT_COLUMNS, "pivot_row", INDEX, LOSS_ROWS, BATCH_SHAPE)

_INDICES = ("input_ids", "pivot_input_ids", "pivot_index", "pivot_row", INDEX, LOSS_ROWS)
_PACKED_HINT = "; packed rows need one pivot and one connection_index per example"
_CUT = (
    "something cut the batch along its first axis (nn.DataParallel, accelerate's dispatch_batches or split_batches), "
    "and pivots or labelled tokens that rows share cannot be cut; use one process per GPU with its own batches "
    "(torchrun, accelerate launch), or ParallelCollator without share_pivots and loss_only"
)


class PivotBank(NamedTuple):
    """Captured activations of English prompts, as `cc_model.pivot_bank` gives them and the forward takes them."""

    bank: Tensor  # (L, P, d)
    usable: Tensor | None  # (P,) bool: the row has an attended token and an index in range; None: every row


def has_pivots(taken: Mapping[str, Any]) -> bool:
    """Whether English prompts are given, as tokens or as a bank."""
    return taken.get("pivot_input_ids") is not None or taken.get("pivot_bank") is not None


def entries_of(taken: Mapping[str, Any], rows: int) -> int:
    """How many entries `connection_index` has: `rows`, or N for packed rows with N examples, seen by their shapes."""
    index, row, bank = taken.get(INDEX), taken.get("pivot_row"), _bank_of(taken)
    if not isinstance(index, Tensor) or index.ndim != 1:
        return rows
    if row is not None:
        count = _first(row)
    elif bank is not None:
        count = bank.shape[1] if isinstance(bank, Tensor) and bank.ndim == 3 else 0
    else:
        count = _first(taken.get("pivot_input_ids"))
    return count if count == index.shape[0] else rows


def check_prompts(ids: Any, mask: Any) -> None:
    """Raise unless `input_ids` are `(B, T)` integers, T > 0, and `attention_mask`, where given, has their shape.

    Raises:
        TypeError: one is no tensor, or the ids are not int64 or int32.
        ValueError: one has the wrong shape.
    """
    _check_axes("input_ids", ids, "(B, T)")
    shape = tuple(ids.shape) if isinstance(ids, Tensor) else ()
    _check("input_ids", ids, shape, "(B, T)")
    if mask is not None:
        _check("attention_mask", mask, shape, "(B, T)")


def check_connection_arguments(taken: Mapping[str, Any], entries: int, layers: int) -> None:
    """Raise unless the given ones of `CONNECTION_ARGUMENTS` have the types and shapes of the table above.

    Args:
        taken: the arguments by name; a missing one, and None, is not given.
        entries: B, or N for packed rows.
        layers: L.

    Raises:
        TypeError: an argument is no tensor, or has the wrong dtype.
        ValueError: an argument has the wrong shape, a pivot row has no token, or a bank comes with pivot tensors or
            requires a gradient.
    """
    pivot, bank = taken.get("pivot_input_ids"), _bank_of(taken)
    if bank is not None:
        _check_bank(bank, taken, layers)
    _check_axes("pivot_input_ids", pivot, "(B, S)")
    pivots = entries
    if taken.get("pivot_row") is not None:
        pivots = bank.shape[1] if bank is not None else _first(pivot)
    width = pivot.shape[1] if isinstance(pivot, Tensor) else 0
    for name, shape, meaning in (
        ("pivot_input_ids", (pivots, width), "(B, S)"),
        ("pivot_attention_mask", (pivots, width), "(B, S)"),
        ("pivot_index", (pivots,), "(B,)"),
        ("pivot_row", (entries,), "(B,)"),
        (INDEX, (entries,), "(B,)"),
        (NOISE, (entries, layers), "(B, L)"),
    ):
        value = taken.get(name)
        if value is not None:
            _check(name, value, shape, meaning)
    if bank is not None and bank.shape[1] != pivots:
        raise ValueError(
            f"pivot_bank: expected shape (L, B, d) with B = {pivots}, got {tuple(bank.shape)}{_PACKED_HINT}"
        )


def check_whole(taken: Mapping[str, Any]) -> None:
    """Raise when the batch is no longer as `ParallelCollator` made it, by the shape that it noted.

    What cuts a batch cuts the first axis of each column, that of `batch_shape` too, but not its other axes. The number
    of rows has to be right as well: a pivot that all rows share stays whole where only the rows are cut.
    """
    noted = taken.get(BATCH_SHAPE)
    if noted is None:
        return
    if not isinstance(noted, Tensor) or noted.ndim != 5:
        raise ValueError(f"{BATCH_SHAPE}: expected what ParallelCollator gives, (B, N, P, K, 0), got {_got(noted)}")
    _, entries, pivots, labelled, _ = noted.shape
    for name, count in ((INDEX, entries), ("pivot_row", entries), ("pivot_input_ids", pivots), (LOSS_ROWS, labelled)):
        value = taken.get(name)
        if value is not None and _first(value) != count:
            raise ValueError(f"{name}: expected {count} rows for this batch, got {_first(value)}: {_CUT}")


def refuse_orphans(taken: Mapping[str, Any], training: bool) -> None:
    """Raise for arguments that mean nothing without the English prompt: they must not be dropped silently."""
    if taken.get("pivot_input_ids") is None:
        for name in PIVOT_COLUMNS[1:]:
            if taken.get(name) is not None:
                raise ValueError(f"{name}: expected together with pivot_input_ids, got it without")
    if not has_pivots(taken):
        for name in ("pivot_row", INDEX, NOISE) if training else ("pivot_row",):
            if taken.get(name) is not None:
                raise ValueError(f"{name}: expected together with pivot_input_ids, got it without")


def _bank_of(taken: Mapping[str, Any]) -> Any:
    given = taken.get("pivot_bank")
    return given.bank if isinstance(given, PivotBank) else given


def _check_bank(bank: Any, taken: Mapping[str, Any], layers: int) -> None:
    for name in PIVOT_COLUMNS:
        if taken.get(name) is not None:
            raise ValueError(f"pivot_bank: expected without {name}, whose place it takes, got both")
    if not isinstance(bank, Tensor):
        raise TypeError(f"pivot_bank: expected a tensor or a PivotBank, got {type(bank).__name__}")
    if not bank.is_floating_point():
        raise TypeError(f"pivot_bank: expected a floating-point dtype, got {bank.dtype}")
    if bank.ndim != 3 or bank.shape[0] != layers:
        raise ValueError(f"pivot_bank: expected shape (L, P, d) with L = {layers}, got {tuple(bank.shape)}")
    _check_usable(taken["pivot_bank"], bank.shape[1])
    if bank.requires_grad:
        raise ValueError(
            "pivot_bank: expected a bank without a gradient, got one that requires it; for pivot_grad=True give "
            "pivot_input_ids, so that the pivot pass is part of the step"
        )


def _check_usable(given: Any, pivots: int) -> None:
    usable = given.usable if isinstance(given, PivotBank) else None
    if usable is None:
        return
    if not isinstance(usable, Tensor) or usable.dtype != torch.bool:
        got = usable.dtype if isinstance(usable, Tensor) else type(usable).__name__
        raise TypeError(f"pivot_bank: expected usable to be a bool tensor, got {got}")
    if tuple(usable.shape) != (pivots,):
        raise ValueError(f"pivot_bank: expected usable of shape (P,) = ({pivots},), got {tuple(usable.shape)}")


def _check_axes(name: str, ids: Any, meaning: str) -> None:
    """Raise for a tensor of token ids without rows of at least one token."""
    if not isinstance(ids, Tensor):
        return
    if ids.ndim != 2:
        raise ValueError(f"{name}: expected shape {meaning}, got {tuple(ids.shape)}")
    if ids.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one token per row, got shape {tuple(ids.shape)}")


def _check(name: str, value: Any, shape: tuple[int, ...], meaning: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        hint = _PACKED_HINT if name == "pivot_input_ids" else ""
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, got {tuple(value.shape)}{hint}")
    if name == NOISE and not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
    if name in _INDICES and value.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32, got {value.dtype}")


def _first(value: Any) -> int:
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else 0


def _got(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
