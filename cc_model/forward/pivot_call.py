"""The connected forward with an English prompt: pivot pass, decision, main pass.

With `CCConfig(simulated_share=...)` some rows, in training, read what inference gives them instead of the English bank:
their own activations, mapped by the Transform Matrix. One more pass over the main rows, without a gradient, captures
them; when all rows do so, it takes the place of the pivot pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_kernels import capture_rows
from cc_model.compat import with_cache
from cc_model.connection.decision_maker import mapped_bank
from cc_model.connection.state import CrossLingualConnection
from cc_model.data.positions import in_range, located, mark_skipped
from cc_model.forward.bank import capture_bank, captured_tokens
from cc_model.forward.calls import (
    Body,
    BodyOutput,
    ConnectedCall,
    flatten,
    hidden_of,
    input_shape,
    token_embeddings,
    with_embeddings,
)
from cc_model.forward.passes import CapturePass, InjectPass, LayerSlot
from cc_model.forward.reentrant import carried, uses_reentrant_checkpointing


class PivotCall(ConnectedCall):
    """Training and evaluation with the English prompt: a pivot pass that fills the bank, then the main pass.

    Args:
        pivot_ids: `(B, S)`.
        pivot_mask: `(B, S)` or None.
        pivot_index: `(B,)` or None for the last attended pivot token.
        packed: rows hold several examples; pivots are one per example, and indices count through all tokens.
    """

    def __init__(
        self,
        connection: CrossLingualConnection,
        slots: list[LayerSlot],
        pivot_ids: Tensor,
        pivot_mask: Tensor | None = None,
        pivot_index: Tensor | None = None,
        packed: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(connection, slots, **shared)
        self.pivot_ids = pivot_ids
        self.pivot_mask = pivot_mask
        self.pivot_index = pivot_index
        self.packed = packed

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """Pivot pass, decision, main pass with the connection."""
        rows, length = input_shape(named)
        config, training = self.connection.config, self.connection.training
        share = config.simulated_share if training else 0.0
        bank, has_pivot = self.pivot_bank(body, stock) if share < 1 else (None, self.has_pivot())
        if self.packed:
            named = {**named, "use_cache": False}  # with a cache the stock model ignores that positions restart
        elif bank is not None and bank.shape[1] != rows:  # beams and returned sequences: each prompt's row, repeated
            repeats = rows // bank.shape[1]
            bank, has_pivot = bank.repeat_interleave(repeats, dim=1), has_pivot.repeat_interleave(repeats)
        # One lookup serves both the decision and the main pass, so that the embedding gets one dense gradient, not two.
        embeds = token_embeddings(body, named)
        index = self.connection_index(named, rows, length, embeds.device)
        tokens, in_row = self.located(index, rows, length)
        if share > 0:
            bank = self.with_simulated(bank, body, stock, named, tokens, share)
        assert bank is not None
        row_embeds = capture_rows(flatten(embeds), tokens, assume_valid=True)
        keep = in_row & has_pivot.to(index.device)
        if training and config.connection_dropout > 0:
            keep = keep & (torch.rand(keep.shape, device=keep.device) >= config.connection_dropout)
        keep_bank = keep.to(bank.device)
        bank = torch.where(keep_bank[None, :, None], bank, 0.0)
        update = self.decide(bank, row_embeds, keep_bank)
        if uses_reentrant_checkpointing(body) and update.requires_grad:
            embeds, update = carried(embeds, update)
        injection = InjectPass(mark_skipped(tokens, keep), update)
        output = stock(**with_embeddings(body, named, embeds), cc_pass=injection)
        injection.check()
        return output

    def located(self, index: Tensor, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """The connected tokens in the flattened `(B * T)` axis, and which of them are in range."""
        if self.packed:  # flat already
            return index.clamp(0, rows * length - 1), in_range(index, rows * length)
        return located(index, length)

    def pivot_bank(self, body: Any, stock: Body) -> tuple[Tensor, Tensor]:
        """The bank `(L, B, d)` and which rows have a pivot `(B,)`."""
        device = self.connection.device_like(self.pivot_ids)
        with_grad = torch.is_grad_enabled() and self.connection.config.pivot_grad
        with torch.set_grad_enabled(with_grad):
            pivot = (self.pivot_ids, self.pivot_mask, self.pivot_index)
            bank, has_pivot, output = capture_bank(body, stock, self.slots, device, *pivot)
            if with_grad:
                self.refuse_lost_gradient(bank, body)
                # Sharded wrappers unshard in a backward hook of the pass's result, which the bank alone never reaches.
                bank = bank + hidden_of(output)[:, :0].sum().to(device=device, dtype=bank.dtype)
        return bank, has_pivot

    def has_pivot(self) -> Tensor:
        """Which rows have a pivot `(B,)`, when its activations are not needed."""
        return captured_tokens(self.pivot_ids, self.pivot_mask, self.pivot_index)[0]

    def with_simulated(
        self, bank: Tensor | None, body: Any, stock: Body, named: dict[str, Any], tokens: Tensor, share: float
    ) -> Tensor:
        """The bank `(L, B, d)`, in which a random `share` of the rows has what inference gives them.

        `tokens` `(B,)` are the connected ones. Attention is causal, so the answer after them changes nothing.
        """
        matrix, bias = self.connection.transform_matrix, self.connection.transform_bias
        if matrix is None:
            raise ValueError(
                f"simulated_share: expected a Transform Matrix for {share}, got none; call fit_transform_matrix(model, "
                "...) before training, and again as the model changes"
            )
        quiet = {"use_cache": False, "output_hidden_states": False, "output_attentions": False}
        capture = CapturePass(tokens, self.slots, body)
        with torch.no_grad():
            stock(**{**with_cache(named, None), **quiet}, cc_pass=capture)
        own = mapped_bank(capture.collect(self.connection.device_like(tokens)), matrix, bias)
        if bank is None:
            return own
        chosen = torch.rand(tokens.shape, device=bank.device) < share
        return torch.where(chosen[None, :, None], own, bank)

    def refuse_lost_gradient(self, bank: Tensor, body: Any) -> None:
        """Reentrant checkpointing runs the layers without a graph, so the captures would carry no gradient."""
        blocks = [module for module in body.modules() if hasattr(module, "cc_slot")]
        expected = any(parameter.requires_grad for block in blocks for parameter in block.parameters())
        # Of layers that are checkpointed in part, some captures have a gradient, and so has the bank.
        if uses_reentrant_checkpointing(body) or (expected and not bank.requires_grad):
            raise RuntimeError(
                "pivot_grad: expected captures with a gradient, got none; reentrant gradient checkpointing loses it. "
                "Use gradient_checkpointing_kwargs={'use_reentrant': False}, or CCConfig(pivot_grad=False)"
            )
