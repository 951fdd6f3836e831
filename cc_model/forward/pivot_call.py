"""The connected forward with an English prompt: pivot pass, decision, main pass.

Each English prompt of the batch runs once, whichever number of rows reads it. A bank that was captured before takes the
place of the pivot pass.

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
from cc_model.data.columns import PivotBank
from cc_model.data.positions import in_range, located, mark_skipped
from cc_model.forward.bank import capture_bank, captured_tokens
from cc_model.forward.calls import (
    Body,
    BodyOutput,
    ConnectedCall,
    flatten,
    hidden_of,
    token_embeddings,
    with_embeddings,
)
from cc_model.forward.masks import with_ready_mask, without_empty_cache
from cc_model.forward.passes import CapturePass, InjectPass, LayerSlot
from cc_model.forward.reentrant import carried, uses_reentrant_checkpointing


class PivotCall(ConnectedCall):
    """Training and evaluation with the English prompt: a pivot pass that fills the bank, then the main pass.

    Args:
        pivots: the checked arguments of `cc_model.data.columns.PIVOT_ARGUMENTS`; missing ones are None.
        packed: rows hold several examples; the connection has an entry for each, and indices count through all tokens.
    """

    def __init__(
        self,
        connection: CrossLingualConnection,
        slots: list[LayerSlot],
        shape: tuple[int, int],
        pivots: dict[str, Any],
        packed: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(connection, slots, shape, **shared)
        self.pivot_ids: Any = pivots.get("pivot_input_ids")
        self.pivot_mask, self.pivot_index = pivots.get("pivot_attention_mask"), pivots.get("pivot_index")
        self.pivot_row = pivots.get("pivot_row")
        bank = pivots.get("pivot_bank")
        self.given_bank: Any = PivotBank(bank, None) if isinstance(bank, Tensor) else bank
        self.packed = packed

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """Pivot pass, decision, main pass with the connection."""
        config, training = self.connection.config, self.connection.training
        share = config.simulated_share if training else 0.0
        if self.packed:
            named = {**named, "use_cache": False}  # with a cache the stock model ignores that positions restart
        # One lookup serves both the decision and the main pass, so that the embedding gets one dense gradient, not two.
        embeds = token_embeddings(body, named)
        main = with_ready_mask(body, named, embeds)
        bank, usable = self.pivot_bank(body, stock) if share < 1 else (None, self.usable())
        index = self.connection_index(named, embeds.device)
        source, has_pivot = self.source(usable, index)
        tokens, in_row = self.located(index)
        keep = in_row if has_pivot is None else in_row & has_pivot
        if training and config.connection_dropout > 0:
            keep = keep & (torch.rand(keep.shape, device=keep.device) >= config.connection_dropout)
        skip = ~keep
        if share > 0:
            bank, source = self.with_simulated(bank, source, body, stock, named, tokens, share)
        assert bank is not None
        source, added_at = mark_skipped(source, skip), mark_skipped(tokens, skip)
        update = self.decide(bank, capture_rows(flatten(embeds), tokens, assume_valid=True), source)
        if uses_reentrant_checkpointing(body) and update.requires_grad:
            embeds, update = carried(embeds, update)
        injection = InjectPass(added_at, update)
        output = stock(**with_embeddings(body, main, embeds), cc_pass=injection)
        injection.check()
        return without_empty_cache(output)

    def located(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The connected tokens in the flattened `(B * T)` axis, and which of them are in range."""
        if self.packed:  # flat already
            count = self.rows * self.length
            return index.clamp(0, count - 1), in_range(index, count)
        return located(index, self.length)

    def source(self, usable: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The row of the bank that each row reads `(B,)`, and whether that is a pivot `(B,)`; None: all are.

        Args:
            usable: `(P,)` which rows of the bank are pivots; None: all.
            index: `(B,)`, for the number of rows. Beams and returned sequences repeat the rows of a prompt.
        """
        count, device, pivots = index.shape[0], index.device, self.pivots
        if self.pivot_row is None:
            source, has_pivot = torch.arange(pivots, device=device), usable
        else:
            source = self.pivot_row.to(device)
            has_pivot = in_range(source, pivots)
            if usable is not None and pivots > 0:
                has_pivot = has_pivot & usable.to(device)[source.clamp(0, pivots - 1)]
        has_pivot = None if has_pivot is None else has_pivot.to(device)
        repeats = count // max(source.shape[0], 1)
        if repeats > 1:
            source = source.repeat_interleave(repeats)
            has_pivot = None if has_pivot is None else has_pivot.repeat_interleave(repeats)
        return source, has_pivot

    @property
    def pivots(self) -> int:
        """P, the number of pivots."""
        if self.pivot_ids is not None:
            return self.pivot_ids.shape[0]
        return self.given_bank.bank.shape[1]

    def pivot_bank(self, body: Any, stock: Body) -> tuple[Tensor, Tensor | None]:
        """The bank `(L, P, d)` and which rows have a pivot `(P,)`; None: all."""
        if self.given_bank is not None:
            return self.taken_bank()
        device = self.connection.device_like(self.pivot_ids)
        with_grad = torch.is_grad_enabled() and self.connection.config.pivot_grad
        with torch.set_grad_enabled(with_grad):
            pivot = (self.pivot_ids, self.pivot_mask, self.pivot_index)
            bank, usable, output = capture_bank(body, stock, self.slots, device, *pivot)
            if with_grad:
                self.refuse_lost_gradient(bank, body)
                # Sharded wrappers unshard in a backward hook of the pass's result, which the bank alone never reaches.
                bank = bank + hidden_of(output)[:, :0].sum().to(device=device, dtype=bank.dtype)
        return bank, usable

    def taken_bank(self) -> tuple[Tensor, Tensor | None]:
        """The bank that was captured before."""
        if torch.is_grad_enabled() and self.connection.training and self.connection.config.pivot_grad:
            raise ValueError(
                "pivot_bank: expected pivot_input_ids with pivot_grad=True, whose gradient goes into the pivot pass, "
                "got a bank"
            )
        bank, usable = self.given_bank
        width = self.connection.hidden_size
        if bank.shape[-1] != width:
            raise ValueError(f"pivot_bank: expected shape (L, P, d) with d = {width}, got {tuple(bank.shape)}")
        return bank.to(self.connection.device_like(bank)), usable

    def usable(self) -> Tensor | None:
        """Which rows have a pivot `(P,)`, when its activations are not needed."""
        if self.given_bank is not None:
            return self.given_bank.usable
        return captured_tokens(self.pivot_ids, self.pivot_mask, self.pivot_index)[0]

    def with_simulated(
        self,
        bank: Tensor | None,
        source: Tensor,
        body: Any,
        stock: Body,
        named: dict[str, Any],
        tokens: Tensor,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        """The bank with the rows' own mapped activations behind the pivots, and who reads which: a random `share`.

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
        own_row = torch.arange(tokens.shape[0], device=source.device)
        if bank is None:
            return own, own_row
        chosen = torch.rand(tokens.shape, device=source.device) < share
        return torch.cat([bank, own], dim=1), torch.where(chosen, bank.shape[1] + own_row, source)

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
