import pytest
import torch
from kernel_harness import BACKEND, DEVICE, DTYPES, check_compiled, check_op, index, layouts, needs_triton, randn

from cc_kernels import capture_rows, reference, use_backend
from cc_kernels.launch import power_of_two, row_config
from cc_kernels.ops.capture_rows import capture_rows_through

ROWS = {"one": [2], "some": [4, -1, 0, 3], "repeated": [1, 4, 1, -1, 1], "none": [], "all skipped": [-1, -1]}


def through_twice(x, rows):
    same, captured = capture_rows_through(x * 1.0, rows)
    return same, captured


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("op", [capture_rows, through_twice])
def test_values_and_gradients(op, rows, dtype):
    check_op(op, (randn(5, 67, dtype=dtype).requires_grad_(), index(*rows)))


@pytest.mark.parametrize("width", [1, 8, 1030, 2500])
def test_widths(width):
    check_op(capture_rows, (randn(3, width).requires_grad_(), index(2, 0, -1)))


def test_values_are_copied_exactly():
    x = randn(6, 40)
    x[2] = float("nan")
    with use_backend(BACKEND):
        assert torch.equal(capture_rows(x, index(5, -1, 0)), torch.stack([x[5], torch.zeros_like(x[0]), x[0]]))
        assert torch.equal(capture_rows(x, index(1, 4), assume_valid=True), x[[1, 4]])


def test_many_equal_indices():
    rows = [k % 3 for k in range(150)]  # more than one block of indices
    check_op(capture_rows, (randn(4, 20).requires_grad_(), index(*rows)))


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(layout):
    x = layouts(randn(5, 36))[layout].requires_grad_()
    check_op(capture_rows, (x, index(0, 4, -1)))
    check_op(through_twice, (x, index(0, 4, -1)))


def test_strided_and_32_bit_indices():
    rows = index(3, 9, 0, 9, -1, 9)[::2]
    check_op(capture_rows, (randn(4, 16).requires_grad_(), rows))
    check_op(capture_rows, (randn(4, 16).requires_grad_(), index(3, -1, 0, dtype=torch.int32)))


def test_expanded_gradient():
    arguments = (randn(4, 24).requires_grad_(), index(1, 3))
    check_op(capture_rows, arguments, seeds=lambda outputs: [torch.ones_like(outputs[0][:1, :1]).expand(2, 24)])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_empty(shape):
    check_op(capture_rows, (randn(*shape).requires_grad_(), index(-1, -1)))
    check_op(through_twice, (randn(*shape).requires_grad_(), index(-1, -1)))


def test_incoming_gradient_is_not_written_to():
    x, grad = randn(4, 12).requires_grad_(), randn(4, 12, seed=5)
    kept = grad.clone()
    with use_backend(BACKEND):
        same, captured = through_twice(x, index(1, 2))
        torch.autograd.grad((same, captured), x, (grad, randn(2, 12)))
    assert torch.equal(grad, kept)


def test_reference_gradients():
    x = randn(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.capture_rows(x, index(1, -1, 1)), x)
    assert torch.autograd.gradcheck(lambda x: reference.capture_rows(x, index(1, 3), assume_valid=True), x)


@pytest.mark.parametrize("op", [capture_rows, through_twice])
def test_compiled(op):
    check_compiled(op, (randn(4, 20).requires_grad_(), index(1, -1)))


@needs_triton
def test_opcheck():
    ops, x, rows = torch.ops.cc_kernels, randn(5, 20), index(1, -1, 1)
    torch.library.opcheck(ops.capture_rows.default, (x.clone().requires_grad_(), rows))
    torch.library.opcheck(ops.capture_rows_backward.default, (randn(3, 20), rows, None, 5))
    torch.library.opcheck(ops.capture_rows_backward.default, (randn(3, 20), rows, x, 5))


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("element_size", [2, 4, 8])
@pytest.mark.parametrize("width", [1, 100, 3584, 16384])
def test_configuration(width, element_size, warp_size):
    config = row_config(width, element_size, warp_size)
    assert config.block == power_of_two(config.block)
    assert config.block >= min(width, 32)
    if width >= 1024:
        assert config.block * element_size == 16 * config.num_warps * warp_size


@pytest.mark.parametrize(
    ("x", "rows", "error", "message"),
    [
        (None, torch.tensor([0]), TypeError, r"x: expected a tensor, got NoneType"),
        (torch.ones(2, 2, dtype=torch.int32), torch.tensor([0]), TypeError, r"x: expected a floating-point dtype"),
        (torch.ones(2), torch.tensor([0]), ValueError, r"x: expected 2 dimensions, got shape \(2,\)"),
        (torch.ones(2, 2), [0], TypeError, r"rows: expected a tensor, got list"),
        (torch.ones(2, 2), torch.ones(1), TypeError, r"rows: expected int64 or int32 indices, got torch.float32"),
        (torch.ones(2, 2), torch.tensor([[0]]), ValueError, r"rows: expected 1 dimension, got shape \(1, 1\)"),
        (torch.ones(2, 2), torch.tensor([0], device="meta"), ValueError, r"rows: expected the device of x, cpu"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("op", [capture_rows, capture_rows_through])
def test_errors(op, x, rows, error, message):
    with pytest.raises(error, match=message):
        op(x, rows)


def through(x, rows):
    return capture_rows_through(x, rows)[1]


@pytest.mark.parametrize("op", [capture_rows, through], ids=["rows", "through"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_gradients_of_repeated_rows_are_rounded_once(op, dtype):
    x = torch.zeros(3, 2, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    tenth = torch.full((256, 2), 0.1, dtype=torch.bfloat16, device=DEVICE)
    with use_backend(BACKEND):
        op(x, torch.ones(256, dtype=dtype, device=DEVICE)).backward(tenth)
    assert x.grad is not None
    assert torch.equal(x.grad[1], tenth.double().sum(0).bfloat16())
