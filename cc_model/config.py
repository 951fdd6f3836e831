"""`CCConfig`: the options of the cross-lingual connection, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import Any

from cc_model.files import write_text


@dataclass(frozen=True)
class CCConfig:
    """Options of the cross-lingual connection; the defaults are the published recipe.

    Args:
        inject_layer: decoder layer whose feed-forward output receives the connection, counted from 0.
        temperature: τ of the Gumbel softmax, above 0, without unit.
        hard: choose one layer per row (straight-through); False mixes all layers with the softmax weights.
        pivot_grad: let gradients flow through the bank into the pivot pass. The published recipe does not.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Source: CC-Tuning (ACL 2025, arXiv 2506.00875), section 3 and appendix.

    Example:
        >>> CCConfig(pivot_grad=True).to_dict()["pivot_grad"]
        True
        >>> CCConfig.from_dict({"temprature": 2.0})
        Traceback (most recent call last):
        ...
        ValueError: config: unknown key 'temprature'; expected some of hard, inject_layer, pivot_grad, temperature
    """

    inject_layer: int = 0
    temperature: float = 1.0
    hard: bool = True
    pivot_grad: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges."""
        if isinstance(self.inject_layer, bool) or not isinstance(self.inject_layer, int):
            raise TypeError(f"inject_layer: expected an int, got {self.inject_layer!r}")
        if self.inject_layer < 0:
            raise ValueError(f"inject_layer: expected 0 or more, got {self.inject_layer}")
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, (int, float)):
            raise TypeError(f"temperature: expected a number, got {self.temperature!r}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: expected a finite number above 0, got {self.temperature}")
        for name in ("hard", "pivot_grad"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """The options as a dict that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> CCConfig:
        """Build from a dict; an unknown key is a ValueError that names it."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in options:
            if key not in known:
                raise ValueError(f"config: unknown key {key!r}; expected some of {', '.join(sorted(known))}")
        return cls(**options)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the options to a JSON file, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CCConfig:
        """Read what `to_json` wrote."""
        with open(path, encoding="utf-8") as file:
            options = json.load(file)
        if not isinstance(options, dict):
            raise ValueError(f"{os.fspath(path)}: expected a JSON object, got {type(options).__name__}")
        return cls.from_dict(options)


__all__ = ["CCConfig"]
