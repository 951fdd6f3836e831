import pytest
import torch
from kernel_harness import (
    BACKEND,
    DEVICE,
    DTYPES,
    HAS_TRITON,
    INTERPRETED,
    check_compiled,
    check_op,
    index,
    layouts,
    needs_triton,
    randn,
)

from cc_kernels import add_rows, capture_add_rows_, capture_rows, use_backend
from cc_kernels.launch import record_launches, warmup
from cc_kernels.ops import capture_add_rows as module

ROWS = {  # captured, added
    "one captured": ([2], [-1]),
    "one added": ([-1], [2]),
    "some": ([4, -1, -1, 1], [-1, 0, -1, 3]),
    "row 0, beside skipped ones": ([-1, 0, -1, 0], [-1, -1, 2, -1]),
    "row 0 added, beside skipped ones": ([-1, -1, -1, 2], [-1, 0, -1, -1]),
    "the same row by the same k": ([3, -1, 1], [3, -1, 1]),
    "one row captured twice": ([2, 2, -1], [-1, -1, 4]),
    "none": ([], []),
    "all skipped": ([-1, -5], [-7, -1]),
}

ROUNDED_DTYPES = (
    torch.float32,
    torch.float16,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(INTERPRETED, reason="interpreted, a cast to bf16 cuts off: needs a GPU"),
    ),
)


def result(x, bank, captured, added, update):
    """What the op leaves in copies of x and bank."""
    x, bank = x.clone(), bank.clone()
    assert capture_add_rows_(x, bank, captured, added, update) is None
    return x, bank


def arguments(captured, added, length=5, width=67, dtype=torch.float32, update=None, rows=torch.int64):
    count = len(captured)
    return (
        randn(length, width, dtype=dtype),
        randn(count, width, dtype=dtype, seed=1),
        index(*captured, dtype=rows),
        index(*added, dtype=rows),
        randn(count, width, dtype=update or dtype, seed=2),
    )


@pytest.mark.parametrize("update", [None, torch.float32], ids=["same", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_values(rows, dtype, update):
    check_op(result, arguments(*rows, dtype=dtype, update=update))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("dtype", ROUNDED_DTYPES, ids=str)
def test_formula(rows, dtype):
    """Row by row; bit by bit, because one rounding leaves no choice."""
    x, bank, captured, added, update = arguments(*rows, dtype=dtype, update=torch.float32)
    with use_backend(BACKEND):
        ours, ours_bank = result(x, bank, captured, added, update)
    expected, expected_bank = x.clone(), bank.clone()
    for k, row in enumerate(captured.tolist()):
        if row >= 0:
            expected_bank[k] = x[row]
    for k, row in enumerate(added.tolist()):
        if row >= 0:
            expected[row] = (x[row].float() + update[k]).to(dtype)
    assert torch.equal(ours, expected)
    assert torch.equal(ours_bank, expected_bank)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_two_ops_where_the_update_has_the_dtype_of_x(dtype):
    x, bank, captured, added, update = arguments(*ROWS["some"], dtype=dtype)
    with use_backend(BACKEND):
        ours, ours_bank = result(x, bank, captured, added, update)
        assert torch.equal(ours, add_rows(x, added, update))
        assert torch.equal(ours_bank[captured >= 0], capture_rows(x, captured)[captured >= 0])
    assert torch.equal(ours_bank[captured < 0], bank[captured < 0])


def test_skipped_values_are_not_read():
    x, bank, captured, added, update = arguments([1, -1, -1], [-1, -1, 0], width=20)
    update[:2] = float("nan")
    with use_backend(BACKEND):
        ours, _ = result(x, bank, captured, added, update)
    assert torch.equal(ours, torch.cat([(x[0] + update[2])[None], x[1:]]))


@pytest.mark.parametrize("width", [1, 8, 1030, 2500])
def test_widths(width):
    check_op(result, arguments(*ROWS["some"], width=width))
    check_op(result, arguments(*ROWS["the same row by the same k"], width=width))


@pytest.mark.parametrize(("length", "width"), [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("rows", ["all skipped", "none"])
def test_empty(rows, length, width):
    check_op(result, arguments(*ROWS[rows], length=length, width=width))


def test_fp64():
    check_op(result, arguments(*ROWS["some"], dtype=torch.float64))
    check_op(result, arguments(*ROWS["some"], dtype=torch.float64, update=torch.float32))


def test_32_bit_and_strided_indices():
    check_op(result, arguments(*ROWS["some"], rows=torch.int32))
    x, bank, _, _, update = arguments([1, 2], [1, 2])
    check_op(result, (x, bank, index(3, 9, -1, 9)[::2], index(9, -1, 9, 0)[1::2], update))


@pytest.mark.parametrize("layout", layouts(torch.ones(2, 2)))
@pytest.mark.parametrize("position", [0, 1, 4], ids=["x", "bank", "update"])
def test_strided(position, layout):
    """Memory that is not dense is written to as well, and nothing around it is."""
    given = list(arguments(*ROWS["some"], width=36))
    with use_backend("torch"):
        expected = result(*given)
    given[position] = layouts(given[position])[layout]
    for backend in (BACKEND, "torch"):
        x, bank = given[0].clone(), given[1].clone()
        with use_backend(backend):
            capture_add_rows_(*given)
        torch.testing.assert_close(given[0], expected[0], rtol=0, atol=0)
        torch.testing.assert_close(given[1], expected[1], rtol=0, atol=0)
        given[0].copy_(x)
        given[1].copy_(bank)


def test_rows_of_a_larger_tensor():
    whole = randn(6, 40)
    before = whole.clone()
    _, bank, captured, added, update = arguments([1, -1], [-1, 2], width=20)
    with use_backend(BACKEND):
        capture_add_rows_(whole[1:5, 8:28], bank, captured, added, update)
    assert torch.equal(bank[0], before[2, 8:28])
    before[3, 8:28] += update[1]
    assert torch.equal(whole, before)


def test_an_update_of_equal_rows():
    x, bank, captured, added, update = arguments(*ROWS["some"])
    check_op(result, (x, bank, captured, added, update[:1].expand(4, 67)))


def test_autograd_knows_what_was_written():
    x, bank, captured, added, update = arguments(*ROWS["some"])
    with use_backend(BACKEND):
        capture_add_rows_(x, bank, captured, added, update)
    assert min(x._version, bank._version) > 0
    assert max(captured._version, added._version, update._version) == 0


@needs_triton
def test_one_launch():
    x, rows = torch.empty(64, 4096, device="meta"), torch.empty(256, dtype=torch.int64, device="meta")
    bank = torch.empty(256, 4096, device="meta")
    with record_launches(32) as launches:
        module._forward(x, bank, rows, rows, bank)
    assert len(launches) == 1


def test_compiled():
    with torch.no_grad():
        check_compiled(result, arguments(*ROWS["some"]))


@pytest.mark.skipif(not HAS_TRITON, reason="operators are registered where triton is")
def test_opcheck():
    torch.library.opcheck(torch.ops.cc_kernels.capture_add_rows_.default, arguments(*ROWS["some"]))


@pytest.mark.skipif(not HAS_TRITON, reason="operators are registered where triton is")
def test_operator():
    """Also on a CPU, where it runs the reference; compiled code calls it, and knows that it writes to both."""
    given = arguments(*ROWS["some"])
    with use_backend("torch"):
        expected = result(*given)

    def operator(x, bank, *rest):
        x, bank = x + 0.0, bank + 0.0
        torch.ops.cc_kernels.capture_add_rows_(x, bank, *rest)
        return x, bank

    for run in (operator, torch.compile(operator, fullgraph=True, backend="aot_eager")):
        for ours, theirs in zip(run(*given), expected):
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
def test_captured_in_a_graph():
    """Other contents of the same buffers in each replay."""
    x, bank, captured, added, update = arguments(*ROWS["all skipped"])
    warmup(lambda: capture_add_rows_(x, bank, captured, added, update))
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        capture_add_rows_(x, bank, captured, added, update)
    for rows in ([2, -1], [-1, 0]), ([-1, 4], [3, -1]), ([-1, -1], [-1, -1]):
        captured.copy_(index(*rows[0]))
        added.copy_(index(*rows[1]))
        with use_backend("torch"):
            expected = result(x, bank, captured, added, update)
        graph.replay()
        assert torch.equal(x, expected[0])
        assert torch.equal(bank, expected[1])


@pytest.mark.parametrize("wanted", ["x", "bank", "update"])
def test_gradient_raises(wanted):
    names = "x", "bank", "captured", "added", "update"
    given = dict(zip(names, arguments(*ROWS["some"])))
    given[wanted].requires_grad_()
    with pytest.raises(RuntimeError, match=f"capture_add_rows_ is inference only: {wanted} requires a gradient"):
        capture_add_rows_(**given)
    with torch.no_grad():
        capture_add_rows_(**given)


X, BANK, ROW = torch.ones(3, 2), torch.ones(1, 2), torch.tensor([0])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": 1.0}, TypeError, r"x: expected a tensor, got float"),
        ({"x": X[0]}, ValueError, r"x: expected 2 dimensions, got shape \(2,\)"),
        ({"bank": ROW}, TypeError, r"bank: expected a floating-point dtype, got torch.int64"),
        ({"update": BANK[0]}, ValueError, r"update: expected 2 dimensions, got shape \(2,\)"),
        ({"bank": torch.ones(1, 3)}, ValueError, r"bank: expected shape \(K, d\) = \(1, 2\), got \(1, 3\)"),
        ({"update": X}, ValueError, r"update: expected shape of bank = \(1, 2\), got \(3, 2\)"),
        ({"bank": BANK.half()}, TypeError, r"bank: expected the dtype of x, torch.float32, got torch.float16"),
        ({"bank": BANK.to("meta")}, ValueError, r"bank: expected the device of x, cpu, got meta"),
        ({"update": BANK.to("meta")}, ValueError, r"update: expected the device of x, cpu, got meta"),
        (
            {"update": BANK.half()},
            TypeError,
            r"update: expected the dtype of x, torch.float32, or torch.float32, got torch.float16",
        ),
        ({"captured": BANK[0]}, TypeError, r"captured: expected int64 or int32 indices, got torch.float32"),
        ({"captured": ROW[None]}, ValueError, r"captured: expected 1 dimension, got shape \(1, 1\)"),
        ({"captured": torch.tensor([0, 1])}, ValueError, r"captured: expected 1 indices, got 2"),
        ({"added": torch.tensor([0, 1])}, ValueError, r"added: expected 1 indices, got 2"),
        ({"added": ROW.int()}, TypeError, r"added: expected the dtype of captured, torch.int64, got torch.int32"),
        ({"added": ROW.to("meta")}, ValueError, r"added: expected the device of x, cpu, got meta"),
        ({"x": X[:1].expand(3, 2)}, ValueError, r"x: expected rows of their own memory, got strides \(0, 1\)"),
    ],
)
def test_errors(changed, error, message):
    given = {"x": X, "bank": BANK, "captured": ROW, "added": ROW, "update": BANK} | changed
    with pytest.raises(error, match=message):
        capture_add_rows_(**given)


def test_a_bank_of_shared_rows_raises():
    rows = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"bank: expected rows of their own memory, got strides \(0, 1\)"):
        capture_add_rows_(X, X[:1].expand(3, 2), rows, rows, X)
