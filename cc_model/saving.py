"""Saving a patched model: safetensors, whole or not at all, and loadable as the plain model.

The Decision Maker and the matrix stand in the model's own weights under `cc.`, so that whatever saves and loads a state
dict (Trainer, sharding, `load_state_dict`) keeps them. The options stand in `cc_config.json`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cc_model.compat import keys_ignored_at_inference

CONFIG_FILE = "cc_config.json"
PREFIX = "cc."
IGNORED_AT_INFERENCE = "decision_weights"
_STAGING = ".saving-"
_WEIGHT_FILES = re.compile(r"^model(-\d{5}-of-\d{5})?\.safetensors$|^model\.safetensors\.index\.json$")


def save(
    model: Any,
    stock: Callable[..., Any],
    directory: str | os.PathLike[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plain: bool,
) -> Any:
    """`model.save_pretrained(directory)`: the stock files, the connection's weights and `cc_config.json`.

    The files are written to a folder beside their place and renamed, so that an interrupted save leaves the previous
    checkpoint as it was. Only the main process does so; other processes call the stock method unchanged.

    Args:
        model: the patched model.
        stock: its stock `save_pretrained`.
        directory: where to save.
        args: further positional arguments of the stock method.
        kwargs: further keyword arguments of the stock method.
        plain: leave out everything of ours.
    """
    target = Path(directory)
    if target.is_file():
        raise ValueError(f"save_directory: expected a directory, got the file {target}")
    kwargs = {**dict(zip(("is_main_process", "state_dict"), args)), **kwargs}
    if len(args) > 2:
        raise TypeError("save_pretrained: expected further arguments by keyword, got more than three by position")
    is_main = kwargs.get("is_main_process", True)
    if plain:
        state = kwargs.get("state_dict")
        state = model.state_dict() if state is None else state
        kwargs["state_dict"] = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    with _stock_config(model.config):
        if not is_main:
            return stock(directory, **kwargs)
        if kwargs.get("push_to_hub"):  # the stock method uploads before it returns
            with _options_in_the_upload(model, plain):
                return stock(directory, **kwargs)
        target.mkdir(parents=True, exist_ok=True)
        for abandoned in target.glob(f"{_STAGING}*"):  # of a save that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=_STAGING) as staging:
            result = stock(staging, **kwargs)
            _write_options(model, Path(staging), plain)
            _move_into(Path(staging), target)
    return result


@contextlib.contextmanager
def _options_in_the_upload(model: Any, plain: bool) -> Iterator[None]:
    """Write `cc_config.json` before the files that a save has changed are uploaded."""
    upload = model._upload_modified_files

    def with_options(working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        _write_options(model, Path(working_dir), plain)
        return upload(working_dir, *args, **kwargs)

    model._upload_modified_files = with_options
    try:
        yield
    finally:
        del model._upload_modified_files


def _write_options(model: Any, directory: Path, plain: bool) -> None:
    if not plain:
        model.cc.config.to_json(directory / CONFIG_FILE)


def _move_into(staging: Path, target: Path) -> None:
    """Rename every file of `staging` into `target`, then drop what an earlier save left and this one did not write."""
    written = {path.name for path in staging.iterdir()}
    for path in sorted(staging.iterdir()):
        destination = target / path.name
        if destination.is_dir():
            shutil.rmtree(destination)
        os.replace(path, destination)
    for path in target.iterdir():
        stale = _WEIGHT_FILES.match(path.name) or path.name == CONFIG_FILE
        if stale and path.name not in written:
            path.unlink()


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
