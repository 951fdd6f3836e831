"""The published implementation's way, written anew from its description: loops over rows and layers, and the host.

Where the description is silent the cheaper choice was made, for example the head of the inference prefills on the last
token only. Like the recipe of the paper, the English pass carries no gradient unless `pivot_grad` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.base import MARKER, Batch, Mode

Hook = Callable[[Any, Any, Tensor], None]


def positions(ids: Tensor) -> list[int]:
    """The token after the last marker of each row, read to the host row by row."""
    return [int((row == MARKER).nonzero()[-1].item()) + 1 for row in ids]


class Published(Mode):
    """Captures and connects row by row; head in the English pass; two prefills; Gumbel noise at inference too."""

    name = "published"

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        self.host_matrix = matrix.float().cpu()  # uploaded for each prompt

    @contextmanager
    def hooked(self, make_hook: Callable[[int], Hook]) -> Iterator[None]:
        """A hook of its own on each feed-forward block."""
        layers = self.model.model.layers
        handles = [layer.mlp.register_forward_hook(make_hook(index)) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def bank(self, ids: Tensor, **options: Any) -> Tensor:
        """`(L, B, d)` by one copy per layer and row; runs the whole model, with its head."""
        places = positions(ids)
        captured: list[Tensor] = []

        def make_hook(_: int) -> Hook:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                rows = [output[row, place].clone() for row, place in enumerate(places)]
                captured.append(torch.stack(rows))

            return hook

        with self.hooked(make_hook):
            self.model(input_ids=ids, use_cache=False, **options)
        return torch.stack(captured)

    def decide(self, bank: Tensor, ids: Tensor, places: list[int], noise: Tensor | None) -> Tensor:
        """Straight-through weights `(B, L)`."""
        tokens = torch.stack([ids[row, place] for row, place in enumerate(places)])
        embeds = self.model.get_input_embeddings()(tokens)
        logits = (bank.float().mean(0) + embeds.float()) @ self.maker.float().T
        if noise is None:
            noise = -torch.empty_like(logits).exponential_().log()
        soft = torch.softmax(logits + noise, dim=-1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(-1, keepdim=True), 1.0)
        return hard - soft.detach() + soft

    def connecting(self, bank: Tensor, weights: Tensor, places: list[int]) -> Any:
        """Layer 0 of the next forward adds the weighted sum of the bank, row by row."""
        done: list[bool] = []

        def make_hook(index: int) -> Hook:
            def hook(module: Any, args: Any, output: Tensor) -> None:
                if index > 0 or done:
                    return
                done.append(True)
                for row, place in enumerate(places):
                    mixed = (weights[row][:, None] * bank[:, row].float()).sum(0)
                    output[row, place] += mixed.to(output.dtype)

            return hook

        return self.hooked(make_hook)

    def loss(self, batch: Batch) -> Tensor:
        """English pass with head, decision, main pass."""
        self.model.train()
        with torch.set_grad_enabled(self.pivot_grad):
            bank = self.bank(batch.pivot_input_ids)
        places = positions(batch.input_ids)
        weights = self.decide(bank, batch.input_ids, places, batch.noise)
        with self.connecting(bank, weights, places):
            return self.model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss

    @torch.no_grad()
    def generate(self, ids: Tensor, new_tokens: int, noise: Tensor | None = None, **options: Any) -> Any:
        """Capturing prefill, the whole bank in fp32 times an uploaded matrix, and a second prefill that connects."""
        self.model.eval()
        bank = self.bank(ids, logits_to_keep=1).float()
        bank = (bank.flatten(0, 1) @ self.host_matrix.to(ids.device)).view_as(bank)
        places = positions(ids)
        weights = self.decide(bank, ids, places, noise)
        with self.connecting(bank, weights, places):
            return self.stock_generate(ids, new_tokens, **options)
