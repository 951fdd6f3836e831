"""Entries of an experiment's YAML file, each of the type that its dataclass says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def entry(name: str, value: Any, kind: Any) -> Any:
    """`value`, if it is of a type; a number that YAML reads as text, such as `2e-3`, as a number, a list as a tuple.

    Args:
        name: of the entry, for the message.
        value: as YAML gives it.
        kind: int, float, bool, str, Any, `tuple[kind, ...]`, `Mapping[str, kind]`, or `kind | None`.

    Raises:
        ValueError: it is of another type; the message names the entry.

    Example:
        >>> entry("learning_rate", "2e-3", float), entry("seeds", [0, 1], tuple[int, ...])
        (0.002, (0, 1))
        >>> entry("steps", 2.5, int)
        Traceback (most recent call last):
        ...
        ValueError: steps: expected a whole number, got 2.5
    """
    if isinstance(kind, UnionType):
        return None if value is None else entry(name, value, get_args(kind)[0])
    if kind is Any:
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}: expected a list, got {value!r}")
        return tuple(entry(name, each, get_args(kind)[0]) for each in value)
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected `name: value` lines, got {value!r}")
        return {key: entry(f"{name}: {key}", each, get_args(kind)[1]) for key, each in value.items()}
    found = _number(value) if kind is float else value
    if not isinstance(found, int | float if kind is float else kind) or isinstance(found, bool) != (kind is bool):
        raise ValueError(f"{name}: expected {_WORDS[kind]}, got {value!r}")
    if kind is float and not math.isfinite(found):
        raise ValueError(f"{name}: expected {_WORDS[kind]}, got {value!r}")
    return found


def _number(value: Any) -> Any:
    """YAML 1.1 reads `2e-3` as text: it wants a point and a sign, `2.0e-3`."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


__all__ = ["entry"]
