"""`make demo`: a connected model that reads English answers questions, and a plain model learns its answers. Real data.

The steps are those of `train.experiment`, with one seed; the demo shows them one after the other.

python -m train.demo                      # about four minutes on a CPU; writes runs/demo/report.md
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
from train.common.console import open_console, say
from train.common.files import output_folder
from train.common.models import save_options
from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA
from train.data import LANGUAGES
from train.demo.answers import COLUMNS, GUESS, MODES, STUDENT, curves, guesses, samples, score
from train.demo.costs import first_token_costs
from train.demo.report import plot, render, share
from train.distillation.teacher import Answer
from train.experiment.data import Data, load
from train.experiment.job import answer, fit, make_model, marks, train
from train.experiment.settings import Settings, read_settings
from train.experiment.teaching import teach, training_data

CC = "cc"
DEMO = read_settings(Path(__file__).parents[1] / "configs" / "experiment_demo.yaml")
FAST = replace(
    DEMO,
    scratch={**(DEMO.scratch or {}), "hidden_size": 32, "intermediate_size": 85, "num_hidden_layers": 2},
    vocab_size=600,
    languages=("en", "de", "ja"),
    relations=("currency",),
    steps=12,
    batch_size=8,
    fit_pairs=48,
    questions=24,
)
T = TypeVar("T")


class _Clock:
    """Runs the steps of the demo one after the other, with a headline each, and measures them."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}  # processor time

    def run(self, name: str, step: Callable[..., T], *args: Any, **options: Any) -> T:
        self.console.rule(f"{len(self.seconds) + 1}/{self.steps}  {name}", align="left")
        start, busy = time.perf_counter(), time.process_time()
        result = step(*args, **options)
        self.seconds[name], self.busy[name] = time.perf_counter() - start, time.process_time() - busy
        return result


def run_demo(settings: Settings, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Run the demo and write `report.md`, `results.json`, the plots and both models into `out`.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: languages that are unknown, lack English, or leave nothing to ask; a folder that cannot be written.
    """
    threads = torch.get_num_threads()
    # The model's operations are too small for more: on a busy machine two threads took ten times as long as one.
    torch.set_num_threads(1)
    try:
        return _run(settings, output_folder(out, "out"), open_console(console))
    finally:
        torch.set_num_threads(threads)


def _run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    clock, (seed,) = _Clock(console, steps=8), settings.seeds
    data = clock.run("build the data", load, settings, seed)
    say(console, f"{len(data.train):,} training rows, {len(data.questions)} questions, {len(data.prompts)} prompts")
    models, logs = {}, {}
    answers: list[Answer] = []
    for name, condition in settings.conditions.items():
        model, collator = make_model(settings, condition, data, seed)
        rows = training_data(settings, name, data, {"answers": answers})
        step = (settings, condition, model, collator, rows, seed)
        trained = clock.run(f"train {name}", train, *step, logs=45, title=name, console=console)
        models[name], logs[name] = model.eval(), trained.log
        if name == CC:
            answers = clock.run("the teacher answers half A's prompts", teach, settings, CC, model, collator, data)
    cc = models[CC]
    clock.run("fit the Transform Matrix", fit, settings, cc, collator, data)
    for name, model in models.items():
        _save(out / name, model, collator, settings)
    found = clock.run("answer held-out questions", _answer, settings, models, collator, data)
    results = {
        "settings": asdict(settings),
        "versions": {"cc-tuning": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(parameter.numel() for parameter in models[VANILLA].parameters()),
        "agreement": _agreement(teach(settings, STUDENT, models[STUDENT], collator, data), answers),
        **found,
        "costs": {
            "step": {name: 1000 * clock.busy[f"train {name}"] / settings.steps for name in models},
            "first_token": clock.run("measure the first token", _first_token, models, collator, data),
        },
        **{name: curves(log) for name, log in logs.items()},
        "seconds": clock.seconds,
    }
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", render(results))
    plot(results, out)
    console.print(accuracy_table(results))
    say(console, f"report: {out / 'report.md'}   ({sum(clock.seconds.values()):.0f} s)")
    return results


def _agreement(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    """Percent of prompts with the same text."""
    return 100 * sum(a.text == b.text for a, b in zip(one, other, strict=True)) / len(one)


def _first_token(models: dict[str, Any], collator: Any, data: Data) -> dict[str, float]:
    return first_token_costs(
        {VANILLA: models[VANILLA], ENGLISH: models[CC], MATRIX: models[CC]}, collator, data.questions
    )


def _save(folder: Path, model: Any, collator: Any, settings: Settings) -> None:
    """Write a model as `train.sft` leaves one."""
    model.save_pretrained(folder)
    collator.tokenizer.save_pretrained(folder)
    save_options(folder, {"collator": {"max_length": settings.max_length}})


def _answer(settings: Settings, models: dict[str, Any], collator: Any, data: Data) -> dict[str, Any]:
    """Answers to the questions in every mode, and to the same in English, as the results of the report."""
    ways = {VANILLA: (VANILLA, VANILLA), ENGLISH: (CC, ENGLISH), STUDENT: (STUDENT, VANILLA), MATRIX: (CC, MATRIX)}
    answers = {GUESS: guesses(data)}
    for name, (model, mode) in ways.items():
        answers[name] = answer(settings, models[model], collator, data.questions, mode, progress=True)
    known = {
        mode: marks(answer(settings, models[name], collator, data.known, mode), data.known).count("1")
        for name, mode in ((VANILLA, VANILLA), (CC, OFF))
    }
    correct = {mode: marks(answers[mode], data.questions) for mode in MODES}
    return {
        "data": {
            "train_rows": len(data.train),
            "held_out_rows": data.held_out,
            "questions": len(data.questions),
            "prompts": len(data.prompts),
            "known_in_english": len(data.known),
        },
        "halves": data.halves,
        "correct": correct,
        "accuracy": score(data, correct),
        "known_in_english": known,
        "samples": samples(data, answers),
    }


def accuracy_table(results: dict[str, Any]) -> Table:
    """Held-out accuracy per language, half A, and half B as a whole, as a rich table."""
    table = Table("half A", "questions", *COLUMNS, title="Held-out accuracy")
    for column in table.columns[1:]:
        column.justify = "right"
    lines = {**results["accuracy"]["A"], "half B": results["accuracy"]["B"]["all"]}
    for language, line in lines.items():
        table.add_row(
            language, str(line["questions"]), *(share(line[mode], line["questions"]) for mode in COLUMNS),
            end_section=language in list(lines)[-3:-1],
        )  # fmt: skip
    return table


def parse_demo(arguments: Sequence[str] | None = None) -> tuple[Settings, Path]:
    """The command line as settings and output folder."""
    parser = argparse.ArgumentParser(
        prog="python -m train.demo",
        description="Train a small Llama from scratch on real questions in several languages, plainly and with the "
        "cross-lingual connection; let the connected model, which reads English, answer prompts without an answer; "
        "train a plain student on its answers; ask held-out questions; write a report with plots. Needs no network and "
        "no GPU.",
    )
    parser.add_argument("--steps", type=int, help=f"training steps of each model; default: {DEMO.steps}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and split; default: 0")
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help=f"with en; default: {' '.join(DEMO.languages)}; there are {' '.join(LANGUAGES)}",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for the report; default: runs/demo")
    parser.add_argument("--fast", action="store_true", help="a toy size for tests: seconds, and meaningless numbers")
    options = parser.parse_args(arguments)
    settings = replace(FAST if options.fast else DEMO, seeds=(options.seed,))
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
    console = open_console()
    settings, out = parse_demo(arguments)
    try:
        run_demo(settings, out, console)
    except ValueError as error:
        raise SystemExit(f"train.demo: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["DEMO", "FAST", "accuracy_table", "parse_demo", "run_demo"]
