from functools import partial

import pytest
import torch
from kernel_harness import DTYPES, check_compiled, check_op, layouts, needs_triton, randn

from cc_kernels import geglu, reference
from cc_kernels.ops.geglu import geglu_backward_, geglu_forward

FORMS = [partial(geglu, approximate="none"), partial(geglu, approximate="tanh")]
SHAPES = [(1,), (7, 33), (2, 3, 1025), (1, 2500), (5, 1)]


@pytest.fixture(params=FORMS, ids=["erf", "tanh"])
def op(request):
    return request.param


def pair(*shape, dtype=torch.float32):
    return randn(*shape, dtype=dtype).requires_grad_(), randn(*shape, dtype=dtype, seed=1).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(op, shape, dtype):
    check_op(op, pair(*shape, dtype=dtype))


def test_double_precision(op):
    check_op(op, pair(3, 70, dtype=torch.float64))


def test_scalar_tensor(op):
    check_op(op, [x.squeeze() for x in pair(1)])


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 5)], ids=str)
def test_empty(op, shape):
    check_op(op, pair(*shape))


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(op, layout):
    gate, up = pair(3, 4, 130)
    check_op(op, (layouts(gate.detach())[layout].requires_grad_(), up))
    check_op(op, (gate, layouts(up.detach())[layout].requires_grad_()))


def test_halves_of_one_projection(op):
    def chunked(whole):
        return op(*whole.chunk(2, dim=-1))

    check_op(chunked, [randn(2, 5, 200).requires_grad_()])


def test_expanded_input_and_gradient(op):
    gate, up = randn(1, 64).expand(5, 64).requires_grad_(), randn(5, 1, seed=1).expand(5, 64).requires_grad_()
    check_op(op, (gate, up), seeds=lambda outputs: [torch.ones_like(outputs[0][:1, :1]).expand(5, 64)])


def test_extreme_values(op):
    gate = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 1e4, float("inf")], device=randn(1).device)
    out = check_op(op, (gate[:-1].clone().requires_grad_(), torch.ones_like(gate[:-1]).requires_grad_()))[0]
    assert torch.isfinite(out).all()
    nan = float("nan")
    assert op(gate.new_tensor([nan, 1.0]), gate.new_tensor([1.0, nan])).isnan().all()


def test_only_one_input_requires_a_gradient(op):
    gate, up = pair(2, 40)
    check_op(op, (gate, up.detach()))
    check_op(op, (gate.detach(), up))
    check_op(op, (gate.detach(), up.detach()))


@pytest.mark.parametrize("tanh", [False, True])
def test_reference_gradients(tanh):
    gate, up = pair(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: reference.geglu(a, b, tanh), (gate, up))
    out, grad = reference.geglu(gate, up, tanh), randn(3, 5, dtype=torch.float64, seed=2)
    for ours, theirs in zip(reference.geglu_backward(grad, gate, up, tanh), torch.autograd.grad(out, (gate, up), grad)):
        torch.testing.assert_close(ours, theirs)


def test_formula():
    """Against the formulas of the literature, in plain arithmetic."""
    gate, up = (x.detach() for x in pair(50, dtype=torch.float64))
    erf = gate * (1 + torch.erf(gate / 2**0.5)) / 2 * up
    tanh = gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    torch.testing.assert_close(geglu(gate, up), erf)
    torch.testing.assert_close(geglu(gate, up, approximate="tanh"), tanh)
    assert (erf - tanh).abs().max() > 1e-5


def test_compiled(op):
    check_compiled(op, pair(2, 3, 65))


@needs_triton
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 8)], ids=str)
def test_the_product_over_the_gradient(shape, dtype, tanh):
    """Both gradients as without it, and the output as the forward wrote it, bit for bit."""
    gate, up = (x.detach() for x in pair(*shape, dtype=dtype))
    grad = randn(*shape, dtype=dtype, seed=2)
    expected = torch.ops.cc_kernels.geglu_backward(grad, gate, up, tanh)
    version = grad._version
    found = geglu_backward_(grad, gate, up, tanh)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(grad, geglu_forward(gate, up, tanh))
    assert grad._version == version + 1


@needs_triton
def test_opcheck():
    torch.library.opcheck(torch.ops.cc_kernels.geglu.default, (*pair(4, 33), True))
    gate, up = (x.detach() for x in pair(4, 33))
    torch.library.opcheck(torch.ops.cc_kernels.geglu_backward.default, (gate, gate, up, False))


@needs_triton
def test_second_derivative_raises():
    gate, up = pair(2, 8)
    out = torch.ops.cc_kernels.geglu(gate, up, True)
    (grad,) = torch.autograd.grad(out.sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="geglu_backward has no derivative"):
        torch.autograd.grad(grad.sum(), gate)


@pytest.mark.parametrize(
    ("gate", "up", "error", "message"),
    [
        ([1.0], torch.ones(1), TypeError, r"gate: expected a tensor, got list"),
        (torch.ones(1), None, TypeError, r"up: expected a tensor, got NoneType"),
        (torch.ones(1).long(), torch.ones(1), TypeError, r"gate: expected a floating-point dtype, got torch.int64"),
        (torch.ones(2, 3), torch.ones(3), ValueError, r"up: expected shape of gate = \(2, 3\), got \(3,\)"),
        (torch.ones(2), torch.ones(2).half(), TypeError, r"up: expected the dtype of gate, torch.float32, got"),
        (torch.ones(2), torch.ones(2, device="meta"), ValueError, r"up: expected the device of gate, cpu, got meta"),
    ],
)  # fmt: skip
def test_errors(gate, up, error, message):
    with pytest.raises(error, match=message):
        geglu(gate, up)


def test_unknown_approximation():
    with pytest.raises(ValueError, match=r"approximate: expected 'none' or 'tanh', got 'erf'"):
        geglu(torch.ones(1), torch.ones(1), approximate="erf")
