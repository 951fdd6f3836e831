"""The one way in which all commands build a trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import TrainingArguments

from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import CCTrainer, PlainCollator
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
) -> CCTrainer:
    """A trainer for a patched model, or for a plain one, on the same rows.

    Args:
        model: patched: trains with the connection; not patched: the pivots are left out of the batches.
        collator: of the model's tokenizer.
        rows: with the collator's columns.
        arguments: `remove_unused_columns` must be False, because the collator reads text.
        eval_rows: for the evaluation loss.
        title: shown at the progress bar; None shows none.
        console: of rich; a new one if None.

    Raises:
        ValueError: `remove_unused_columns` is set.
    """
    if arguments.remove_unused_columns:
        raise ValueError("remove_unused_columns: expected False (the collator reads the text columns), got True")
    trainer = CCTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=collator if hasattr(model, "cc") else PlainCollator(collator),
        processing_class=collator.tokenizer,
    )
    use_rich_progress(trainer, title, console)
    return trainer


__all__ = ["make_trainer"]
