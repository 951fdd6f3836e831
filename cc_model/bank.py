"""Captured activations of a prompt, one row per layer: what the pivot pass and the fit of the matrix have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cc_model.calls import Body, hidden_of
from cc_model.passes import CapturePass, LayerSlot
from cc_model.positions import flat_rows, in_range, last_attended


def capture_bank(
    body: Body,
    slots: list[LayerSlot],
    device: torch.device,
    ids: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the decoder body, without the head, and capture one token of each row.

    Args:
        body: runs the decoder layers with `cc_pass` in its keyword arguments.
        slots: the slots of all layers.
        device: where the bank is collected.
        ids: `(B, S)`.
        mask: `(B, S)` or None.
        index: `(B,)` or None for the last attended token.

    Returns:
        The bank `(L, B, d)`; which rows are usable `(B,)`, that is, have an attended token and an index in range (the
        others hold finite numbers without meaning); the last hidden state `(B, S, d)`.
    """
    rows, length = ids.shape
    if mask is None:
        usable = torch.ones(rows, dtype=torch.bool, device=ids.device)
        last = torch.full((rows,), length - 1, device=ids.device)
    else:
        last = last_attended(mask)
        usable = last >= 0
        # An empty row attends to its padding instead of to nothing: finite numbers, which are then left out.
        mask = torch.where(usable[:, None], mask, 1)
    if index is not None:
        usable = usable & in_range(index, length)
    capture = CapturePass(flat_rows(last if index is None else index, length), slots)
    output = body(
        input_ids=ids,
        attention_mask=mask,
        use_cache=False,
        output_hidden_states=False,
        output_attentions=False,
        cc_pass=capture,
    )
    return capture.collect(device), usable, hidden_of(output)


class BankCall:
    """A run of the decoder body that captures and does nothing else."""

    def __init__(self, slots: list[LayerSlot], device: torch.device) -> None:
        self.slots = slots
        self.device = device

    def run(self, body: Any, stock: Body, named: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """`capture_bank` with the stock forward of the decoder body."""
        return capture_bank(stock, self.slots, self.device, **named)


def captured_bank(model: Any, ids: Any, mask: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bank `(L, B, d)` of prompts through a patched model, and which rows are usable `(B,)`, on one device."""
    embeddings = model.get_input_embeddings().weight
    if isinstance(embeddings, DTensor):
        raise NotImplementedError(
            "fit_transform_matrix: a sharded model (FSDP2) is not supported; load the saved model unsharded to fit"
        )
    to_body = ids.device if embeddings.device.type == "meta" else embeddings.device  # meta: offloaded
    mask, index = (None if t is None else t.to(to_body) for t in (mask, index))
    ids = ids.to(to_body)
    device = model.cc.device_like(ids)
    body = model.get_decoder()
    bank, usable, _ = body(ids=ids, mask=mask, index=index, cc_call=BankCall(model.cc_slots(), device))
    return bank, usable.to(device)
