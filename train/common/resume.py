"""Resuming a training with the options that it was begun with.

The weights of a resumed training come from its checkpoint, whatever `--model` says, and its first steps read rows as
the options said then. Other options now would go unnoticed, or train one model half in one way and half in another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cc_model import CCConfig
from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments
from train.common.models import CC_CONFIG_FILE, load_options, load_tokenizer, save_options

CONNECTION = tuple(each.name for each in fields(CCConfig))
# Options that may be spelled in several ways: what they come to is compared by `check_parts`.
BY_WHAT_THEY_GIVE = ("scratch", "scratch_vocab_size", "tokenizer", "chat_template", "dtype", "attn_implementation")
COLUMNS = ("instruction_column", "instruction_en_column", "output_column")
ORDER = ("bucket_by_length", "translations_per_batch", "train_sampling_strategy", "seed", "data_seed")
NEW = {"english_in_prompt": False}  # what checkpoints from before the option were trained with
SIMULATED = ("simulated_ramp", "refit_steps")
# Entries of a model's configuration that say how it was made or is run, not what it is.
NOT_THE_MODEL = (
    *("transformers_version", "use_cache", "architectures", "dtype", "torch_dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "keys_to_ignore_at_inference"),  # set by Trainer, and by us
)


def keep_options(trainer: Any, options: Mapping[str, Any]) -> None:
    """Let `trainer` put the options into every checkpoint, where `check_options` finds them.

    They come with the weights, before `trainer_state.json`, which says that a checkpoint is complete: a callback's
    `on_save` would be too late for a run that is killed while older checkpoints are removed.
    """
    save_model = trainer.save_model

    def with_options(output_dir: str | None = None, _internal_call: bool = False) -> None:
        save_model(output_dir, _internal_call=_internal_call)
        if output_dir is not None and trainer.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # sharded weights come later
            save_options(output_dir, options)

    trainer.save_model = with_options


def options_of(
    model: ModelArguments, data: DataArguments, tokens: CollatorArguments, training: SftArguments
) -> dict[str, Any]:
    """What is kept of the options: which model, which rows in which order, and how rows become tokens.

    How fast a step is (`share_pivots`, `loss_only`, `pivot_graph`) is not: the model is the same either way.
    """
    order = {name: getattr(training, name) for name in ORDER}
    if training.bucket_by_length:
        order["train_sampling_strategy"] = "group_by_length"  # as it is told to Trainer later
    rows = training.train_batch_size * training.gradient_accumulation_steps
    grouped = training.bucket_by_length or training.translations_per_batch is not None
    order |= {"rows_per_step": rows * training.world_size, "rows_per_process": rows if grouped else None}
    noise = {"processes": training.world_size}
    return {"model": asdict(model), "data": asdict(data), "collator": asdict(tokens), "order": order, "noise": noise}


def check_options(checkpoint: str, options: Mapping[str, Any]) -> None:
    """Compare the options of a resumed training with those of its checkpoint, before anything is loaded.

    Args:
        checkpoint: folder of a checkpoint.
        options: what `options_of` gives.

    Raises:
        ValueError: an option that changes what the model is, or how rows become tokens, is another one; the message
            names it, what the checkpoint has and what was given.
    """
    kept = load_options(checkpoint)
    method = _method(checkpoint, kept)
    if method not in (None, options["model"]["method"]):
        raise _other("method", checkpoint, method, options["model"]["method"])
    given = {**options["model"], **options["collator"], **{name: options["data"][name] for name in COLUMNS}}
    for name, value in _kept(checkpoint, kept, method):
        if name in given and not _same(name, value, given[name]):
            raise _other(name, checkpoint, value, given[name])


def other_rows(checkpoint: str, options: Mapping[str, Any]) -> list[str]:
    """What differs in the choice of rows, in their order or in the noise, in words.

    Each is allowed, but a resumed training goes on at a row's number: some rows come twice, and others not at all. Each
    process draws noise of its own.
    """
    kept = load_options(checkpoint)
    return [
        f"{what}: {name}: the checkpoint was trained with {_shown(kept[part][name])}, now it is {_shown(value)}"
        for part, what in (("data", "other rows"), ("order", "rows in another order"), ("noise", "other noise"))
        for name, value in options[part].items()
        if name in kept.get(part, {}) and not _same(name, kept[part][name], value)
    ]


def _method(checkpoint: str, kept: Mapping[str, Any]) -> str | None:
    """How a checkpoint was trained, by its own files; sharded ones have none and the kept options say it."""
    if (Path(checkpoint) / CC_CONFIG_FILE).is_file():
        return "cc"
    return "vanilla" if (Path(checkpoint) / "config.json").is_file() else kept.get("model", {}).get("method")


def _kept(checkpoint: str, kept: Mapping[str, Any], method: str | None) -> Iterator[tuple[str, Any]]:
    """Names and values of the checkpoint's options that have to stay."""
    model = dict(kept.get("model", {}))
    if method == "vanilla":
        model = {name: value for name, value in model.items() if name not in (*CONNECTION, *SIMULATED)}
    elif (Path(checkpoint) / CC_CONFIG_FILE).is_file():
        config = json.loads((Path(checkpoint) / CC_CONFIG_FILE).read_text(encoding="utf-8"))
        config.pop("simulated_share", None)  # rises during the training; the option stands in `kept`
        model |= config
    yield from ((name, value) for name, value in model.items() if name not in BY_WHAT_THEY_GIVE)
    if "collator" in kept:
        yield from {**NEW, **kept["collator"]}.items()
    yield from ((name, kept["data"][name]) for name in COLUMNS if name in kept.get("data", {}))


def _same(name: str, old: Any, new: Any) -> bool:
    """Whether two values of an option are one; a folder is the same by whichever path it was named."""
    if name in ("model", "dataset") and old and new:
        return os.path.realpath(old) == os.path.realpath(new)
    return old == new


def check_parts(checkpoint: str, model: Any, tokenizer: Any, options: ModelArguments) -> None:
    """Compare model and tokenizer, as the options gave them, with those of the checkpoint, before they train.

    Raises:
        ValueError: another architecture or size, other numbers, another vocabulary or chat template; the message names
            the option that gave it.
    """
    folder, kept = Path(checkpoint), load_options(checkpoint)
    source = "scratch" if options.scratch is not None else "model"
    if (folder / "config.json").is_file():
        old = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        new = json.loads(model.config.to_json_string(use_diff=False))
        differing = [name for name in old if _is_of_the_model(name) and name in new and new[name] != old[name]]
        if differing:
            asked = [name for name in differing if f'"{name}"' in (options.scratch or "")]  # others follow from these
            name = (asked or differing)[0]
            named = "scratch_vocab_size" if (name, source) == ("vocab_size", "scratch") else source
            raise _other(named, checkpoint, f"{name}={old[name]}", f"{name}={new[name]}")
        dtype, now = old.get("dtype", old.get("torch_dtype")), str(model.dtype).removeprefix("torch.")
        # DeepSpeed and FSDP train and save weights of their own type: with the option of then, theirs is not asked.
        if dtype not in (None, now) and kept.get("model", {}).get("dtype", options.dtype) != options.dtype:
            raise _other("dtype", checkpoint, dtype, now)
    if any(folder.glob("tokenizer*")):
        _check_tokenizer(checkpoint, load_tokenizer(checkpoint), tokenizer, options)


def _is_of_the_model(name: str) -> bool:
    return name not in NOT_THE_MODEL and not name.startswith("_")


def _check_tokenizer(checkpoint: str, old: Any, new: Any, options: ModelArguments) -> None:
    if old.get_vocab() != new.get_vocab():
        # That of a new model is trained on the rows.
        made = options.scratch is not None and options.tokenizer is None
        raise _other("dataset" if made else "tokenizer", checkpoint, f"{len(old)} tokens", f"{len(new)} other tokens")
    if old.chat_template != new.chat_template:
        raise _other("chat_template", checkpoint, repr(old.chat_template), repr(new.chat_template))


def _other(name: str, checkpoint: str, old: Any, new: Any) -> ValueError:
    return ValueError(
        f"{name}: the checkpoint {checkpoint} was trained with {_shown(old)}, now it is {_shown(new)}; resume with the "
        "same option, or train anew in another --output_dir"
    )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["check_options", "check_parts", "keep_options", "options_of", "other_rows"]
