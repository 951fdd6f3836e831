"""Captured activations of a prompt, one row per layer: what the pivot pass and the fit of the matrix have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.data.columns import PIVOT_COLUMNS, PivotBank, check_connection_arguments
from cc_model.data.positions import flat_rows, in_range, last_tokens
from cc_model.distributed import in_one_piece, without_wrappers
from cc_model.forward.calls import Body, BodyOutput, PlainCall
from cc_model.forward.passes import CapturePass, LayerSlot
from cc_model.forward.pivot_graph import hidden_without_meaning, replayed_bank
from cc_model.specs import body_of, unwrap


def capture_bank(
    body: Any,
    stock: Body,
    slots: list[LayerSlot],
    device: torch.device,
    ids: Tensor,
    mask: Tensor | None,
    index: Tensor | None,
) -> tuple[Tensor, Tensor | None, BodyOutput]:
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
        The bank `(L, B, d)`; which rows are usable `(B,)`, None: all, that is, have an attended token and an index in
        range (the others hold finite numbers without meaning); the body's output, whose hidden states have no meaning.
    """
    usable, tokens = captured_tokens(ids, mask, index)
    bank = replayed_bank(body, stock, slots, ids, mask, tokens)
    if bank is not None:
        return bank.to(device), usable, hidden_without_meaning(bank, ids)
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


def captured_tokens(ids: Tensor, mask: Tensor | None, index: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Which rows of `capture_bank`'s arguments are usable `(B,)`, None: all; and the captured tokens, flat, `(B,)`."""
    rows, length = ids.shape
    if mask is None and index is None:
        return None, torch.arange(length - 1, rows * length, length, device=ids.device)
    last = last_tokens(mask, rows, length, ids.device)
    usable = last >= 0
    if index is None:
        return usable, flat_rows(last, length)
    return usable & in_range(index, length), flat_rows(index, length)


class BankCall(PlainCall):
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
        self.bank, usable, output = capture_bank(body, stock, self.slots, self.device, ids, mask, index)
        self.usable = torch.ones(len(ids), dtype=torch.bool, device=ids.device) if usable is None else usable
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


@torch.no_grad()
def pivot_bank(model: nn.Module, batch: Mapping[str, Any]) -> PivotBank:
    """The captured activations of a batch's English prompts, for the forward's `pivot_bank`.

        V[l, p] = f_l[p, pivot_index[p]]        f_l: feed-forward output of layer l in the pivot pass

    A forward that gets the bank runs no pivot pass. Several micro-batches of one optimizer step may share a bank, since
    the weights do not change between them; `pivot_row` says which row of it each of their rows reads.

    Args:
        model: a patched model, also inside wrappers (PEFT, DDP, FSDP2: then every process calls).
        batch: `pivot_input_ids` `(P, S)` and, if there, `pivot_attention_mask` `(P, S)` and `pivot_index` `(P,)`;
            other keys are ignored. The model's mode holds, as in the forward itself.

    Returns:
        `PivotBank(bank, usable)`: `(L, P, d)` in the activations' dtype, without a gradient, and `(P,)` bool, which
        rows have an attended token and an index in range. The forward takes the pair, or the bank alone, whose rows
        then all count as usable.

    Raises:
        TypeError: `model` is no torch module, or an argument in `batch` is no tensor or has the wrong dtype.
        ValueError: the model is not patched, `batch` has no `pivot_input_ids`, or a shape is wrong.

    Example:
        >>> import torch
        >>> from cc_model import patch_model, pivot_bank
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("llama"))
        >>> bank, usable = pivot_bank(model, {"pivot_input_ids": torch.tensor([[5, 6, 7]])})
        >>> tuple(bank.shape), usable
        ((4, 1, 64), tensor([True]))
        >>> ids = torch.tensor([[1, 2], [3, 4]])
        >>> rows = torch.tensor([0, 0])  # both rows are translations of it
        >>> tuple(model(ids, pivot_bank=bank, pivot_row=rows).decision_weights.shape)
        (2, 4)
    """
    root = without_wrappers(model)
    inner: Any = unwrap(root)
    if "cc" not in getattr(inner, "_modules", {}):
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    given = {name: batch.get(name) for name in PIVOT_COLUMNS}
    ids = given["pivot_input_ids"]
    if ids is None:
        raise ValueError(f"batch: expected pivot_input_ids, got {sorted(batch)}")
    rows = ids.shape[0] if isinstance(ids, Tensor) and ids.ndim else 0
    check_connection_arguments(given, rows, inner.cc.num_layers)
    return PivotBank(*captured_bank(root, inner, *given.values()))
