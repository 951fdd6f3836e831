"""transformers' Trainer for a patched model: English prompts are read once per step, the log has the picked layers,
and the model may train on simulated activations.

Needs accelerate, as `transformers.Trainer` does. `import cc_model` does not import this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from cc_model import fit_transform_matrix
from cc_model.connection.state import connection_of
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.integrations.window import WindowTrainer

PREFIX = "decision/layer_"
ROWS = "decision/rows"
STOCK_KEYS = ("input_ids", "attention_mask", "position_ids", "labels")


class PlainCollator:
    """Leaves out of a `ParallelCollator`'s batches what only a patched model takes: to train vanilla on equal rows.

    Args:
        collator: whose batches it gives.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
        >>> row = {"instruction": "hola", "instruction_en": "hello", "output": "mundo"}
        >>> sorted(PlainCollator(ParallelCollator(tokenizer))([row]))
        ['attention_mask', 'input_ids', 'labels']
    """

    def __init__(self, collator: ParallelCollator) -> None:
        self.collator = collator
        self.tokenizer = collator.tokenizer

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch without pivots and indices."""
        return {key: value for key, value in self.collator(features).items() if key in STOCK_KEYS}


class CCTrainer(WindowTrainer):
    """`WindowTrainer` whose log says which layers the Decision Maker picked since the last log. What the scripts use.

    It runs one pivot pass for all micro-batches of an optimizer step, where that is exact, and takes `pivot_tokens` and
    `translations_per_batch`; see `cc_model.integrations.window.WindowTrainer` for both, and for the errors.

    `decision/layer_07` is the share of connected rows that received layer 7's activation; `decision/rows` is the number
    of connected rows. The counts stay on the device until they are logged, so a step never waits for them. A model that
    is not patched trains and logs as with Trainer; its batches are a `PlainCollator`'s.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PrinterCallback, PreTrainedTokenizerFast, TrainingArguments
        >>> from cc_model import patch_model
        >>> from cc_model.testing import tiny_model
        >>> core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "hola": 2, "hello": 3}, unk_token="<unk>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
        >>> rows = [{"instruction": "hola", "instruction_en": "hello", "output": "mundo"}] * 8
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = CCTrainer(
        ...         model=patch_model(tiny_model("llama", num_hidden_layers=2)),
        ...         args=TrainingArguments(
        ...             folder, max_steps=1, logging_steps=1, per_device_train_batch_size=2, save_strategy="no",
        ...             gradient_accumulation_steps=4, remove_unused_columns=False, report_to="none", use_cpu=True,
        ...             disable_tqdm=True,
        ...         ),
        ...         train_dataset=rows,
        ...         data_collator=ParallelCollator(tokenizer, share_pivots=True, loss_only=True),
        ...     )
        ...     _ = trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> logged = trainer.state.log_history[0]
        >>> logged["decision/rows"], sum(histogram(logged))
        (8.0, 1.0)
        >>> trainer.pivot_parts, trainer.pivot_rows  # four micro-batches of two rows: one pass over one prompt
        (1, 1)
    """

    _decisions: Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The stock loss; the decisions of a training batch are added up."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        weights = getattr(outputs, "decision_weights", None)
        if weights is not None and model.training:
            counts = weights.detach().sum(dim=0, dtype=torch.float32)
            self._decisions = counts if self._decisions is None else self._decisions + counts
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the histogram added to training logs."""
        if "loss" in logs and self._decisions is not None:
            counts = self.accelerator.reduce(self._decisions, reduction="sum").tolist()
            self._decisions = None
            total = sum(counts)
            logs = {**logs, ROWS: total}
            logs |= {f"{PREFIX}{layer:02d}": count / total if total else 0.0 for layer, count in enumerate(counts)}
        super().log(logs, *args, **kwargs)


def histogram(logs: Mapping[str, float]) -> list[float]:
    """The shares of the layers in an entry of `trainer.state.log_history`, in their order; empty when it has none.

    Example:
        >>> histogram({"loss": 2.5, "decision/layer_00": 0.25, "decision/layer_01": 0.75})
        [0.25, 0.75]
    """
    layers = sorted((int(key.removeprefix(PREFIX)), key) for key in logs if key.startswith(PREFIX))
    return [logs[key] for _, key in layers]


class SimulatedTraining(TrainerCallback):
    """Trains on what the model reads at inference: its own activations, mapped by a matrix fitted on the way.

    With the published recipe a model trains on true English activations and answers with those that the Transform
    Matrix makes of its own. This callback closes that gap. It fits the matrix at the start and every `refit_steps`,
    and lets a rising share of the rows read mapped activations (`CCConfig.simulated_share`):

        s(t) = share · min(1, t / (ramp · T))          t of T steps done

    Fit the matrix once more after training: the weights have changed since the last fit.

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
        >>> from cc_model import ParallelCollator
        >>> pairs = [{"instruction": "Hallo", "instruction_en": "Hello", "output": "Welt"}]
        >>> collator = ...  # the ParallelCollator of the training
        >>> simulated = SimulatedTraining(collator, pairs, share=0.8, ramp=0.5)
        >>> [simulated.share_at(step, steps=100) for step in (0, 25, 50, 100)]
        [0.0, 0.4, 0.8, 0.8]

        `trainer.add_callback(simulated)` puts it to work, on a model that `patch_model` has patched.
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


__all__ = ["CCTrainer", "PlainCollator", "SimulatedTraining", "histogram"]
