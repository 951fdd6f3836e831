"""This library: `patch_model`, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.base import Batch, Mode
from cc_model import CCConfig, patch_model, use_pivot_graph


class Ours(Mode):
    """A patched model, whose forward and `generate` connect; fed as by `ParallelCollator` with both its switches."""

    name = "ours"
    shares = True  # each English prompt of the batch runs once
    loss_only = True  # head and loss run where there is a label

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        patch_model(model, CCConfig(pivot_grad=pivot_grad))
        model.cc.decision_maker.weight = maker
        model.cc.transform_matrix = matrix

    def loss(self, batch: Batch) -> Tensor:
        """The patched model's own loss."""
        self.model.train()
        pivots = {"pivot_input_ids": batch.pivot_input_ids}
        if self.shares:
            pivots = {"pivot_input_ids": batch.distinct_pivots, "pivot_row": batch.pivot_row}
        if self.loss_only:
            pivots["loss_rows"] = batch.loss_rows
        return self.model(
            input_ids=batch.input_ids, labels=batch.labels, gumbel_noise=batch.noise, use_cache=False, **pivots
        ).loss

    @torch.no_grad()
    def generate(self, ids: Tensor, new_tokens: int, noise: Tensor | None = None, **options: Any) -> Any:
        """The patched model's own `generate`."""
        self.model.eval()
        if noise is not None:
            options["gumbel_noise"] = noise
        return self.stock_generate(ids, new_tokens, **options)


class OursGraph(Ours):
    """The same with the English pass as a CUDA graph."""

    name = "ours-graph"
    available = torch.cuda.is_available()
    unavailable = "needs a GPU"

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        use_pivot_graph(model)


class OursUnshared(Ours):
    """The same with an English prompt for each row, though several are equal."""

    name = "ours-unshared"
    shares = False


class OursPlain(Ours):
    """The connection alone: an English prompt for each row, and the head on all tokens."""

    name = "ours-plain"
    shares = loss_only = False
