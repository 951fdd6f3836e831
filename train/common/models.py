"""Models, tokenizers and collators for the scripts: from the hub, from a folder, or new and random."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cc_model import CCConfig, from_pretrained, patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.files import write_text
from train.common.arguments import ModelArguments, connection_config
from train.common.chat_templates import set_chat_template
from train.common.english_in_prompt import make_collator
from train.common.tokenizer import train_tokenizer

CC_CONFIG_FILE = "cc_config.json"  # which a patched model's save_pretrained writes
OPTIONS_FILE = "sft_options.json"  # how rows were read and became tokens, for fitting and generating
REPORT_FILE = "transform_report.json"  # of the fit
TEMPLATE_FILE = "chat_template.jinja"  # which a tokenizer's save_pretrained writes, if it has one
DTYPES = ("auto", "float32", "bfloat16", "float16")
TEXT_COLUMNS = ("instruction", "instruction_en", "output")


def new_tokenizer(rows: Iterable[Mapping[str, Any]], vocab_size: int) -> Any:
    """A tokenizer trained on the text of rows.

    Example:
        >>> tokenizer = new_tokenizer([{"instruction": "Hallo", "instruction_en": "Hello", "output": "Welt"}], 300)
        >>> tokenizer.decode(tokenizer("Hallo Welt")["input_ids"])
        'Hallo Welt'
    """
    return train_tokenizer(_texts(rows), vocab_size)


def _texts(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Every text of the rows; what should be one and is none is for `check_rows` to name."""
    for row in rows:
        turns = [turn for column in ("messages", "messages_en") for turn in row.get(column) or []]
        found = [*map(row.get, TEXT_COLUMNS), *(turn["content"] for turn in turns if isinstance(turn, Mapping))]
        yield from (text for text in found if text and isinstance(text, str))


def new_model(fields: Mapping[str, Any], tokenizer: Any) -> Any:
    """A random causal language model with the given config fields and the tokenizer's vocabulary.

    Raises:
        ValueError: no or an unknown `model_type`.

    Example:
        >>> tokenizer = new_tokenizer([{"instruction": "Hallo"}], 300)
        >>> model = new_model({"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2}, tokenizer)
        >>> model.config.vocab_size == len(tokenizer)
        True
    """
    options = dict(fields)
    model_type = options.pop("model_type", None)
    if not isinstance(model_type, str):
        raise ValueError(f"scratch: expected a field 'model_type' such as 'llama', got {sorted(fields)}")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(model_type, **{**ids, "vocab_size": len(tokenizer), **options})
    return AutoModelForCausalLM.from_config(config)


def check_source(options: ModelArguments) -> None:
    """Refuse both, or none, of `--model` and `--scratch`.

    Raises:
        ValueError: as said.

    Example:
        >>> check_source(ModelArguments(model="Qwen/Qwen2.5-0.5B"))
    """
    if (options.model is None) == (options.scratch is None):
        raise ValueError("model: expected either --model or --scratch, got " + ("both" if options.model else "neither"))


def load_for_training(options: ModelArguments, rows: Iterable[Mapping[str, Any]]) -> tuple[Any, Any]:
    """The model that `--model` or `--scratch` names, patched for `--method cc`, and its tokenizer.

    Raises:
        ValueError: both or none of `--model` and `--scratch`, or `--scratch` is not valid.
    """
    check_source(options)
    tokenizer: Any
    model: Any
    if options.scratch is not None:
        tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
        tokenizer = tokenizer or new_tokenizer(rows, options.scratch_vocab_size)
        model = new_model(json_object("scratch", options.scratch), tokenizer)
        if options.dtype != "auto":
            model = model.to(getattr(torch, options.dtype))
    else:
        assert options.model is not None
        tokenizer = load_tokenizer(options.tokenizer or options.model)
        dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=dtype, attn_implementation=options.attn_implementation
        )
    set_chat_template(tokenizer, options.chat_template)
    if options.method == "cc":
        connect(model, connection_config(options))
    return model, tokenizer


def connect(model: Any, config: CCConfig) -> Any:
    """Patch a model that is going to train. The share of simulated rows starts at 0; `SimulatedTraining` raises it."""
    return patch_model(model, replace(config, simulated_share=0.0))


def load_trained(folder: str, device: str = "auto", dtype: str = "auto") -> tuple[Any, ParallelCollator]:
    """A model that `train.sft` wrote, in evaluation mode, and the collator that it was trained with.

    Raises:
        ValueError: `folder` is none, or there is no such `dtype` or `device`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    place = chosen_device(device)
    collator = load_collator(folder)
    load: Any = from_pretrained if (Path(folder) / CC_CONFIG_FILE).is_file() else AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    return model.to(place).eval(), collator


def load_collator(folder: str) -> ParallelCollator:
    """The collator that a model which `train.sft` wrote was trained with.

    Raises:
        ValueError: `folder` is none.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"model: expected the output folder of train.sft, found no config.json in {folder!r}")
    return make_collator(load_tokenizer(folder), **load_options(folder).get("collator", {}))


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def chosen_device(name: str) -> torch.device:
    """The device that an option names; `auto`: the accelerator if there is one, else the CPU.

    Raises:
        ValueError: this machine has none of that name.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    best = best_device()
    if name == "auto":
        return best
    try:
        device = torch.device(name)
    except RuntimeError:  # no name of a device
        device = torch.device("meta")
    there = ["auto", "cpu", *([best.type] if best.type != "cpu" else [])]
    if device.type not in there or (device.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ValueError(f"device: expected one of {', '.join(there)} on this machine, got {name!r}")
    return device


def save_options(folder: str | Path, options: Mapping[str, Any]) -> None:
    """Write how rows were read (`"data"`) and became tokens (`"collator"`), so that later steps do the same."""
    write_text(Path(folder) / OPTIONS_FILE, json.dumps(options, indent=2, ensure_ascii=False) + "\n")


def load_options(folder: str | Path) -> dict[str, Any]:
    """What `save_options` wrote into a model folder, or into the one around a checkpoint; else `{}`."""
    path = Path(folder)
    for place in (path / OPTIONS_FILE, path.parent / OPTIONS_FILE):
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
    return {}


def remove_stale(folder: str | Path, method: str, tokenizer: Any) -> None:
    """Remove what an earlier model of `folder` wrote, and the one that was just saved there did not.

    Args:
        folder: of the new model.
        method: by which it was trained.
        tokenizer: that was saved with it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "cc_config.json").write_text("{}")
        >>> remove_stale(folder, "vanilla", new_tokenizer([{"instruction": "Hallo"}], 300))
        >>> list(folder.iterdir())
        []
    """
    stale = {REPORT_FILE: True, CC_CONFIG_FILE: method != "cc", TEMPLATE_FILE: tokenizer.chat_template is None}
    for name in (name for name, old in stale.items() if old):
        (Path(folder) / name).unlink(missing_ok=True)


def set_end_of_turn(model: Any, collator: ParallelCollator) -> None:
    """Let generation stop where an answer ends: base models know their end of text only, not the template's."""
    answer = collator.encoder.encode([{"instruction": "a", "output": "b"}], answers=True)[0].answer
    known = model.generation_config.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), answer[-1], collator.tokenizer.eos_token_id} - {None}
    model.generation_config.eos_token_id = sorted(ends)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = collator.tokenizer.pad_token_id or collator.tokenizer.eos_token_id


def load_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer: could not load one from {name!r}: {error}") from error


def json_object(name: str, text: str) -> dict[str, Any]:
    """The object that the option `name` gives as JSON; ValueError for anything else.

    Example:
        >>> json_object("scratch", '{"hidden_size": 32}')
        {'hidden_size': 32}
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: expected a JSON object, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object, got {text!r}")
    return value


__all__ = [
    "best_device",
    "check_source",
    "chosen_device",
    "connect",
    "json_object",
    "load_collator",
    "load_for_training",
    "load_options",
    "load_trained",
    "new_model",
    "new_tokenizer",
    "remove_stale",
    "save_options",
    "set_end_of_turn",
]
