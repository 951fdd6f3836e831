"""`transform_rows`: `out = values M`, the Transform Matrix applied to the selected rows.

Shapes: values, out `(K, d)`, matrix M `(d, d)` in row-vector convention. dtypes: one for both; fp32 accumulation on
16-bit inputs and one rounding. Bytes moved by a fused implementation: M once, K rows in, K rows out.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.checks import check_float, check_inference, check_same, check_shape


def transform_rows(values: Tensor, matrix: Tensor) -> Tensor:
    """Map K activations by the Transform Matrix; inference only.

    Args:
        values: `(K, d)`, floating point.
        matrix: M `(d, d)`, the dtype of `values`.

    Returns:
        `(K, d)`, the dtype of `values`.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: wrong shape, or different devices.
        RuntimeError: a gradient is asked.

    Source: CC-Tuning section 3.3.

    Example:
        >>> import torch
        >>> transform_rows(torch.tensor([[1.0, 2.0]]), 2 * torch.eye(2))
        tensor([[2., 4.]])
    """
    check_float("values", values, ndim=2)
    check_float("matrix", matrix, ndim=2)
    check_shape("matrix", matrix, (values.shape[1], values.shape[1]), "(d, d)")
    check_same("matrix", matrix, "values", values)
    check_inference("transform_rows", values=values, matrix=matrix)
    return choose("transform_rows", values, reference.transform_rows)(values, matrix)


__all__ = ["transform_rows"]
