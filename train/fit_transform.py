"""Fit the Transform Matrix of a fine-tuned model, so that it connects without an English prompt.

python -m train.fit_transform --model runs/tiny_cldr
python -m train.fit_transform --model runs/qwen --dataset rows.jsonl --holdout 0.1
torchrun --nproc_per_node 8 -m train.fit_transform --model runs/qwen       # each process takes its share of the pairs
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from cc_model import fit_transform_matrix
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.files import write_text
from train.common.arguments import DataArguments, option, parse
from train.common.console import open_console, say
from train.common.files import output_folder
from train.common.models import REPORT_FILE, chosen_device, load_options, load_trained, save_options
from train.common.rows import check_rows, pair_numbers
from train.data.sources import load_rows

DESCRIPTION = (
    "Fit the Transform Matrix of a model that train.sft trained with --method cc: it maps what the model computes for "
    "a prompt to what it would compute for the English version. Reads prompt pairs only (no answers), in one pass, and "
    "saves the model with the matrix. Without --dataset the rows are those that the model was trained on. The options "
    "may stand in a YAML file given first."
)


@dataclass
class FitArguments:
    """How to fit."""

    _argument_group_name = "fit"

    model: str = option("", "Folder that train.sft wrote (required).")
    output_dir: str | None = option(None, "Where to save the model with its matrix; left out: the same folder.")
    max_pairs: int | None = option(1000, "Use a random choice of at most this many prompt pairs.")
    batch_size: int = option(16, "Prompt pairs per forward pass.")
    ridge: float = option(0.0, "Penalty on the matrix, for fewer pairs than the hidden size needs.")
    per_layer: bool = option(False, "One matrix for each layer instead of the paper's single one.")
    affine: bool = option(False, "Also fit a bias.")
    holdout: float = option(0.1, "Share of the pairs kept out of the fit, on which the report is measured.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the weights in memory; auto: as they were saved."
    )
    device: str = option("auto", "auto, cpu, cuda, ...; with several processes each takes its own of that type.")
    seed: int = option(0, "Of the choice of pairs.")


def report_table(report: Any) -> Table:
    """The fit's quality per layer as a rich table."""
    table = Table("layer", "R²", "cosine", "cosine before", title=f"Transform Matrix, measured on {report.sample}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, quality in [("all", report.overall), *((str(i), q) for i, q in enumerate(report.layers))]:
        numbers = (quality.r2, quality.cosine, quality.cosine_before)
        table.add_row(name, *("–" if math.isnan(number) else f"{number:.3f}" for number in numbers))
    return table


def _as_json(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have: R² of one pair, or of none."""
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_as_json, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_fit(options: FitArguments, data: DataArguments, console: Console | None = None) -> Any:
    """Load, fit, save; what the command line does. Returns the report of `fit_transform_matrix`.

    Raises:
        ValueError: no fine-tuned model in the folder, no prompt pairs, one that cannot be read, or a folder that cannot
            be written.
    """
    console = open_console(console)
    if not options.model:
        raise ValueError("model: expected --model, the folder that train.sft wrote")
    if options.batch_size < 1 or (options.max_pairs is not None and options.max_pairs < 1):
        raise ValueError(f"expected batch_size and max_pairs above 0, got {options.batch_size}, {options.max_pairs}")
    processes = started_processes(options.device)
    device = str(processes.device) if processes.use_distributed else options.device
    model, collator = load_trained(options.model, device, options.dtype)
    if not hasattr(model, "cc"):
        raise ValueError(f"model: {options.model} was trained with --method vanilla, it has no connection to fit")
    folder = output_folder(options.output_dir or options.model, "output_dir" if options.output_dir else "model")
    if data.dataset is None:  # the rows that the model was trained on
        data = DataArguments(**load_options(options.model).get("data", {}))
    rows = load_rows(data, answers=False)
    numbers = pair_numbers(rows, options.max_pairs, options.seed)
    check_rows(rows, collator, answers=False, numbers=numbers, progress=processes.is_main_process)
    mine = [rows[number] for number in numbers[processes.process_index :: processes.num_processes]]
    report = fit_transform_matrix(
        model,
        prompt_batches(model, collator, mine, options.batch_size, progress=processes.is_main_process),
        ridge=options.ridge,
        per_layer=options.per_layer,
        affine=options.affine,
        holdout=options.holdout,
        progress=False,
        seed=options.seed,
    )
    if processes.is_main_process:
        _save(model, collator, report, folder, options.model)
        console.print(report_table(report))
        say(console, f"{report.pairs:,} pairs fitted, rank {report.rank} of {report.width}")
        say(console, f"saved to {folder}")
    processes.wait_for_everyone()
    return report


def started_processes(device: str) -> PartialState:
    """The processes that torchrun or `accelerate launch` started, with a device for each; else this one alone."""
    return PartialState(cpu=chosen_device(device).type == "cpu")


def _save(model: Any, collator: ParallelCollator, report: Any, folder: Path, source: str) -> None:
    model.save_pretrained(folder)
    if folder != Path(source):
        collator.tokenizer.save_pretrained(folder)
        save_options(folder, load_options(source))
    write_text(folder / REPORT_FILE, json.dumps(_as_json(asdict(report)), indent=2, allow_nan=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    options = parse((FitArguments, DataArguments), "train.fit_transform", DESCRIPTION, arguments)
    try:
        run_fit(*options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"train.fit_transform: {error}") from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

__all__ = ["FitArguments", "report_table", "run_fit"]
