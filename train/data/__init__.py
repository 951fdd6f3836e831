"""Data for cross-lingual fine-tuning: parallel questions and prose that are built here, and rows from elsewhere.

| module | gives |
|---|---|
| `train.data.cldr` | `build_rows`, `build_dataset`, `write_jsonl`, `LANGUAGES`, `RELATIONS`, and a command line |
| `train.data.udhr` | `build_rows` of the Universal Declaration of Human Rights, and a command line |
| `train.data.sources` | `load_rows`: rows of a file, a folder, the hub, or the data sets above |

`train_tokenizer` and `CHAT_TEMPLATE` are of `train.common.tokenizer`.

The names below are loaded on first use: importing `train.data` needs neither babel nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.common.tokenizer import CHAT_TEMPLATE, train_tokenizer
    from train.data.cldr import LANGUAGES, RELATIONS, build_dataset, build_rows, write_jsonl

_HOMES = {
    "LANGUAGES": "train.data.cldr",
    "RELATIONS": "train.data.cldr",
    "build_dataset": "train.data.cldr",
    "build_rows": "train.data.cldr",
    "write_jsonl": "train.data.cldr",
    "CHAT_TEMPLATE": "train.common.tokenizer",
    "train_tokenizer": "train.common.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


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
