"""Finding a checkpoint to resume from, and removing those of a run that another one replaces."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end; None when there is none.

    Trainer writes a checkpoint file by file into `checkpoint-<step>`, its `trainer_state.json` last, so that a run that
    was killed in between leaves a folder without it. `transformers.trainer_utils.get_last_checkpoint` returns that
    folder, from which resuming fails.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (2, 10):
        ...     (folder / f"checkpoint-{step}").mkdir()
        >>> _ = (folder / "checkpoint-2" / "trainer_state.json").write_text("{}")
        >>> Path(last_complete_checkpoint(folder)).name
        'checkpoint-2'
    """
    for path in reversed(_checkpoints(folder)):
        if _is_complete(path):
            return str(path)
        logger.warning("%s was not written to its end and is left out", path)
    return None


class RemoveEarlier(TrainerCallback):
    """Removes the checkpoints that `folder` holds now, when the run that replaces theirs saves for the first time.

    Left there, they would be counted by `save_total_limit`, and one of a later step would be resumed from. Until then
    they stay: a run that fails before its first checkpoint costs nothing of an earlier one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.earlier = _checkpoints(folder)
        self.left = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before Trainer writes a checkpoint, and removes those past its limit."""
        if control.should_save:
            self.remove(state.is_world_process_zero)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where no checkpoint was written."""
        self.remove(state.is_world_process_zero)

    def remove(self, here: bool) -> None:
        """Remove them if this process is the first one (`here`); every process goes on when they are gone."""
        if not self.left:
            return
        self.left = False
        if here:
            for link in (path for path in self.earlier if path.is_symlink()):  # what it names is left alone
                link.unlink()
            folders = [path for path in self.earlier if path.is_dir()]
            for path in folders:  # first what makes it a checkpoint: half of one is none
                (path / TRAINER_STATE_NAME).unlink(missing_ok=True)
            for path in folders:
                shutil.rmtree(path, ignore_errors=True)  # a file that is held open must not end a training
        PartialState().wait_for_everyone()


def _checkpoints(folder: str | Path) -> list[Path]:
    """By their steps."""
    numbered = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := numbered.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


__all__ = ["RemoveEarlier", "last_complete_checkpoint"]
