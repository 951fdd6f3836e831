"""What a teacher answers to prompts that have no answer, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cc_model.data.collator import ParallelCollator
from train.common.answers import generate_batches


class Targets(NamedTuple):
    """Of an answer of n tokens, with the one that ends it.

    Args:
        tokens: n ids.
        top: n × k ids, the likeliest at each token.
        log_probs: n × k, their log-probabilities in nats.
    """

    tokens: list[int]
    top: list[list[int]]
    log_probs: list[list[float]]


class Answer(NamedTuple):
    """A greedy answer.

    Args:
        text: without special tokens; empty where the answer ended at once.
        log_likelihood: mean `1/n Σ log p(token | prompt, tokens before)` in nats, with the token that ends the answer.
        ended: False where the answer was cut off at `max_new_tokens`.
        targets: what the teacher would also have said, where that was asked for (`train.distillation.targets`).
    """

    text: str
    log_likelihood: float
    ended: bool = True
    targets: Targets | None = None


def write_answers(
    model: Any,
    collator: ParallelCollator,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int = 32,
    pivot: bool = True,
    max_new_tokens: int = 64,
) -> Iterator[dict[int, Answer]]:
    """The teacher's greedy answers, batch by batch: by row number, so that what has been written can be kept.

    The likelihood is that of the distribution that tokens are taken from: where the model's `generation_config` has a
    repetition penalty, of the scores after it.

    Args:
        model: in evaluation mode; a CC model reads the rows' English prompts.
        collator: that it was trained with.
        rows: with the collator's prompt columns; answers are not read.
        batch_size: rows per call of `generate`.
        pivot: read the English prompts; a model without the connection never does.
        max_new_tokens: most tokens of an answer.

    Example:
        >>> from cc_model import patch_model
        >>> from cc_model.testing import tiny_model
        >>> from train.common.models import new_tokenizer
        >>> rows = [{"instruction": "Hauptstadt?", "instruction_en": "Capital?"}]
        >>> collator = ParallelCollator(new_tokenizer(rows, 300))
        >>> model = patch_model(tiny_model("llama", vocab_size=300)).eval()
        >>> [found] = write_answers(model, collator, rows, max_new_tokens=4)
        >>> found[0].log_likelihood < 0
        True
    """
    likelihood = _Likelihood(model.generation_config.eos_token_id)
    options = {"max_new_tokens": max_new_tokens, "num_beams": 1, "logits_processor": LogitsProcessorList([likelihood])}
    for chosen, tokens in generate_batches(model, collator, rows, batch_size, pivot, **options):
        texts = collator.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        found = likelihood.of(tokens)
        yield {index: Answer(text.strip(), *sure) for index, text, sure in zip(chosen, texts, found, strict=True)}


def all_answers(
    model: Any, collator: ParallelCollator, rows: Sequence[Mapping[str, Any]], **options: Any
) -> list[Answer]:
    """The answers of `write_answers` in the order of the rows; `options` are its own."""
    answers: dict[int, Answer] = {}
    for part in write_answers(model, collator, rows, **options):
        answers |= part
    return [answers[number] for number in range(len(rows))]


class _Likelihood(LogitsProcessor):
    """Sums the log-likelihood of the chosen tokens of a `generate` call, with the scores of one step in memory.

    A step's scores are read when the next step shows which token was chosen.
    """

    def __init__(self, ends: int | Sequence[int] | None) -> None:
        self.ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.before: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the scores, unchanged; add those of the token that has just been chosen."""
        if self.before is None:
            self.total, self.count = (torch.zeros(len(scores), device=scores.device) for _ in range(2))
            self.going = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        else:
            self._add(input_ids[:, -1])
        self.before = scores.float().log_softmax(dim=-1)
        return scores

    def _add(self, chosen: Tensor) -> None:
        assert self.before is not None
        self.total += torch.where(self.going, self.before.gather(1, chosen[:, None])[:, 0], 0.0)
        self.count += self.going
        self.going = self.going & ~torch.isin(chosen, torch.tensor(self.ends, device=chosen.device))

    def of(self, tokens: Tensor) -> list[tuple[float, bool]]:
        """Mean log-likelihood, and whether it ended, of each row of the call that gave `tokens` `(B, N)`."""
        self._add(tokens[:, -1])
        self.before = None
        means = (self.total / self.count).tolist()
        return [(round(mean, 4), not going) for mean, going in zip(means, self.going.tolist(), strict=True)]


__all__ = ["Answer", "Targets", "all_answers", "write_answers"]
