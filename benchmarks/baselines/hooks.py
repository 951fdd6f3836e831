"""Forward hooks as a good engineer writes them: vectorised, positions on the device, no head in the English pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.base import Batch, Mode


def decide_and_select(bank: Tensor, embeds: Tensor, weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The Decision Maker and its straight-through choice, with ordinary tensor code.

    Args:
        bank: `(L, K, d)`.
        embeds: `(K, d)`.
        weight: `(L, d)`.
        noise: `(K, L)`, fp32.

    Returns:
        The update `(K, d)` and the weights `(K, L)`, both as `cc_kernels.connect` gives them.
    """
    captured = torch.stack(list(bank), dim=1).float()  # (K, L, d)
    logits = (captured.mean(1) + embeds.float()) @ weight.float().T + noise
    soft = torch.softmax(logits, dim=-1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(-1, keepdim=True), 1.0)
    weights = hard - soft.detach() + soft
    return (weights[:, :, None] * captured).sum(1).to(bank.dtype), weights


class HookState:
    """What the hooks of one model do at present: capture, inject, or nothing."""

    def __init__(self) -> None:
        self.capture: Tensor | None = None  # rows of the flattened (B * T) tokens
        self.inject: tuple[Tensor, Tensor] | None = None  # rows and update


def _after_feed_forward(module: Any, args: Any, output: Tensor) -> None:
    state = module.hook_state
    if state.capture is not None:
        module.captured = output.flatten(0, 1).index_select(0, state.capture)
    elif module.injects and state.inject is not None:
        rows, update = state.inject
        output.flatten(0, 1).index_add_(0, rows, update)  # the output is fresh: nobody saved it


def last_of_rows(ids: Tensor) -> Tensor:
    """Flattened index of the last token of each row."""
    return torch.arange(ids.shape[1] - 1, ids.numel(), ids.shape[1], device=ids.device)


def before_labels(labels: Tensor) -> Tensor:
    """Flattened index of the token before the first label of each row, found on the device."""
    starts = torch.arange(0, labels.numel(), labels.shape[1], device=labels.device)
    return starts + (labels != -100).int().argmax(dim=1) - 1


class Hooks(Mode):
    """Hooks on the feed-forward blocks that gather and scatter all rows in one op. At inference, two prefills."""

    name = "hooks"

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        self.state = HookState()
        self.decide = decide_and_select
        self.blocks = [layer.mlp for layer in model.model.layers]
        for index, block in enumerate(self.blocks):
            block.hook_state, block.injects, block.captured = self.state, index == 0, None
            block.register_forward_hook(_after_feed_forward)

    def bank(self, ids: Tensor) -> Tensor:
        """Feed-forward outputs `(L, B, d)` at the last token of each row."""
        self.state.capture = last_of_rows(ids)
        try:
            self.body(ids)
        finally:
            self.state.capture = None
        captured = torch.stack([block.captured for block in self.blocks])
        for block in self.blocks:
            block.captured = None
        return captured

    def loss(self, batch: Batch) -> Tensor:
        """English pass, decision, main pass; the embeddings are looked up once for both uses."""
        self.model.train()
        with torch.set_grad_enabled(self.pivot_grad):
            bank = self.bank(batch.pivot_input_ids)
        rows = before_labels(batch.labels)
        embeds = self.model.get_input_embeddings()(batch.input_ids)
        update, _ = self.decide(bank, embeds.flatten(0, 1)[rows], self.maker, batch.noise)
        self.state.inject = (rows, update)
        try:
            return self.model(inputs_embeds=embeds, labels=batch.labels, use_cache=False).loss
        finally:
            self.state.inject = None

    @torch.no_grad()
    def generate(self, ids: Tensor, new_tokens: int, noise: Tensor | None = None, **options: Any) -> Any:
        """A prefill of the body that captures, then `generate` with the connection in its prefill."""
        self.model.eval()
        bank = self.bank(ids) @ self.matrix
        embeds = self.model.get_input_embeddings()(ids[:, -1])
        noise = embeds.new_zeros((), dtype=torch.float32) if noise is None else noise
        update, _ = self.decide(bank, embeds, self.maker, noise)
        rows = last_of_rows(ids)
        self.state.inject = (rows, update)
        handle = self.blocks[0].register_forward_hook(self._finish)
        try:
            return self.stock_generate(ids, new_tokens, **options)
        finally:
            handle.remove()
            self.state.inject = None

    def _finish(self, module: Any, args: Any, output: Tensor) -> None:
        self.state.inject = None  # decode steps add nothing
