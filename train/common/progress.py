"""The progress of a training on the terminal: loss, and which layers the Decision Maker picks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from cc_model.integrations.trainer import histogram
from train.common.console import open_console, say

BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def sparkline(shares: Sequence[float], blocks: str = BLOCKS) -> str:
    """Shares in [0, 1] as one character each.

    Example:
        >>> sparkline([0.0, 0.25, 0.75])
        ' ▂▆'
        >>> sparkline([0.0, 0.25, 0.75], ASCII_BLOCKS)
        ' :*'
    """
    return "".join(blocks[round(max(0.0, min(1.0, share)) * (len(blocks) - 1))] for share in shares)


class RichProgress(TrainerCallback):
    """A progress bar with loss and decision histogram; a line per log where the output is no terminal."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = open_console(console)
        self.blocks = BLOCKS if self.console.encoding.lower().startswith("utf") else ASCII_BLOCKS
        self.bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        if not state.is_world_process_zero:
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Progress(*columns, *times, TextColumn("{task.fields[status]}", markup=False), console=self.console)
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
            status += f"  layers |{sparkline(shares, self.blocks)}|"
        self.bar.update(self.task, status=status)
        if not self.console.is_terminal:
            say(self.console, f"{self.title}: step {state.global_step}/{state.max_steps}  {status}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def use_rich_progress(trainer: Trainer, title: str | None, console: Console | None = None) -> None:
    """Replace the progress callbacks of transformers by `RichProgress`; without a title by nothing."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if title is not None:
        trainer.add_callback(RichProgress(title, console))


__all__ = ["RichProgress", "sparkline", "use_rich_progress"]
