"""How the connection travels with an adapter of PEFT: in the adapter's copies of the Decision Maker.

The user's side, with the names in a checkpoint, is `cc_model.integrations.peft`.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.config import CCConfig

logger = logging.getLogger("cc_model")

MODULE = "decision_maker"
OPTIONS = "options"
HUB_OPTIONS = ("revision", "cache_dir", "token", "subfolder")
CARRIED = ("transform_matrix", "transform_bias", OPTIONS)


def wrap_decision_maker(peft_model: Any, connection: Any) -> bool:
    """Make the Decision Maker of a model that has an adapter already one of the adapter's saved modules.

    Args:
        peft_model: a `PeftModel`, or a model with adapters of transformers (`add_adapter`).
        connection: its `cc` module.

    Returns:
        Whether it was possible: prompt tuning and some others save no modules.
    """
    configs = getattr(peft_model, "peft_config", {})
    names = [name for name, config in configs.items() if hasattr(config, "modules_to_save")]
    if not names:
        return False
    from peft.utils import ModulesToSaveWrapper

    wrapper: Any = None
    for name in names:
        named = list(configs[name].modules_to_save or [])
        if MODULE in named:
            logger.warning(
                "patch_model: the adapter %r names the Decision Maker, but was put on a model without one, so this one "
                "is new; to load a saved one use cc_model.integrations.peft.load_adapter, or call patch_model first",
                name,
            )
        configs[name].modules_to_save = [*named, *([] if MODULE in named else [MODULE])]
        if wrapper is None:
            wrapper = ModulesToSaveWrapper(connection.decision_maker, name)
        else:
            wrapper.update(name)
    connection.decision_maker = wrapper
    active = peft_model.active_adapters  # a method of transformers' models, a list of PEFT's
    active = [name for name in (active() if callable(active) else active) if name in names]
    wrapper.set_adapter(active)
    for name in names:
        wrapper.modules_to_save[name].requires_grad_(name in active and not configs[name].inference_mode)
    return True


def carry(connection: Any) -> None:
    """Put the Transform Matrix and the options into the Decision Maker's copies, if an adapter saves them."""
    carried = {name: getattr(connection, name) for name in CARRIED[:-1]}
    copies = adapter_copies(connection)
    if copies:
        carried[OPTIONS] = pack_options(connection.config, connection.decision_maker.weight.device)
    drop_carried(connection)
    for copy in copies:
        for name, value in carried.items():
            if value is not None:
                copy.register_buffer(name, value)


def take_carried(connection: Any, state_dict: dict[str, Any], prefix: str, errors: list[str]) -> None:
    """Move what `carry` put into a state dict back to where it belongs; options that differ are an error."""
    drop_carried(connection)
    inside = f"{prefix}{MODULE}."
    for key in [key for key in state_dict if key.startswith(inside) and key.rpartition(".")[2] in CARRIED]:
        value, name = state_dict.pop(key), key.rpartition(".")[2]
        if name != OPTIONS:
            state_dict.setdefault(prefix + name, value)
        elif unpack_options(value) != connection.config:
            errors.append(_other_options(connection, value))


def carried_by(adapter: Any, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """What `carry` put into an adapter that transformers' `load_adapter` is about to load, by name.

    Args:
        adapter: folder or hub name; None when the state dict is among `kwargs`.
        kwargs: of `load_adapter`.
    """
    weights = kwargs.get("adapter_state_dict")
    if weights is None and adapter is not None:
        from peft.utils import load_peft_weights

        download = getattr(kwargs.get("load_config"), "download_kwargs", None) or {}
        given = {**download, **kwargs, **(kwargs.get("adapter_kwargs") or {})}
        hub = {name: given[name] for name in HUB_OPTIONS if given.get(name) is not None}
        weights = load_peft_weights(os.fspath(adapter), device="cpu", **hub)
    inside = f"cc.{MODULE}."
    named = ((key.rpartition(".")[2], value) for key, value in (weights or {}).items() if inside in key)
    return {name: value for name, value in named if name in CARRIED}


def refuse_other_options(connection: Any, carried: dict[str, Tensor]) -> None:
    """Raise unless the options that an adapter carries are those of the model."""
    if OPTIONS in carried and unpack_options(carried[OPTIONS]) != connection.config:
        raise ValueError(_other_options(connection, carried[OPTIONS]))


def put_carried(connection: Any, carried: dict[str, Tensor]) -> None:
    """Set the matrix and the bias that an adapter carries; without a matrix the model's own stays."""
    for name in CARRIED[:-1]:
        if name in carried:
            setattr(connection, name, carried[name])


def _other_options(connection: Any, packed: Tensor) -> str:
    return (
        f"options: the adapter was trained with {unpack_options(packed)}, the model is patched with "
        f"{connection.config}; patch the base model with the adapter's options, or use "
        "cc_model.integrations.peft.load_adapter"
    )


def drop_carried(connection: Any) -> None:
    """Remove what `carry` put there, from the copies and from one that the adapter left behind when it was merged."""
    for module in connection.decision_maker.modules():
        for name in CARRIED:
            module._buffers.pop(name, None)


def adapter_copies(connection: Any) -> list[nn.Module]:
    """The Decision Makers that adapters train and save; empty without an adapter."""
    return list(getattr(connection.decision_maker, "modules_to_save", {}).values())


def has_virtual_tokens(peft_model: Any) -> bool:
    """Whether the active adapter puts virtual tokens before the prompt (prompt tuning, p-tuning, prefix tuning, …)."""
    return bool(getattr(getattr(peft_model, "active_peft_config", None), "is_prompt_learning", False))


def pack_options(config: CCConfig, device: torch.device) -> Tensor:
    """`config` as JSON, in bytes (uint8)."""
    return torch.tensor(list(json.dumps(config.to_dict()).encode()), dtype=torch.uint8, device=device)


def unpack_options(packed: Tensor) -> CCConfig:
    """The options of `pack_options`."""
    return CCConfig.from_dict(json.loads(bytes(packed.tolist())))
