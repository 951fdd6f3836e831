"""Finding a checkpoint to resume from."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

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
    numbered = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := numbered.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if _is_complete(path):
            return str(path)
        logger.warning("%s was not written to its end and is left out", path)
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


__all__ = ["last_complete_checkpoint"]
