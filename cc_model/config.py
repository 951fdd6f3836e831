"""`CCConfig`: the options of the cross-lingual connection, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import Any

from cc_model.files import write_text


def check_type(name: str, value: Any, kind: type | tuple[type, ...], meaning: str) -> None:
    """Raise a TypeError that names the option unless `value` is of a `kind` of numbers or text; True is no number.

    Example:
        >>> check_type("seed", "a", int, "an int")
        Traceback (most recent call last):
        ...
        TypeError: seed: expected an int, got 'a'
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}: expected {meaning}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise a TypeError that names the option unless `value` is True or False.

    Example:
        >>> check_flag("affine", "no")
        Traceback (most recent call last):
        ...
        TypeError: affine: expected True or False, got 'no'
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


@dataclass(frozen=True)
class CCConfig:
    """Options of the cross-lingual connection; the defaults are the published recipe.

        y = softmax((z + g) / τ)       z: the Decision Maker's logits, one per layer; g: Gumbel noise, in training
        w = onehot(argmax y) with the gradient of y when `hard`, else y
        f_i += Σ_l w[l] V[l]           V: captured activations of all layers; i = `inject_layer`

    Args:
        inject_layer: decoder layer whose feed-forward output receives the connection, counted from 0.
        temperature: τ of the Gumbel softmax, finite and above 0, without unit. A smaller τ gives a sharper y. With
            `hard` it changes the gradient, not the choice.
        hard: choose one layer per row (straight-through); False mixes all layers with the softmax weights.
        pivot_grad: let gradients flow through the bank into the pivot pass. The published recipe does not.
        simulated_share: share in [0, 1] of the rows that, in training, read what they read at inference: their own
            activations, without a gradient, mapped by the Transform Matrix, instead of the English ones. Drawn per row
            and step; needs a matrix, so fit one first and again as the model changes. Not part of the published recipe.
        connection_dropout: share in [0, 1] of the rows that train without a connection, drawn per row and step. Not
            part of the published recipe.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    Source: CC-Tuning (ACL 2025, arXiv 2506.00875), section 3 and appendix.

    Example:
        >>> CCConfig(pivot_grad=True).to_dict()["pivot_grad"]
        True
        >>> CCConfig.from_dict({"temprature": 2.0})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: config: unknown key 'temprature'; expected some of connection_dropout, hard, inject_layer, ...
    """

    inject_layer: int = 0
    temperature: float = 1.0
    hard: bool = True
    pivot_grad: bool = False
    simulated_share: float = 0.0
    connection_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_type("inject_layer", self.inject_layer, int, "an int")
        if self.inject_layer < 0:
            raise ValueError(f"inject_layer: expected 0 or more, got {self.inject_layer}")
        check_type("temperature", self.temperature, (int, float), "a number")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: expected a finite number above 0, got {self.temperature}")
        for name in ("hard", "pivot_grad"):
            check_flag(name, getattr(self, name))
        for name in ("simulated_share", "connection_dropout"):
            share = getattr(self, name)
            check_type(name, share, (int, float), "a number")
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], got {share}")

    def to_dict(self) -> dict[str, Any]:
        """The options as a dict that `from_dict` reads back.

        Example:
            >>> CCConfig.from_dict(CCConfig(hard=False).to_dict()) == CCConfig(hard=False)
            True
        """
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> CCConfig:
        """Build from a dict; options that it lacks get their defaults.

        Raises:
            TypeError: an option has the wrong type.
            ValueError: an unknown key, which the message names, or an option out of range.

        Example:
            >>> CCConfig.from_dict({"temperature": 2.0}).temperature
            2.0
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in options:
            if key not in known:
                raise ValueError(f"config: unknown key {key!r}; expected some of {', '.join(sorted(known))}")
        return cls(**options)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the options to a JSON file, whole or not at all; see `from_json` for an example.

        Raises:
            OSError: the folder does not exist, or cannot be written to.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> CCConfig:
        """Read what `to_json` wrote.

        Raises:
            OSError: the file cannot be read.
            TypeError: an option has the wrong type.
            ValueError: the file is no JSON, or no JSON object; an unknown key, or an option out of range.

        Example:
            >>> import os, tempfile
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     path = os.path.join(directory, "cc_config.json")
            ...     CCConfig(inject_layer=2).to_json(path)
            ...     CCConfig.from_json(path).inject_layer
            2
        """
        with open(path, encoding="utf-8") as file:
            try:
                options = json.load(file)
            except ValueError as error:  # also bytes that are no UTF-8
                raise ValueError(f"{os.fspath(path)}: expected a JSON object, got no JSON: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"{os.fspath(path)}: expected a JSON object, got {type(options).__name__}")
        return cls.from_dict(options)


__all__ = ["CCConfig"]
