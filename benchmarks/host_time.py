"""`python -m benchmarks.host_time --out DIR`: what one call of an op costs the host, on tensors too small to matter.

In eager mode a GPU waits for Python wherever a call takes longer than its kernels do. The inputs are tiny, so that the
time of many calls in a row, with one synchronisation at the end, is the host's. Implementations take turns, round by
round. On a CPU the time is the process's own, which other processes do not enter.

`--layers 16 32` measures whole training forwards of a tiny Llama instead: the connected one, also with the pivot pass
as a CUDA graph (`use_pivot_graph`, as `train.sft` runs it), and one with hooks. Each counts beyond two stock ones (the
body on the English prompt without gradients, the model on the main prompt), per layer.
`--generate 24` measures `generate` of a tiny Llama instead: the first token, connected − stock, in decode steps of the
stock model, and a decode step, connected ÷ stock. Without either, ops and then `--generate 24` are measured.
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
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.baselines.base import random_batch
from benchmarks.baselines.hooks import Hooks
from benchmarks.measure.decoding import host_rows
from benchmarks.measure.dry import without_launches
from benchmarks.measure.record import facts, save
from benchmarks.measure.sources import contents
from cc_kernels import (
    add_rows,
    capture_add_rows_,
    capture_rows,
    capture_rows_through,
    connect,
    decide,
    gate_up_swiglu,
    reference,
    swiglu,
    transform_rows,
)
from cc_kernels.launch import HAS_TRITON, launching
from cc_model import patch_model, use_pivot_graph

CALLS, ROUNDS = 200, 9
FORWARDS, FORWARD_ROUNDS = 2, 100
DEPTH = 24


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
    stored, some = randn(2, 64), torch.tensor([3, -1], device=device)
    for name, op in (("cc_kernels", capture_add_rows_), ("eager", reference.capture_add_rows_)):
        yield "capture_add_rows_", name, lambda op=op: op(x, stored, some, some, values)
    for name, op in (("cc_kernels", gate_up_swiglu), ("eager", reference.gate_up_swiglu)):
        yield "gate_up_swiglu", name, lambda op=op: op(values, weight, weight)
    for name, op in (("cc_kernels", transform_rows), ("eager", reference.transform_rows)):
        yield "transform_rows", name, lambda op=op: op(values, matrix)
    for name, op in (("cc_kernels", capture_rows_through), ("eager", reference.capture_rows_through)):
        yield "capture_rows_through", name, lambda op=op: op(x, rows)
    for name, op in (("cc_kernels", decide), ("eager", reference.decide)):
        yield "decide", name, lambda op=op: op(bank, values, maker, noise)
    for name, op in (("cc_kernels", connect), ("eager", reference.connect)):
        yield "connect", name, lambda op=op: op(bank, values, maker, noise)
    learned = values.clone().requires_grad_(), maker.clone().requires_grad_()
    ones = torch.ones_like(values)

    def both(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(op(bank, *learned, noise)[0], learned, ones)

    yield "connect forward+backward", "cc_kernels", both(connect)
    yield "connect forward+backward", "eager", both(reference.connect)


def _time(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int, rounds: int
) -> dict[str, list[float]]:
    """Microseconds of one call, of every round; the calls take turns."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            call()
            synchronize()
            started = clock()
            for _ in range(repeats):
                call()
            samples[name].append((clock() - started) / repeats * 1e6)
            synchronize()
    return {name: taken[1:] for name, taken in samples.items()}


@contextmanager
def _through_triton() -> Iterator[None]:
    """Every launcher runs, and every launch goes through `kernel[grid](...)`, which works out the specialisation."""
    direct, launching.DIRECT = launching.DIRECT, frozenset()
    launching.forget()
    try:
        yield
    finally:
        launching.DIRECT = direct


def _through(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with _through_triton():
            call()

    return run


def _op_rows(device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """One row for each op and implementation, printed."""
    by_op: dict[str, dict[str, Callable[[], Any]]] = {}
    for op, implementation, call in _calls(device, dtype):
        by_op.setdefault(op, {})[implementation] = call
    for op, calls in by_op.items():
        if device.type in launching.DIRECT and device.type != "cpu":
            calls["cc_kernels, launched by Triton"] = _through(calls["cc_kernels"])
        for implementation, taken in _time(calls, device, CALLS, ROUNDS).items():
            row = {"op": op, "implementation": implementation, "us": statistics.median(taken), "least_us": min(taken)}
            print(f"{op:<26} {implementation:<32} {row['us']:>8.1f} us, at least {row['least_us']:>8.1f}", flush=True)
            yield row


def _llama(layers: int, device: torch.device) -> Any:
    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=128, hidden_size=64, intermediate_size=96, **heads)
    model: Any = LlamaForCausalLM(config)
    return model.to(device).train()


def _forwards(layers: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Two stock forwards, and the same with the connection: by hooks, by this library, and with its CUDA graph."""
    batch = random_batch(2, prompt=6, answer=6, pivot=8, vocabulary=128, layers=layers, device=device)
    ids, labels, pivots, noise = batch.input_ids, batch.labels, batch.pivot_input_ids, batch.noise
    stock, hooked, patched, graphed = (_llama(layers, device) for _ in range(4))
    patch_model(patched)
    use_pivot_graph(patch_model(graphed))
    maker = torch.nn.Parameter(torch.randn(layers, 64, device=device))
    hooks = Hooks(hooked, maker, torch.eye(64, device=device))
    given = {"input_ids": ids, "labels": labels, "pivot_input_ids": pivots, "gumbel_noise": noise, "use_cache": False}

    def two() -> None:
        with torch.no_grad():
            stock.model(input_ids=pivots, use_cache=False)
        stock(input_ids=ids, labels=labels, use_cache=False)

    return {
        "two stock": two,
        "hooks": lambda: hooks.loss(batch),
        "cc_model": lambda: patched(**given),
        "cc_model, pivot graph": lambda: graphed(**given),
    }


def _layer_rows(depths: list[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """One row for each depth and implementation: medians, also of what it takes beyond the round's two stock forwards.

    Differences of one round have what disturbed all of it in common; those of two percentiles do not.
    """
    for layers in depths:
        samples = _time(_forwards(layers, device), device, FORWARDS, FORWARD_ROUNDS)
        for name, taken in samples.items():
            typical = statistics.median(taken)
            beyond = statistics.median(a - b for a, b in zip(taken, samples["two stock"])) / layers
            print(f"{layers:>3} layers  {name:<21} {typical:>9.0f} us, {beyond:>6.1f} us per layer beyond", flush=True)
            yield {"layers": layers, "implementation": name, "us": typical, "us_per_layer_beyond_two_stock": beyond}


def _has(rows: list[dict[str, Any]], key: str) -> bool:
    return any(key in row for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Print one line per op, or depth, and implementation, and save them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where host_time.json is written")
    parser.add_argument(
        "--dry", action="store_true", help="without a GPU: our own Python up to the launch, which is left out"
    )
    parser.add_argument("--layers", type=int, nargs="+", metavar="L", help="training forwards of models this deep")
    parser.add_argument("--generate", type=int, nargs="+", metavar="L", help="`generate` of models this deep")
    arguments = parser.parse_args(argv)
    dry = arguments.dry
    for name in ("layers", "generate"):
        if min(getattr(arguments, name) or [1]) < 1:
            parser.error(f"--{name}: expected numbers of layers above 0, got {getattr(arguments, name)}")
    if dry and not HAS_TRITON:
        parser.error("--dry: expected triton to be installed, found none")
    device = torch.device("cuda", 0) if torch.cuda.is_available() and not dry else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    depths, decoding = arguments.layers, arguments.generate
    everything = depths is None and decoding is None
    rows: list[dict[str, Any]] = []
    with without_launches() if dry else nullcontext():
        rows += _op_rows(device, dtype) if everything else ()
        rows += _layer_rows(depths or [], device)
        rows += host_rows([DEPTH] if everything else decoding or [], device)
    if arguments.out is not None:
        parts = {
            part for part, key in (("host", "op"), ("host", "layers"), ("decoding", "generate")) if _has(rows, key)
        }
        record = {"device": facts(device), "content": contents(sorted(parts)), "dry": dry, "rows": rows}
        save(arguments.out / "host_time.json", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
