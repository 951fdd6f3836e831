"""The training step of each mode: forward, backward, optimizer; what it launches, waits for and allocates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import Batch, Mode
from benchmarks.measure.agreement import difference
from benchmarks.measure.counting import count_launches, count_ops, count_waits, peak_bytes
from benchmarks.measure.flops import training_ratio
from benchmarks.measure.interleaved import ratios, rounds_of, spread

OPTIMIZERS = ("adamw", "sgd", "none")


def make_optimizer(name: str, parameters: list[Tensor], device: torch.device) -> torch.optim.Optimizer | None:
    """AdamW or SGD, fused on a GPU; with a learning rate of 0, so that the weights stay; None for `none`.

    Raises:
        ValueError: unknown `name`.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    if name == "none":
        return None
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    return kind(parameters, lr=0.0, fused=device.type == "cuda" or None)


class Clock:
    """Times between marks: of the device's own timeline on a GPU, without waiting for it; of the wall on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Remember now."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each mark and the next; the device must be done."""
        pairs = zip(self.marks, self.marks[1:])
        return [a.elapsed_time(b) / 1e3 if self.on_gpu else b - a for a, b in pairs]


@dataclass
class TrainingStep:
    """Forward, backward and optimizer of one mode, called without arguments; each call leaves its times in `clocks`."""

    mode: Mode
    batch: Batch
    optimizer: torch.optim.Optimizer | None
    parameters: list[Tensor]
    device: torch.device
    clocks: list[Clock] = field(default_factory=list)

    def __call__(self) -> Tensor:
        """The loss."""
        clock = Clock(self.device)
        self.forget()
        clock.mark()
        loss = self.mode.loss(self.batch)
        clock.mark()
        loss.backward()
        clock.mark()
        if self.optimizer is not None:
            self.optimizer.step()
        clock.mark()
        self.clocks.append(clock)
        return loss.detach()

    def forget(self) -> None:
        """Free the gradients of the last step."""
        for parameter in self.parameters:
            parameter.grad = None

    def phases(self, last: int) -> dict[str, Any]:
        """Forward, backward and optimizer, seconds, of the last calls."""
        times = [clock.seconds() for clock in self.clocks[-last:]]
        return {name: spread(list(of)) for name, of in zip(("forward", "backward", "optimizer"), zip(*times))}


def training_problem(step: TrainingStep, expected: tuple[Tensor, Tensor] | None) -> str | None:
    """Why loss and Decision Maker's gradient of one step do not count as the expected ones, or None."""
    loss = step()
    gradient = step.mode.maker.grad
    if not step.mode.connects or expected is None:
        return None
    if gradient is None:
        return "the Decision Maker got no gradient"
    for what, actual, right in (("loss", loss, expected[0]), ("gradient", gradient, expected[1])):
        problem = difference(what, actual, right, gradient.dtype)
        if problem is not None:
            return f"the {what} {problem}"
    return None


def profile_training(
    modes: list[Mode],
    batch: Batch,
    device: torch.device,
    optimizer: str = "adamw",
    rounds: int = 10,
    deadline: float = float("inf"),
    trace: str | None = None,
    progress: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, Any]:
    """Time, count and weigh a step of each mode; a mode that computes something else, or fails, is refused by name.

    `keep` is given the record when all modes are timed and again as each is counted, so that a process that is stopped
    while it counts has not timed in vain.

    Returns:
        Settings, the predicted ratios and, per mode: `seconds`, `phases`, `ratio` to vanilla in the same round,
        `tokens_per_second` of the main rows, `peak_bytes`, and the counts.
    """
    config = modes[0].model.config
    parameters = [*modes[0].model.parameters(), modes[0].maker]
    stepper = make_optimizer(optimizer, parameters, device)
    rows, tokens = batch.input_ids.shape
    shape = (config, rows, tokens, batch.pivot_input_ids.shape[1], modes[0].pivot_grad)
    less = training_ratio(*shape, pivots=len(batch.distinct_pivots), labelled=len(batch.loss_rows))
    record: dict[str, Any] = {
        "rows": rows,
        "tokens": tokens,
        "prompt": batch.prompt.shape[1],
        "pivot": batch.pivot_input_ids.shape[1],
        "optimizer": optimizer,
        "pivot_grad": modes[0].pivot_grad,
        "translations": batch.translations,
        "predicted_forward_backward": training_ratio(*shape),
        "predicted_with_less_work": less,
        "modes": {},
    }
    steps, refused = _warm(modes, batch, stepper, parameters, device, deadline, progress)
    record["modes"] |= {name: {"refused": why} for name, why in refused.items()}
    samples = rounds_of(steps, device, rounds, deadline)
    to_vanilla = ratios(samples, "vanilla")
    for name, step in steps.items():
        record["modes"][name] = {
            "seconds": spread(samples[name]),
            "phases": step.phases(len(samples[name])),
            "ratio": to_vanilla[name],
            "tokens_per_second": rows * tokens / spread(samples[name])["median"],
        }
    _predict(record)
    keep(record)
    for name, step in steps.items():
        progress(f"  counting {name}")
        file = None if trace is None else str(Path(trace) / f"train-{name}.json")
        record["modes"][name] |= _counted(step, device, file)
        keep(record)
    return record


def _warm(
    modes: list[Mode],
    batch: Batch,
    optimizer: torch.optim.Optimizer | None,
    parameters: list[Tensor],
    device: torch.device,
    deadline: float,
    progress: Callable[[str], None],
) -> tuple[dict[str, TrainingStep], dict[str, str]]:
    """The steps that compute the same as the reference mode, warmed up, and why others do not."""
    steps: dict[str, TrainingStep] = {}
    refused: dict[str, str] = {}
    expected: tuple[Tensor, Tensor] | None = None
    for mode in sorted(modes, key=lambda mode: mode.name != "hooks"):  # the hooks first: they say what is right
        step = TrainingStep(mode, batch, None, parameters, device)
        started = time.monotonic()
        if mode.compiles and started > deadline:
            refused[mode.name] = "no time left to compile"
            continue
        try:
            problem = training_problem(step, expected)
            if expected is None and mode.maker.grad is not None:
                expected = (step(), mode.maker.grad.clone())
            step.optimizer = optimizer
            step(), step()
        except Exception as error:  # one mode's failure, such as too little memory, is a line of the report
            problem = f"{type(error).__name__}: {error}"[:400]
        if problem is not None:
            refused[mode.name] = problem
        else:
            steps[mode.name] = step
        progress(f"  {mode.name}: {problem or 'same result'}, warm after {time.monotonic() - started:.1f} s")
    return {mode.name: steps[mode.name] for mode in modes if mode.name in steps}, refused


def _counted(step: TrainingStep, device: torch.device, trace: str | None) -> dict[str, Any]:
    counts: dict[str, Any] = {"peak_bytes": peak_bytes(step, device, step.forget)}
    if not step.mode.compiles:
        counts["forward_ops"] = count_ops(lambda: step.mode.loss(step.batch))
    if device.type == "cuda" or trace is not None:
        counts |= count_launches(step, device, trace)
    if device.type == "cuda":
        counts["reported_waits"] = count_waits(step, device)
    return counts


def _predict(record: dict[str, Any]) -> None:
    """Add what the FLOP count predicts for the whole step, of which the optimizer's part stays as it is."""
    vanilla = record["modes"]["vanilla"]
    phases = {name: of["median"] for name, of in vanilla["phases"].items()}
    total = sum(phases.values())
    record["predicted"] = 1 + (record["predicted_forward_backward"] - 1) * (1 - phases["optimizer"] / total)


__all__ = ["OPTIMIZERS", "TrainingStep", "make_optimizer", "profile_training"]
