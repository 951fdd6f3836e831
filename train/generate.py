"""Answer prompts with a fine-tuned model, with the connection and, side by side, without.

python -m train.generate --model runs/tiny_cldr --prompt "Was ist die Amtssprache dieses Landes?"
python -m train.generate --model runs/tiny_cldr --file questions.jsonl --vanilla --out answers.jsonl
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import set_seed

from cc_model import connection_disabled
from cc_model.data.collator import ParallelCollator
from cc_model.files import write_text
from train.common.answers import generate_answers
from train.common.arguments import option, parse
from train.common.models import load_trained
from train.common.rows import has_pivot

DESCRIPTION = (
    "Answer prompts with a model that train.sft trained. With a Transform Matrix (python -m train.fit_transform) the "
    "model connects; --vanilla also shows its answers without the connection. The options may stand in a YAML file "
    "given first."
)
CONNECTED, PLAIN, ENGLISH = "connected", "plain", "english"


@dataclass
class GenerateArguments:
    """What to answer, and how."""

    _argument_group_name = "generate"

    model: str = option("", "Folder that train.sft or train.fit_transform wrote (required).")
    prompt: list[str] | None = option(None, "One or more prompts.")  # noqa: RUF009
    file: str | None = option(
        None, "Prompts from a file: a .jsonl with a column instruction (or messages), or text with one prompt a line."
    )
    vanilla: bool = option(False, "Also answer without the connection, and show both side by side.")
    english: bool = option(False, "Also answer with the true English prompts, from the file's column instruction_en.")
    max_new_tokens: int = option(64, "Most tokens of an answer.")
    num_beams: int = option(1, "Beams of a beam search; 1: greedy.")
    do_sample: bool = option(False, "Sample instead of taking the most likely token.")
    sampling_temperature: float = option(1.0, "With --do_sample: below 1 for more likely tokens.")
    batch_size: int = option(16, "Prompts at a time.")
    max_prompts: int | None = option(None, "Answer only the first N prompts of the file.")
    out: str | None = option(None, "Also write prompts and answers to this .jsonl file.")
    dtype: str = option("auto", "auto (as saved), float32, bfloat16 or float16.")
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
    rows: list[dict[str, Any]] = [{"instruction": text} for text in options.prompt or []]
    if options.file is not None:
        rows += _read_file(Path(options.file))[: options.max_prompts]
    if not rows:
        raise ValueError("prompt: expected --prompt or --file with at least one prompt, got none")
    return rows


def _read_file(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"file: found no file {str(path)!r}")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".json"):
        return [{"instruction": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"file: expected one JSON object per line, line {number} of {path} is not: {error}"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"file: expected one JSON object per line, line {number} of {path} is {line[:40]!r}")
        rows.append(row)
    return rows


def answer_all(
    model: Any, collator: ParallelCollator, rows: Sequence[Mapping[str, Any]], options: GenerateArguments
) -> dict[str, list[str]]:
    """Answers of each kind that was asked for: `"connected"`, `"plain"`, `"english"`."""
    patched = hasattr(model, "cc")
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams}
    if options.do_sample:
        settings |= {"do_sample": True, "temperature": options.sampling_temperature}

    def run(description: str, pivot: bool = False) -> list[str]:
        set_seed(options.seed)
        return generate_answers(model, collator, rows, options.batch_size, pivot, description, **settings)

    answers = {}
    if patched and model.cc.transform_matrix is not None:
        answers[CONNECTED] = run(CONNECTED)
    if options.english:
        if not patched or not any(map(has_pivot, rows)):
            raise ValueError("english: expected a model trained with --method cc and prompts with instruction_en")
        answers[ENGLISH] = run(ENGLISH, pivot=True)
    if not patched:
        answers[PLAIN] = run(PLAIN)
    elif options.vanilla or CONNECTED not in answers:
        with connection_disabled(model):
            answers[PLAIN] = run(PLAIN)
    return answers


def answer_table(rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]) -> Table:
    """Prompts and answers side by side; answers are text, never markup."""
    expected = any(row.get("output") for row in rows)
    table = Table("prompt", *answers, *(["expected"] if expected else []), show_lines=True)
    for index, row in enumerate(rows):
        prompt = row.get("instruction") or "\n".join(turn["content"] for turn in row["messages"])
        cells = [prompt, *(texts[index] for texts in answers.values())]
        table.add_row(*map(Text, cells), *([Text(row.get("output") or "")] if expected else []))
    return table


def run_generate(options: GenerateArguments, console: Console | None = None) -> dict[str, list[str]]:
    """Load, answer, show and write; what the command line does.

    Raises:
        ValueError: no model, no prompts, or options that do not fit together.
    """
    console = console or Console()
    if not options.model:
        raise ValueError("model: expected --model, the folder that train.sft wrote")
    rows = read_prompts(options)
    model, collator = load_trained(options.model, options.device, options.dtype)
    if not hasattr(model, "cc"):
        console.print("The model was trained with --method vanilla: plain answers only.")
    elif model.cc.transform_matrix is None:
        console.print("The model has no Transform Matrix yet (python -m train.fit_transform): plain answers only.")
    answers = answer_all(model, collator, rows, options)
    console.print(answer_table(rows, answers))
    if options.out is not None:
        lines = [
            json.dumps({**row, **{kind: texts[index] for kind, texts in answers.items()}}, ensure_ascii=False)
            for index, row in enumerate(rows)
        ]
        write_text(options.out, "\n".join(lines) + "\n")
        console.print(f"wrote {options.out}")
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    (options,) = parse((GenerateArguments,), "train.generate", DESCRIPTION, arguments)
    try:
        run_generate(options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"train.generate: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["GenerateArguments", "answer_all", "answer_table", "read_prompts", "run_generate"]
