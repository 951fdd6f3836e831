"""Data for cross-lingual fine-tuning: parallel questions and prose, and a small tokenizer that covers their scripts.

| module | gives |
|---|---|
| `train.data.cldr` | `build_rows`, `build_dataset`, `write_jsonl`, `LANGUAGES`, `RELATIONS`, and a command line |
| `train.data.udhr` | `build_rows` of the Universal Declaration of Human Rights, and a command line |
| `train.data.tokenizer` | `train_tokenizer`, `CHAT_TEMPLATE` |

The names below are loaded on first use: importing `train.data` needs neither babel nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.data.cldr import LANGUAGES, RELATIONS, build_dataset, build_rows, write_jsonl
    from train.data.tokenizer import CHAT_TEMPLATE, train_tokenizer

_HOMES = {
    "LANGUAGES": "cldr",
    "RELATIONS": "cldr",
    "build_dataset": "cldr",
    "build_rows": "cldr",
    "write_jsonl": "cldr",
    "CHAT_TEMPLATE": "tokenizer",
    "train_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))


__all__ = [
    "CHAT_TEMPLATE",
    "LANGUAGES",
    "RELATIONS",
    "build_dataset",
    "build_rows",
    "train_tokenizer",
    "write_jsonl",
]
