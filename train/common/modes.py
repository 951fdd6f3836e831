"""The ways in which a model answers: one word for each, in code, options, files, tables and reports.

| mode | who answers |
|---|---|
| `vanilla` | a model trained without the connection |
| `off` | a CC model without the connection |
| `matrix` | a CC model with its Transform Matrix: what a user gets |
| `english` | a CC model that also reads the English prompt |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cc_model import connection_disabled

VANILLA, OFF, MATRIX, ENGLISH = "vanilla", "off", "matrix", "english"
TITLES = {
    VANILLA: "a model trained without the connection",
    OFF: "the CC model without the connection",
    MATRIX: "the CC model with the Transform Matrix: what a user gets",
    ENGLISH: "the CC model with the true English prompt, which the matrix tries to imitate",
}


@contextmanager
def answering(model: Any, mode: str) -> Iterator[bool]:
    """Inside the block `model` answers in `mode`; gives whether it has to get the English prompts.

    Raises:
        ValueError: `mode` is none of `TITLES`, or the model cannot answer so: it has no connection or no matrix.

    Example:
        >>> from cc_model import patch_model
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("llama"))
        >>> with answering(model, "off") as english:
        ...     english, model.cc.enabled
        (False, False)
        >>> with answering(model, "matrix"):
        ...     pass
        Traceback (most recent call last):
        ...
        ValueError: mode: matrix needs a Transform Matrix (python -m train.fit_transform), the model has none
    """
    if mode not in TITLES:
        raise ValueError(f"mode: expected one of {', '.join(TITLES)}, got {mode!r}")
    patched = hasattr(model, "cc")
    if patched == (mode == VANILLA):
        trained = "with" if patched else "without"
        raise ValueError(
            f"mode: {mode} is {TITLES[mode].split(':')[0]}, the model was trained {trained} the connection"
        )
    if mode == MATRIX and model.cc.transform_matrix is None:
        raise ValueError("mode: matrix needs a Transform Matrix (python -m train.fit_transform), the model has none")
    if mode == OFF:
        with connection_disabled(model):
            yield False
    else:
        yield mode == ENGLISH


__all__ = ["ENGLISH", "MATRIX", "OFF", "TITLES", "VANILLA", "answering"]
