"""`capture_rows`: `out[k] = x[rows[k]]`, a zero row where `rows[k]` is −1.

Shapes: x `(N, d)`, rows `(K,)`, out `(K, d)`. dtypes: any floating-point x, int64 or int32 rows; values are copied.
Bytes moved by a fused implementation: forward 2·K·d elements and the indices.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.checks import check_float, check_rows


def capture_rows(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    """Copy K rows of an activation; differentiable in `x`.

    Args:
        x: `(N, d)`, floating point.
        rows: `(K,)`, int64 or int32, each in [−1, N). A −1 gives a zero row, whose gradient is zero. The range is not
            checked, because that would synchronise with the device.
        assume_valid: the caller knows that no index is −1, so that the test for it is left out.

    Returns:
        `(K, d)`, the dtype of `x`.

    Raises:
        TypeError: `x` is no floating-point tensor, or `rows` no integer tensor.
        ValueError: wrong number of dimensions, or different devices.

    Source: the capture of feed-forward activations, CC-Tuning section 3.1.

    Example:
        >>> import torch
        >>> capture_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
        tensor([[3., 4.],
                [0., 0.]])
    """
    check_float("x", x, ndim=2)
    check_rows("rows", rows, x)
    return choose("capture_rows", x, reference.capture_rows)(x, rows, assume_valid)


__all__ = ["capture_rows"]
