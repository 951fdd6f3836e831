"""Batches of prompt pairs for `fit_transform_matrix`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from cc_model.data.collator import ParallelCollator


def prompt_batches(
    model: Any,
    collator: ParallelCollator,
    pairs: Sequence[Mapping[str, Any]],
    batch_size: int,
    progress: bool = True,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches for `fit_transform_matrix`, on the model's device."""
    with tqdm(total=len(pairs), desc="fit Transform Matrix", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), batch_size):
            batch = collator.prompts(pairs[start : start + batch_size])
            yield {key: value.to(model.device) for key, value in batch.items()}
            bar.update(len(batch["input_ids"]))


__all__ = ["prompt_batches"]
