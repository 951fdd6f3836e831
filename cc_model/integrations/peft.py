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

import os
from typing import Any

from torch import nn

from cc_model.connection.adapters import HUB_OPTIONS, MODULE, OPTIONS, unpack_options
from cc_model.patching.patch import patch_model


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

    hub = {name: peft_kwargs[name] for name in HUB_OPTIONS if name in peft_kwargs}
    weights = load_peft_weights(os.fspath(directory), device="cpu", **hub)
    packed = [value for name, value in weights.items() if name.endswith(f"cc.{MODULE}.{OPTIONS}")]
    if not packed:
        raise ValueError(
            f"directory: expected an adapter with a connection in {os.fspath(directory)}, got one without. If the "
            "base was saved with a connection: PeftModel.from_pretrained(cc_model.from_pretrained(base), directory); a "
            "new connection, not trained and without a matrix: patch_model(PeftModel.from_pretrained(base, directory))"
        )
    return PeftModel.from_pretrained(patch_model(base, unpack_options(packed[0])), os.fspath(directory), **peft_kwargs)


__all__ = ["load_adapter"]
