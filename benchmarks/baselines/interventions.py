"""The same with a library for interventions on activations, nnsight (`pip install nnsight`), where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.base import Batch, Mode
from benchmarks.baselines.hooks import before_labels, decide_and_select, last_of_rows


class NNsight(Mode):
    """Each pass is a trace: values of modules are read and written in the order in which the model computes them.

    Reads and writes all rows in one op, like the hooks. Training only.
    """

    name = "nnsight"
    available = find_spec("nnsight") is not None

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        import nnsight

        self.traced = nnsight.NNsight(model)
        self.save = nnsight.save  # keeps a value beyond its trace

    def bank(self, ids: Tensor) -> Tensor:
        """Feed-forward outputs `(L, B, d)` at the last token of each row; the head does not run."""
        rows, traced, save = last_of_rows(ids), self.traced, self.save
        with traced.trace(input_ids=ids, use_cache=False) as tracer:
            captured = save([])
            for layer in traced.model.layers:
                captured.append(layer.mlp.output.flatten(0, 1).index_select(0, rows))
            tracer.stop()
        return torch.stack(captured)

    def loss(self, batch: Batch) -> Tensor:
        """English pass, decision, main pass."""
        self.model.train()
        with torch.set_grad_enabled(self.pivot_grad):
            bank = self.bank(batch.pivot_input_ids)
        rows = before_labels(batch.labels)
        embeds = self.model.get_input_embeddings()(batch.input_ids)
        update, _ = decide_and_select(bank, embeds.flatten(0, 1)[rows], self.maker, batch.noise)
        traced, save = self.traced, self.save
        with traced.trace(inputs_embeds=embeds, labels=batch.labels, use_cache=False):
            traced.model.layers[0].mlp.output.flatten(0, 1).index_add_(0, rows, update)
            loss = save(traced.output.loss)
        return loss
