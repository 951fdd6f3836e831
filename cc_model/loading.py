"""`from_pretrained`: load what a patched model's `save_pretrained` wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import cached_file

from cc_model.config import CCConfig
from cc_model.patching.causal_lm import POSTPONED
from cc_model.patching.classes import model_class, patched_class
from cc_model.patching.patch import patch_model
from cc_model.saving import ADAPTER_CONFIG, CONFIG_FILE, PREFIX, weights_file, weights_index

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder", "proxies")


def from_pretrained(directory: str | os.PathLike[str], **hf_kwargs: Any) -> Any:
    """Load what a patched model's `save_pretrained` wrote: a patched model with its Decision Maker and matrix.

    Args:
        directory: folder, or repository name on the hub.
        hf_kwargs: passed on to the stock `from_pretrained` (`dtype`, `device_map`, `revision`, `variant`, `config`, …);
            not `output_loading_info`.

    Returns:
        The patched model, in evaluation mode. Where the folder has an adapter beside the model's weights, as
        transformers' `add_adapter` and `save_pretrained` leave it there, the model has that adapter, too.

    Raises:
        ValueError: `output_loading_info` is set; the directory (or repository) holds no `cc_config.json`, or an adapter
            alone, or a `cc_config.json` that is no JSON object, has an unknown option or a value out of range; a
            safetensors file with the connection's weights is missing, or they lack the Decision Maker; the config has
            no causal language model, the architecture is not supported, or it has no layer `inject_layer`.
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
    if hf_kwargs.get("output_loading_info"):
        raise ValueError("output_loading_info: not supported by cc_model.from_pretrained, got True")
    hub = {name: hf_kwargs[name] for name in _HUB_OPTIONS if hf_kwargs.get(name) is not None}
    options_file = _find(directory, CONFIG_FILE, hub)
    if options_file is None:
        _refuse_adapter(directory, hub)
        raise ValueError(
            f"directory: expected {CONFIG_FILE} in {os.fspath(directory)}, which a patched model's save_pretrained "
            "writes; a plain model gets a new connection, not trained and without a matrix, by "
            "patch_model(AutoModelForCausalLM.from_pretrained(...))"
        )
    options = CCConfig.from_json(options_file)
    variant = hf_kwargs.get("variant")
    weights = _connection_weights(directory, variant, hub)
    if "decision_maker.weight" not in weights:
        raise ValueError(
            f"directory: expected the weights cc.decision_maker.weight in {os.fspath(directory)} (variant "
            f"{variant}), got a plain model's"
        )
    # The patched class knows that the entries under cc. are not the stock model's; it is completed by patch_model.
    loader: Any = patched_class(_stock_class(directory, hf_kwargs, hub), "PatchedCausalLM")
    model: Any = loader.from_pretrained(directory, **hf_kwargs)
    patch_model(model, options)
    model.cc.load_state_dict(weights)
    adapter = model.__dict__.pop(POSTPONED, None)
    if adapter is not None:
        model.load_adapter(*adapter[0], **adapter[1])
    return model


def _stock_class(directory: str | os.PathLike[str], hf_kwargs: dict[str, Any], hub: dict[str, Any]) -> Any:
    """The causal language model of the config, which is given, or its path, or else is that of `directory`."""
    given = hf_kwargs.get("config")
    if given is None or isinstance(given, (str, os.PathLike)):
        trust = {name: hf_kwargs[name] for name in ("trust_remote_code",) if name in hf_kwargs}
        given = AutoConfig.from_pretrained(directory if given is None else given, **hub, **trust)
    return model_class(given)


def _refuse_adapter(directory: str | os.PathLike[str], hub: dict[str, Any]) -> None:
    """Raise for a folder with an adapter alone, and name what loads it with its connection."""
    file = _find(directory, ADAPTER_CONFIG, hub)
    if file is None:
        return
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    raise ValueError(
        f"directory: expected a model in {os.fspath(directory)}, got an adapter ({ADAPTER_CONFIG}); load it onto its "
        f"base model, with its Decision Maker and matrix: cc_model.integrations.peft.load_adapter("
        f"AutoModelForCausalLM.from_pretrained({base!r}), {os.fspath(directory)!r})"
    )


def _connection_weights(
    directory: str | os.PathLike[str], variant: str | None, hub: dict[str, Any]
) -> dict[str, Tensor]:
    """The tensors under `cc.`, without the prefix, from one file or, as in transformers, else from shards."""
    names = [weights_file(variant)]
    index = None if _find(directory, names[0], hub) is not None else _find(directory, weights_index(variant), hub)
    if index is not None:
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for name, file in weight_map.items() if name.startswith(PREFIX)})
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
