"""`python -m benchmarks.train_run --out FILE`: a training run with the kernels beside one with plain PyTorch.

Two patched models with equal weights take the same rows, the same Gumbel noise and the same optimizer, in turns: one
with the Triton kernels (`auto` backend), one with the plain definitions (`torch`). Their losses, throughput and peak
memory are recorded. The rows are short random patterns that repeat, so that there is something to learn.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.counting import peak_bytes
from benchmarks.measure.interleaved import ratios, spread
from benchmarks.measure.models import NAMES, build
from benchmarks.measure.record import facts, save, synchronize
from benchmarks.measure.sources import contents
from cc_kernels import use_backend
from cc_model import patch_model

BACKENDS = {"fused": "auto", "torch": "torch"}
PERIOD, SYMBOLS = 16, 256
FEWEST_STEPS = 6  # the first of which are warm-up


def patterned_rows(rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """`(rows, tokens)`: each row repeats a pattern of its own.

    Example:
        >>> ids = patterned_rows(2, 40, torch.Generator().manual_seed(0))
        >>> ids.shape, bool((ids[:, 16:] == ids[:, :-16]).all())
        (torch.Size([2, 40]), True)
    """
    pattern = torch.randint(SYMBOLS, (rows, PERIOD), generator=generator)
    return pattern.repeat(1, -(-tokens // PERIOD))[:, :tokens]


class Run:
    """One model that trains under one backend."""

    def __init__(self, arguments: argparse.Namespace, backend: str, device: torch.device) -> None:
        self.backend = backend
        self.device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model: Any = patch_model(build(arguments.model, device, dtype, arguments.layers, arguments.seed)).train()
        fused = device.type == "cuda" or None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=arguments.learning_rate, fused=fused)
        self.losses: list[Tensor] = []
        self.seconds: list[float] = []

    def step(self, batch: dict[str, Tensor]) -> None:
        """One step, timed."""
        synchronize(self.device)
        started = time.perf_counter()
        with use_backend(self.backend):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.model(**batch).loss
            loss.backward()
            self.optimizer.step()
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - started)
        self.losses.append(loss.detach())


def batches(arguments: argparse.Namespace, layers: int, device: torch.device) -> Any:
    """Endless batches, the same for every call."""
    generator = torch.Generator().manual_seed(arguments.seed)
    while True:
        ids = patterned_rows(arguments.batch, arguments.prompt + arguments.answer, generator)
        labels = ids.clone()
        labels[:, : arguments.prompt] = -100
        noise = -torch.empty(arguments.batch, layers).exponential_(generator=generator).log()
        made = {
            "input_ids": ids,
            "labels": labels,
            "pivot_input_ids": ids[:, : arguments.prompt].flip(1),
            "gumbel_noise": noise,
        }
        yield {name: tensor.to(device) for name, tensor in made.items()}


def train(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The record of both runs; ends early, and says so, when `--seconds` have passed."""
    runs = {name: Run(arguments, backend, device) for name, backend in BACKENDS.items()}
    layers = next(iter(runs.values())).model.config.num_hidden_layers
    started = time.monotonic()
    peaks: dict[str, int] = {}
    for number, batch in zip(range(arguments.steps), batches(arguments, layers, device)):
        if number >= FEWEST_STEPS and time.monotonic() - started > arguments.seconds:
            print(f"stopped after {number} steps: no time left", flush=True)
            break
        for name, run in runs.items():
            if number == 2:  # the optimizer's state is there
                peaks[name] = peak_bytes(partial(run.step, batch), device, run.optimizer.zero_grad)
                run.losses.pop(), run.seconds.pop()
            run.step(batch)
        if number % 20 == 0:
            print(f"  step {number}: {_last_losses(runs)}", flush=True)
    return summary(runs, arguments, peaks)


def _last_losses(runs: dict[str, Run]) -> str:
    return ", ".join(f"{name} {run.losses[-1].item():.4f}" for name, run in runs.items())


def summary(runs: dict[str, Run], arguments: argparse.Namespace, peaks: dict[str, int]) -> dict[str, Any]:
    """Losses, their largest difference, times without the first steps, and peaks."""
    losses = {name: torch.stack(run.losses).float().cpu() for name, run in runs.items()}
    difference = (losses["fused"] - losses["torch"]).abs()
    warm = {name: run.seconds[min(5, len(run.seconds) - 1) :] for name, run in runs.items()}
    tokens = arguments.batch * (arguments.prompt + arguments.answer)
    return {
        "steps": len(difference),
        "loss_difference": {"max": difference.max().item(), "mean": difference.mean().item()},
        "runs": {
            name: {
                "loss": losses[name].tolist(),
                "seconds": spread(warm[name]),
                "ratio": ratios(warm, "torch")[name],
                "tokens_per_second": tokens / spread(warm[name])["median"],
                "peak_bytes": peaks.get(name),
            }
            for name in runs
        },
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.train_run", description=__doc__)
    on_gpu = torch.cuda.is_available()
    made.add_argument("--model", default="1b" if on_gpu else "tiny", help=f"of {', '.join(NAMES)}; %(default)s")
    made.add_argument("--layers", type=int, help="fewer decoder layers than the model has")
    made.add_argument("--steps", type=int, default=200, help="%(default)s")
    made.add_argument("--batch", type=int, default=8, help="%(default)s")
    made.add_argument("--prompt", type=int, default=256, help="tokens; %(default)s")
    made.add_argument("--answer", type=int, default=128, help="tokens; %(default)s")
    made.add_argument("--learning-rate", type=float, default=1e-4, help="%(default)s")
    made.add_argument("--seconds", type=float, default=float("inf"), help="no step starts after, except the first few")
    made.add_argument("--seed", type=int, default=0, help="of weights, rows and noise; %(default)s")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    """Train, save and print."""
    arguments = parser().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = {"kind": "train_run", "facts": facts(device), "content": contents(["run"]), **train(arguments, device)}
    left_out = (None, float("inf"), arguments.out)
    given = {name: value for name, value in vars(arguments).items() if value not in left_out}
    record["arguments"] = given
    if arguments.out is not None:
        save(arguments.out, record)
    for name, run in record["runs"].items():
        peak = "–" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 2**20:.0f} MiB"
        print(
            f"{name}: last loss {run['loss'][-1]:.4f}, {run['tokens_per_second']:.0f} tokens/s, "
            f"÷ torch {run['ratio']['median']:.3f}, peak {peak}"
        )
    print(f"largest difference of the losses: {record['loss_difference']['max']:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
