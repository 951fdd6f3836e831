import pytest
import torch
from kernel_harness import DTYPES, check_compiled, check_op, layouts, needs_triton, randn

from cc_kernels import reference, swiglu
from cc_kernels.launch import power_of_two
from cc_kernels.ops.swiglu import swiglu_backward_, swiglu_config, swiglu_forward

SHAPES = [(1,), (7, 33), (2, 3, 1025), (1, 2500), (5, 1)]


def pair(*shape, dtype=torch.float32):
    return randn(*shape, dtype=dtype).requires_grad_(), randn(*shape, dtype=dtype, seed=1).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype):
    check_op(swiglu, pair(*shape, dtype=dtype))


def test_double_precision():
    check_op(swiglu, pair(3, 70, dtype=torch.float64))


def test_scalar_tensor():
    check_op(swiglu, [x.squeeze() for x in pair(1)])


@pytest.mark.parametrize("shape", [(0,), (0, 8), (3, 0), (2, 0, 5)], ids=str)
def test_empty(shape):
    check_op(swiglu, pair(*shape))


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(layout):
    gate, up = pair(3, 4, 130)
    check_op(swiglu, (layouts(gate.detach())[layout].requires_grad_(), up))
    check_op(swiglu, (gate, layouts(up.detach())[layout].requires_grad_()))


def test_halves_of_one_projection():
    def chunked(whole):
        return swiglu(*whole.chunk(2, dim=-1))

    check_op(chunked, [randn(2, 5, 200).requires_grad_()])


def test_expanded_input_and_gradient():
    gate, up = randn(1, 64).expand(5, 64).requires_grad_(), randn(5, 1, seed=1).expand(5, 64).requires_grad_()
    check_op(swiglu, (gate, up), seeds=lambda outputs: [torch.ones_like(outputs[0][:1, :1]).expand(5, 64)])


def test_extreme_values():
    gate = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 1e4, float("inf")], device=randn(1).device)
    out = check_op(swiglu, (gate[:-1].clone().requires_grad_(), torch.ones_like(gate[:-1]).requires_grad_()))[0]
    assert torch.isfinite(out).all()
    nan = float("nan")
    assert swiglu(gate.new_tensor([nan, 1.0]), gate.new_tensor([1.0, nan])).isnan().all()


def test_only_one_input_requires_a_gradient():
    gate, up = pair(2, 40)
    check_op(swiglu, (gate, up.detach()))
    check_op(swiglu, (gate.detach(), up))
    check_op(swiglu, (gate.detach(), up.detach()))


def test_reference_gradients():
    assert torch.autograd.gradcheck(reference.swiglu, pair(3, 5, dtype=torch.float64))


def test_compiled():
    check_compiled(swiglu, pair(2, 3, 65))


@needs_triton
def test_opcheck():
    torch.library.opcheck(torch.ops.cc_kernels.swiglu.default, pair(4, 33))
    gate, up = (x.detach() for x in pair(4, 33))
    torch.library.opcheck(torch.ops.cc_kernels.swiglu_backward.default, (gate, gate, up))


@needs_triton
def test_second_derivative_raises():
    gate, up = pair(2, 8)
    out = torch.ops.cc_kernels.swiglu(gate, up)
    (grad,) = torch.autograd.grad(out.sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="swiglu_backward has no derivative"):
        torch.autograd.grad(grad.sum(), gate)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 8)], ids=str)
def test_the_product_over_the_gradient(shape, dtype):
    """Both gradients as without it, and the output as the forward wrote it, bit for bit."""
    gate, up = (x.detach() for x in pair(*shape, dtype=dtype))
    grad = randn(*shape, dtype=dtype, seed=2)
    expected = torch.ops.cc_kernels.swiglu_backward(grad, gate, up)
    version = grad._version
    found = swiglu_backward_(grad, gate, up)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(grad, swiglu_forward(gate, up))
    assert grad._version == version + 1


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("element_size", [2, 4, 8])
def test_configuration(element_size, warp_size):
    config = swiglu_config(element_size, warp_size)
    assert config.block == power_of_two(config.block)
    per_thread = config.block * element_size / (config.num_warps * warp_size)
    assert per_thread % 16 == 0  # whole 128-bit accesses


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
        swiglu(gate, up)
