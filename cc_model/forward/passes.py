"""One run of the decoder layers that captures or injects: the state that travels in the layers' keyword arguments.

A pass is an opaque object, not a dataclass, list or dict, because mixed-precision wrappers copy those. Gradient
checkpointing keeps the layers' keyword arguments for the recompute, so the recompute sees the same pass. Inside a layer
the pass reaches the feed-forward block through a thread-local variable that is set for the duration of that layer only.

The rule for code under torch.compile: it writes to passes and slots, and reads nothing there that changes. The
compiler guards what is read. A recompute would find another value than the first run, so it would compile a second
graph, which saves other tensors than the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cc_kernels import add_rows, capture_rows, capture_rows_through
from cc_kernels.library import is_transformed
from cc_model.fast_paths.hooks import owns_output
from cc_model.fast_paths.last_layer import narrow_obstacle


class Active(threading.local):
    """The pass of the decoder layer that is running in this thread.

    Present from the start, because torch.compile guards on presence, too.
    """

    def __init__(self) -> None:
        self.layer_pass: Any = None


active = Active()


class LayerSlot:
    """The place of one feed-forward block in the decoder: its index, and whether it receives the connection.

    `captured` is written in compiled regions instead of `CapturePass.captured`: a store indexed by the layer would
    compile every layer anew.
    """

    def __init__(self, index: int, injects: bool) -> None:
        self.index = index
        self.injects = injects
        self.captured: Tensor | None = None


class CapturePass:
    """Copies one row of every feed-forward output for each of P rows: the bank `V[l, p] = f_l[p, index[p]]`.

    Without a gradient each layer writes its rows into the bank, which the first layer allocates. With one they are
    collected in a list and stacked.

    Args:
        rows: `(P,)` indices into the flattened `(P * S)` tokens, all valid; the caller knows which rows count.
        slots: the slots of all layers, in order.
        body: the decoder body that runs.
        read: somebody reads the result of the pass. Otherwise the last layer's feed-forward block may run on the
            captured rows alone (`cc_model.fast_paths.last_layer`).
    """

    def __init__(self, rows: Tensor, slots: list[LayerSlot], body: Any, read: bool = False) -> None:
        self.rows = rows
        self.slots = slots
        self.narrow = not read and narrow_obstacle(body) is None
        self.bank: Tensor | None = None
        self.captured: list[Tensor | None] = [None] * len(slots)  # with a bank these are its rows, once written
        self.sealed = False  # a recompute in the backward pass must not write again

    def feed_forward(self, slot: LayerSlot, output: Tensor, block: Any) -> Tensor:
        """Capture from `output` `(P, S, d)` of `block` and return its values unchanged."""
        flat = output.reshape(-1, output.shape[-1])
        rows = self.rows if self.rows.device == flat.device else self.rows.to(flat.device)
        if torch.is_grad_enabled():
            if not flat.requires_grad:
                self._keep(slot, capture_rows(flat, rows, assume_valid=True))
                return output
            # The backward adds the bank's gradient in one pass over the output's.
            flat, captured = capture_rows_through(flat, rows, assume_valid=True)
            self._keep(slot, captured)
            return flat.view_as(output)
        if torch.compiler.is_compiling() or self.sealed or type(flat) is not Tensor or is_transformed():
            self._keep(slot, capture_rows(flat, rows, assume_valid=True))
            return output
        place = self._place(slot, flat)
        if place is None:
            self._keep(slot, capture_rows(flat, rows, assume_valid=True))
        else:
            torch.index_select(flat, 0, rows, out=place)
            self.captured[slot.index] = place
        return output

    def narrowed(self, slot: LayerSlot, block: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """`block` on the captured rows of its input `(P, S, d)` alone; the result for all tokens is zeros.

        The layer may write to the result, so these are zeros in memory of their own.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        captured = block(capture_rows(flat, self.rows.to(flat.device), assume_valid=True)[:, None])[:, 0]
        self._keep(slot, captured)
        return captured.new_zeros(hidden.shape)

    def _place(self, slot: LayerSlot, flat: Tensor) -> Tensor | None:
        """Where the bank keeps this layer's rows; None where they are on another device or of another dtype."""
        if self.bank is None:
            self.bank = flat.new_empty(len(self.slots), self.rows.shape[0], flat.shape[1])
            self._rows_of_bank = self.bank.unbind(0)
        same = self.bank.device == flat.device and self.bank.dtype == flat.dtype
        return self._rows_of_bank[slot.index] if same else None

    def _keep(self, slot: LayerSlot, captured: Tensor) -> None:
        if torch.compiler.is_compiling():
            slot.captured = captured
        elif not self.sealed:
            self.captured[slot.index] = captured

    def collect(self, device: torch.device) -> Tensor:
        """Seal the pass and return the bank `(L, P, d)` on `device`.

        Raises:
            RuntimeError: a layer was not captured; the message names it.
        """
        self.sealed = True
        found = [slot.captured if kept is None else kept for slot, kept in zip(self.slots, self.captured)]
        for slot in self.slots:
            slot.captured = None
        missing = [index for index, captured in enumerate(found) if captured is None]
        if missing:
            raise RuntimeError(
                f"connection: the feed-forward blocks of layers {missing} of {len(found)} did not capture; their "
                "modules were replaced or bypassed after patch_model (see cc_model.report)"
            )
        if self.bank is None or any(captured.requires_grad for captured in found if captured is not None):
            return torch.stack([captured.to(device) for captured in found if captured is not None])
        for place, captured in zip(self._rows_of_bank, found):
            if captured is not None and captured is not place:  # compiled, narrowed, or on another device
                place.copy_(captured)
        return self.bank.to(device)


class InjectPass:
    """Adds the update `(B, d)` to the feed-forward output of one layer, at one token of each row.

    Args:
        rows: `(B,)` indices into the flattened tokens, −1 for a row without a connection.
        update: `(B, d)`.
    """

    narrow = False

    def __init__(self, rows: Tensor, update: Tensor) -> None:
        self.rows = rows
        self.update = update
        self.injected = 0

    def feed_forward(self, slot: LayerSlot, output: Tensor, block: Any) -> Tensor:
        """Add the update to `output` `(B, T, d)` of `block` if it receives it; in place where nobody else holds it."""
        if not slot.injects:
            return output
        flat = output.reshape(-1, output.shape[-1])
        inplace = not (output.is_leaf and output.requires_grad) and owns_output(block)
        added = add_rows(flat, self.rows.to(flat.device), self.update.to(flat.device), inplace=inplace)
        self.injected = 1 if torch.compiler.is_compiling() else self.injected + 1
        return added.view_as(output)

    def check(self) -> None:
        """Raise unless the update was added exactly once."""
        if self.injected != 1:
            raise RuntimeError(
                f"connection: expected one injection, got {self.injected}; the module of the inject layer was "
                "replaced or bypassed after patch_model (see cc_model.report)"
            )
