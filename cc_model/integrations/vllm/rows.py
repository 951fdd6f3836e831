"""The rows of a step: which are captured, which receive an update, and the buffers that the layers read them from.

    bank[l, k] = f_l[captured[k]]      where captured[k] >= 0, in every layer l
    f_i[added[k]] += update[k]         where added[k] >= 0, in the layer i = `inject_layer`

`f_l` `(N, d)` is what layer l adds to its stream for the N tokens of a step. There are K slots, one for each request
that may wait between its two runs. A request's connection token runs twice: the first run captures, and before the
second one the Decision Maker makes the update. The buffers are made before graphs are recorded, and only their
contents change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cc_kernels import capture_add_rows_
from cc_model.connection.state import CrossLingualConnection


@dataclass
class Followed:
    """A request that connects: its connection index, the token there, and the slot that holds what was captured."""

    index: int
    token: int
    slot: int | None = None


@dataclass
class LayerRows:
    """The buffers of one layer: `bank` and `update` `(K, d)`, `captured` and `added` `(K,)` int64."""

    rows: Rows
    bank: Tensor
    captured: Tensor
    added: Tensor
    update: Tensor

    def apply_(self, x: Tensor) -> None:
        """Capture from `x` `(…, d)`, N rows in all, and add to it, in place."""
        if self.rows.idle and x.device.type == "cpu":  # nothing is recorded here, so nothing has to be launched
            return
        capture_add_rows_(x.view(-1, x.shape[-1]), self.bank, self.captured, self.added, self.update)


class Rows:
    """The buffers of a model, and the requests that have not connected yet.

    Args:
        connection: Decision Maker, matrix and options.
        slots: K, the most requests that run at once.
        dtype: of the layers' activations.
        device: where the model runs.
        embed: input embeddings `(n, d)` of token ids `(n,)`.
    """

    def __init__(
        self,
        connection: CrossLingualConnection,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        layers, width = connection.num_layers, connection.hidden_size
        self.connection, self.device, self.embed = connection, device, embed
        self.bank = torch.zeros(layers, slots, width, dtype=dtype, device=device)
        self.update = torch.zeros(slots, width, dtype=dtype, device=device)
        self.captured, self.added, self.none = torch.full((3, slots), -1, dtype=torch.int64, device=device)
        self.idle = True
        self.again: dict[str, int] = {}  # of the running step: how many tokens of a request run again after it
        self._waiting: dict[str, Followed] = {}
        self._free = list(range(slots))

    def of_layer(self, layer: int) -> LayerRows:
        """The buffers that a layer's op reads."""
        added = self.added if layer == self.connection.config.inject_layer else self.none
        return LayerRows(self, self.bank[layer], self.captured, added, self.update)

    def begin(self, request: str, index: int, token: int) -> None:
        """Follow a request from its first token, or anew after it lost its keys and values.

        Raises:
            RuntimeError: the connection has no matrix, so its weights were not loaded.
        """
        if self.connection.transform_matrix is None:
            raise RuntimeError("load_format: expected one that loads by `load_weights`, got a model without a matrix")
        self.forget(request)
        self._waiting[request] = Followed(index, token)

    def forget(self, request: str) -> None:
        """Follow a request no longer."""
        followed = self._waiting.pop(request, None)
        if followed is not None and followed.slot is not None:
            self._free.append(followed.slot)

    def plan(
        self, positions: Mapping[str, int], starts: Sequence[int], computed: Sequence[int], scheduled: Sequence[int]
    ) -> dict[str, int]:
        """Set the buffers for a step.

        Args:
            positions: place in the batch of each request that runs.
            starts: first row of each request in the step, by place.
            computed: how many of its tokens have run, by place.
            scheduled: how many run now, by place.

        Returns:
            For each request that is captured, how many of its tokens run again after this step.
        """
        self.finish()
        captures: list[tuple[int, int]] = []
        adds: list[tuple[int, int, int]] = []
        for request, followed in list(self._waiting.items()):
            place = positions.get(request)
            if place is None:
                continue
            before, after = int(computed[place]), int(computed[place]) + int(scheduled[place])
            if not before <= followed.index < after:
                continue
            row = int(starts[place]) + followed.index - before
            if followed.slot is None:
                followed.slot = self._free.pop()
                captures.append((followed.slot, row))
                self.again[request] = after - followed.index
            else:
                adds.append((followed.slot, row, followed.token))
                self.forget(request)
        if captures:
            slots, rows = self.to_device(captures)
            self.captured.index_copy_(0, slots, rows)
        if adds:
            self._decide(adds)
        self.idle = not (captures or adds)
        return self.again

    def _decide(self, adds: list[tuple[int, int, int]]) -> None:
        """Make the updates of slots whose token runs for the second time, from what the first run captured."""
        slots, rows, tokens = self.to_device(adds)
        own, cc = self.connection, self.connection.config
        matrix, bias = own.transform_matrix, own.transform_bias
        bank = self.bank.index_select(1, slots)
        update, _ = own.decision_maker(bank, self.embed(tokens), None, cc, None, matrix, bias)
        self.update.index_copy_(0, slots, update.to(self.update.dtype))
        self.added.index_copy_(0, slots, rows)

    def finish(self) -> None:
        """Clear the plan, so that a forward without one, such as a dummy run, captures and adds nothing."""
        self.again = {}
        if not self.idle:
            self.captured.fill_(-1)
            self.added.fill_(-1)
            self.idle = True

    def to_device(self, columns: list[Any]) -> Tensor:
        """The columns of a list of rows, on the device, without a synchronisation."""
        host = torch.tensor(columns, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return host.to(self.device, non_blocking=True).T.contiguous()
