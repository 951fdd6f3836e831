"""`python -m benchmarks.serve --out FILE`: requests per second of vLLM, connected and plain, beside `generate`.

All requests come at once. Five ways take turns, round by round, each round with new prompts: `generate` in padded
batches, of the stock model and of the connected one; vLLM with the stock model; and the connected engine, asked to
connect or not (`cc: false`). A first round that is not timed compares the tokens. The engines run in this process,
without a prefix cache, so that on one thread of a CPU all times are the process's own: other processes of the machine
do not enter.

It needs vLLM (docs/serving.md) and a machine without a GPU, where both run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.measure.interleaved import ratios, rounds_of, spread
from benchmarks.measure.models import NAMES, build
from benchmarks.measure.record import facts, save
from benchmarks.measure.sources import contents
from cc_model import patch_model
from cc_model.testing import random_matrix

PLAIN = "vLLM, plain"  # what the others are compared with
WAYS = ("generate, plain", "generate, connected", PLAIN, "vLLM, asked to be plain", "vLLM, connected")
CACHE_BYTES = 2**28
Prompts = list[list[int]]
Answers = list[list[int]]


class FirstToken(StoppingCriteria):
    """Notes when the first token of a batch is there."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.at = clock, -1.0

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Called after each token; never stops."""
        if self.at < 0:
            self.at = self.clock()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Generate:
    """`generate` in batches, each padded on the left to its longest prompt."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch = model, batch

    def __call__(self, prompts: Prompts, tokens: int, clock: Callable[[], float]) -> tuple[Answers, list[float]]:
        """The answers, and when each request had its first token."""
        answers: Answers = []
        firsts: list[float] = []
        for start in range(0, len(prompts), self.batch):
            rows = prompts[start : start + self.batch]
            width, first = max(map(len, rows)), FirstToken(clock)
            ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            named = {"do_sample": False, "max_new_tokens": tokens, "stopping_criteria": StoppingCriteriaList([first])}
            answers += self.model.generate(ids, attention_mask=mask, pad_token_id=0, **named)[:, width:].tolist()
            firsts += [first.at] * len(rows)
        return answers, firsts


class Serve:
    """An engine of vLLM, to which all requests are given at once."""

    def __init__(self, engine: Any, wish: dict[str, Any] | None = None) -> None:
        self.engine, self.wish = engine.llm_engine, wish

    def __call__(self, prompts: Prompts, tokens: int, clock: Callable[[], float]) -> tuple[Answers, list[float]]:
        """The answers, and when each request had its first token."""
        from vllm import SamplingParams

        options = {"max_tokens": tokens, "ignore_eos": True, "detokenize": False, "extra_args": self.wish}
        params = SamplingParams(temperature=0, **options)
        for number, prompt in enumerate(prompts):
            self.engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
        answers: dict[int, list[int]] = {}
        firsts: dict[int, float] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                answers[int(output.request_id)] = list(output.outputs[0].token_ids)
                if output.outputs[0].token_ids:
                    firsts.setdefault(int(output.request_id), clock())
        numbers = range(len(prompts))
        return [answers[number] for number in numbers], [firsts[number] for number in numbers]


def prompts_of(count: int, lengths: Sequence[int], vocabulary: int, seed: int) -> Prompts:
    """Random prompts whose lengths are drawn evenly from the first of `lengths` to the second.

    Example:
        >>> [len(prompt) for prompt in prompts_of(3, (4, 4), 100, seed=0)]
        [4, 4, 4]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in drawn]


def connected_model(name: str, layers: int | None) -> Any:
    """A random patched model, whose matrix is so large that answers differ from the plain model's."""
    model: Any = patch_model(build(name, torch.device("cpu"), torch.float32, layers))
    with torch.no_grad():
        model.cc.decision_maker.weight.normal_(generator=torch.Generator().manual_seed(1))
    model.cc.transform_matrix = random_matrix(model, scale=30.0)
    return model


def ways_of(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The ways to answer, of one set of weights, which lie in `folder` for vLLM."""
    from vllm import LLM

    model = connected_model(arguments.model, arguments.layers)
    model.save_pretrained(folder / "connected", serve=True)
    model.save_pretrained(folder / "plain", plain=True)
    length = arguments.prompts[1] + arguments.tokens + 1
    options = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "max_model_len": length}
    options |= {"max_num_seqs": arguments.requests, "kv_cache_memory_bytes": CACHE_BYTES, "block_size": 32}
    options |= {"enable_prefix_caching": False, "disable_log_stats": True}
    plain, connected = (LLM(str(folder / name), **options) for name in ("plain", "connected"))
    stock = build(arguments.model, torch.device("cpu"), torch.float32, arguments.layers)
    made = (Generate(stock, arguments.batch), Generate(model, arguments.batch))
    return dict(zip(WAYS, (*made, Serve(plain), Serve(connected, {"cc": False}), Serve(connected))))


def agreement(ways: dict[str, Any], prompts: Prompts, tokens: int) -> dict[str, int]:
    """How many answers of vLLM equal those of `generate`, and how many of the connected ones differ from the plain."""
    found = {name: way(prompts, tokens, time.perf_counter)[0] for name, way in ways.items()}

    def same(one: str, other: str) -> int:
        return sum(a == b for a, b in zip(found[one], found[other], strict=True))

    plain, connected, served, off, through = WAYS
    return {
        "plain": min(same(plain, served), same(plain, off)),
        "connected": same(connected, through),
        "differ": len(prompts) - same(served, through),
    }


def measure(ways: dict[str, Any], arguments: argparse.Namespace, vocabulary: int) -> Iterator[tuple[str, Any]]:
    """Each way's name and figures: of all requests at once, and of the first token of a request alone."""
    alone = torch.get_num_threads() == 1  # as `rounds_of` has it
    clock = time.process_time if alone else time.perf_counter
    firsts: dict[str, list[float]] = {name: [] for name in ways}
    turns = dict.fromkeys(ways, 0)

    def at_once(name: str) -> Callable[[], None]:
        def call() -> None:
            turns[name] += 1
            prompts = prompts_of(arguments.requests, arguments.prompts, vocabulary, seed=turns[name])
            started = clock()
            found = sorted(ways[name](prompts, arguments.tokens, clock)[1])
            firsts[name].append(found[len(found) // 2] - started)

        return call

    def one(name: str) -> Callable[[], None]:
        prompts = prompts_of(1, arguments.prompts[1:] * 2, vocabulary, seed=0)
        return lambda: ways[name](prompts, 1, clock)

    cpu = torch.device("cpu")
    taken = rounds_of({name: at_once(name) for name in ways}, cpu, arguments.rounds)
    single = rounds_of({name: one(name) for name in ways}, cpu, 3 * arguments.rounds)
    to, of_one = ratios(taken, PLAIN), ratios(single, PLAIN)
    for name, seconds in taken.items():
        yield (
            name,
            {
                "seconds": spread(seconds),
                "ratio": to[name],
                "requests_per_second": spread([arguments.requests / each for each in seconds]),
                "tokens_per_second": spread([arguments.requests * arguments.tokens / each for each in seconds]),
                "first_token": spread(firsts[name]),
                "alone": spread(single[name]),
                "alone_ratio": of_one[name],
            },
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    made.add_argument("--model", choices=NAMES, default="small", help="random weights; %(default)s")
    made.add_argument("--layers", type=int, help="fewer decoder layers than the model has")
    made.add_argument("--requests", type=int, default=64, help="%(default)s")
    made.add_argument("--prompts", type=int, nargs=2, default=[32, 256], metavar="N", help="tokens, from to; 32 256")
    made.add_argument("--tokens", type=int, default=32, help="of each answer; %(default)s")
    made.add_argument("--batch", type=int, default=16, help="of generate; %(default)s")
    made.add_argument("--rounds", type=int, default=3, help="%(default)s")
    made.add_argument("--out", type=Path, metavar="FILE", help="the record, as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, save and print; 1 when tokens are not equal."""
    command = parser()
    arguments = command.parse_args(argv)
    for name in ("requests", "tokens", "batch", "rounds", "layers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            command.error(f"--{name}: expected 1 or more, got {value}")
    if not 1 <= arguments.prompts[0] <= arguments.prompts[1]:
        command.error(f"--prompts: expected 1 ≤ from ≤ to, got {arguments.prompts}")
    if torch.cuda.is_available():
        command.error("expected a machine without a GPU, where vLLM and generate run on the same device")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # before vLLM is imported
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    distribution = packages_distributions().get("vllm")
    if not distribution:
        command.error("expected vLLM to be installed, found none; make serving")
    return run(arguments, version(distribution[0]))


def run(arguments: argparse.Namespace, vllm: str) -> int:
    """Measure in a folder that is removed again."""
    cpu = torch.device("cpu")
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(arguments, Path(folder))
        vocabulary = ways[WAYS[0]].model.config.vocab_size
        asked = prompts_of(arguments.requests, arguments.prompts, vocabulary, seed=0)
        equal = agreement(ways, asked, arguments.tokens)
        print(f"answers equal to generate's: {equal} of {arguments.requests}", flush=True)
        rows = dict(measure(ways, arguments, vocabulary))
    record = {"kind": "serve", "facts": {**facts(cpu), "vllm": vllm}, "content": contents(["serve"])}
    record |= {"arguments": given, "clock": "process" if torch.get_num_threads() == 1 else "wall"}
    record |= {"equal": equal, "ways": rows}
    if arguments.out is not None:
        save(arguments.out, record)
    for name, row in rows.items():
        per = row["requests_per_second"]["median"]
        print(f"{name:<24} {per:7.2f} requests/s, {row['ratio']['median']:.3f} of the time of {PLAIN}", flush=True)
    return int(min(equal["plain"], equal["connected"]) < arguments.requests)


if __name__ == "__main__":
    sys.exit(main())
