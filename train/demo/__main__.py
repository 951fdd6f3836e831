"""`make demo`: train a small Llama on real data with and without the connection, fit, answer, report.

python -m train.demo                      # about four minutes on two CPU cores; writes runs/demo/report.md
python -m train.demo --steps 300 --seed 1 --languages en de ja --out runs/short
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table

from cc_kernels import __version__
from cc_model.files import write_text
from train.common.models import new_tokenizer
from train.data import LANGUAGES
from train.demo.report import NAMES, plot, render, share
from train.demo.run import DemoSettings, answer, curves, fit, layer_quality, prepare, samples, score, train_model

FAST = DemoSettings(
    steps=12,
    languages=("en", "de", "ja"),
    relations=("currency",),
    hidden_size=32,
    layers=2,
    vocab_size=600,
    batch_size=8,
    fit_pairs=48,
    eval_rows=6,
)
T = TypeVar("T")


class _Clock:
    """Runs the steps of the demo one after the other, with a headline each, and measures them."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self.seconds: dict[str, float] = {}

    def run(self, name: str, step: Callable[..., T], *args: Any) -> T:
        self.console.rule(f"{len(self.seconds) + 1}/{self.steps}  {name}", align="left")
        start = time.perf_counter()
        result = step(*args)
        self.seconds[name] = time.perf_counter() - start
        return result


def run_demo(settings: DemoSettings, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Run the demo and write `report.md`, `results.json`, the plots and both models into `out`.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: languages that are unknown, lack English, or leave nothing to ask.
    """
    threads = torch.get_num_threads()
    # The model's operations are too small for more: on a busy machine two threads took ten times as long as one.
    torch.set_num_threads(1)
    try:
        return _run(settings, out, console or Console())
    finally:
        torch.set_num_threads(threads)


def _run(settings: DemoSettings, out: Path, console: Console) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock(console, steps=7)
    data = clock.run("build the data", prepare, settings)
    tokenizer = clock.run("train the tokenizer", new_tokenizer, data.train, settings.vocab_size)
    console.print(f"{len(data.train):,} training rows, {len(data.questions)} questions, {len(tokenizer):,} tokens")
    common = (settings, data, tokenizer)
    vanilla, _, plain_trainer = clock.run("train vanilla", train_model, *common, False, out / "vanilla", console)
    connected, collator, cc_trainer = clock.run(
        "train with the connection", train_model, *common, True, out / "connected", console
    )
    quality = clock.run("fit the Transform Matrix", fit, settings, data, connected, collator)
    connected.save_pretrained(out / "connected")
    answers, known = clock.run("answer held-out questions", answer, data, vanilla, connected, collator)
    results: dict[str, Any] = {
        "settings": asdict(settings),
        "versions": {"cc-tuning": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(parameter.numel() for parameter in vanilla.parameters()),
        "data": {
            "train_rows": len(data.train),
            "held_out_rows": data.held_out,
            "questions": len(data.questions),
            "known_in_english": len(data.known),
        },
        "accuracy": score(data, answers),
        "known_in_english": known,
        "samples": samples(data, answers),
        "vanilla": curves(plain_trainer),
        "connected": curves(cc_trainer),
        "matrix": layer_quality(quality),
        "seconds": clock.seconds,
    }
    clock.run("write the report", plot, results, out)
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", render(results))
    console.print(accuracy_table(results))
    console.print(f"report: {out / 'report.md'}   ({sum(clock.seconds.values()):.0f} s)", highlight=False)
    return results


def accuracy_table(results: dict[str, Any]) -> Table:
    """Held-out accuracy per language as a rich table."""
    table = Table("language", "questions", *NAMES.values(), title="Held-out accuracy")
    for column in table.columns[1:]:
        column.justify = "right"
    for language, line in results["accuracy"].items():
        table.add_row(
            language, str(line["questions"]), *(share(line[mode], line["questions"]) for mode in NAMES),
            end_section=language == list(results["accuracy"])[-2:][0],
        )  # fmt: skip
    return table


def parse_demo(arguments: Sequence[str] | None = None) -> tuple[DemoSettings, Path]:
    """The command line as settings and output folder."""
    defaults = DemoSettings()
    parser = argparse.ArgumentParser(
        prog="python -m train.demo",
        description="Train a small Llama from scratch on real questions in several languages, once plainly and once "
        "with the cross-lingual connection; fit the Transform Matrix; answer held-out questions; write a report with "
        "plots. Needs no network and no GPU.",
    )
    parser.add_argument("--steps", type=int, help=f"training steps of each model; default: {defaults.steps}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and split; default: 0")
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help=f"with en; default: {' '.join(defaults.languages)}; there are {' '.join(LANGUAGES)}",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for the report; default: runs/demo")
    parser.add_argument("--fast", action="store_true", help="a toy size for tests: seconds, and meaningless numbers")
    options = parser.parse_args(arguments)
    settings = replace(FAST if options.fast else defaults, seed=options.seed)
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps: expected a positive number, got {options.steps}")
        settings = replace(settings, steps=options.steps)
    if options.languages is not None:
        settings = replace(settings, languages=tuple(options.languages))
    return settings, Path(options.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    settings, out = parse_demo(arguments)
    try:
        run_demo(settings, out)
    except ValueError as error:
        raise SystemExit(f"train.demo: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["FAST", "accuracy_table", "parse_demo", "run_demo"]
