"""Packed rows: several examples one after the other in one row, position ids restarting at each.

The connection then has one entry for each of the N examples instead of one for each of the B rows: `connection_index`
counts through the flattened `(B * T)` tokens, and pivots, pivot indices and noise have N rows. Pivots stay padded: the
pivot pass has neither head nor loss. Which tokens see each other is the stock model's business: it reads the restarts
of `position_ids` where it gets no mask and no cache, for every attention implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_model.compat import CACHE, cache_of
from cc_model.generation import PACKED_BY

PACKED = frozenset(PACKED_BY)


def check_packed(examples: int, named: dict[str, Any], rows: int) -> None:
    """Raise for arguments with which the examples packed into `rows` would see each other.

    Raises:
        ValueError: `position_ids` are missing, or there is a mask, a cache or `use_cache=True`.
        RuntimeError: `position_ids` restart less often than there are examples (found without waiting for a GPU).
    """
    packed = f"packed rows ({examples} examples in {rows} rows)"
    positions = named.get("position_ids")
    if not isinstance(positions, Tensor) or positions.ndim != 2:
        raise ValueError(f"position_ids: expected positions (B, T) that restart at each example of {packed}, got none")
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        raise ValueError(
            f"attention_mask: expected None (or 4 dimensions) for {packed}, because with a mask the model does not "
            f"read where position_ids restart; got {tuple(mask.shape)}"
        )
    if cache_of(named) is not None or named.get("use_cache"):
        raise ValueError(
            f"use_cache: expected False and no {CACHE} for {packed}: with a cache they would see each other"
        )
    breaks = (positions[:, 1:] != positions[:, :-1] + 1).sum() + positions.shape[0]
    torch._assert_async(
        breaks >= examples,
        "position_ids: expected one restart for each pivot of a packed row, got fewer: examples would see each other",
    )


def refuse_packing(named: dict[str, Any]) -> None:
    """Raise for packed rows with one index and pivot per row: several examples in a row need several."""
    for name in PACKED_BY[1:]:
        if named.get(name) is not None:
            raise NotImplementedError(f"{name}: {_ONE_PER_EXAMPLE}")
    positions, mask = named.get("position_ids"), named.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.ndim != 2 or positions.shape[1] < 2:
        return
    restarts = positions[:, 1:] < positions[:, :-1]
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= positions.shape[1]:
        attended = mask[:, -positions.shape[1] :] != 0  # the mask also covers what is in the cache
        restarts = restarts & attended[:, 1:] & attended[:, :-1]
    # An asynchronous assertion: on a GPU it stops the program without making every step wait for it.
    torch._assert_async(~restarts.any(), f"position_ids: {_ONE_PER_EXAMPLE}")


_ONE_PER_EXAMPLE = (
    "packed rows (several examples in one row) are connected by their English prompts only, with one row of "
    "pivot_input_ids and one flat connection_index per example, as ParallelCollator(packed=True) gives them"
)
