"""`TranslationSampler`: an order of the rows in which translations of one English prompt stand together.

A pivot pass costs what its distinct English prompts cost. Rows in random order share none in a small batch; in this
order K of them do.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler


def english_keys(rows: Any) -> list[str | None]:
    """What tells the English prompts of rows apart: equal keys are equal prompts; None for a row without one.

    Args:
        rows: a `datasets.Dataset` or a sequence of mappings, with the columns of `ParallelCollator`.

    Example:
        >>> english_keys([{"instruction": "hola", "instruction_en": "hello"}, {"instruction": "hello"}])
        ['hello', None]
    """
    names = getattr(rows, "column_names", None)
    if names is None:
        return [_key(row.get("instruction_en"), row.get("messages_en")) for row in rows]
    # Of a table only the columns that are needed are read.
    texts, chats = (rows[name] if name in names else [None] * len(rows) for name in ("instruction_en", "messages_en"))
    return [_key(text, chat) for text, chat in zip(texts, chats)]


def _key(text: Any, chat: Any) -> str | None:
    """`messages_en` goes before `instruction_en`, as in the collator; a closing answer is not read."""
    if chat:
        turns = list(chat)
        if turns[-1].get("role") == "assistant":
            turns.pop()
        return json.dumps([[turn.get("role"), turn.get("content")] for turn in turns]) if turns else None
    return text if isinstance(text, str) and text.strip() else None


class TranslationSampler(Sampler[int]):
    """Every row once per epoch, in windows in which K translations of an English prompt follow each other.

    In each epoch the translations of a prompt are shuffled and cut into groups of K (the last one of a prompt may be
    smaller; a row without an English prompt is a group of its own), and all groups are shuffled. They then fill windows
    of `batch_size × batches` rows, the share of one process in one optimizer step, so that a group lies in one batch
    where K divides the batch size, and else in one window: a group that would cross the end of a window makes room for
    one that fits, and is cut only when none does.

    Accelerate gives batch j to process j mod `processes`; windows are written down accordingly. The order depends on
    `seed` and on the epoch alone, so it is the same in every process and after a resume.

    What that does to the order: a step sees fewer facts in more languages. It estimates the gradient from
    `batch_size / K` prompts instead of `batch_size`; docs/training.md has its measured effect.

    Args:
        keys: of each row what tells its English prompt apart, as `english_keys` gives it; None for none.
        translations: K, the rows of a prompt that follow each other.
        batch_size: rows of a batch of one process.
        batches: of one process in one optimizer step (`gradient_accumulation_steps`).
        processes: among which accelerate shares the batches.
        seed: of the order.

    Raises:
        TypeError: a number is no integer.
        ValueError: a number is below 1 (`seed`: below 0), or there are no rows.

    Example:
        >>> rows = [{"instruction_en": question} for question in ("one", "two", "three") for language in range(4)]
        >>> sampler = TranslationSampler(english_keys(rows), translations=2, batch_size=4)
        >>> order = [rows[index]["instruction_en"] for index in sampler]
        >>> all(first == second for first, second in zip(order[::2], order[1::2]))  # two by two
        True
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(first) == sorted(sampler), first == list(sampler)
        (True, False)
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        translations: int,
        batch_size: int,
        batches: int = 1,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        numbers = {
            "translations": (translations, 1),
            "batch_size": (batch_size, 1),
            "batches": (batches, 1),
            "processes": (processes, 1),
            "seed": (seed, 0),
        }
        for name, (value, least) in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not len(keys):
            raise ValueError("keys: expected one for each of at least 1 row, got none")
        self.translations, self.batch_size, self.batches, self.processes = translations, batch_size, batches, processes
        self.seed, self.epoch = seed, 0
        found: dict[Hashable, list[int]] = {}
        for row, key in enumerate(keys):
            found.setdefault((row,) if key is None else ("prompt", key), []).append(row)
        self._prompts = list(found.values())
        self._rows = len(keys)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of rows."""
        return self._rows

    def __iter__(self) -> Iterator[int]:
        """The rows of the epoch, in order."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.epoch))
        windows = _windows(self._groups(generator), self.batch_size * self.batches)
        whole = len(windows) // self.processes * self.processes
        if whole and len(windows[whole - 1]) < self.batch_size * self.batches:
            whole -= self.processes  # the last window is not full, so neither is the step that holds it
        for start in range(0, whole, self.processes):
            step = windows[start : start + self.processes]
            for batch in range(0, self.batch_size * self.batches, self.batch_size):
                for window in step:
                    yield from window[batch : batch + self.batch_size]
        for window in windows[whole:]:
            yield from window

    def _groups(self, generator: torch.Generator) -> list[list[int]]:
        """Groups of K translations, shuffled."""
        groups = []
        for rows in self._prompts:
            order = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
            groups += [order[start : start + self.translations] for start in range(0, len(order), self.translations)]
        return [groups[at] for at in torch.randperm(len(groups), generator=generator).tolist()]


def _mixed(seed: int, epoch: int) -> int:
    """A seed in 63 bits, so that epoch 1 of seed 0 is not epoch 0 of seed 1."""
    return (seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F + 1) % 2**63


def _windows(groups: list[list[int]], size: int) -> list[list[int]]:
    """Groups put into windows of `size` rows, in order as far as they fit; all windows but the last are full."""
    waiting: dict[int, list[tuple[int, list[int]]]] = {}  # by length, the first one last
    for order in range(len(groups) - 1, -1, -1):
        waiting.setdefault(len(groups[order]), []).append((order, groups[order]))
    windows: list[list[int]] = []
    left = sum(map(len, groups))
    while left:
        window: list[int] = []
        while left and len(window) < size:
            room = size - len(window)
            lengths = [length for length, kept in waiting.items() if kept]
            fitting = [length for length in lengths if length <= room]
            length = min(fitting or lengths, key=lambda length: waiting[length][-1][0])
            order, group = waiting[length].pop()
            window += group[:room]
            left -= min(room, length)
            if length > room:
                waiting.setdefault(length - room, []).append((order, group[room:]))
        windows.append(window)
    return windows


__all__ = ["TranslationSampler", "english_keys"]
