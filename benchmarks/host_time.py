"""`python -m benchmarks.host_time --out DIR`: what one call of an op costs the host, on tensors too small to matter.

In eager mode a GPU waits for Python wherever a call takes longer than its kernels do. The inputs are tiny, so that the
wall time of many calls in a row, with one synchronisation at the end, is the host's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure.record import facts, save
from cc_kernels import (
    add_rows,
    backend,
    capture_rows,
    connect,
    gate_up_swiglu,
    reference,
    swiglu,
    transform_rows,
)
from cc_kernels.launch import HAS_TRITON, launching

CALLS, ROUNDS = 200, 9


def _calls(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Op, implementation, and a call of it without arguments."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, rows, values = randn(32, 64), torch.tensor([3, 9], device=device), randn(2, 64)
    gate, up = randn(32, 64).requires_grad_(), randn(32, 64).requires_grad_()
    weight, matrix = randn(96, 64), randn(64, 64)
    bank, maker, noise = randn(4, 2, 64), randn(4, 64), torch.randn(2, 4, device=device)

    def backward(op: Callable[..., Tensor]) -> Callable[[], Any]:
        seed = torch.ones_like(gate)
        return lambda: torch.autograd.grad(op(gate, up), (gate, up), seed)

    plain = gate.detach(), up.detach()
    yield "swiglu", "cc_kernels", lambda: swiglu(*plain)
    yield "swiglu", "eager", lambda: F.silu(plain[0]) * plain[1]
    yield "swiglu forward+backward", "cc_kernels", backward(swiglu)
    yield "swiglu forward+backward", "eager", backward(lambda a, b: F.silu(a) * b)
    if device.type == "cuda":
        try:
            from liger_kernel.ops.swiglu import LigerSiLUMulFunction
        except ImportError:
            pass
        else:
            yield "swiglu", "liger", lambda: LigerSiLUMulFunction.apply(*plain)
            yield "swiglu forward+backward", "liger", backward(LigerSiLUMulFunction.apply)
    for name, op in (("cc_kernels", capture_rows), ("eager", reference.capture_rows)):
        yield "capture_rows", name, lambda op=op: op(x, rows)
    for name, op in (("cc_kernels", add_rows), ("eager", reference.add_rows)):
        yield "add_rows in place", name, lambda op=op: op(x, rows, values, inplace=True)
    for name, op in (("cc_kernels", gate_up_swiglu), ("eager", reference.gate_up_swiglu)):
        yield "gate_up_swiglu", name, lambda op=op: op(values, weight, weight)
    for name, op in (("cc_kernels", transform_rows), ("eager", reference.transform_rows)):
        yield "transform_rows", name, lambda op=op: op(values, matrix)
    for name, op in (("cc_kernels", connect), ("eager", reference.connect)):
        yield "connect", name, lambda op=op: op(bank, values, maker, noise)


def _time(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Median and smallest microseconds of one call."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    samples = []
    for _ in range(ROUNDS + 1):
        synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter() - started) / CALLS * 1e6)
        synchronize()
    return statistics.median(samples[1:]), min(samples[1:])


@contextmanager
def _through_triton() -> Iterator[None]:
    """Every launch goes through `kernel[grid](...)`, which works out the specialisation anew."""
    direct, launching.DIRECT = launching.DIRECT, frozenset()
    launching.forget()
    try:
        yield
    finally:
        launching.DIRECT = direct


class _NotLaunched:
    """Stands for a compiled kernel; starting it does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *values: None


@contextmanager
def _without_launches() -> Iterator[None]:
    """Our kernels are called on CPU tensors and everything happens but the launch, for which there is no GPU."""
    direct, through_triton, serves = launching.DIRECT, launching.through_triton, backend.triton_serves
    launching.DIRECT, backend.triton_serves = frozenset({"cpu"}), lambda op, device: True
    launching.through_triton = lambda kernel, grid, arguments: _NotLaunched()
    launching.forget()
    try:
        yield
    finally:
        launching.DIRECT, launching.through_triton, backend.triton_serves = direct, through_triton, serves
        launching.forget()


def _row(op: str, implementation: str, call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    median, least = _time(call, device)
    print(f"{op:<26} {implementation:<32} {median:>8.1f} us, at least {least:>8.1f}", flush=True)
    return {"op": op, "implementation": implementation, "us": median, "least_us": least}


def main(argv: list[str] | None = None) -> int:
    """Print one line per op and implementation, and save them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where host_time.json is written")
    parser.add_argument(
        "--dry", action="store_true", help="without a GPU: our own Python up to the launch, which is left out"
    )
    arguments = parser.parse_args(argv)
    dry = arguments.dry
    if dry and not HAS_TRITON:
        parser.error("--dry: expected triton to be installed, found none")
    device = torch.device("cuda", 0) if torch.cuda.is_available() and not dry else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows: list[dict[str, Any]] = []
    for op, implementation, call in _calls(device, dtype):
        ours = implementation == "cc_kernels"
        with _without_launches() if dry and ours else nullcontext():
            rows.append(_row(op, implementation, call, device))
        if ours and device.type in launching.DIRECT:
            with _through_triton():
                rows.append(_row(op, "cc_kernels, launched by Triton", call, device))
    if arguments.out is not None:
        save(arguments.out / "host_time.json", {"device": facts(device), "dry": dry, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
