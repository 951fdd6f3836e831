import pytest
import torch
from kernel_harness import DTYPES, MATRIX_BACKEND, check_op, randn

from cc_kernels import gate_up_swiglu


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width", "inner"), [(3, 7, 11), (0, 5, 4), (2, 4, 0), (1, 130, 65)])
def test_values(rows, width, inner, dtype):
    weights = [randn(inner, width, dtype=dtype, seed=seed, scale=width**-0.5) for seed in (1, 2)]
    check_op(gate_up_swiglu, (randn(rows, width, dtype=dtype), *weights), backend=MATRIX_BACKEND)


def test_formula():
    x, w_gate, w_up = randn(2, 5), randn(3, 5, seed=1), randn(3, 5, seed=2)
    gate, up = x @ w_gate.T, x @ w_up.T
    torch.testing.assert_close(gate_up_swiglu(x, w_gate, w_up), gate * torch.sigmoid(gate) * up)


def test_strided():
    check_op(
        gate_up_swiglu, (randn(5, 4).T[::2], randn(5, 3, seed=1).T, randn(6, 5, seed=2)[::2]), backend=MATRIX_BACKEND
    )


@pytest.mark.parametrize("wanted", ["x", "w_gate", "w_up"])
def test_gradient_raises(wanted):
    arguments = {"x": randn(2, 5), "w_gate": randn(3, 5, seed=1), "w_up": randn(3, 5, seed=2)}
    arguments[wanted].requires_grad_()
    with pytest.raises(RuntimeError, match=f"gate_up_swiglu is inference only: {wanted} requires a gradient"):
        gate_up_swiglu(**arguments)
    with torch.no_grad():
        gate_up_swiglu(**arguments)


X, W = torch.ones(1, 2), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("x", "w_gate", "w_up", "error", "message"),
    [
        (None, W, W, TypeError, r"x: expected a tensor, got NoneType"),
        (X[0], W, W, ValueError, r"x: expected 2 dimensions, got shape \(2,\)"),
        (X, W.long(), W, TypeError, r"w_gate: expected a floating-point dtype, got torch.int64"),
        (X, W[0], W, ValueError, r"w_gate: expected 2 dimensions, got shape \(2,\)"),
        (X, W.T, W, ValueError, r"w_gate: expected shape \(I, d\) = \(2, 2\), got \(2, 3\)"),
        (X, W, W[:2], ValueError, r"w_up: expected shape of w_gate = \(3, 2\), got \(2, 2\)"),
        (X, W, W.half(), TypeError, r"w_up: expected the dtype of x, torch.float32, got torch.float16"),
        (X, W.half(), W, TypeError, r"w_gate: expected the dtype of x, torch.float32, got torch.float16"),
        (X, W.to("meta"), W, ValueError, r"w_gate: expected the device of x, cpu, got meta"),
        (X, W, W.to("meta"), ValueError, r"w_up: expected the device of x, cpu, got meta"),
    ],
)
def test_errors(x, w_gate, w_up, error, message):
    with pytest.raises(error, match=message):
        gate_up_swiglu(x, w_gate, w_up)
