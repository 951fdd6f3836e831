"""`transformers.Trainer` that logs which layers the Decision Maker picks, and a progress bar that shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from cc_model.data.collator import ParallelCollator

PREFIX = "decision/layer_"
ROWS = "decision/rows"
BLOCKS = " ▁▂▃▄▅▆▇█"
PIVOT_KEYS = ("pivot_input_ids", "pivot_attention_mask", "connection_index", "pivot_index")


class PlainCollator:
    """A `ParallelCollator` without what only a patched model takes, for plain fine-tuning on the same rows."""

    def __init__(self, collator: ParallelCollator) -> None:
        self.collator = collator
        self.tokenizer = collator.tokenizer

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch without pivots and indices."""
        return {key: value for key, value in self.collator(features).items() if key not in PIVOT_KEYS}


class CCTrainer(Trainer):
    """Trainer whose log also has the decision histogram since the last log.

    `decision/layer_07` is the share of connected rows that received layer 7's activation; `decision/rows` is the number
    of connected rows. The counts stay on the device until they are logged, so a step never waits for them.
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
    """The decision histogram of a log entry, by layer; empty when it has none.

    Example:
        >>> histogram({"loss": 2.5, "decision/layer_00": 0.25, "decision/layer_01": 0.75})
        [0.25, 0.75]
    """
    layers = sorted((int(key.removeprefix(PREFIX)), key) for key in logs if key.startswith(PREFIX))
    return [logs[key] for _, key in layers]


def sparkline(shares: Sequence[float]) -> str:
    """Shares in [0, 1] as one block character each.

    Example:
        >>> sparkline([0.0, 0.25, 0.75])
        ' ▂▆'
    """
    return "".join(BLOCKS[round(max(0.0, min(1.0, share)) * (len(BLOCKS) - 1))] for share in shares)


class RichProgress(TrainerCallback):
    """A progress bar with loss and decision histogram; a line per log where the output is no terminal."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console()
        self.bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        if not state.is_world_process_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
        self.bar = Progress(*columns, *times, console=self.console)
        self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, status="")
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show loss and decisions."""
        if self.bar is None or not logs or "loss" not in logs:
            return
        status = f"loss {logs['loss']:.4f}"
        shares = histogram(logs)
        if shares:
            status += f"  layers |{sparkline(shares)}|"
        self.bar.update(self.task, status=status)
        if not self.console.is_terminal:
            self.console.print(f"{self.title}: step {state.global_step}/{state.max_steps}  {status}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def use_rich_progress(trainer: Trainer, title: str, console: Console | None = None) -> None:
    """Replace the progress callbacks of transformers by `RichProgress`."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RichProgress(title, console))


__all__ = ["CCTrainer", "PlainCollator", "RichProgress", "histogram", "sparkline", "use_rich_progress"]
