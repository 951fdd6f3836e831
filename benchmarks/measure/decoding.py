"""What `generate` costs the host, and where: on a tiny model nearly all of a call's time is Python.

Stock and connected calls take turns. Of each round, with t(n) the time of a call that generates n tokens:

    decode step  = (t(1 + STEPS) − t(1)) / STEPS
    added steps  = (t(1), connected − t(1), stock) / decode step, stock
    step ratio   = decode step, connected / decode step, stock
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure.interleaved import rounds_of, spread
from cc_model import patch_model
from cc_model.testing import random_matrix

PROMPT, STEPS, ROUNDS = 8, 16, 40
WAYS = ("stock", "cc_model")


def tiny_pair(layers: int, device: torch.device) -> dict[str, Any]:
    """A stock Llama and a patched one with a Transform Matrix, of one set of weights, by `WAYS`."""
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96}
    config = LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    models = []
    for _ in WAYS:
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
        models.append(model.to(device).eval())
    patch_model(models[1])
    models[1].cc.transform_matrix = random_matrix(models[1]).to(device)
    return dict(zip(WAYS, models))


def generating(model: Any, new_tokens: int) -> Callable[[], Any]:
    """A call that generates `new_tokens` tokens, greedily, for one prompt of `PROMPT` tokens."""
    ids = torch.arange(1, PROMPT + 1, device=model.device)[None]
    named = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": new_tokens}
    return lambda: model.generate(ids, **named)


def host_rows(depths: list[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """One row for each depth and way: microseconds of the first token and of a decode step, and the two figures.

    On one thread of a CPU the time is the process's own (`rounds_of`).
    """
    for layers in depths:
        models = tiny_pair(layers, device)
        calls = {(way, count): generating(models[way], count) for way in WAYS for count in (1, 1 + STEPS)}
        for call in calls.values():
            call(), call()
        named = {f"{way} {count}": call for (way, count), call in calls.items()}
        samples = rounds_of(named, device, ROUNDS)
        first = {way: samples[f"{way} 1"] for way in WAYS}
        step = {way: [(b - a) / STEPS for a, b in zip(first[way], samples[f"{way} {1 + STEPS}"])] for way in WAYS}
        typical = statistics.median(step["stock"])
        for way in WAYS:
            added = spread([(a - b) / typical for a, b in zip(first[way], first["stock"])])
            ratio = spread([a / b for a, b in zip(step[way], step["stock"])])
            row = {
                "generate": layers,
                "implementation": way,
                "first_us": statistics.median(first[way]) * 1e6,
                "step_us": statistics.median(step[way]) * 1e6,
                "added_steps": added,
                "step_ratio": ratio,
            }
            print(
                f"{layers:>3} layers  {way:<10} first token {row['first_us']:>8.0f} us, {_written(added)} steps added; "
                f"step {row['step_us']:>8.0f} us, {_written(ratio)} of stock",
                flush=True,
            )
            yield row


def _written(found: dict[str, Any]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def python_calls(call: Callable[[], Any]) -> Counter[str]:
    """The calls of Python functions in `call`, by the file that they stand in; built-in functions are not counted.

    Example:
        >>> def inner(): return 1
        >>> python_calls(lambda: [inner(), inner()]).total()
        3
    """
    found: Counter[CodeType] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code] += 1

    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(previous)
    by_file: Counter[str] = Counter()
    for code, calls in found.items():
        by_file[code.co_filename] += calls
    return by_file


def calls_per_step(model: Any, steps: int = 4) -> Counter[str]:
    """`python_calls` of `steps` more decode steps of `model`, beyond those that a prompt and its first steps take."""
    few, many = generating(model, 2), generating(model, 2 + steps)
    few(), many()
    counted = python_calls(many)
    counted.subtract(python_calls(few))
    return counted


__all__ = ["calls_per_step", "generating", "host_rows", "python_calls", "tiny_pair"]
