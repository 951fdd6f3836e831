"""Batches of prompt pairs for `fit_transform_matrix`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from cc_model.data.collator import ParallelCollator


def prompt_batches(
    model: Any,
    collator: ParallelCollator,
    pairs: Sequence[Mapping[str, Any]],
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """Yield the prompts of `pairs` as batches for `fit_transform_matrix`, on the model's device.

    Args:
        model: whose device the batches go to.
        collator: that the model was trained with.
        pairs: rows with an English version, in the collator's columns; answers are not read.
        batch_size: pairs per batch; the last one may be smaller.
        progress: show a progress bar.

    Yields:
        What `collator.prompts(rows)` gives: `input_ids` and `attention_mask` `(B, T)`, `pivot_input_ids` and
        `pivot_attention_mask` `(B, S)`, `connection_index` and `pivot_index` `(B,)`, int64.

    Raises:
        ValueError: `batch_size` is below 1; and what `collator.prompts` raises for rows.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from cc_model import ParallelCollator, fit_transform_matrix, patch_model
        >>> from cc_model.testing import tiny_model
        >>> words = {"<unk>": 0, "</s>": 1, "User": 2, "Assistant": 3, ":": 4, "hola": 5, "hello": 6}
        >>> core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> collator = ParallelCollator(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))
        >>> model = patch_model(tiny_model("llama"))
        >>> pairs = [{"instruction": "hola " * n, "instruction_en": "hello " * n} for n in range(1, 6)]
        >>> batches = prompt_batches(model, collator, pairs, batch_size=2, progress=False)
        >>> fit_transform_matrix(model, batches, ridge=1.0, progress=False).pairs
        5
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    with tqdm(total=len(pairs), desc="fit Transform Matrix", unit="pair", disable=not progress) as bar:
        for start in range(0, len(pairs), batch_size):
            batch = collator.prompts(pairs[start : start + batch_size])
            yield {key: value.to(model.device) for key, value in batch.items()}
            bar.update(len(batch["input_ids"]))


__all__ = ["prompt_batches"]
