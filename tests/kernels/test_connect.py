import pytest
import torch
from decision_inputs import SHAPES, composition, folded, inputs
from kernel_harness import (
    BACKEND,
    DTYPES,
    HAS_TRITON,
    INTERPRETED,
    assert_close,
    check_compiled,
    check_op,
    layouts,
    needs_triton,
    randn,
)

from cc_kernels import connect, reference, use_backend
from cc_kernels.launch import H100, record_launches
from cc_kernels.ops.decision import config as decision_config

HARD = pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
FOLD = pytest.mark.parametrize("per_layer", [False, True], ids=["one matrix", "matrix per layer"])


def with_options(hard=True, temperature=1.0):
    def op(bank, embeds, weight, noise=None, bank_weight=None):
        return connect(bank, embeds, weight, noise, temperature, hard, bank_weight)

    return op


@HARD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, hard):
    check_op(with_options(hard), inputs(*shape, dtype=dtype))


@HARD
def test_double_precision(hard):
    check_op(with_options(hard, temperature=0.5), inputs(6, 3, 70, dtype=torch.float64))


@HARD
def test_without_noise_and_with_a_wider_weight(hard):
    check_op(with_options(hard), inputs(5, 2, 40, dtype=torch.float16, weight_dtype=torch.float32)[:3])


@HARD
@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_temperature(temperature, hard):
    check_op(with_options(hard, temperature), inputs(6, 2, 33))


@HARD
@FOLD
def test_folded(per_layer, hard):
    bank, embeds, weight, noise = inputs(70, 2, 130)
    check_op(with_options(hard), (bank, embeds, weight, noise, folded(70, 130, per_layer)))
    bank, embeds, weight, noise = inputs(5, 2, 24, dtype=torch.float16)
    check_op(with_options(hard), (bank, embeds, weight, noise, folded(5, 24, per_layer)))


@FOLD
def test_folded_layout(per_layer):
    bank, embeds, weight, _ = inputs(5, 2, 24)
    transposed = folded(5, 24, per_layer).detach().mT.contiguous().mT
    check_op(with_options(), (bank, embeds, weight, None, transposed))


@HARD
def test_gradients_of_an_independent_composition(hard):
    arguments = inputs(7, 3, 50, dtype=torch.float64)
    grad_update, grad_weights = randn(3, 50, dtype=torch.float64, seed=8), randn(3, 7, dtype=torch.float64, seed=9)
    expected = torch.autograd.grad(composition(*arguments, 0.5, hard), arguments, (grad_update, grad_weights))
    for backend in {"torch", BACKEND}:
        with use_backend(backend):
            outputs = connect(*arguments, 0.5, hard)
            got = torch.autograd.grad(outputs, arguments, (grad_update, grad_weights))
        for ours, theirs in zip(got, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@HARD
@FOLD
def test_folded_gradients_of_an_independent_composition(per_layer, hard):
    arguments = inputs(4, 3, 20, dtype=torch.float64)
    bank_weight = folded(4, 20, per_layer).detach().double().requires_grad_()
    seeds = randn(3, 20, dtype=torch.float64, seed=8), randn(3, 4, dtype=torch.float64, seed=9)
    leaves = [*arguments, bank_weight]
    expected = torch.autograd.grad(composition(*arguments, 1.0, hard, bank_weight), leaves, seeds)
    for backend in {"torch", BACKEND}:
        with use_backend(backend):
            got = torch.autograd.grad(connect(*arguments, 1.0, hard, bank_weight), leaves, seeds)
        for ours, theirs in zip(got, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@HARD
@pytest.mark.parametrize("wanted", range(4))
def test_one_input_requires_a_gradient(wanted, hard):
    arguments = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(inputs(5, 2, 70))]
    check_op(with_options(hard), arguments)


@HARD
@pytest.mark.parametrize("used", [0, 1], ids=["update", "weights"])
def test_one_output_is_used(used, hard):
    check_op(lambda *arguments: with_options(hard)(*arguments)[used], inputs(5, 2, 70))


def test_hard_selection_copies_the_row_bit_by_bit():
    bank, embeds, weight, noise = (x.detach() for x in inputs(5, 3, 40))
    bank[:, :, ::2] = -0.0
    with use_backend(BACKEND):
        update, weights = connect(bank, embeds, weight, noise)
    index = weights.argmax(-1)
    chosen = bank[index, torch.arange(3, device=bank.device)]
    assert torch.equal(update.view(torch.int32), chosen.view(torch.int32))  # −0.0 is not +0.0 here
    assert torch.equal(weights, torch.nn.functional.one_hot(index, 5).float())


def test_ties_and_nan_choose_as_argmax_does():
    bank, embeds, weight = randn(6, 3, 8), randn(3, 8, seed=1), torch.zeros(6, 8, device=randn(1).device)
    noise = torch.zeros(3, 6, device=bank.device)
    noise[1, 2] = noise[1, 4] = 1.0
    noise[2, 3] = noise[2, 5] = float("nan")
    with use_backend(BACKEND):
        update, weights = connect(bank, embeds, weight, noise)
    assert weights.argmax(-1).tolist() == [0, 2, 3]
    assert torch.equal(update, bank[[0, 2, 3], [0, 1, 2]])


@HARD
@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(layout, hard):
    plain = inputs(5, 3, 36)
    for position in range(4):
        arguments = list(plain)
        arguments[position] = layouts(plain[position].detach())[layout].requires_grad_()
        check_op(with_options(hard), arguments)


@HARD
def test_expanded(hard):
    bank, embeds, weight, noise = inputs(5, 3, 36)
    one_row = bank.detach()[:, :1].expand(5, 3, 36).requires_grad_()
    one_layer = bank.detach()[:1].expand(5, 3, 36).requires_grad_()
    for changed in (one_row, one_layer):
        check_op(with_options(hard), (changed, embeds.detach()[:1].expand(3, 36).requires_grad_(), weight, noise))

    def expanded_seeds(outputs):
        return [torch.ones_like(output[:1, :1]).expand(output.shape) for output in outputs]

    check_op(with_options(hard), (bank, embeds, weight, noise), seeds=expanded_seeds)


@HARD
def test_programs_of_several_blocks(hard, monkeypatch):
    monkeypatch.setattr(decision_config, "TYPICAL_ROWS", 4096)  # programs then get several blocks each
    monkeypatch.setattr(decision_config, "TILE", 512)
    caches = (decision_config.mix_config, decision_config.output_config)
    for cached in caches:
        cached.cache_clear()
    try:
        assert decision_config.output_config(70, 400, 1, False, H100).steps > 1
        assert decision_config.mix_config(70, 400, 4, H100).steps > 1
        check_op(with_options(hard), inputs(70, 2, 400))
    finally:
        for cached in caches:
            cached.cache_clear()


@HARD
@pytest.mark.parametrize("shared", [False, True])
def test_more_rows_than_every_program_repeats(shared, hard):
    """The gradient of the logits is then a launch of its own."""
    count = decision_config.MOST_REPEATED_ROWS + 9
    rows = torch.arange(count, device=randn(1).device) % 7 - 1 if shared else None
    bank, embeds, weight, noise = inputs(3, count, 40)
    bank = bank.detach()[:, :6].contiguous().requires_grad_() if shared else bank
    check_op(lambda *x: connect(*x, 0.7, hard, rows=rows), (bank, embeds, weight, noise))


@HARD
def test_result_does_not_depend_on_the_other_rows(hard):
    bank, embeds, weight, noise = (x.detach() for x in inputs(6, 4, 200))
    with use_backend(BACKEND):
        together, _ = connect(bank, embeds, weight, noise, hard=hard)
        alone, _ = connect(bank[:, 2:3], embeds[2:3], weight, noise[2:3], hard=hard)
    torch.testing.assert_close(together[2:3], alone)


def test_no_width():
    check_op(with_options(), inputs(3, 2, 0))


def test_reference_gradients():
    arguments = inputs(3, 2, 4, dtype=torch.float64)
    soft = lambda *x: reference.connect(*x, temperature=0.7, hard=False)  # noqa: E731
    assert torch.autograd.gradcheck(soft, arguments)
    for per_layer in (False, True):
        bank_weight = folded(3, 4, per_layer).detach().double().requires_grad_()
        op = lambda *x: reference.connect(*x[:4], hard=False, bank_weight=x[4])  # noqa: E731
        assert torch.autograd.gradcheck(op, (*arguments, bank_weight))


@HARD
def test_compiled(hard):
    check_compiled(with_options(hard), inputs(4, 2, 20))


@needs_triton
@HARD
def test_opcheck(hard):
    bank, embeds, weight, noise = inputs(4, 2, 20)
    op = torch.ops.cc_kernels.decision.default
    torch.library.opcheck(op, (bank, embeds, weight, noise, 1.0, hard, None, True))
    torch.library.opcheck(op, (bank, embeds, weight, None, 1.0, hard, folded(4, 20, False), True))
    soft = noise.softmax(-1)
    detached = [x.detach() for x in (randn(2, 20), randn(2, 4), bank, weight, soft, soft, randn(2, 20))]
    torch.library.opcheck(torch.ops.cc_kernels.decision_backward.default, (*detached, 1.0, True, True))


@needs_triton
def test_numbers_of_launches():
    from cc_kernels.ops.decision import backward as decision_backward
    from cc_kernels.ops.decision import forward as decision_forward

    bank, embeds, weight, noise = (x.detach() for x in inputs(4, 2, 20))
    with record_launches(warp_size=32) as forward:
        decision_forward.forward(bank, embeds, weight, noise, 1.0, True, None, True)
    with record_launches(warp_size=32) as backward:
        decision_backward.backward(embeds, None, bank, weight, noise, noise, embeds, 1.0, True, True)
    assert (len(forward), len(backward)) == (2, 2)


@pytest.mark.skipif(INTERPRETED or not HAS_TRITON, reason="asks what Triton would compile")
@pytest.mark.parametrize(("options", "most"), [({}, 6), ({"want_bank": True}, 6), ({"shared": True}, 6)], ids=str)
def test_batches_of_all_sizes_share_six_variants(options, most):
    """`connect` with its backward, K = 1 … 64 at d = 4096: a batch of a new size must not stall training."""
    from cc_kernels.aot.compiling import specialize
    from cc_kernels.ops.decision.backward import backward
    from cc_kernels.ops.decision.forward import forward

    def empty(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    variants = set()
    for count in range(1, 65):
        rows = empty(count, dtype=torch.int64) if options.get("shared") else None
        bank, embeds, weight = empty(32, count, 4096), empty(count, 4096), empty(32, 4096)
        noise, vector = empty(count, 32, dtype=torch.float32), empty(count, 4096, dtype=torch.float32)
        with record_launches(warp_size=32) as launches:
            forward(bank, embeds, weight, noise, 1.0, True, None, True, rows)
            saved = (bank, weight, noise, noise, vector)
            backward(embeds, None, *saved, 1.0, options.get("want_bank", False), True, rows)
        variants |= {(launch.kernel.fn.__name__, repr(specialize(launch))) for launch in launches}
    assert len(variants) <= most


def test_forward_is_deterministic():
    arguments = [x.detach() for x in inputs(9, 2, 300)]
    with use_backend(BACKEND):
        first, second = connect(*arguments, hard=False), connect(*arguments, hard=False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_hard_update_has_no_rounding_error():
    bank, embeds, weight, noise = (x.detach() for x in inputs(5, 3, 40, dtype=torch.float16))
    with use_backend(BACKEND):
        update, weights = connect(bank, embeds, weight, noise)
    exact = (weights.T[:, :, None].double() * bank.double()).sum(0)
    assert_close("update", update, exact.half(), exact)
    assert torch.equal(update.double(), exact)


def test_second_derivatives_of_a_chosen_row_raise():
    bank, embeds, weight, _ = inputs(4, 2, 20)
    with use_backend(BACKEND):
        (first,) = torch.autograd.grad(connect(bank, embeds, weight)[0].pow(2).sum(), bank, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|second derivatives are not supported"):
        first.sum().backward()
