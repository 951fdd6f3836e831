"""Captured activations of a prompt, one row per layer: what the pivot pass and the fit of the matrix have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_model.data.positions import last_tokens, located
from cc_model.distributed import in_one_piece
from cc_model.forward.calls import Body, BodyOutput
from cc_model.forward.passes import CapturePass, LayerSlot
from cc_model.specs import body_of


def capture_bank(
    body: Any,
    stock: Body,
    slots: list[LayerSlot],
    device: torch.device,
    ids: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
) -> tuple[Tensor, Tensor, BodyOutput]:
    """Run the decoder body, without the head, and capture one token of each row.

    Args:
        body: the decoder body.
        stock: its stock forward.
        slots: the slots of all layers.
        device: where the bank is collected.
        ids: `(B, S)`.
        mask: `(B, S)` or None.
        index: `(B,)` or None for the last attended token.

    Returns:
        The bank `(L, B, d)`; which rows are usable `(B,)`, that is, have an attended token and an index in range (the
        others hold finite numbers without meaning); the body's output, whose hidden states are without meaning.
    """
    usable, tokens = captured_tokens(ids, mask, index)
    if mask is not None:
        # An empty row attends to its padding instead of to nothing: finite numbers, which are then left out.
        mask = torch.where((mask != 0).any(dim=1, keepdim=True), mask, 1)
    capture = CapturePass(tokens, slots, body)
    output = stock(
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
        output_hidden_states=False,
        output_attentions=False,
        cc_pass=capture,
    )
    return capture.collect(device), usable, output


def captured_tokens(ids: Tensor, mask: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows of `capture_bank`'s arguments are usable `(B,)`, and the captured tokens, flat, `(B,)`."""
    rows, length = ids.shape
    last = last_tokens(mask, rows, length, ids.device)
    tokens, usable = located(last if index is None else index, length)
    return usable & (last >= 0), tokens


class BankCall:
    """A run of the decoder body that captures and does nothing else: `bank` `(L, B, d)`, and `usable` `(B,)`."""

    bank: Tensor
    usable: Tensor

    def __init__(self, slots: list[LayerSlot], device: torch.device, index: Tensor | None) -> None:
        self.slots = slots
        self.device = device
        self.index = index

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> BodyOutput:
        """`capture_bank` with the stock forward of the decoder body."""
        ids, mask = named["input_ids"], named["attention_mask"]
        index = None if self.index is None else self.index.to(ids.device)
        self.bank, self.usable, output = capture_bank(body, stock, self.slots, self.device, ids, mask, index)
        return output


def captured_bank(model: Any, inner: Any, ids: Any, mask: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bank `(L, B, d)` of prompts through a patched model, and which rows are usable `(B,)`, on one device.

    Args:
        model: outermost module; a sharded model gathers its parameters only in a forward of it.
        inner: the patched model in it.
        ids: `(B, T)`.
        mask: `(B, T)` or None.
        index: `(B,)` or None for the last attended token.
    """
    device = inner.get_input_embeddings().weight.device
    to_body = ids.device if device.type == "meta" else device  # meta: offloaded
    mask = None if mask is None else mask.to(to_body)
    ids = ids.to(to_body)
    call = BankCall(inner.cc_slots(), inner.cc.device_like(ids), index)
    if in_one_piece(inner):
        body_of(inner)(input_ids=ids, attention_mask=mask, return_dict=True, cc_call=call)
    else:
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, cc_call=call)
    return call.bank, call.usable.to(call.device)
