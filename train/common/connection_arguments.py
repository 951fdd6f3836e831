"""The connection's command-line options, made from the fields and the docstring of `cc_model.CCConfig`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from dataclasses import field
from typing import Any

from cc_model import CCConfig


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the text that `--help` shows."""
    return field(default=default, metadata={"help": text})


def texts_of(kind: type) -> dict[str, str]:
    """The text of each argument in the section `Args:` of a class's docstring.

    Example:
        >>> texts_of(CCConfig)["inject_layer"]
        'Decoder layer whose feed-forward output receives the connection, counted from 0.'
    """
    section = re.search(r"^Args:\n(.*?)^(?=\S)", inspect.cleandoc(kind.__doc__ or "") + "\n.", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.DOTALL | re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    return {name: re.sub("^[a-z]", lambda first: first[0].upper(), text) for name, text in texts.items()}


# One option per field of CCConfig, with its default and the text of its docstring.
ConnectionArguments: Any = dataclasses.make_dataclass(
    "ConnectionArguments",
    [
        (each.name, typing.get_type_hints(CCConfig)[each.name], option(each.default, texts_of(CCConfig)[each.name]))
        for each in dataclasses.fields(CCConfig)
    ],
    namespace={"__doc__": "The options of `CCConfig`.", "__module__": __name__},
)


def connection_config(options: Any) -> CCConfig:
    """The `CCConfig` of options that have its fields."""
    return CCConfig(**{each.name: getattr(options, each.name) for each in dataclasses.fields(CCConfig)})


__all__ = ["ConnectionArguments", "connection_config", "option", "texts_of"]
