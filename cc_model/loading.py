"""`from_pretrained`: load what a patched model's `save_pretrained` wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file

from cc_model.config import CCConfig
from cc_model.patching.classes import patched_class
from cc_model.patching.patch import patch_model
from cc_model.saving import CONFIG_FILE, PREFIX

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder", "proxies")


def from_pretrained(directory: str | os.PathLike[str], **hf_kwargs: Any) -> Any:
    """Load what a patched model's `save_pretrained` wrote: a patched model with its Decision Maker and matrix.

    Args:
        directory: folder, or repository name on the hub.
        hf_kwargs: passed on to the stock `from_pretrained` (`dtype`, `device_map`, `revision`, …); not
            `output_loading_info` and not `variant`.

    Returns:
        The patched model, in evaluation mode.

    Raises:
        ValueError: `output_loading_info` or `variant` is set; the directory (or repository) holds no `cc_config.json`,
            or one that is no JSON object, or that has an unknown option or a value out of range; a safetensors file
            with the connection's weights is missing, or they lack the Decision Maker; the architecture is not
            supported, or has no layer `inject_layer`.
        TypeError: an option in `cc_config.json` has the wrong type.
        RuntimeError: the connection's weights do not fit the model's size.
        OSError: `directory` is neither a folder nor the name of a repository; and whatever else the stock
            `from_pretrained` raises.

    Example:
        >>> import tempfile
        >>> from cc_model import from_pretrained, patch_model
        >>> from cc_model.testing import tiny_model
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     patch_model(tiny_model("mistral")).save_pretrained(directory)
        ...     type(from_pretrained(directory)).__name__
        'MistralForCausalLM'
    """
    for name in ("output_loading_info", "variant"):
        if hf_kwargs.get(name):
            raise ValueError(f"{name}: not supported by cc_model.from_pretrained, got {hf_kwargs[name]!r}")
    hub = {name: hf_kwargs[name] for name in _HUB_OPTIONS if hf_kwargs.get(name) is not None}
    options_file = _find(directory, CONFIG_FILE, hub)
    if options_file is None:
        raise ValueError(
            f"directory: expected {CONFIG_FILE} in {os.fspath(directory)}, which a patched model's save_pretrained "
            "writes; for a plain model use patch_model(AutoModelForCausalLM.from_pretrained(...))"
        )
    options = CCConfig.from_json(options_file)
    weights = _connection_weights(directory, hub)
    if "decision_maker.weight" not in weights:
        raise ValueError(f"directory: expected the weights cc.decision_maker.weight in {os.fspath(directory)}")
    hf_config = hf_kwargs.get("config") or AutoConfig.from_pretrained(directory, **hub)
    stock: Any = AutoModelForCausalLM._model_mapping[type(hf_config)]
    # The patched class knows that the entries under cc. are not the stock model's; it is completed by patch_model.
    loader: Any = patched_class(stock, "PatchedCausalLM")
    model: Any = loader.from_pretrained(directory, **hf_kwargs)
    patch_model(model, options)
    model.cc.load_state_dict(weights)
    return model


def _connection_weights(directory: str | os.PathLike[str], hub: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors under `cc.`, without the prefix, from one file or from shards."""
    index = _find(directory, "model.safetensors.index.json", hub)
    if index is not None:
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for name, file in weight_map.items() if name.startswith(PREFIX)})
    else:
        names = ["model.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        path = _find(directory, name, hub)
        if path is None:
            raise ValueError(f"directory: expected {name} in {os.fspath(directory)}, found none")
        with safe_open(path, framework="pt") as file:
            weights |= {k.removeprefix(PREFIX): file.get_tensor(k) for k in file.keys() if k.startswith(PREFIX)}  # noqa: SIM118
    return weights


def _find(directory: str | os.PathLike[str], name: str, hub: dict[str, Any]) -> str | None:
    return cached_file(
        os.fspath(directory),
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )


__all__ = ["from_pretrained"]
