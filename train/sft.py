"""Fine-tune a model with the cross-lingual connection, or plainly, on rows of questions and answers.

    python -m train.sft train/configs/tiny_cldr.yaml
    python -m train.sft train/configs/qwen2.5-7b.yaml --dataset rows.jsonl --output_dir runs/qwen

Rows have the columns `instruction`, `instruction_en` and `output`, or chat `messages` and `messages_en`. The defaults
are the published recipe: learning rate 1e-5, cosine, 10 % warm-up, 3 epochs, 1024 tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from cc_model import use_pivot_graph
from cc_model.data.collator import ParallelCollator
from cc_model.files import write_text
from cc_model.integrations.trainer import CCTrainer, SimulatedTraining
from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments, as_typed, parse
from train.common.checkpoints import RemoveEarlier, last_complete_checkpoint
from train.common.console import open_console, say
from train.common.english_in_prompt import make_collator
from train.common.files import output_folder
from train.common.models import load_for_training, remove_stale, save_options, set_end_of_turn
from train.common.resume import check_options, check_parts, keep_options, options_of, other_rows
from train.common.rows import check_rows, choose_pairs, count_pivots
from train.common.training import check_training, make_trainer
from train.data.sources import load_rows

DESCRIPTION = (
    "Fine-tune a causal language model on questions and answers, with the cross-lingual connection (--method cc) or "
    "plainly (--method vanilla). Options come from a YAML file, if the first argument is one, and from the command "
    "line, which wins. Afterwards: python -m train.fit_transform, then python -m train.generate."
)
LENGTH_COLUMN = "length"
HISTORY_FILE = "history.json"
REFIT_PAIRS = 512  # of a fit during training


def with_lengths(rows: Dataset, collator: ParallelCollator) -> Dataset:
    """`rows` with a column of prompt + answer + pivot tokens, by which Trainer groups rows of similar length."""
    lengths = [collator.lengths(row) for row in tqdm(rows, desc="measure lengths", unit="row")]
    rows = rows.remove_columns(LENGTH_COLUMN) if LENGTH_COLUMN in rows.column_names else rows
    return rows.add_column(LENGTH_COLUMN, lengths)


def find_checkpoint(arguments: SftArguments) -> str | None:
    """The checkpoint to resume from: a folder, or with `true` the last complete one in the output folder, if any.

    Raises:
        ValueError: the folder does not exist, or there are checkpoints, or a model, and neither resuming nor
            overwriting was asked.
    """
    folder = Path(str(arguments.output_dir))
    asked = arguments.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        if folder.is_dir() and get_last_checkpoint(str(folder)) is not None and not arguments.overwrite:
            raise ValueError(
                f"output_dir: {folder} holds checkpoints already; continue with --resume_from_checkpoint true, start "
                "anew with --overwrite, or choose another folder"
            )
        if (folder / "config.json").is_file() and not arguments.overwrite:
            raise ValueError(
                f"output_dir: {folder} holds a model already; train anew over it with --overwrite, or choose another "
                "folder"
            )
        return None
    if str(asked).lower() == "true":
        return last_complete_checkpoint(folder)
    if not Path(asked).is_dir():
        raise ValueError(f"resume_from_checkpoint: expected 'true' or a checkpoint folder, found no {asked!r}")
    return asked


def run_sft(
    model_options: ModelArguments,
    data_options: DataArguments,
    token_options: CollatorArguments,
    arguments: SftArguments,
    console: Console | None = None,
    kind: Callable[..., CCTrainer] = CCTrainer,
) -> CCTrainer:
    """Load, train and save; what the command line does. The trainer's `state.log_history` has losses and decisions.

    Args:
        model_options, data_options, token_options, arguments: those of the command line.
        console: of rich; a new one if None.
        kind: of trainer, as in `train.common.training.make_trainer`.

    Raises:
        ValueError: options that do not fit together or, resuming, differ from the checkpoint's; data without the
            columns, or with a row that cannot be read; a model that is not supported; a folder that cannot be written.
    """
    console = open_console(console)
    if token_options.system is not None:
        token_options = replace(token_options, system=as_typed(token_options.system))
    check_training(arguments, model_options.method)
    reads = _reads_english(model_options, token_options)
    options = options_of(model_options, data_options, token_options, arguments)
    checkpoint = find_checkpoint(arguments)
    if checkpoint is not None:
        check_options(checkpoint, options)
    folder = output_folder(str(arguments.output_dir), "output_dir")
    set_seed(arguments.seed)
    rows, eval_rows = _load_rows(data_options, reads)
    model, tokenizer = load_for_training(model_options, rows)
    if checkpoint is not None:
        check_parts(checkpoint, model, tokenizer, model_options)
    collator = make_collator(
        tokenizer, **asdict(token_options), share_pivots=arguments.share_pivots, loss_only=arguments.loss_only
    )
    set_end_of_turn(model, collator)
    if model_options.method == "cc" and arguments.pivot_graph:
        use_pivot_graph(model)
    rows, eval_rows = _checked(rows, eval_rows, collator, arguments)
    joined, method = token_options.english_in_prompt, model_options.method
    trainer = make_trainer(model, collator, rows, arguments, eval_rows, method, console, kind, joined)
    keep_options(trainer, options)
    if arguments.overwrite and checkpoint is None:
        trainer.add_callback(RemoveEarlier(folder))
    if model_options.simulated_share > 0:
        trainer.add_callback(_simulated_training(model_options, collator, rows, arguments.seed))
        if checkpoint is not None and model.cc.transform_matrix is None:
            # A sharded model takes from a checkpoint what it has a place for.
            model.cc.transform_matrix = torch.zeros(model.cc.hidden_size, model.cc.hidden_size)
    main_process = trainer.is_world_process_zero()
    if main_process:
        _announce(console, model, rows, options, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_fsdp_enabled:  # its checkpoints may be sharded, the model is written whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    if main_process:  # not before: a run that fails leaves an earlier model as it is
        remove_stale(folder, method, tokenizer)
        save_options(folder, options)
        write_text(folder / HISTORY_FILE, json.dumps(trainer.state.log_history, indent=1) + "\n")
        if collator.truncated:
            say(console, f"{collator.truncated:,} rows were longer than {collator.max_length} tokens and were cut")
        say(console, f"saved to {folder}")
    return trainer


def _reads_english(model_options: ModelArguments, token_options: CollatorArguments) -> str | None:
    """The option by which the model reads English, if it does."""
    connected = model_options.method == "cc"
    if connected and token_options.english_in_prompt:
        raise ValueError(
            "english_in_prompt: expected false with --method cc, which reads English by the connection, got true"
        )
    return "--method cc" if connected else "--english_in_prompt true" if token_options.english_in_prompt else None


def _load_rows(data_options: DataArguments, reads: str | None) -> tuple[Dataset, Dataset | None]:
    """The rows to train on, and those of the evaluation loss, if any; `reads` is what needs their English version."""
    rows = load_rows(data_options)
    if reads is not None and count_pivots(rows) == 0:
        raise ValueError(
            f"instruction_en: {reads} expects rows with an English version, got none in {data_options.dataset!r}; "
            "see --instruction_en_column, or use --method vanilla alone"
        )
    return rows, load_rows(data_options, data_options.eval_split) if data_options.eval_split else None


def _checked(
    rows: Dataset, eval_rows: Dataset | None, collator: ParallelCollator, arguments: SftArguments
) -> tuple[Dataset, Dataset | None]:
    """The same rows, each of which the collator can read; with their lengths where Trainer groups by them."""
    check_rows(rows, collator, progress=arguments.process_index == 0)
    if eval_rows is not None:
        check_rows(eval_rows, collator, argument="eval_split", progress=arguments.process_index == 0)
    if not arguments.bucket_by_length:
        return rows, eval_rows
    arguments.train_sampling_strategy = "group_by_length"
    arguments.length_column_name = LENGTH_COLUMN
    return with_lengths(rows, collator), None if eval_rows is None else with_lengths(eval_rows, collator)


def _announce(console: Console, model: Any, rows: Dataset, options: Mapping[str, Any], checkpoint: str | None) -> None:
    """Say what is going to train on what."""
    size = sum(parameter.numel() for parameter in model.parameters())
    say(
        console,
        f"{type(model).__name__}, {size:,} parameters, method {options['model']['method']}; {len(rows):,} rows, "
        f"{count_pivots(rows):,} with an English version"
        + (", which is read in the prompt" if options["collator"]["english_in_prompt"] else "")
        + (f"; resuming from {checkpoint}" if checkpoint else ""),
    )
    for difference in other_rows(checkpoint, options) if checkpoint else ():
        say(console, f"resuming with {difference}")


def _simulated_training(
    options: ModelArguments, collator: ParallelCollator, rows: Dataset, seed: int
) -> SimulatedTraining:
    if options.method != "cc":
        raise ValueError(f"simulated_share: expected 0 with --method {options.method}, got {options.simulated_share}")
    processes = PartialState()  # each fits on its own share of the pairs
    pairs = choose_pairs(rows, REFIT_PAIRS, seed)[processes.process_index :: processes.num_processes]
    return SimulatedTraining(
        collator, pairs, options.simulated_share, options.simulated_ramp, options.refit_steps, batch_size=16
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    groups = (ModelArguments, DataArguments, CollatorArguments, SftArguments)
    options = parse(groups, "train.sft", DESCRIPTION, arguments)
    try:
        run_sft(*options)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"train.sft: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["find_checkpoint", "run_sft", "with_lengths"]
