import pytest
import torch
from kernel_harness import BACKEND, DTYPES, check_compiled, check_op, index, layouts, needs_triton, randn

from cc_kernels import add_rows, reference, use_backend

ROWS = {"one": [2], "some": [4, -1, 0, 3], "none": [], "all skipped": [-1, -1]}


def inplace(x, rows, values):
    return add_rows(x * 1.0, rows, values, inplace=True)


def arguments(rows, length=5, width=67, dtype=torch.float32):
    x = randn(length, width, dtype=dtype).requires_grad_()
    return x, index(*rows), randn(len(rows), width, dtype=dtype, seed=1).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("op", [add_rows, inplace])
def test_values_and_gradients(op, rows, dtype):
    check_op(op, arguments(rows, dtype=dtype))


@pytest.mark.parametrize("width", [1, 8, 1030, 2500])
def test_widths(width):
    check_op(add_rows, arguments([2, -1, 0], width=width))


def test_values_of_a_wider_dtype_are_rounded_first():
    x, rows, values = arguments([2, -1, 0], dtype=torch.float16)
    check_op(add_rows, (x, rows, values.detach().float().requires_grad_()))


@pytest.mark.parametrize("op", [add_rows, inplace])
def test_skipped_values_are_not_read(op):
    x, values = randn(3, 20), torch.full((2, 20), float("nan"), device=randn(1).device)
    values[1] = 1
    with use_backend(BACKEND):
        out = op(x, index(-1, 2), values)
    assert torch.equal(out, torch.stack([x[0], x[1], x[2] + 1]))


def test_inplace_writes_into_x_and_autograd_knows():
    x, rows, values = arguments([1, 3])
    with use_backend(BACKEND):
        fresh = x * 2.0
        out = add_rows(fresh, rows, values, inplace=True)
        assert out.data_ptr() == fresh.data_ptr()
        assert fresh._version > 0
        saved = (fresh * 1.0).exp()  # exp saves its result, which must not be written to
        add_rows(saved, rows, values, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.sum().backward()


def test_inplace_into_a_leaf_raises():
    x, rows, values = arguments([1, 3])
    with use_backend(BACKEND), pytest.raises(RuntimeError, match="leaf"):
        add_rows(x, rows, values, inplace=True)


def test_inplace_without_gradients():
    x, rows, values = arguments([1, 3])
    with use_backend(BACKEND), torch.no_grad():
        fresh = x.clone()
        assert add_rows(fresh, rows, values, inplace=True) is fresh
        assert torch.equal(fresh, reference.add_rows(x, rows, values))


def test_inplace_where_only_values_require_a_gradient():
    x, rows, values = arguments([1, -1])
    check_op(inplace, (x.detach(), rows, values))


@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(layout):
    x, rows, values = arguments([4, -1, 0], width=36)
    check_op(add_rows, (layouts(x.detach())[layout].requires_grad_(), rows, values))
    check_op(add_rows, (x, rows, layouts(values.detach())[layout].requires_grad_()))
    target = layouts(x.detach())[layout]
    with use_backend(BACKEND), torch.no_grad():
        out = add_rows(target, rows, values, inplace=True)
        torch.testing.assert_close(out, reference.add_rows(x, rows, values))
    assert out is target


def test_expanded():
    x, rows, values = arguments([1, 3])
    check_op(add_rows, (x.detach()[:1].expand(5, 67).requires_grad_(), rows, values))
    check_op(add_rows, (x, rows, values.detach()[:1].expand(2, 67).requires_grad_()))
    check_op(add_rows, (x, rows, values), seeds=lambda outputs: [torch.ones_like(outputs[0][:1, :1]).expand(5, 67)])


def test_32_bit_and_strided_indices():
    x, _, values = arguments([1, 3])
    check_op(add_rows, (x, index(3, -1, dtype=torch.int32), values))
    check_op(add_rows, (x, index(3, 9, 0, 9)[::2], values))


@pytest.mark.parametrize(("length", "width"), [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("op", [add_rows, inplace])
def test_empty(op, length, width):
    check_op(op, arguments([-1, -1], length=length, width=width))


def test_reference_gradients():
    x, rows, values = arguments([2, -1, 0], width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, values: reference.add_rows(x, rows, values), (x, values))
    inplace = lambda x, values: reference.add_rows(x * 1, rows, values, inplace=True)  # noqa: E731
    assert torch.autograd.gradcheck(inplace, (x, values))


@pytest.mark.parametrize("op", [add_rows, inplace])
def test_compiled(op):
    check_compiled(op, arguments([1, -1]))


@needs_triton
def test_opcheck():
    x, rows, values = arguments([1, -1])
    torch.library.opcheck(torch.ops.cc_kernels.add_rows.default, (x, rows, values))
    torch.library.opcheck(torch.ops.cc_kernels.add_rows_.default, (x.detach().clone(), rows, values.detach()))


ONES, ROW = torch.ones(2, 2), torch.tensor([0])


@pytest.mark.parametrize(
    ("x", "rows", "values", "error", "message"),
    [
        (1.0, ROW, ONES[:1], TypeError, r"x: expected a tensor, got float"),
        (ONES[0], ROW, ONES[:1], ValueError, r"x: expected 2 dimensions, got shape \(2,\)"),
        (ONES, ROW, ROW, TypeError, r"values: expected a floating-point dtype, got torch.int64"),
        (ONES, ROW, ONES[0], ValueError, r"values: expected 2 dimensions, got shape \(2,\)"),
        (ONES, ONES[0], ONES, TypeError, r"rows: expected int64 or int32 indices, got torch.float32"),
        (ONES, ROW, ONES, ValueError, r"rows: expected 2 indices, got 1"),
        (ONES, ROW, torch.ones(1, 3), ValueError, r"values: expected shape \(K, d\) = \(1, 2\), got \(1, 3\)"),
        (ONES, ROW, torch.ones(1, 2, device="meta"), ValueError, r"values: expected the device of x, cpu, got meta"),
        (ONES, ROW.to("meta"), ONES[:1], ValueError, r"rows: expected the device of x, cpu, got meta"),
    ],
)
def test_errors(x, rows, values, error, message):
    with pytest.raises(error, match=message):
        add_rows(x, rows, values)


@pytest.mark.parametrize("strides", [(0, 1), (2, 1), (1, 0), (1, 1), (4, 2)], ids=str)
def test_inplace_into_shared_rows_raises(strides):
    shared = torch.ones(20).as_strided((3, 3), strides)
    with pytest.raises(ValueError, match=rf"x: expected rows of their own memory .* got strides \({strides[0]}, "):
        add_rows(shared, ROW, torch.ones(1, 3), inplace=True)


@pytest.mark.parametrize("strides", [(3, 1), (1, 3), (5, 1), (2, 3), (6, 2)], ids=str)
def test_inplace_into_rows_of_their_own(strides):
    memory = torch.zeros(20)
    add_rows(memory.as_strided((3, 3), strides), torch.tensor([1]), torch.ones(1, 3), inplace=True)
    assert memory.sum() == 3
