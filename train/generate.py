"""Answer prompts with a fine-tuned model, with the connection and, side by side, without.

python -m train.generate --model runs/tiny_cldr --prompt "Was ist die Amtssprache dieses Landes?"
python -m train.generate --model runs/tiny_cldr --file questions.jsonl --off --out answers.jsonl
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import set_seed

from cc_model.data.collator import ParallelCollator
from cc_model.files import write_text
from train.common.answers import generate_answers
from train.common.arguments import as_typed, option, parse
from train.common.console import open_console, say
from train.common.english_in_prompt import EnglishInPrompt
from train.common.files import json_lines, output_file, read_records
from train.common.models import load_trained
from train.common.modes import ENGLISH, MATRIX, OFF, TITLES, VANILLA, answering
from train.common.rows import check_rows, has_pivot

DESCRIPTION = (
    "Answer prompts with a model that train.sft trained. With a Transform Matrix (python -m train.fit_transform) the "
    "model connects; --off also shows its answers without the connection. The options may stand in a YAML file given "
    "first."
)
RENAMED = {"vanilla": "off"}


@dataclass
class GenerateArguments:
    """What to answer, and how."""

    _argument_group_name = "generate"

    model: str = option("", "Folder that train.sft or train.fit_transform wrote (required).")
    prompt: list[str] | None = option(None, "One or more prompts, answered before those of --file.")  # noqa: RUF009
    file: str | None = option(
        None,
        "Prompts from a file: .jsonl, .json, .csv or .parquet with a column instruction (or messages), or text with "
        "one prompt a line.",
    )
    off: bool = option(False, "Also answer without the connection, and show both side by side.")
    english: bool = option(False, "Also answer with the true English prompts, from the file's column instruction_en.")
    max_new_tokens: int = option(64, "Most tokens of an answer.")
    num_beams: int = option(1, "Beams of a beam search; 1: greedy.")
    do_sample: bool = option(False, "Sample instead of taking the most likely token.")
    sampling_temperature: float = option(1.0, "With --do_sample: below 1 for more likely tokens.")
    batch_size: int = option(16, "Prompts at a time.")
    max_prompts: int | None = option(None, "Answer only the first N prompts of the file.")
    out: str | None = option(None, "Also write prompts and answers to this .jsonl file.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the weights in memory; auto: as they were saved."
    )
    device: str = option("auto", "auto, cpu, cuda, ...")
    seed: int = option(0, "Of --do_sample.")


def read_prompts(options: GenerateArguments) -> list[dict[str, Any]]:
    """The prompts of the command line and the file, as rows.

    Raises:
        ValueError: there is none, or the file is missing or not readable.

    Example:
        >>> read_prompts(GenerateArguments(prompt=["Hallo"]))
        [{'instruction': 'Hallo'}]
    """
    rows: list[dict[str, Any]] = [{"instruction": as_typed(text)} for text in options.prompt or []]
    if options.file is not None:
        records = read_records(options.file, "file", text_column="instruction")
        rows += [record.row for record in records[: options.max_prompts]]
    if not rows:
        raise ValueError("prompt: expected --prompt or --file with at least one prompt, got none")
    return rows


def answer_all(
    model: Any, collator: ParallelCollator, rows: Sequence[Mapping[str, Any]], options: GenerateArguments
) -> dict[str, list[str]]:
    """Answers in each mode that was asked for (`train.common.modes`).

    Raises:
        ValueError: true English was asked for, and the model or the rows have none.
    """
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams}
    if options.do_sample:
        settings |= {"do_sample": True, "temperature": options.sampling_temperature}
    answers = {}
    for mode in _modes(model, rows, options):
        set_seed(options.seed)
        with answering(model, mode) as english:
            answers[mode] = generate_answers(model, collator, rows, options.batch_size, english, mode, **settings)
    return answers


def _modes(model: Any, rows: Sequence[Mapping[str, Any]], options: GenerateArguments) -> list[str]:
    patched = hasattr(model, "cc")
    if options.english and not (patched and any(map(has_pivot, rows))):
        raise ValueError("english: expected a model trained with --method cc and prompts with instruction_en")
    if not patched:
        return [VANILLA]
    fitted = model.cc.transform_matrix is not None
    asked = {MATRIX: fitted, ENGLISH: options.english, OFF: options.off or not fitted}
    return [mode for mode, wanted in asked.items() if wanted]


def answer_table(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]) -> Table:
    """Prompts and answers side by side; whatever a row holds is shown as text, never read as markup."""
    expected = any(row.get("output") is not None for row in rows)
    table = Table("prompt", *answers, *(["expected"] if expected else []), show_lines=True)
    for index, row in enumerate(rows):
        cells = [_prompt(row), *(texts[index] for texts in answers.values())]
        table.add_row(*map(Text, cells), *([Text(_shown(row.get("output")))] if expected else []))
    return table


def _prompt(row: Mapping[str, Any]) -> str:
    turns = row.get("messages")
    return _shown(row.get("instruction")) if turns is None else "\n".join(_shown(turn["content"]) for turn in turns)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def run_generate(options: GenerateArguments, console: Console | None = None) -> dict[str, list[str]]:
    """Load, answer, write and show; what the command line does.

    Raises:
        ValueError: no model, no prompts or one that cannot be read, options that do not fit together, or a file that
            cannot be written.
    """
    console = open_console(console)
    if not options.model:
        raise ValueError("model: expected --model, the folder that train.sft wrote")
    for name in ("max_new_tokens", "num_beams", "batch_size", "max_prompts"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    rows = read_prompts(options)
    out = None if options.out is None else output_file(options.out, "out")
    model, collator = load_trained(options.model, options.device, options.dtype)
    check_rows(rows, collator, answers=False, argument="file" if options.file else "prompt")
    if not hasattr(model, "cc"):
        say(console, f"The model was trained with --method vanilla: its answers are {VANILLA}.")
        if isinstance(collator, EnglishInPrompt):
            number = sum(map(has_pivot, rows))
            say(
                console,
                f"It reads the English version in the prompt (--english_in_prompt): {number:,} prompts have one.",
            )
    elif model.cc.transform_matrix is None:
        say(console, f"The model has no Transform Matrix yet (python -m train.fit_transform): without one it is {OFF}.")
    answers = answer_all(model, collator, rows, options)
    if out is not None:
        answered = [{mode: texts[index] for mode, texts in answers.items()} for index in range(len(rows))]
        write_text(out, json_lines({**row, **found} for row, found in zip(rows, answered)))
    console.print(answer_table(rows, answers))
    for mode in answers:
        say(console, f"{mode}: {TITLES[mode]}")
    if out is not None:
        say(console, f"wrote {out}")
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    (options,) = parse((GenerateArguments,), "train.generate", DESCRIPTION, arguments, RENAMED)
    try:
        run_generate(options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"train.generate: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["GenerateArguments", "answer_all", "answer_table", "read_prompts", "run_generate"]
