"""The candidate for many tokens: values, interpreted or compiled; and what the compiler makes of it for an H100."""

from __future__ import annotations

import pytest
import torch
from kernel_harness import DOT_DTYPES, INTERPRETED, assert_close, needs_triton, randn
from torch.nn.functional import linear

from benchmarks.candidates import gate_up_matmul as candidate
from benchmarks.candidates.gate_up_matmul import gate_up_matmul, gate_up_matmul_backward
from cc_kernels.launch import HAS_TRITON, record_launches
from cc_kernels.reference import swiglu

SHAPES = [(1, 8, 8), (130, 72, 136), (257, 200, 264)]  # more rows than a tile, columns that end within one
GEMM_DTYPES = DOT_DTYPES[1:]  # no fp64: its tiles would not fit, and a candidate does not need it


def tensors(rows, width, inner, dtype):
    x, w_gate, w_up = (
        randn(*shape, dtype=dtype, seed=seed, scale=scale)
        for seed, (shape, scale) in enumerate(
            [((rows, width), 1.0), ((inner, width), width**-0.5), ((inner, width), width**-0.5)]
        )
    )
    return x, w_gate, w_up


@needs_triton
@pytest.mark.parametrize("dtype", GEMM_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, dtype):
    x, w_gate, w_up = tensors(*shape, dtype)
    results = {}
    for name, arguments in (("plain", (x, w_gate, w_up)), ("exact", (x.double(), w_gate.double(), w_up.double()))):
        gate, up = linear(arguments[0], arguments[1]), linear(arguments[0], arguments[2])
        results[name] = swiglu(gate, up), gate, up
    kept = gate_up_matmul(x, w_gate, w_up, keep=True)
    for name, ours, plain, exact in zip(("out", "gate", "up"), kept, results["plain"], results["exact"], strict=True):
        assert_close(name, ours, plain, exact)
    (alone,) = gate_up_matmul(x, w_gate, w_up)
    assert torch.equal(alone, kept[0])


@needs_triton
@pytest.mark.parametrize("dtype", GEMM_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape, dtype):
    rows, width, inner = shape
    grad = randn(rows, width, dtype=dtype, seed=4)
    w_down = randn(width, inner, dtype=dtype, seed=5, scale=inner**-0.5)
    gate, up = (randn(rows, inner, dtype=dtype, seed=seed) for seed in (6, 7))
    results = []
    for cast in (lambda t: t, torch.Tensor.double):
        leaves = [cast(gate).requires_grad_(), cast(up).requires_grad_()]
        out = linear(swiglu(*leaves), cast(w_down))
        results.append(torch.autograd.grad(out, leaves, cast(grad)))
    ours = gate_up_matmul_backward(grad, w_down, gate, up)
    for name, mine, plain, exact in zip(("grad_gate", "grad_up"), ours, *results, strict=True):
        assert_close(name, mine, plain, exact)


@needs_triton
@pytest.mark.parametrize("programs", [1, 5])
def test_every_tile_is_met(programs, monkeypatch):
    """Tiles so small that there are several groups of rows, the last one incomplete, and several tiles per program."""
    for name in ("BLOCK_ROWS", "BLOCK_COLUMNS", "BLOCK_DEPTH"):
        monkeypatch.setattr(candidate, name, 16)
    monkeypatch.setattr(candidate, "_programs", lambda rows, inner, device: programs)
    x, w_gate, w_up = tensors(190, 24, 72, torch.float16)
    (out,) = gate_up_matmul(x, w_gate, w_up)
    exact = swiglu(linear(x.double(), w_gate.double()), linear(x.double(), w_up.double()))
    assert_close("out", out, swiglu(linear(x, w_gate), linear(x, w_up)), exact)


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="an interpreted kernel cannot be compiled")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_for_an_h100(dtype):
    """Both directions: asynchronous tensor-core products, tiles by TMA, nothing spilled, shared memory that fits."""
    from cc_kernels.aot.compiling import compile_for, inspect, sass, specialize
    from cc_kernels.aot.targets import TARGETS

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, width, inner = 4096, 4096, 14336
    with record_launches(32) as launches:
        gate_up_matmul(empty(rows, width), empty(inner, width), empty(inner, width))
        gate_up_matmul(empty(rows, width), empty(inner, width), empty(inner, width), keep=True)
        gate_up_matmul_backward(empty(rows, width), empty(width, inner), empty(rows, inner), empty(rows, inner))
    assert [launch.grid for launch in launches] == [(132,)] * 3
    for launch in launches:
        report = inspect(launch, dtype, TARGETS["sm_90"])
        assert not report.problems
        code = sass(compile_for(launch.kernel, specialize(launch), TARGETS["sm_90"]))
        assert "HGMMA" in code
        assert "UTMALDG" in code
        assert "UTMASTG" in code


def test_errors():
    x, w_gate, w_up = tensors(4, 16, 24, torch.float32)
    with pytest.raises(ValueError, match=r"w_up: expected a dense 2-d tensor of torch.float32, got torch.float16"):
        gate_up_matmul(x, w_gate, w_up.half())
    with pytest.raises(ValueError, match=r"x: expected a dense 2-d tensor .* strides \(1, 4\)"):
        gate_up_matmul(randn(16, 4).T, w_gate, w_up)
    with pytest.raises(ValueError, match=r"x: expected rows of a multiple of 16 bytes, got shape \(4, 15\)"):
        gate_up_matmul(randn(4, 15), w_gate, w_up)
    with pytest.raises(ValueError, match=r"w_gate, w_up: expected \(I, 16\), got \(24, 16\) and \(28, 16\)"):
        gate_up_matmul(x, w_gate, randn(28, 16))
    with pytest.raises(ValueError, match=r"w_down, gate, up: expected \(16, I\) and twice \(4, I\)"):
        gate_up_matmul_backward(x, randn(16, 24), randn(4, 24), randn(5, 24))
