"""Plain fine-tuning that runs the head where there is a label: what ours saves there, without a connection."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from benchmarks.baselines.base import Batch, Vanilla
from cc_model.forward.head import shifted_labels


class VanillaLossOnly(Vanilla):
    """Vanilla with the stock head and the stock loss on the tokens whose next token has a label."""

    name = "vanilla-loss-only"

    def loss(self, batch: Batch) -> Tensor:
        """The stock loss of these tokens, whose labels are shifted already."""
        self.model.train()
        rows = batch.loss_rows
        hidden = self.body(batch.input_ids).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1).index_select(0, rows.clamp(min=0))[None])
        return self.model.loss_function(
            logits=logits,
            labels=batch.labels,
            vocab_size=self.model.config.vocab_size,
            shift_labels=shifted_labels(batch.labels, rows),
        )


class VanillaTRL(Vanilla):
    """Vanilla with the head of TRL, which computes log-probabilities in chunks and skips tokens without a label."""

    name = "vanilla-trl"
    available = find_spec("trl") is not None

    def __init__(self, model: Any, maker: nn.Parameter, matrix: Tensor, pivot_grad: bool = False) -> None:
        super().__init__(model, maker, matrix, pivot_grad)
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the labelled tokens of TRL's log-probabilities, negated."""
        self.model.train()
        output = self.model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False, fused_lm_head=True)
        return -output.log_probs.sum() / output.label_mask.sum()


__all__ = ["VanillaLossOnly", "VanillaTRL"]
