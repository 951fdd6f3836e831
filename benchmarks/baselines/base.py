"""What all ways to run CC-Tuning have in common, and the two that do not connect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.data.stacking import loss_rows

MARKER = 1  # the token before the last prompt token, from which the published way finds its positions


@dataclass(frozen=True)
class Batch:
    """Rows of full length, so that no mode needs a mask.

    The token before the last one of each prompt is `MARKER`, which stands nowhere else; the connection is made at the
    last token of the prompt.
    """

    input_ids: Tensor  # (B, T), prompt and answer
    labels: Tensor  # (B, T), −100 in the prompt
    pivot_input_ids: Tensor  # (B, S), equal for rows that are translations of one prompt
    noise: Tensor  # (B, L)
    prompt_tokens: int  # P
    translations: int = 1  # rows of one English prompt, one after the other

    @property
    def prompt(self) -> Tensor:
        """The prompts alone, `(B, P)`."""
        return self.input_ids[:, : self.prompt_tokens]

    @cached_property
    def distinct_pivots(self) -> Tensor:
        """Each English prompt once, `(⌈B / translations⌉, S)`."""
        return self.pivot_input_ids[:: self.translations]

    @cached_property
    def pivot_row(self) -> Tensor:
        """Which of them a row reads, `(B,)`."""
        return torch.arange(len(self.input_ids), device=self.input_ids.device) // self.translations

    @cached_property
    def loss_rows(self) -> Tensor:
        """The flattened tokens whose next token has a label, `(K,)`, as a collator gives them."""
        return loss_rows(self.labels.cpu()).to(self.labels.device)


def random_batch(
    rows: int,
    prompt: int,
    answer: int,
    pivot: int,
    vocabulary: int,
    layers: int,
    device: torch.device,
    seed: int = 0,
    translations: int = 1,
) -> Batch:
    """Random tokens. The noise prefers one layer per row by far, so that rounding cannot change a decision.

    Raises:
        ValueError: a prompt or pivot that is too short for the marker, or less than one translation.

    Example:
        >>> batch = random_batch(2, prompt=5, answer=3, pivot=4, vocabulary=64, layers=2, device=torch.device("cpu"))
        >>> batch.input_ids.shape, batch.prompt.shape, batch.noise.shape
        (torch.Size([2, 8]), torch.Size([2, 5]), torch.Size([2, 2]))
    """
    if prompt < 2 or pivot < 2:
        raise ValueError(f"prompt, pivot: expected 2 or more tokens, got {prompt} and {pivot}")
    if translations < 1:
        raise ValueError(f"translations: expected 1 or more, got {translations}")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MARKER + 1, vocabulary, (rows, prompt + answer), generator=generator)
    ids[:, prompt - 2] = MARKER
    labels = ids.clone()
    labels[:, :prompt] = -100
    pivot_ids = torch.randint(MARKER + 1, vocabulary, (rows, pivot), generator=generator)
    pivot_ids[:, pivot - 2] = MARKER
    pivot_ids = pivot_ids[torch.arange(rows) // translations * translations]
    noise = -0.1 * torch.empty(rows, layers).exponential_(generator=generator).log()
    noise[torch.arange(rows), torch.randint(layers, (rows,), generator=generator)] += 5.0
    ids, labels, pivot_ids, noise = (tensor.to(device) for tensor in (ids, labels, pivot_ids, noise))
    return Batch(ids, labels, pivot_ids, noise, prompt, translations)


class Mode:
    """One way to train and to generate with the connection.

    Args:
        model: a stock model of the mode's own; its parameters may be shared with other modes.
        maker: the Decision Maker's weight `(L, d)`.
        matrix: the Transform Matrix `(d, d)`.
        pivot_grad: whether gradients flow through the English pass.
    """

    name: str
    connects = True
    available = True  # whether what it needs is there
    unavailable = "not installed"  # why, where it is not
    compiles = False  # with torch.compile, so that the first calls take long

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        self.model = model
        self.maker = maker
        self.matrix = matrix
        self.pivot_grad = pivot_grad

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a training step."""
        raise NotImplementedError

    def generate(self, ids: Tensor, new_tokens: int, noise: Tensor | None = None, **options: Any) -> Any:
        """Greedy tokens after the prompts `(B, P)`, as `transformers` returns them."""
        raise NotImplementedError

    def stock_generate(self, ids: Tensor, new_tokens: int, **options: Any) -> Any:
        """`generate` of the mode's model: greedy, never stopping early."""
        return self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, **options
        )

    def body(self, ids: Tensor) -> Any:
        """The decoder body alone, without the head and without a cache."""
        return self.model.model(input_ids=ids, use_cache=False)


class Vanilla(Mode):
    """Plain supervised fine-tuning and plain generation."""

    name = "vanilla"
    connects = False

    def loss(self, batch: Batch) -> Tensor:
        """The stock loss."""
        self.model.train()
        return self.model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss

    def generate(self, ids: Tensor, new_tokens: int, noise: Tensor | None = None, **options: Any) -> Any:
        """The stock tokens."""
        return self.stock_generate(ids, new_tokens, **options)


class TwoForwards(Vanilla):
    """Vanilla, after a plain run of the decoder body over the English prompts whose result is thrown away.

    No connection can cost less than this; it is the measured form of what the FLOP count predicts.
    """

    name = "two-forwards"

    def loss(self, batch: Batch) -> Tensor:
        """The stock loss, after the English pass."""
        self.model.train()
        with torch.set_grad_enabled(self.pivot_grad):
            self.body(batch.pivot_input_ids)
        return super().loss(batch)
