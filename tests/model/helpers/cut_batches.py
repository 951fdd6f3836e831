"""Batches with shared pivots that something cuts, and what a model answers to the pieces."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from model_pairs import pair
from torch.utils.data import DataLoader
from word_tokenizers import make_tokenizer

from cc_model import ParallelCollator

REMEDY = "use one process per GPU with its own batches"
ENGLISH = ["one two three", "two three four", "three four one", "four one two", "one one two"]
MAIN = ["eins zwei drei", "zwei drei eins", "drei eins zwei"]
Found = tuple[float | None, float | None, str | None]


def rows_of(readers: list[int | None]) -> list[dict[str, str]]:
    """Rows of equal length, that read the English prompts of these numbers; None for none."""
    return [
        {
            "instruction": MAIN[at % 3],
            "instruction_en": "" if reader is None else ENGLISH[reader],
            "output": MAIN[(at + 1) % 3],
        }
        for at, reader in enumerate(readers)
    ]


def collated(readers: list[int | None], **options: Any) -> dict[str, torch.Tensor]:
    """The batch of these rows."""
    return ParallelCollator(make_tokenizer("llama3"), **options)(rows_of(readers))


@functools.cache
def models() -> tuple[Any, Any]:
    """A stock and a patched model of the tokenizer's size."""
    return pair(vocab_size=len(make_tokenizer("llama3")))


def answer(made: dict[str, Any]) -> tuple[torch.Tensor | None, str | None]:
    """The loss of a training step on `made` without noise, or None and what was raised."""
    _, model = models()
    entries = len(made["connection_index"])
    try:
        with torch.no_grad():
            return model.train()(**made, gumbel_noise=torch.zeros(entries, 4)).loss, None
    except (ValueError, RuntimeError, IndexError) as error:
        return None, str(error)


def _answers(readers: list[int | None], batch_size: int, **options: Any) -> list[Found]:
    """Of each batch that this process gets: with shared pivots, without, and what was raised."""
    PartialState(cpu=True)
    columns = []
    for shared in ({"share_pivots": True, "loss_only": True}, {}):
        collator = ParallelCollator(make_tokenizer("llama3"), **shared)
        loader = DataLoader(rows_of(readers), batch_size=batch_size, collate_fn=collator)
        prepared = prepare_data_loader(
            loader,
            torch.device("cpu"),
            num_processes=dist.get_world_size(),
            process_index=dist.get_rank(),
            put_on_device=True,
            **options,
        )
        found: list[tuple[Any, str | None]] = []
        try:
            for made in prepared:
                loss, message = answer(made)
                found.append((None if loss is None else loss.item(), message))
        except RuntimeError as error:
            found.append((None, str(error)))
        columns.append(found)
    return [(first[0], second[0], first[1]) for first, second in zip(*columns)]


def dispatched(readers: list[int | None], split: bool) -> list[Found]:
    """Batches of four rows that process 0 reads and cuts for all: joined first, or one split."""
    return _answers(readers, 4, dispatch_batches=True, split_batches=split)


def sharded(readers: list[int | None]) -> list[Found]:
    """Batches of eight rows, of which each process collates its four."""
    return _answers(readers, 8, dispatch_batches=False, split_batches=True)
