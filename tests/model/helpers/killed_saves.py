"""Saves that are killed between two changes of files, for the tests of saving."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: from then on nothing changes a file any more, no rollback and no cleaning up."""


def save_killed_at(count, model, folder, options):
    """Save, and be killed before the change of a file in `folder` with the number `count`; whether that was reached."""
    changes = iter(range(count + 1000))

    def mortal(change):
        def changed(path, *args, **kwargs):
            touched = [Path(each).parent for each in (path, *args)]
            if folder in touched and next(changes) >= count:
                raise Killed
            return change(path, *args, **kwargs)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", mortal(os.replace))
        patch.setattr(Path, "unlink", mortal(Path.unlink))
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", lambda self: self._finalizer.detach())
        try:
            model.save_pretrained(folder, **options)
        except Killed:
            return True
    return False


def loaded(load):
    """What `load` returns; None where it says that the folder is no whole model."""
    try:
        return load()
    except (OSError, ValueError):
        return None
