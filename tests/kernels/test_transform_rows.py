import pytest
import torch
from kernel_harness import BACKEND, DEVICE, DOT_DTYPES, check_compiled, check_op, index, layouts, needs_triton, randn

from cc_kernels import transform_rows, use_backend
from cc_kernels.launch import record_launches
from cc_kernels.ops import transform_rows as module

SHAPES = [(3, 7), (0, 5), (2, 0), (1, 130), (17, 66), (65, 33)]


def matrix_of(width, layers=None, dtype=torch.float32):
    shape = (width, width) if layers is None else (layers, width, width)
    return randn(*shape, dtype=dtype, seed=1, scale=max(width, 1) ** -0.5)


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_values(rows, width, dtype):
    check_op(transform_rows, (randn(rows, width, dtype=dtype), matrix_of(width, dtype=dtype)))


@pytest.mark.parametrize("dtype", DOT_DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_a_matrix_for_each_layer(rows, width, dtype):
    layers = torch.arange(rows, device=DEVICE) * 3 % 4
    check_op(transform_rows, (randn(rows, width, dtype=dtype), matrix_of(width, 4, dtype), layers))


def test_layers_choose_the_matrix():
    values, matrix = randn(3, 5), matrix_of(5, 4)
    for dtype in (torch.int64, torch.int32):
        with use_backend(BACKEND):
            mapped = transform_rows(values, matrix, index(3, 0, 3, dtype=dtype))
        for ours, row, layer in zip(mapped, values, (3, 0, 3)):
            torch.testing.assert_close(ours, row @ matrix[layer])


def test_row_vector_convention():
    values, matrix = randn(2, 5), randn(5, 5, seed=1)
    expected = torch.stack([(row[:, None] * matrix).sum(0) for row in values])
    with use_backend(BACKEND):
        torch.testing.assert_close(transform_rows(values, matrix), expected)


@pytest.mark.parametrize("layout", layouts(torch.ones(2, 2)))
def test_layouts(layout):
    values, matrix = layouts(randn(3, 34))[layout], layouts(matrix_of(34))[layout]
    check_op(transform_rows, (values, matrix))
    check_op(transform_rows, (values, layouts(matrix_of(34, 2))[layout], index(1, 0, 1)))


def test_transposed_and_expanded():
    check_op(transform_rows, (randn(20, 4).T, matrix_of(20).T))
    check_op(transform_rows, (randn(1, 20).expand(3, 20), matrix_of(20)[:1].expand(20, 20)))
    check_op(transform_rows, (randn(2, 20), matrix_of(20).expand(3, 20, 20), index(0, 2)))


def test_same_bits_at_every_call():
    values, matrix = randn(16, 100), matrix_of(100)
    with use_backend(BACKEND):
        first = transform_rows(values, matrix)
        assert all(torch.equal(transform_rows(values, matrix), first) for _ in range(3))


@needs_triton
def test_one_launch():
    values, matrix = torch.empty(64, 256, device="meta"), torch.empty(256, 256, device="meta")
    for arguments in ((values, matrix, None), (values, matrix.expand(2, 256, 256), values.new_empty(64).long())):
        with record_launches(32) as launches:
            module._forward(*arguments)
        assert len(launches) == 1


def test_compiles():
    with torch.no_grad():
        check_compiled(transform_rows, (randn(3, 40), matrix_of(40)))
        check_compiled(transform_rows, (randn(3, 40), matrix_of(40, 2), index(1, 0, 1)))


@needs_triton
def test_opcheck():
    op = torch.ops.cc_kernels.transform_rows.default
    torch.library.opcheck(op, (randn(3, 40), matrix_of(40), None))
    torch.library.opcheck(op, (randn(3, 40), matrix_of(40, 2), index(1, 0, 1)))


def test_gradient_raises():
    values, matrix = randn(2, 3), randn(3, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="transform_rows is inference only: matrix requires a gradient"):
        transform_rows(values, matrix)
    with pytest.raises(RuntimeError, match="transform_rows is inference only: values requires a gradient"):
        transform_rows(values.requires_grad_(), matrix.detach())
    with torch.no_grad():
        transform_rows(values, matrix)


EYE, ONE = torch.eye(2), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("values", "matrix", "error", "message"),
    [
        (None, EYE, TypeError, r"values: expected a tensor, got NoneType"),
        (torch.ones(2), EYE, ValueError, r"values: expected 2 dimensions, got shape \(2,\)"),
        (ONE, EYE.long(), TypeError, r"matrix: expected a floating-point dtype, got torch.int64"),
        (ONE, torch.ones(2), ValueError, r"matrix: expected 2 dimensions, got shape \(2,\)"),
        (ONE, torch.eye(3), ValueError, r"matrix: expected shape \(d, d\) = \(2, 2\), got \(3, 3\)"),
        (ONE, EYE.half(), TypeError, r"matrix: expected the dtype of values, torch.float32, got"),
        (ONE, EYE.to("meta"), ValueError, r"matrix: expected the device of values, cpu, got meta"),
    ],
)
def test_errors(values, matrix, error, message):
    with pytest.raises(error, match=message):
        transform_rows(values, matrix)


@pytest.mark.parametrize(
    ("matrix", "layers", "error", "message"),
    [
        (EYE, torch.zeros(1).long(), ValueError, r"matrix: expected 3 dimensions, got shape \(2, 2\)"),
        (torch.ones(4, 2, 3), torch.zeros(1).long(), ValueError, r"matrix: expected shape \(L, d, d\) = \(4, 2, 2\)"),
        (EYE[None], [0], TypeError, r"layers: expected a tensor, got list"),
        (EYE[None], torch.zeros(1), TypeError, r"layers: expected int64 or int32 indices, got torch.float32"),
        (EYE[None], torch.zeros(2).long(), ValueError, r"layers: expected 1 indices, got 2"),
        (EYE[None], torch.zeros(1).long().to("meta"), ValueError, r"layers: expected the device of values, cpu, got"),
    ],
)
def test_errors_with_layers(matrix, layers, error, message):
    with pytest.raises(error, match=message):
        transform_rows(ONE, matrix, layers)
