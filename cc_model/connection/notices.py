"""What was said about a model, and how its last prompt ran. Nothing of it is learned: the module does not hold it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn


class Notices:
    """The notices that were given once for one connection, and the way its last simulated prompt took."""

    def __init__(self) -> None:
        self.said: set[str] = set()
        self.prefills: str | None = None


_KEPT: WeakKeyDictionary[nn.Module, Notices] = WeakKeyDictionary()


def notices_of(connection: nn.Module) -> Notices:
    """The notices of `connection`; a copy of a model starts with none."""
    kept = _KEPT.get(connection)
    if kept is None:
        kept = _KEPT[connection] = Notices()
    return kept


def say_once(connection: nn.Module, message: str) -> bool:
    """Whether `message` is to be said: the first time it is asked, and never in compiled code, which cannot log."""
    if torch.compiler.is_compiling():
        return False
    said = notices_of(connection).said
    first = message not in said
    said.add(message)
    return first
