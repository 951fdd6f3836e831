"""PEFT: the connection travels with the adapter, whichever of `patch_model` and `get_peft_model` comes first.

PEFT saves a copy of each module named in `modules_to_save`, and nothing else of the base model. The Decision Maker is
such a module. The Transform Matrix and the options are not, so they ride along as tensors of the copy: they are put
there when the state dict is taken, and taken out again when one is loaded. `peft_model.save_pretrained`,
`PeftModel.from_pretrained` and Trainer's checkpoints therefore hold all of the connection, unchanged:

| name in `adapter_model.safetensors` | |
|---|---|
| `base_model.model.cc.decision_maker.weight` | (L, d) |
| `base_model.model.cc.decision_maker.transform_matrix` | (d, d) or (L, d, d), when set |
| `base_model.model.cc.decision_maker.transform_bias` | (d,) or (L, d), when set |
| `base_model.model.cc.decision_maker.options` | `CCConfig` as JSON, in bytes (uint8) |
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
CARRIED = ("transform_matrix", "transform_bias", OPTIONS)


def load_adapter(base: nn.Module, directory: str | os.PathLike[str], **peft_kwargs: Any) -> Any:
    """Patch `base` with the options that an adapter was trained with, and load the adapter onto it.

    The same as `PeftModel.from_pretrained(patch_model(base, options), directory)`, without knowing the options.

    Args:
        base: the stock base model, or a patched one.
        directory: folder or hub name that `peft_model.save_pretrained` wrote.
        peft_kwargs: passed on to `PeftModel.from_pretrained` (`is_trainable`, `adapter_name`, …).

    Returns:
        The `PeftModel`, with Decision Maker and Transform Matrix.

    Raises:
        ValueError: the adapter holds no connection, or `base` is patched with other options.

    Example:
        >>> import tempfile
        >>> from peft import LoraConfig, get_peft_model
        >>> from cc_model import CCConfig, patch_model
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("llama"), CCConfig(inject_layer=1))
        >>> lora = LoraConfig(target_modules="all-linear", modules_to_save=["decision_maker"])
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     get_peft_model(model, lora).save_pretrained(directory)
        ...     load_adapter(tiny_model("llama"), directory).get_base_model().cc.config.inject_layer
        1
    """
    from peft import PeftModel
    from peft.utils import load_peft_weights

    from cc_model.patch import patch_model

    hub = {name: peft_kwargs[name] for name in ("revision", "cache_dir", "token", "subfolder") if name in peft_kwargs}
    weights = load_peft_weights(os.fspath(directory), device="cpu", **hub)
    packed = [value for name, value in weights.items() if name.endswith(f"cc.{MODULE}.{OPTIONS}")]
    if not packed:
        raise ValueError(
            f"directory: expected an adapter with a connection in {os.fspath(directory)}, got one without; call "
            "patch_model(base) and PeftModel.from_pretrained(base, directory)"
        )
    return PeftModel.from_pretrained(patch_model(base, _unpack(packed[0])), os.fspath(directory), **peft_kwargs)


def wrap_decision_maker(peft_model: Any, connection: Any) -> bool:
    """Make the Decision Maker of a model that is inside an adapter already one of the adapter's saved modules.

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
    active = [name for name in peft_model.active_adapters if name in names]
    wrapper.set_adapter(active)
    for name in names:
        wrapper.modules_to_save[name].requires_grad_(name in active and not configs[name].inference_mode)
    return True


def carry(connection: Any) -> None:
    """Put the Transform Matrix and the options into the Decision Maker's copies, if an adapter saves them."""
    carried = {name: getattr(connection, name) for name in CARRIED[:-1]}
    copies = adapter_copies(connection)
    if copies:
        carried[OPTIONS] = _pack(connection.config, connection.decision_maker.weight.device)
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
        elif _unpack(value) != connection.config:
            errors.append(
                f"options: the adapter was trained with {_unpack(value)}, the model is patched with "
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


def _pack(config: CCConfig, device: torch.device) -> Tensor:
    return torch.tensor(list(json.dumps(config.to_dict()).encode()), dtype=torch.uint8, device=device)


def _unpack(packed: Tensor) -> CCConfig:
    return CCConfig.from_dict(json.loads(bytes(packed.tolist())))


__all__ = ["load_adapter"]
