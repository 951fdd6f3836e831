"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` beside `path` and rename it into place, so that a reader never sees half a file."""
    target = os.path.abspath(os.fspath(path))
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".writing-", text=True)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
