"""Saving a patched model: safetensors, whole or not at all, and loadable as the plain model.

A save replaces the files that it writes, and removes what is left of an earlier save of the same weights: shards, when
they are one file now. Weights of another `variant=`, a base model's weights beside its adapter, and all other files of
the folder stay. While files are replaced, those without which nothing loads are away, so that a process that is killed
then leaves no mixture of two saves that loads.

The Decision Maker and the matrix stand in the model's own weights under `cc.`, so that whatever saves and loads a state
dict (Trainer, sharding, `load_state_dict`) keeps them. The options stand in `cc_config.json`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cc_model.compat import keys_ignored_at_inference
from cc_model.config import CCConfig
from cc_model.connection.adapters import adapter_copies
from cc_model.distributed import refuse_shards
from cc_model.files import one_writer

logger = logging.getLogger("cc_model")

CONFIG_FILE = "cc_config.json"
PREFIX = "cc."
SERVED_PREFIX = "CC"  # before the architecture's name, in the config.json of a folder for vLLM
CODE = Path(__file__).parent / "integrations" / "modeling_cc.py"  # what transformers runs with trust_remote_code
_CODE_NAMED = ("AutoModelForCausalLM", f"{CODE.stem}.ConnectedCausalLM")
IGNORED_AT_INFERENCE = "decision_weights"
_STAGING = ".saving-"
ADAPTER_CONFIG = "adapter_config.json"
_ONE_FILE = 2**62


def weights_file(variant: str | None = None) -> str:
    """The file of a model's weights, as transformers names it.

    Example:
        >>> weights_file("bf16")
        'model.bf16.safetensors'
    """
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def weights_index(variant: str | None = None) -> str:
    """The index of a model's sharded weights, as transformers names it.

    Example:
        >>> weights_index("bf16")
        'model.safetensors.index.bf16.json'
    """
    return f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"


def save(
    model: Any,
    stock: Callable[..., Any],
    directory: str | os.PathLike[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plain: bool,
    serve: bool,
    remote_code: bool,
) -> Any:
    """`model.save_pretrained(directory)`: the stock files, the connection's weights and `cc_config.json`.

    The files are written to a folder beside their place and renamed, so that an interrupted save leaves the previous
    checkpoint as it was. Of several processes that save into one folder each waits for the one before. A process that
    is killed between two renames leaves a folder that does not load; what it had
    replaced stands in `.saving-*/old` there, until the next save. Only the main process does so; other processes call
    the stock method unchanged. Of a model with an adapter of transformers (`add_adapter`) the adapter alone is saved,
    as the stock method does.

    Args:
        model: the patched model.
        stock: its stock `save_pretrained`.
        directory: where to save.
        args: further positional arguments of the stock method.
        kwargs: further keyword arguments of the stock method.
        plain: leave out everything of ours.
        serve: name the connected architecture in `config.json`.
        remote_code: add the file that transformers runs with `trust_remote_code=True`.
    """
    target = Path(directory)
    for option in [name for name, given in (("serve", serve), ("remote_code", remote_code)) if given]:
        _refuse_without_connection(option, model, plain)
    if target.is_file():
        raise ValueError(f"save_directory: expected a directory, got the file {target}")
    kwargs = {**dict(zip(("is_main_process", "state_dict"), args)), **kwargs}
    if len(args) > 2:
        raise TypeError("save_pretrained: expected further arguments by keyword, got more than three by position")
    if kwargs.get("distributed_checkpoint"):
        raise ValueError("distributed_checkpoint: expected False for a patched model, got True; gather the weights")
    is_main = kwargs.get("is_main_process", True)
    refuse_shards(model, kwargs.get("state_dict"), is_main)
    if plain:
        state = kwargs.get("state_dict")
        state = model.state_dict() if state is None else state
        kwargs["state_dict"] = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    with _stock_config(model.config):
        if not is_main:
            return stock(directory, **kwargs)
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers saves an active adapter, without its base
            kwargs["max_shard_size"] = _ONE_FILE  # shards of it would take the index of the base's weights
            if not plain and not adapter_copies(model.cc):
                logger.warning(
                    "save_pretrained: transformers saves the adapter alone, and it has no Decision Maker, so this save "
                    "is without the connection; give the adapter modules_to_save=['decision_maker']"
                )
        target.mkdir(parents=True, exist_ok=True)
        with one_writer(target), _staging(target) as staging:
            finish = functools.partial(
                _finish, model, staging, target, kwargs.get("variant"), plain, serve, remote_code
            )
            if not kwargs.get("push_to_hub"):
                result = stock(staging, **kwargs)
                finish()
                return result
            kwargs.setdefault("repo_id", target.name)
            with _upload_from(model, target, finish):  # the stock method uploads before it returns
                return stock(staging, **kwargs)


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder in `target` for the new files; those of saves that were killed go."""
    for abandoned in target.glob(f"{_STAGING}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=_STAGING) as made:
        staging = Path(made) / "new"
        staging.mkdir()
        yield staging


def _finish(
    model: Any, staging: Path, target: Path, variant: str | None, plain: bool, serve: bool, remote_code: bool
) -> set[str]:
    """Add the options to what the stock method wrote into `staging`, and move all of it; returns the names."""
    weights = _of_one_save(variant)
    if (staging / "config.json").exists():  # an adapter's save has none
        _tell_loaders(staging / "config.json", serve, remote_code)
    if remote_code:
        shutil.copyfile(CODE, staging / CODE.name)
    written = {path.name for path in staging.iterdir()}
    stale = []
    if any(map(weights, written)):  # not an adapter's save
        stale = [p for p in target.iterdir() if (weights(p.name) or p.name == CODE.name) and p.name not in written]
        others = [path for path in target.glob("*.safetensors") if path.name not in written and path not in stale]
        options, shared = target / CONFIG_FILE, any(map(_has_connection, others))
        if not plain:
            _refuse_other_options(model.cc.config, options, shared)
            model.cc.config.to_json(staging / CONFIG_FILE)
            written.add(CONFIG_FILE)
        elif options.exists() and not shared:
            stale.append(options)
    weights_names = (f"adapter_{weights_file(variant)}", weights_index(variant), weights_file(variant))
    _move_into(staging, target, stale, (*weights_names, "config.json"))
    return written


def _refuse_other_options(config: CCConfig, options: Path, shared: bool) -> None:
    """Raise when the folder keeps weights of another variant that were saved with other options than `config`."""
    if shared and options.exists() and CCConfig.from_json(options) != config:
        raise ValueError(
            f"save_directory: expected a model with {CCConfig.from_json(options)}, as the weights of another variant "
            f"in {options.parent} have, got one with {config}; a folder has one {CONFIG_FILE}, so save into another"
        )


def _of_one_save(variant: str | None) -> Callable[[str], bool]:
    """Whether a file name is one of the weights of a save with `variant`: one file, or shards and their index."""
    stem = re.escape(weights_file(variant).removesuffix(".safetensors"))
    pattern = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(weights_index(variant))}")
    return lambda name: pattern.fullmatch(name) is not None


def _has_connection(path: Path) -> bool:
    """Whether a safetensors file holds weights of the connection; a file that cannot be read is taken to."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.startswith(PREFIX) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return True


def _move_into(staging: Path, target: Path, stale: list[Path], last: tuple[str, ...]) -> None:
    """Rename every file of `staging` into `target` and drop the stale ones; after an error the folder is as it was.

    Files named in `last` come last, in that order, and what they replace goes first, the other way round.
    """
    for path in staging.iterdir():
        if (target / path.name).is_dir() or path.is_dir():
            raise IsADirectoryError(f"save_directory: expected no folder named {path.name!r} in {target}, got one")
    backup = staging.with_name("old")
    backup.mkdir()
    place = {name: index for index, name in enumerate(last)}
    made = sorted(staging.iterdir(), key=lambda path: (place.get(path.name, -1), path.name))
    away = sorted({*stale, *(target / path.name for path in made if path.name in place)}, key=lambda path: path.name)
    away.sort(key=lambda path: place.get(path.name, -1), reverse=True)
    replaced: dict[Path, bool] = {}
    try:
        for path in away:
            replaced[path] = _keep(path, backup)
            path.unlink(missing_ok=True)
        for path in made:
            destination = target / path.name
            if destination not in replaced:
                replaced[destination] = _keep(destination, backup)
            os.replace(path, destination)
    except BaseException:
        for destination, existed in reversed(replaced.items()):  # what went first comes back last
            if existed:
                os.replace(backup / destination.name, destination)
            else:
                destination.unlink(missing_ok=True)
        raise


def _keep(path: Path, backup: Path) -> bool:
    """Keep a second name of `path` in `backup`, or a copy where the file system has no links; whether it exists."""
    if not path.exists():
        return False
    try:
        os.link(path, backup / path.name)
    except OSError:
        shutil.copy2(path, backup / path.name)
    return True


@contextlib.contextmanager
def _upload_from(model: Any, target: Path, finish: Callable[[], set[str]]) -> Iterator[None]:
    """Finish the save before the stock method uploads, and let it upload from `target` what the save has written."""
    upload = model._upload_modified_files

    def finished(working_dir: Any, repo_id: str, files_timestamps: Any, *args: Any, **kwargs: Any) -> Any:
        written = finish()
        others = {path.name: float("inf") for path in target.iterdir() if path.name not in written}
        return upload(target, repo_id, others, *args, **kwargs)

    model._upload_modified_files = finished
    try:
        yield
    finally:
        del model._upload_modified_files


@contextlib.contextmanager
def _stock_config(config: Any) -> Iterator[None]:
    """Without our entry in `keys_to_ignore_at_inference`, which `config.json` would otherwise keep."""
    present = config.__dict__.pop("keys_to_ignore_at_inference", None)
    others = [key for key in present or [] if key != IGNORED_AT_INFERENCE]
    if present is not None and others != keys_ignored_at_inference(config):
        config.keys_to_ignore_at_inference = others
    try:
        yield
    finally:
        if present is not None:
            config.keys_to_ignore_at_inference = present


def _refuse_without_connection(option: str, model: Any, plain: bool) -> None:
    """Raise where `serve=True` or `remote_code=True` would write a folder that answers as the plain model."""
    if plain:
        raise ValueError(f"{option}: expected one of plain=True and {option}=True, got both; plain is without it")
    if model.cc.transform_matrix is None:
        raise ValueError(
            f"{option}: expected a Transform Matrix, without one there is no connection; fit_transform_matrix"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{option}: expected a model without adapters; merge them into it first")


def _tell_loaders(config_file: Path, serve: bool, remote_code: bool) -> None:
    """Write the connected architecture's name, which vLLM reads, and our file's, which transformers runs if trusted."""
    text = config_file.read_text(encoding="utf-8")
    config = json.loads(text)
    if serve:
        config["architectures"] = [SERVED_PREFIX + name for name in config["architectures"]]
    key, ours = _CODE_NAMED
    code = config.pop("auto_map", {})
    if remote_code:
        code[key] = ours
    elif code.get(key) == ours:  # the model came from a folder with our file
        del code[key]
    if code:
        config["auto_map"] = code
    if config != json.loads(text):
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
