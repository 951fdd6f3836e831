"""What a training step and the first token of an answer cost the processor, against a plain model's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from train.common.modes import ENGLISH, answering

ROUNDS = 15


@torch.no_grad()
def first_token_costs(
    models: Mapping[str, Any], collator: Any, rows: Sequence[Mapping[str, Any]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Milliseconds of processor time to the first token of one prompt, the median over prompts.

    The ways take turns, prompt by prompt, so that what else the machine does falls on all of them alike.

    Args:
        models: mode of `train.common.modes` → model.
        collator: of the prompts.
        rows: one prompt each.
        rounds: prompts that are measured, after one that is not.
    """
    found: dict[str, list[float]] = {mode: [] for mode in models}
    for number in range(rounds + 1):
        row = rows[number % len(rows)]
        for mode, model in models.items():
            batch = collator.prompts([row], pivot=mode == ENGLISH)
            if not hasattr(model, "cc"):
                batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
            batch = {key: value.to(model.device) for key, value in batch.items()}
            with answering(model, mode):
                start = time.process_time()
                model.generate(**batch, do_sample=False, max_new_tokens=1)
                spent = time.process_time() - start
            if number:
                found[mode].append(1000 * spent)
    return {mode: statistics.median(values) for mode, values in found.items()}


__all__ = ["first_token_costs"]
