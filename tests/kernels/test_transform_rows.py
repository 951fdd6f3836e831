import pytest
import torch
from kernel_harness import DTYPES, MATRIX_BACKEND, check_op, randn

from cc_kernels import transform_rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(3, 7), (0, 5), (2, 0), (1, 130)])
def test_values(rows, width, dtype):
    matrix = randn(width, width, dtype=dtype, seed=1, scale=max(width, 1) ** -0.5)
    check_op(transform_rows, (randn(rows, width, dtype=dtype), matrix), backend=MATRIX_BACKEND)


def test_row_vector_convention():
    values, matrix = randn(2, 5), randn(5, 5, seed=1)
    expected = torch.stack([(row[:, None] * matrix).sum(0) for row in values])
    torch.testing.assert_close(transform_rows(values, matrix), expected)


def test_strided():
    check_op(transform_rows, (randn(6, 4).T[::2], randn(6, 6, seed=1).T), backend=MATRIX_BACKEND)


def test_gradient_raises():
    values, matrix = randn(2, 3), randn(3, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="transform_rows is inference only: matrix requires a gradient"):
        transform_rows(values, matrix)
    with pytest.raises(RuntimeError, match="transform_rows is inference only: values requires a gradient"):
        transform_rows(values.requires_grad_(), matrix.detach())
    with torch.no_grad():
        transform_rows(values, matrix)


@pytest.mark.parametrize(
    ("values", "matrix", "error", "message"),
    [
        (None, torch.eye(2), TypeError, r"values: expected a tensor, got NoneType"),
        (torch.ones(2), torch.eye(2), ValueError, r"values: expected 2 dimensions, got shape \(2,\)"),
        (torch.ones(1, 2), torch.eye(2).long(), TypeError, r"matrix: expected a floating-point dtype, got torch.int64"),
        (torch.ones(1, 2), torch.ones(2), ValueError, r"matrix: expected 2 dimensions, got shape \(2,\)"),
        (torch.ones(1, 2), torch.eye(3), ValueError, r"matrix: expected shape \(d, d\) = \(2, 2\), got \(3, 3\)"),
        (torch.ones(1, 2), torch.eye(2).half(), TypeError, r"matrix: expected the dtype of values, torch.float32, got"),
        (
            torch.ones(1, 2),
            torch.eye(2).to("meta"),
            ValueError,
            r"matrix: expected the device of values, cpu, got meta",
        ),
    ],
)
def test_errors(values, matrix, error, message):
    with pytest.raises(error, match=message):
        transform_rows(values, matrix)
