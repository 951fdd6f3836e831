import pytest
import torch
from decision_inputs import SHAPES, composition, folded, inputs
from kernel_harness import BACKEND, DTYPES, check_compiled, check_op, layouts, needs_triton, randn

from cc_kernels import connect, decide, reference, use_backend
from cc_kernels.aot.shapes import LARGEST, MODELS
from cc_kernels.launch import Gpu, power_of_two, record_launches
from cc_kernels.ops.decision.config import (
    BANK_BYTES,
    TILE,
    TILE_BYTES,
    bank_config,
    columns_config,
    mix_config,
    output_config,
)

HARD = pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])


def with_options(hard=True, temperature=1.0):
    def op(bank, embeds, weight, noise=None, bank_weight=None):
        return decide(bank, embeds, weight, noise, temperature, hard, bank_weight)

    return op


@HARD
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, hard):
    check_op(with_options(hard), inputs(*shape, dtype=dtype))


@HARD
@pytest.mark.parametrize("per_layer", [False, True])
def test_folded(per_layer, hard):
    check_op(with_options(hard, 0.5), (*inputs(5, 3, 70)[:3], None, folded(5, 70, per_layer)))


@HARD
def test_gradients_of_an_independent_composition(hard):
    arguments = inputs(7, 3, 50, dtype=torch.float64)
    seed = randn(3, 7, dtype=torch.float64, seed=9)
    expected = torch.autograd.grad(composition(*arguments, 2.0, hard)[1], arguments, seed)
    for backend in {"torch", BACKEND}:
        with use_backend(backend):
            got = torch.autograd.grad(decide(*arguments, 2.0, hard), arguments, seed)
        for ours, theirs in zip(got, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@HARD
def test_weights_are_those_of_connect(hard):
    arguments = inputs(6, 3, 90)
    with use_backend(BACKEND):
        assert torch.equal(decide(*arguments, hard=hard), connect(*arguments, hard=hard)[1])


def test_weights_sum_to_one_and_are_wide():
    for dtype in DTYPES:
        weights = check_op(with_options(False), inputs(33, 4, 20, dtype=dtype))[0]
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[:, 0]))


@HARD
@pytest.mark.parametrize("layout", ["rows apart", "columns apart", "swapped", "offset"])
def test_strided(layout, hard):
    check_op(with_options(hard), [layouts(x.detach())[layout].requires_grad_() for x in inputs(5, 3, 36)])


def test_expanded_gradient():
    check_op(with_options(), inputs(5, 3, 36), seeds=lambda outputs: [torch.ones_like(outputs[0][:1]).expand(3, 5)])


def test_reference_gradients():
    arguments = inputs(3, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: reference.decide(*x, temperature=0.7, hard=False), arguments)


@HARD
def test_compiled(hard):
    check_compiled(with_options(hard), inputs(4, 2, 20))


@needs_triton
@HARD
def test_opcheck(hard):
    arguments = (*inputs(4, 2, 20), 1.0, hard, None, False)
    torch.library.opcheck(torch.ops.cc_kernels.decision.default, arguments)


@needs_triton
def test_numbers_of_launches():
    from cc_kernels.ops.decision import backward as decision_backward
    from cc_kernels.ops.decision import forward as decision_forward

    bank, embeds, weight, noise = (x.detach() for x in inputs(4, 2, 20))
    with record_launches(warp_size=32) as forward:
        decision_forward.forward(bank, embeds, weight, noise, 1.0, True, None, False)
    with record_launches(warp_size=32) as backward:
        decision_backward.backward(None, noise, bank, weight, noise, noise, None, 1.0, True, True)
    assert (len(forward), len(backward)) == (2, 1)


@pytest.mark.parametrize("gpu", [Gpu(32, 108), Gpu(32, 132), Gpu(32, 148, 54 * 1024), Gpu(64, 304, 18 * 1024)])
@pytest.mark.parametrize("element_size", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 16, 1000])
@pytest.mark.parametrize("model", [*MODELS, LARGEST], ids=lambda model: model.name)
def test_configuration(model, rows, element_size, gpu):
    layers, width = model.layers, model.hidden
    bank = bank_config(layers, rows, width, element_size, gpu)
    assert bank.width_blocks * bank.block_width >= width
    assert bank.width_blocks < 2 * gpu.processors or bank.block_width == 64
    tile = bank.block_layers * bank.block_rows * bank.block_width * element_size
    assert tile <= (TILE_BYTES if bank.block_layers >= layers else BANK_BYTES)
    if bank.block_layers < layers and rows > 4:  # what a processor needs in flight, in shared memory of 64 KB
        assert min(gpu.in_flight, layers * bank.block_rows * bank.block_width * element_size // 2) <= (
            tile * (bank.stages - 1)
        )
        assert tile * (bank.stages - 1) <= 64 * 1024
    mix = mix_config(layers, width, element_size, gpu)
    assert mix.parts * mix.steps * mix.block_width >= width
    assert mix.block_layers * mix.block_width * element_size <= TILE_BYTES
    for parts in (bank.width_blocks, mix.parts):
        for select in (True, False):
            output = output_config(layers, width, parts, select, gpu)
            assert output.width_blocks * output.block_width * output.steps >= width
            assert layers <= output.block_layers < 2 * layers
            assert output.block_layers * output.block_partials <= TILE
    counts = {"width_blocks", "parts", "stages"}
    for config in (bank, mix, output, columns_config(layers, width, gpu)):
        assert all(value == power_of_two(value) for name, value in vars(config).items() if name not in counts)
        assert 32 <= config.num_warps * gpu.warp_size <= 256


V, E, W, G = torch.zeros(3, 2, 4), torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, 3)
META = torch.device("meta")
F8 = torch.float8_e4m3fn
ERRORS = [
    ({"bank": None}, TypeError, r"bank: expected a tensor, got NoneType"),
    ({"bank": V.long()}, TypeError, r"bank: expected a floating-point dtype, got torch.int64"),
    ({"bank": E}, ValueError, r"bank: expected 3 dimensions, got shape \(2, 4\)"),
    (
        {"bank": V[:0], "weight": W[:0], "noise": None},
        ValueError,
        r"bank: expected at least one layer, got shape \(0, 2, 4\)",
    ),
    ({"embeds": E[0]}, ValueError, r"embeds: expected 2 dimensions, got shape \(4,\)"),
    ({"embeds": E[:1]}, ValueError, r"embeds: expected shape \(K, d\) = \(2, 4\), got \(1, 4\)"),
    ({"embeds": E.half()}, TypeError, r"embeds: expected the dtype of bank, torch.float32, got torch.float16"),
    ({"embeds": E.to(META)}, ValueError, r"embeds: expected the device of bank, cpu, got meta"),
    ({"weight": W.long()}, TypeError, r"weight: expected a floating-point dtype, got torch.int64"),
    ({"weight": W.T}, ValueError, r"weight: expected shape \(L, d\) = \(3, 4\), got \(4, 3\)"),
    ({"weight": W.to(META)}, ValueError, r"weight: expected the device of bank, cpu, got meta"),
    ({"noise": G.T}, ValueError, r"noise: expected shape \(K, L\) = \(2, 3\), got \(3, 2\)"),
    ({"noise": G.long()}, TypeError, r"noise: expected a floating-point dtype, got torch.int64"),
    ({"noise": G.to(META)}, ValueError, r"noise: expected the device of bank, cpu, got meta"),
    ({"bank": V.to(F8)}, TypeError, r"bank: expected a floating-point dtype of 16, 32 or 64 bits, got torch.float8"),
    ({"temperature": "1"}, TypeError, r"temperature: expected a number, got str"),
    ({"temperature": torch.tensor(1.0)}, TypeError, r"temperature: expected a number, got Tensor"),
    ({"temperature": True}, TypeError, r"temperature: expected a number, got bool"),
    ({"temperature": 0.0}, ValueError, r"temperature: expected a number above 0, got 0.0"),
    ({"temperature": float("nan")}, ValueError, r"temperature: expected a number above 0, got nan"),
    ({"bank_weight": W}, ValueError, r"bank_weight: expected shape \(d, L\) = \(4, 3\), got \(3, 4\)"),
    ({"bank_weight": V}, ValueError, r"bank_weight: expected shape \(L, d, L\) = \(3, 4, 3\), got \(3, 2, 4\)"),
    ({"bank_weight": W.T.long()}, TypeError, r"bank_weight: expected a floating-point dtype, got torch.int64"),
    ({"bank_weight": W.T.to(META)}, ValueError, r"bank_weight: expected the device of bank, cpu, got meta"),
]


@pytest.mark.parametrize("op", [decide, connect])
@pytest.mark.parametrize(("changed", "error", "message"), ERRORS)
def test_errors(op, changed, error, message):
    with pytest.raises(error, match=message):
        op(**{"bank": V, "embeds": E, "weight": W, "noise": G, **changed})


def test_sparse_tensors_raise():
    with pytest.raises(TypeError, match=r"bank: expected a dense tensor, got the layout torch.sparse_coo"):
        decide(V.to_sparse(), E, W)
