"""`add_rows`: `out = x`, then `out[rows[k]] += values[k]` for every k whose `rows[k]` is not −1.

Shapes: x, out `(N, d)`, rows `(K,)`, values `(K, d)`. dtypes: any floating-point x; `values` are rounded to it.
Bytes moved by a fused implementation: in place 3·K·d elements; out of place 2·N·d more for the copy.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.checks import check_device, check_float, check_rows, check_shape


def add_rows(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    """Add K rows to an activation; differentiable in `x` and `values`.

    Args:
        x: `(N, d)`, floating point.
        rows: `(K,)`, int64 or int32, each in [−1, N), distinct where not −1. A −1 skips its row: `values[k]` is not
            read, and its gradient is zero. Neither range nor distinctness is checked, because that would synchronise.
        values: `(K, d)`, floating point.
        inplace: write into `x`, which must be a fresh activation that nothing else reads (a leaf that requires a
            gradient cannot be written to, as always in autograd). The cost then does not depend on N.

    Returns:
        `(N, d)`, the dtype of `x`; `x` itself when `inplace`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: wrong shape, or different devices.

    Source: the cross-lingual connection, CC-Tuning section 3.2.

    Example:
        >>> import torch
        >>> add_rows(torch.zeros(3, 2), torch.tensor([2, -1]), torch.tensor([[1.0, 2.0], [9.0, 9.0]]))
        tensor([[0., 0.],
                [0., 0.],
                [1., 2.]])
    """
    check_float("x", x, ndim=2)
    check_float("values", values, ndim=2)
    check_rows("rows", rows, x, count=values.shape[0])
    check_shape("values", values, (rows.shape[0], x.shape[1]), "(K, d)")
    check_device("values", values, "x", x)
    return choose("add_rows", x, reference.add_rows)(x, rows, values, inplace)


__all__ = ["add_rows"]
