"""Training on simulated English activations: what a model reads at inference, it also reads while it trains.

With the published recipe a model trains on true English activations and answers with those that the Transform Matrix
makes of its own. `SimulatedTraining` closes that gap: it fits the matrix while the model trains, and lets a rising
share of the rows read mapped activations of their own (`CCConfig(simulated_share=...)`).

    s(t) = share · min(1, t / (ramp · T))          t of T steps done
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from cc_model import fit_transform_matrix
from cc_model.connection.state import connection_of
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches


class SimulatedTraining(TrainerCallback):
    """Fits the Transform Matrix at the start and every `refit_steps`, and sets the share of simulated rows.

    Args:
        collator: of the training.
        pairs: rows with an English version, of the training data.
        share: of the rows, in (0, 1], at the end of the ramp.
        ramp: share in [0, 1] of all steps over which the share rises from 0; 0 starts with the full share.
        refit_steps: optimizer steps between fits; 0 fits once, at the start.
        batch_size: pairs per forward pass of a fit.
        fit: options of `fit_transform_matrix`, such as `{"ridge": 1.0}`.

    Raises:
        ValueError: an argument is out of range, or there are no pairs.

    Example:
        >>> SimulatedTraining(None, [{"instruction": "Hallo"}], share=0.8, ramp=0.5).share_at(25, 100)
        0.4
    """

    def __init__(
        self,
        collator: ParallelCollator,
        pairs: Sequence[Mapping[str, Any]],
        share: float = 1.0,
        ramp: float = 0.5,
        refit_steps: int = 50,
        batch_size: int = 32,
        fit: Mapping[str, Any] | None = None,
    ) -> None:
        if not pairs:
            raise ValueError("pairs: expected rows with an English version, got none")
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {share}")
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp: expected a share in [0, 1], got {ramp}")
        if refit_steps < 0:
            raise ValueError(f"refit_steps: expected 0 or more, got {refit_steps}")
        self.collator, self.pairs = collator, pairs
        self.share, self.ramp, self.refit_steps = share, ramp, refit_steps
        self.batch_size, self.fit_options = batch_size, dict(fit or {})
        self.fits: list[tuple[int, float]] = []  # step and R² of each fit

    def share_at(self, step: int, steps: int) -> float:
        """The share of simulated rows after `step` of `steps` steps."""
        ramp = self.ramp * steps
        return self.share if step >= ramp else self.share * step / ramp

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Fit, unless a resumed checkpoint brought its matrix."""
        if connection_of(model).transform_matrix is None:
            self._fit(model, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Set the share."""
        connection = connection_of(model)
        share = self.share_at(state.global_step, state.max_steps)
        if connection.config.simulated_share != share:
            connection.config = replace(connection.config, simulated_share=share)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Fit again, where the next steps use it."""
        steps = self.refit_steps
        if steps and state.global_step % steps == 0 and state.global_step < state.max_steps:
            self._fit(model, state.global_step)

    def _fit(self, model: Any, step: int) -> None:
        batches = prompt_batches(model, self.collator, self.pairs, self.batch_size, progress=False)
        report = fit_transform_matrix(model, batches, progress=False, **self.fit_options)
        self.fits.append((step, report.overall.r2))


__all__ = ["SimulatedTraining"]
