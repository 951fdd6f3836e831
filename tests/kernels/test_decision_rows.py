"""`decide` and `connect` with `rows`: which row of the bank each row reads, −1 none."""

import pytest
import torch
from decision_inputs import composition, folded, inputs
from kernel_harness import BACKEND, DTYPES, assert_close, check_compiled, check_op, index, needs_triton, randn

from cc_kernels import connect, decide, reference, use_backend

HARD = pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
BOTH = pytest.mark.parametrize("op", [connect, decide])
FOLD = pytest.mark.parametrize("per_layer", [False, True], ids=["one matrix", "matrix per layer"])
# sources P, rows (K,): as many, several readers, an unread one, more than one tile of rows, none reads, nothing to read
ROWS = {
    "each its own": (3, [2, 0, 1]),
    "shared": (2, [1, 1, 0, 1, -1]),
    "unread": (4, [3, -1, 1]),
    "many": (5, [(3 * k) % 7 - 2 if (3 * k) % 7 > 1 else -1 for k in range(37)]),
    "none": (2, [-1, -1]),
    "nothing to read": (0, [-1, -1]),
    "no rows": (3, []),
}
NAN = float("nan")


def with_options(op, hard=True, temperature=1.0):
    def run(bank, embeds, weight, noise, rows, bank_weight=None):
        return op(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)

    return run


def given(sources, rows, layers=5, width=70, dtype=torch.float32):
    """Bank (L, P, d), then embeddings, W, noise and indices for K rows."""
    bank = inputs(layers, sources, width, dtype)[0]
    return [bank, *inputs(layers, len(rows), width, dtype)[1:], index(*rows)]


@BOTH
@HARD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
def test_values_and_gradients(case, dtype, hard, op):
    check_op(with_options(op, hard), given(*case, dtype=dtype))


@BOTH
@HARD
def test_double_precision(hard, op):
    check_op(with_options(op, hard, 0.5), given(*ROWS["shared"], dtype=torch.float64))


@HARD
def test_several_blocks_of_layers_and_columns(hard):
    check_op(with_options(connect, hard), given(*ROWS["shared"], layers=70, width=530))


@BOTH
@HARD
@FOLD
def test_folded(per_layer, hard, op):
    for case in (ROWS["shared"], ROWS["nothing to read"]):
        check_op(with_options(op, hard), [*given(*case), folded(5, 70, per_layer)])


@HARD
def test_32_bit_and_strided_indices(hard):
    arguments = given(*ROWS["unread"])
    check_op(with_options(connect, hard), [*arguments[:4], index(3, -1, 1, dtype=torch.int32)])
    check_op(with_options(connect, hard), [*arguments[:4], index(3, 9, -1, 9, 1, 9)[::2]])


@HARD
@pytest.mark.parametrize("wanted", range(4))
def test_one_input_requires_a_gradient(wanted, hard):
    arguments = given(*ROWS["shared"])
    check_op(
        with_options(connect, hard),
        [x.detach().requires_grad_(i == wanted) if i < 4 else x for i, x in enumerate(arguments)],
    )


@HARD
def test_gradients_of_an_independent_composition(hard):
    """The bank's rows are copied out by indexing, and the rows that read none are left out."""
    sources, rows = ROWS["shared"]
    arguments = given(sources, rows, dtype=torch.float64)
    bank, embeds, weight, noise, read = arguments
    kept = [k for k, p in enumerate(rows) if p >= 0]
    seeds = randn(len(rows), 70, dtype=torch.float64, seed=8), randn(len(rows), 5, dtype=torch.float64, seed=9)
    copied = bank[:, read[kept]]
    expected_outputs = composition(copied, embeds[kept], weight, noise[kept], 0.5, hard)
    expected = torch.autograd.grad(expected_outputs, arguments[:4], [seed[kept] for seed in seeds])
    for backend in {"torch", BACKEND}:
        with use_backend(backend):
            outputs = connect(*arguments[:4], 0.5, hard, rows=read)
            got = torch.autograd.grad(outputs, arguments[:4], seeds)
        for ours, theirs in zip(outputs, expected_outputs):
            torch.testing.assert_close(ours[kept], theirs, rtol=1e-11, atol=1e-12)
        for ours, theirs in zip(got, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@HARD
@pytest.mark.parametrize("fold", [None, False, True], ids=["no matrix", "one matrix", "matrix per layer"])
@pytest.mark.parametrize("poison", [NAN, float("inf")])
def test_rows_that_read_none_are_exact_zeros_whatever_they_hold(poison, fold, hard):
    sources, rows = 4, [2, -1, 0, 2, -1]
    bank, embeds, weight, noise, read = given(sources, rows)
    bank_weight = None if fold is None else folded(5, 70, fold)
    none = read < 0
    with torch.no_grad():
        bank[:, [1, 3]] = poison  # nobody reads them
        embeds[none] = poison
        noise[none] = poison
    leaves = [bank, embeds, weight, noise, *([] if bank_weight is None else [bank_weight])]
    for backend in {"torch", BACKEND}:
        with use_backend(backend):
            update, weights = connect(bank, embeds, weight, noise, 1.0, hard, bank_weight, read)
            seeds = torch.ones_like(update), torch.randn_like(weights)
            for seed in seeds:
                seed[none] = poison
            grads = torch.autograd.grad((update, weights), leaves, seeds)
        assert not update[none].any()
        assert not weights[none].any()
        torch.testing.assert_close(weights[~none].sum(-1), torch.ones_like(weights[~none, 0]))
        assert all(torch.isfinite(grad).all() for grad in grads)
        grad_bank, grad_embeds, _, grad_noise, *_ = grads
        assert not grad_bank[:, [1, 3]].any()
        assert not grad_embeds[none].any()
        assert not grad_noise[none].any()
        assert all(grad.any() for grad in grads)


def test_a_poisoned_first_row_is_not_read_by_rows_of_minus_one():
    """−1 is clamped to 0 where it is used as an index."""
    bank, embeds, weight, noise, _ = given(2, [1, -1])
    with torch.no_grad():
        bank[:, 0] = NAN
    for backend in {"torch", BACKEND}:
        for hard in (True, False):
            with use_backend(backend):
                outputs = connect(bank, embeds, weight, noise, hard=hard, rows=index(1, -1))
                grads = torch.autograd.grad([x.sum() for x in outputs], (bank, embeds, weight, noise))
            assert all(torch.isfinite(x).all() for x in (*outputs, *grads))
            assert not grads[0][:, 0].any()


@HARD
def test_a_shared_row_gives_the_same_bits_as_its_copies(hard):
    sources, rows = ROWS["shared"]
    bank, embeds, weight, noise, read = (x.detach() for x in given(sources, rows[:4]))
    with use_backend(BACKEND):
        shared = connect(bank, embeds, weight, noise, hard=hard, rows=read)
        copied = connect(bank[:, read].contiguous(), embeds, weight, noise, hard=hard)
    for ours, theirs in zip(shared, copied):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_gradients_of_a_shared_row_are_summed_before_they_are_rounded():
    """In 16 bits, many small gradients would otherwise be lost beside a large one."""
    count = 64
    bank, embeds, weight, noise, read = given(1, [0] * count, dtype=torch.bfloat16)
    grad = torch.full((count, 70), 2.0**-9, dtype=torch.bfloat16, device=bank.device)
    grad[0] = 1.0
    noise = torch.zeros_like(noise)
    noise[:, 2] = 1e4  # every row chooses layer 2, and the softmax has no gradient
    with use_backend(BACKEND):
        update, _ = connect(bank, embeds, weight, noise, rows=read)
        (got,) = torch.autograd.grad(update, bank, grad)
    exact = torch.full((70,), 1 + (count - 1) * 2.0**-9, dtype=torch.float64, device=bank.device)
    assert_close("gradient", got[2, 0], exact.bfloat16(), exact)


@HARD
def test_repeated_calls_give_the_same_bits(hard):
    arguments = given(*ROWS["many"])
    with use_backend(BACKEND):
        runs = []
        for _ in range(2):
            outputs = connect(*arguments[:4], hard=hard, rows=arguments[4])
            runs.append((*outputs, *torch.autograd.grad([x.sum() for x in outputs], arguments[:4])))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@HARD
def test_reference_gradients(hard):
    arguments = given(2, [1, -1, 1], layers=3, width=4, dtype=torch.float64)
    leaves, read = arguments[:4], arguments[4]
    if hard:  # the straight-through gradient is not that of the values, which are steps; the update's bank part is
        leaves = [x.detach().requires_grad_(i == 0) for i, x in enumerate(leaves)]
        noise = torch.zeros_like(leaves[3])
        noise[:, 1] = 1e6
        op = lambda bank: reference.connect(bank, *leaves[1:3], noise, rows=read)[0]  # noqa: E731
        assert torch.autograd.gradcheck(op, leaves[:1])
        return
    for bank_weight in (None, folded(3, 4, False).double(), folded(3, 4, True).double()):
        for op in (reference.connect, reference.decide):
            run = lambda *x, op=op, f=bank_weight: op(*x, 0.7, False, f, read)  # noqa: E731
            assert torch.autograd.gradcheck(run, leaves)


@BOTH
@HARD
def test_compiled(hard, op):
    check_compiled(with_options(op, hard), given(*ROWS["shared"], layers=4, width=20))


@needs_triton
@HARD
def test_opcheck(hard):
    bank, embeds, weight, noise, rows = given(*ROWS["shared"], layers=4, width=20)
    op = torch.ops.cc_kernels.decision.default
    torch.library.opcheck(op, (bank, embeds, weight, noise, 1.0, hard, None, True, rows))
    torch.library.opcheck(op, (bank, embeds, weight, None, 1.0, hard, folded(4, 20, False), True, rows))
    soft = noise.detach().softmax(-1)
    detached = [x.detach() for x in (randn(5, 20), randn(5, 4), bank, weight, soft, soft, randn(5, 20))]
    torch.library.opcheck(torch.ops.cc_kernels.decision_backward.default, (*detached, 1.0, True, True, rows))


V, E, W = torch.zeros(3, 2, 4), torch.zeros(5, 4), torch.zeros(3, 4)
READ = torch.tensor([0, 1, 1, -1, 0])


@BOTH
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rows": [0, 1]}, TypeError, r"rows: expected a tensor, got list"),
        ({"rows": READ.float()}, TypeError, r"rows: expected int64 or int32 indices, got torch.float32"),
        ({"rows": READ[:, None]}, ValueError, r"rows: expected 1 dimension, got shape \(5, 1\)"),
        ({"rows": READ.to("meta")}, ValueError, r"rows: expected the device of bank, cpu, got meta"),
        ({"rows": READ[:4]}, ValueError, r"embeds: expected shape \(K, d\) = \(4, 4\), got \(5, 4\)"),
        ({"rows": None}, ValueError, r"embeds: expected shape \(K, d\) = \(2, 4\), got \(5, 4\)"),
        ({"noise": torch.zeros(2, 3)}, ValueError, r"noise: expected shape \(K, L\) = \(5, 3\), got \(2, 3\)"),
    ],
)  # fmt: skip
def test_errors(op, changed, error, message):
    with pytest.raises(error, match=message):
        op(**{"bank": V, "embeds": E, "weight": W, "rows": READ, **changed})


@HARD
def test_gradients_of_an_empty_bank_are_zeros(hard):
    """Not missing: a data-parallel wrapper waits for the gradient of every weight."""
    bank, embeds, weight, noise, rows = given(*ROWS["nothing to read"])
    with use_backend(BACKEND):
        update, _ = connect(bank.detach(), embeds, weight, noise, hard=hard, rows=rows)
    update.sum().backward()
    for x in (embeds, weight, noise):
        assert x.grad is not None
        assert not x.grad.any()
