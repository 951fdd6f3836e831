"""Let a model that reads English answer prompts in other languages, and train a plain model on its answers.

    python -m train.distil --teacher runs/cc --prompts prompts.jsonl --dataset rows.jsonl --model Qwen/Qwen2.5-0.5B
    python -m train.distil --teacher runs/cc --prompts prompts.jsonl --output_dir runs/student --answers_only

The teacher is a CC model, or a plain one that reads the English question before the question (`train.sft --method
vanilla --english_in_prompt true`). Prompts have `instruction` and `instruction_en`; answers that they may have are not
read. The student trains on the labelled rows of `--dataset` and on the teacher's answers. By default it is a plain
model: no English, no matrix and no connection at inference. `train.distillation` has the parts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from cc_model.files import write_text
from cc_model.integrations.trainer import CCTrainer
from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments, option, parse
from train.common.console import open_console, say
from train.common.english_in_prompt import EnglishInPrompt
from train.common.files import json_lines, output_folder
from train.common.models import check_source, load_tokenizer, load_trained
from train.common.modes import ENGLISH, VANILLA, answering
from train.common.rows import check_rows, has_pivot
from train.common.training import launched_processes
from train.data.sources import load_rows
from train.distillation.selection import kept_report, reasons, taught_rows
from train.distillation.store import ANSWERS, AnswerFile
from train.distillation.targets import TargetTrainer, with_targets
from train.distillation.teacher import Answer, write_answers
from train.sft import find_checkpoint, run_sft

DESCRIPTION = (
    "A model that reads English (--teacher: a CC model, or a plain one trained with --english_in_prompt true) reads "
    "prompts with their English version and answers them in the prompts' language; a student, plain unless --method "
    "cc, is trained on labelled rows (--dataset) and on these answers. Answers are kept as they come, and the same "
    "command continues. The options of the student and its training are those of train.sft; they may stand in a YAML "
    "file given first."
)
REPORT, ROWS = "distil_report.json", "rows.jsonl"


@dataclass
class DistilArguments:
    """Who answers what, and which answers are learned."""

    _argument_group_name = "teacher"

    teacher: str = option(
        "",
        "Folder of a model that reads English, which train.sft wrote with --method cc, or with --method vanilla and "
        "--english_in_prompt true (required).",
    )
    prompts: str = option(
        "",
        "Prompts with instruction and instruction_en, or messages and messages_en (required): a file, a folder, a hub "
        "name or a built data set, as --dataset.",
    )
    prompts_split: str = option("train", "Split of the prompts.")
    max_prompts: int | None = option(None, "Use only the first N prompts.")
    threshold: float | None = option(
        None, "Least mean log-likelihood of an answer in nats per token, at most 0; left out: all answers are learned."
    )
    keep: float | None = option(
        None, "Instead of --threshold: the share of the answers that is learned, 0.5 for the likelier half."
    )
    targets: Literal["text", "distribution"] = option(
        "text",
        "What a plain student learns of an answer: its text, or the teacher's distribution at each of its tokens (KL), "
        "for which both need the same tokenizer.",
    )
    top: int = option(8, "With --targets distribution: likeliest tokens that are kept; the others are one bucket.")
    text_weight: float = option(
        0.5, "With --targets distribution: share of the text in the loss of an answer, from 0 to 1."
    )
    answers_only: bool = option(False, "Write the answers and the report on them, and train no student.")
    max_new_tokens: int = option(64, "Most tokens of an answer; one that is cut off is not learned.")
    answer_batch_size: int = option(16, "Prompts at a time.")
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the teacher's weights; auto: as they were saved."
    )
    device: str = option("auto", "Of the teacher: auto, cpu, cuda, ...")


def run_distil(
    options: DistilArguments,
    model_options: ModelArguments,
    data_options: DataArguments,
    token_options: CollatorArguments,
    arguments: SftArguments,
    console: Console | None = None,
) -> CCTrainer | None:
    """Answer, select, train; what the command line does. Returns the student's trainer, if there is a student.

    Raises:
        ValueError: options that do not fit together, a teacher that reads no English, prompts without an English
            version, answers of another run in the output folder, nothing to learn, or what `train.sft` raises.
    """
    console = open_console(console)
    _check(options, data_options, model_options, token_options)
    _check_folder(options, arguments)
    labelled = [] if options.answers_only else _labelled(model_options, data_options, arguments)
    folder = output_folder(str(arguments.output_dir), "output_dir")
    rows = _prompts(options, data_options, console)
    answers = _answers(options, rows, folder, arguments.overwrite, console)
    report = kept_report(answers, options.threshold, options.keep)
    write_text(folder / REPORT, json.dumps(report, indent=1) + "\n")
    console.print(report_table(report))
    if options.answers_only:
        say(console, f"answers: {folder / ANSWERS}")
        return None
    taught = taught_rows(rows, answers, options.threshold, options.keep)
    if not taught:
        raise ValueError(f"threshold: expected answers to learn from, got none of {len(answers)}; see {REPORT}")
    write_text(folder / ROWS, json_lines([*labelled, *taught]))
    say(console, f"{len(labelled):,} labelled rows and {len(taught):,} answers of the teacher: {folder / ROWS}")
    mixed = replace(data_options, **COLUMNS, dataset=str(folder / ROWS), max_samples=None)
    if options.targets == "text":
        return run_sft(model_options, mixed, token_options, arguments, console)
    kept = zip(answers, reasons(answers, options.threshold, options.keep))
    targets = [None] * len(labelled) + [answer.targets for answer, why in kept if why == "kept"]
    kind = partial(TargetTrainer, targets=targets, text_weight=options.text_weight)
    return run_sft(model_options, mixed, token_options, arguments, console, kind)


# `load_rows` has renamed the columns already.
COLUMNS: dict[str, Any] = {f"{name}_column": name for name in ("instruction", "instruction_en", "output")}


def _check(options: DistilArguments, data: DataArguments, model: ModelArguments, tokens: CollatorArguments) -> None:
    for name in ("teacher", "prompts"):
        if not getattr(options, name):
            raise ValueError(f"{name}: expected --{name}, got none")
    for name in ("max_new_tokens", "answer_batch_size", "top"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected a positive number, got {getattr(options, name)}")
    taught_rows([], [], options.threshold, options.keep)
    if not 0 <= options.text_weight <= 1:
        raise ValueError(f"text_weight: expected a share from 0 to 1, got {options.text_weight}")
    if options.targets == "distribution" and not options.answers_only and (model.method == "cc" or tokens.packed):
        got = "--method cc" if model.method == "cc" else "--packed true"
        raise ValueError(
            f"targets: expected text with {got}, got distribution, which a plain student learns row by row"
        )
    if data.dataset is None and not options.answers_only:
        raise ValueError("dataset: expected --dataset with labelled rows, or --answers_only, got neither")
    if (count := max(PartialState().num_processes, launched_processes())) > 1:
        raise ValueError(
            f"expected one process, got {count}: answer with --answers_only in one process, then give {ROWS} to "
            "train.sft in several"
        )


def _check_folder(options: DistilArguments, arguments: SftArguments) -> None:
    teacher, folder = Path(options.teacher), Path(str(arguments.output_dir))
    if teacher.is_dir() and teacher.resolve() == folder.resolve():
        raise ValueError(
            f"output_dir: expected another folder than that of --teacher, which a student would overwrite, got {folder}"
        )


def _labelled(model: ModelArguments, data: DataArguments, arguments: SftArguments) -> list[dict[str, Any]]:
    """The labelled rows. What is wrong with the student is said here, before the answers, which take long."""
    find_checkpoint(arguments)
    check_source(model)
    if model.model is not None:
        load_tokenizer(model.tokenizer or model.model)
    return [dict(row) for row in load_rows(data)]


def _prompts(options: DistilArguments, data: DataArguments, console: Console) -> list[dict[str, Any]]:
    """The prompts that have an English version."""
    source = replace(data, dataset=options.prompts, split=options.prompts_split, max_samples=options.max_prompts)
    try:
        rows = [dict(row) for row in load_rows(source, answers=False)]
    except ValueError as error:
        raise ValueError(f"prompts: {error}") from error
    found = [row for row in rows if has_pivot(row)]
    if not found:
        raise ValueError(
            f"prompts: expected rows with instruction_en, which the teacher reads, got none of {len(rows)}"
        )
    if len(found) < len(rows):
        say(console, f"{len(rows) - len(found):,} prompts have no English version and are left out")
    return found


def _answers(
    options: DistilArguments, rows: Sequence[dict[str, Any]], folder: Path, anew: bool, console: Console
) -> list[Answer]:
    """The teacher's answers to all rows: those of an earlier run of the same, and the missing ones."""
    depends = {"teacher": options.teacher, "max_new_tokens": options.max_new_tokens, "dtype": options.teacher_dtype}
    depends |= {"top": options.top} if options.targets == "distribution" else {}
    kept = AnswerFile(folder, rows, depends, anew)
    missing = kept.missing
    if kept.answers:
        say(console, f"{len(kept.answers):,} of {len(rows):,} prompts have an answer in {kept.path}")
    if missing:
        teacher, collator = load_trained(options.teacher, options.device, options.teacher_dtype)
        connected = hasattr(teacher, "cc")
        if not (connected or isinstance(collator, EnglishInPrompt)):
            raise ValueError(
                f"teacher: expected a model that reads English (trained with --method cc, or with --method vanilla "
                f"--english_in_prompt true), {options.teacher} reads the question alone"
            )
        check_rows(rows, collator, answers=False, numbers=missing, argument="prompts")
        asked = [rows[number] for number in missing]
        mode = ENGLISH if connected else VANILLA
        with answering(teacher, mode) as pivot, tqdm(total=len(asked), desc="answer", unit="row") as bar:
            batches = write_answers(teacher, collator, asked, options.answer_batch_size, pivot, options.max_new_tokens)
            for part in batches:
                found = {missing[place]: answer for place, answer in part.items()}
                if options.targets == "distribution":
                    found = with_targets(teacher, collator, rows, found, options.top, pivot)
                kept.add(found)
                bar.update(len(part))
    return [kept.answers[number] for number in range(len(rows))]


def report_table(report: dict[str, Any]) -> Table:
    """What is kept of the answers, as a rich table."""
    asked = [f"{name} {report[name]:g}" for name in ("threshold", "keep") if report[name] is not None]
    title = f"Answers of the teacher, {asked[0] if asked else 'threshold none'}"
    table = Table("answers", "number", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for name, number in report["numbers"].items():
        table.add_row("all" if name == "answers" else name, f"{number:,}")
    for share, value in report["quantiles"].items():
        table.add_row(f"log-likelihood, {100 * float(share):.0f} % are below", f"{value:.3f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    groups = (DistilArguments, ModelArguments, DataArguments, CollatorArguments, SftArguments)
    options, model, *others = parse(groups, "train.distil", DESCRIPTION, arguments, defaults={"method": "vanilla"})
    try:
        run_distil(options, model, *others)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"train.distil: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["DistilArguments", "report_table", "run_distil"]
