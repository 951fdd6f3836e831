"""Generation of each mode: time to the first token, decode steps, and what one prompt launches and allocates."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer

from benchmarks.baselines import Mode
from benchmarks.measure.agreement import difference
from benchmarks.measure.counting import count_launches, count_ops, count_waits, peak_bytes
from benchmarks.measure.flops import prefill_ratio
from benchmarks.measure.interleaved import ratios, rounds_of, spread


class TokenClock(BaseStreamer):
    """When the prompt and each token arrive at the host."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt, then one token per row."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to flush."""


@dataclass
class Generation:
    """`generate` of one mode on one prompt, called without arguments; each call leaves its times.

    A cache among the options, with some of the prompt in it, is copied for each call: the call writes to it.
    """

    mode: Mode
    ids: Tensor
    new_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)  # seconds to the first token
    steps: list[float] = field(default_factory=list)  # median seconds of a decode step

    def __call__(self) -> Any:
        """The generated tokens."""
        clock, options = TokenClock(), self.fresh_options()
        started = time.perf_counter()
        tokens = self.mode.generate(self.ids, self.new_tokens, streamer=clock, **options)
        self.first.append(clock.times[1] - started)
        if self.new_tokens > 1:
            self.steps.append(spread([b - a for a, b in zip(clock.times[1:], clock.times[2:])])["median"])
        return tokens

    def fresh_options(self) -> dict[str, Any]:
        """The options, with a cache as it was given."""
        return {name: copy.deepcopy(part) if isinstance(part, Cache) else part for name, part in self.options.items()}

    def first_logits(self, noise: Tensor | None) -> Tensor:
        """Logits of the first new token; `noise` `(B, L)` makes a decision that rounding cannot change."""
        options = {**self.fresh_options(), "return_dict_in_generate": True, "output_logits": True}
        return self.mode.generate(self.ids, self.new_tokens, noise, **options).logits[0].float().clone()


def warm(
    modes: list[Mode],
    ids: Tensor,
    noise: Tensor,
    new_tokens: int,
    progress: Callable[[str], None],
    **options: Any,
) -> tuple[dict[str, Generation], dict[str, str]]:
    """Generations whose first logits are right, warmed up, and why others are not.

    Right is what the hooks give; with `options`, what the mode gives without them.
    """
    made: dict[str, Generation] = {}
    refused: dict[str, str] = {}
    expected: Tensor | None = None
    for mode in sorted(modes, key=lambda mode: mode.name != "hooks"):
        call = Generation(mode, ids, new_tokens, options)
        started = time.monotonic()
        try:
            if options:
                logits, expected = call.first_logits(None), Generation(mode, ids, 2).first_logits(None)
            else:
                logits = call.first_logits(noise)
                expected = logits if expected is None else expected
            problem = difference("logits", logits, expected, mode.maker.dtype) if mode.connects else None
            problem = problem and f"the first token's logits: {problem}"
            call(), call()
        except Exception as error:  # one mode's failure is a line of the report
            problem = f"{type(error).__name__}: {error}"[:400]
        if problem is None:
            made[mode.name] = call
        else:
            refused[mode.name] = problem
        progress(f"  {mode.name}: {problem or 'same result'}, warm after {time.monotonic() - started:.1f} s")
    return {mode.name: made[mode.name] for mode in modes if mode.name in made}, refused


def profile_generation(
    modes: list[Mode],
    ids: Tensor,
    noise: Tensor,
    device: torch.device,
    new_tokens: int = 17,
    rounds: int = 10,
    deadline: float = float("inf"),
    trace: str | None = None,
    counts: bool = True,
    progress: Callable[[str], None] = print,
    keep: Callable[[dict[str, Any]], None] = lambda record: None,
    **options: Any,
) -> dict[str, Any]:
    """Time to the first token and decode steps of each mode for prompts `(B, P)`.

    Args:
        modes: vanilla among them.
        ids: the prompts.
        noise: `(B, L)`, for the comparison of results only; timed calls decide as each mode does.
        device: that the modes run on.
        new_tokens: generated in each call.
        rounds: at most so many calls of each mode.
        deadline: by `time.monotonic()`.
        trace: folder for one trace per mode.
        counts: also count launches, waits, ops and memory of one call that generates one token; not with `options`.
        progress: told what happens.
        keep: given the record when all modes are timed, and again as each is counted.
        options: of `generate`, such as `cache_implementation="static"`, or a cache with some of the prompt in it.

    Returns:
        Per mode `first_token`, `decode_step` (seconds), `ratio` of the first, `added_steps`: (connected − plain) ÷ a
        plain decode step, of the same round; and `predicted` ratios by the FLOP count for one and two prefills.
    """
    config = modes[0].model.config
    rows, tokens = ids.shape
    calls, refused = warm(modes, ids, noise, new_tokens, progress, **options)
    for call in calls.values():
        call.first.clear()
        call.steps.clear()
    rounds_of(calls, device, rounds, deadline)
    first = {name: call.first for name, call in calls.items()}
    to_vanilla = ratios(first, "vanilla")
    plain_step = spread(calls["vanilla"].steps)["median"]
    found: dict[str, Any] = {name: {"refused": why} for name, why in refused.items()}
    for name, call in calls.items():
        step = spread(call.steps)
        found[name] = {
            "first_token": spread(call.first),
            "decode_step": step,
            "ratio": to_vanilla[name],
            "added_steps": spread([(a - b) / plain_step for a, b in zip(call.first, first["vanilla"])]),
            "tokens_per_second": rows / step["median"],
        }
    held = sum(int(part.get_seq_length()) for part in options.values() if isinstance(part, Cache))
    record = {
        "rows": rows,
        "tokens": tokens,
        "new_tokens": new_tokens,
        "cached": held,
        "options": {name: str(value) for name, value in options.items()},
        "predicted": {
            "one prefill": prefill_ratio(config, rows, tokens - held),
            "two": prefill_ratio(config, rows, tokens - held, 2),
        },
        "modes": found,
    }
    keep(record)
    for name, call in calls.items() if counts and not options else ():
        progress(f"  counting {name}")
        found[name] |= _counted(call, device, None if trace is None else str(Path(trace) / f"infer-{name}.json"))
        keep(record)
    return record


def _counted(call: Generation, device: torch.device, trace: str | None) -> dict[str, Any]:
    def one_token() -> Any:
        return call.mode.generate(call.ids, 1)

    one_token()
    counts: dict[str, Any] = {"peak_bytes": peak_bytes(one_token, device)}
    counts["ops"] = count_ops(one_token)
    if device.type == "cuda" or trace is not None:
        counts |= count_launches(one_token, device, trace)
    if device.type == "cuda":
        counts["reported_waits"] = count_waits(one_token, device)
    return counts


def first_token_curve(
    modes: list[Mode],
    make_ids: Callable[[int], Tensor],
    lengths: list[int],
    noise: Tensor,
    device: torch.device,
    rounds: int = 5,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """`profile_generation` without counts for each prompt length, while there is time."""
    found = []
    for length in lengths:
        if time.monotonic() > deadline:
            progress(f"  no time left for {length} tokens")
            break
        progress(f"  {length} tokens")
        ids = make_ids(length)
        found.append(
            profile_generation(modes, ids, noise, device, 5, rounds, deadline, counts=False, progress=lambda _: None)
        )
    return found


__all__ = ["Generation", "first_token_curve", "profile_generation"]
