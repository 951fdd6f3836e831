import pytest
import torch
from kernel_harness import BACKEND, DEVICE, DOT_DTYPES, check_compiled, check_op, layouts, needs_triton, randn

from cc_kernels import gate_up_swiglu, reference, use_backend
from cc_kernels.launch import record_launches
from cc_kernels.ops import gate_up_swiglu as module

SHAPES = [(3, 7, 11), (0, 5, 4), (2, 4, 0), (2, 0, 3), (1, 130, 65), (17, 66, 34), (65, 40, 33)]


def weights_of(inner, width, dtype=torch.float32):
    return [randn(inner, width, dtype=dtype, seed=seed, scale=max(width, 1) ** -0.5) for seed in (1, 2)]


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_values(rows, width, inner, dtype):
    check_op(gate_up_swiglu, (randn(rows, width, dtype=dtype), *weights_of(inner, width, dtype)))


def test_formula():
    x, (w_gate, w_up) = randn(2, 5), weights_of(3, 5)
    gate, up = x @ w_gate.T, x @ w_up.T
    with use_backend(BACKEND):
        torch.testing.assert_close(gate_up_swiglu(x, w_gate, w_up), gate * torch.sigmoid(gate) * up)


def test_rounds_where_the_reference_rounds():
    """In fp16 the projections are rounded before the activation: with exact sums nearly all results are bit-equal."""
    x = randn(3, 8, seed=5, scale=8).round().half()
    w_gate, w_up = ((weight * 1024).round().div(1024).half() for weight in weights_of(40, 8))
    expected = reference.gate_up_swiglu(x, w_gate, w_up)
    with use_backend(BACKEND):
        ours = gate_up_swiglu(x, w_gate, w_up)
    assert (ours != expected).sum() <= 1  # an exponential that differs in its last bit may tip one
    unrounded = reference.swiglu(x.float() @ w_gate.float().T, x.float() @ w_up.float().T).half()
    assert (unrounded != expected).sum() > 20


def test_large_gates():
    """`silu` of numbers whose exponential overflows."""
    x, weight = torch.tensor([[-200.0], [200.0]], device=DEVICE), torch.ones(2, 1, device=DEVICE)
    with use_backend(BACKEND):
        out = gate_up_swiglu(x, weight, weight)
    assert torch.equal(out, torch.tensor([[0.0, 0.0], [40000.0, 40000.0]], device=DEVICE))


@pytest.mark.parametrize("layout", layouts(torch.ones(2, 2)))
def test_layouts(layout):
    x, w_gate, w_up = (layouts(tensor)[layout] for tensor in (randn(3, 34), *weights_of(37, 34)))
    check_op(gate_up_swiglu, (x, w_gate, w_up))


def test_strided():
    check_op(gate_up_swiglu, (randn(5, 4).T[::2], randn(5, 3, seed=1).T, randn(6, 5, seed=2)[::2]))


def test_halves_of_one_weight():
    both = randn(66, 40, seed=1, scale=0.2)
    check_op(gate_up_swiglu, (randn(3, 40), *both.chunk(2)))


@needs_triton
def test_one_launch():
    x, weight = torch.empty(16, 256, device="meta"), torch.empty(512, 256, device="meta")
    with record_launches(32) as launches:
        module._forward(x, weight, weight)
    assert len(launches) == 1


def test_compiles():
    with torch.no_grad():
        check_compiled(gate_up_swiglu, (randn(3, 40), *weights_of(33, 40)))


@needs_triton
def test_opcheck():
    torch.library.opcheck(torch.ops.cc_kernels.gate_up_swiglu.default, (randn(3, 40), *weights_of(33, 40)))


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
