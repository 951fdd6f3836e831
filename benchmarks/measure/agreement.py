"""How far a result may be from what it is compared with before anything is timed: one table for all programs."""

from __future__ import annotations

import torch
from torch import Tensor

# Largest relative difference by what is compared and the dtype. An op is compared with its plain definition, by the
# largest difference relative to the largest value; the rest with the hooks', by norms. A decision's gradient goes
# through the whole model twice, so that rounding shows in it most.
ALLOWED: dict[str, dict[torch.dtype, float]] = {
    "op": {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2},
    "loss": {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2},
    "gradient": {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2},
    "logits": {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2},
}
OTHER_DTYPES = 1e-6  # indices, and fp64


def allowed(what: str, dtype: torch.dtype) -> float:
    """The largest difference of `what` in `dtype`.

    Raises:
        ValueError: unknown `what`.

    Example:
        >>> allowed("loss", torch.float32), allowed("op", torch.int64)
        (1e-05, 1e-06)
    """
    if what not in ALLOWED:
        raise ValueError(f"what: expected one of {', '.join(ALLOWED)}, got {what!r}")
    return ALLOWED[what].get(dtype, OTHER_DTYPES)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """`‖actual − expected‖ / ‖expected‖`.

    Example:
        >>> relative_error(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
        1.25
    """
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def difference(what: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> str | None:
    """How `actual` differs from `expected` by more than is allowed, or None.

    Example:
        >>> difference("loss", torch.tensor(1.1), torch.tensor(1.0), torch.float32)
        'differs by 1.0e-01; 1e-05 is allowed'
    """
    error, most = relative_error(actual, expected), allowed(what, dtype)
    return None if error <= most else f"differs by {error:.1e}; {most:.0e} is allowed"
