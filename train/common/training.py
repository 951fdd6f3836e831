"""The one way in which all commands build a trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import TrainingArguments

from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import CCTrainer, PlainCollator
from train.common.arguments import SftArguments
from train.common.english_in_prompt import EnglishInPrompt
from train.common.progress import use_rich_progress

if TYPE_CHECKING:  # an experiment on prepared rows runs where datasets is not installed
    from datasets import Dataset


def make_trainer(
    model: Any,
    collator: ParallelCollator,
    rows: Dataset | Sequence[Mapping[str, Any]],
    arguments: TrainingArguments,
    eval_rows: Dataset | Sequence[Mapping[str, Any]] | None = None,
    title: str | None = "training",
    console: Console | None = None,
    kind: Callable[..., CCTrainer] = CCTrainer,
    english_in_prompt: bool = False,
) -> CCTrainer:
    """A trainer for a patched model, or for a plain one, on the same rows.

    Args:
        model: patched: trains with the connection; not patched: what only a patched model takes is left out of the
            batches.
        collator: of the model's tokenizer.
        rows: with the collator's columns.
        arguments: `SftArguments`, of which it reads `translations_per_batch`, or any `TrainingArguments`.
            `remove_unused_columns` must be False, because the collator reads text.
        eval_rows: for the evaluation loss.
        title: shown at the progress bar; None shows none.
        console: of rich; a new one if None.
        kind: of trainer, made with the arguments of `CCTrainer` by name.
        english_in_prompt: read rows with their English version, where `collator` is an `EnglishInPrompt`. Otherwise the
            question alone is read, so that the collator of a teacher that reads both serves its student.

    Raises:
        ValueError: `remove_unused_columns` is set.
    """
    if arguments.remove_unused_columns:
        raise ValueError("remove_unused_columns: expected False (the collator reads the text columns), got True")
    if isinstance(collator, EnglishInPrompt) and not english_in_prompt:
        collator = collator.alone()
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=collator if hasattr(model, "cc") else PlainCollator(collator),
        processing_class=collator.tokenizer,
        translations_per_batch=getattr(arguments, "translations_per_batch", None),
    )
    use_rich_progress(trainer, title, console)
    return trainer


def check_training(arguments: SftArguments, method: str) -> None:
    """Refuse options of the order and the batches that cannot hold, before anything is loaded.

    Raises:
        ValueError: more translations than an optimizer step has rows, or together with another order of the rows;
            several GPUs in one process, which would cut what the rows of a batch share; or several processes that
            would each train alone.
    """
    if (count := launched_processes()) > 1 and arguments.world_size == 1:  # accelerate, which was not told to use CPUs
        raise ValueError(
            f"use_cpu: expected true for {count} processes on a machine without an accelerator, where each would train "
            f"alone, in the same output_dir, got {arguments.use_cpu}"
        )
    translations = arguments.translations_per_batch
    if translations is not None:
        batch, steps = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        if not 1 <= translations <= batch * steps:
            raise ValueError(
                f"translations_per_batch: expected 1 to {batch * steps}, the rows of a process in a step "
                f"(per_device_train_batch_size {batch} × gradient_accumulation_steps {steps}), got {translations}"
            )
        if arguments.bucket_by_length or arguments.train_sampling_strategy != "random":
            other = "bucket_by_length" if arguments.bucket_by_length else "train_sampling_strategy"
            raise ValueError(
                f"translations_per_batch: expected none with {other}, which gives rows another order, got "
                f"{translations}"
            )
    cut = [name for name in ("share_pivots", "loss_only") if method == "cc" and getattr(arguments, name)]
    if cut and arguments.n_gpu > 1:
        raise ValueError(
            f"{cut[0]}: expected false with {arguments.n_gpu} GPUs in one process, where nn.DataParallel cuts a batch "
            "along its first axis: pivots or labelled tokens that rows share cannot be cut; use one process per GPU "
            f"(torchrun, accelerate launch), or {' '.join(f'--{name} false' for name in cut)}"
        )


def launched_processes() -> int:
    """How many processes torchrun or `accelerate launch` started together with this one, which it counts, too."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


__all__ = ["check_training", "launched_processes", "make_trainer"]
