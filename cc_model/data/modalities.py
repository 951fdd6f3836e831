"""Pictures, films and sounds among the arguments of a forward: the connection is defined for text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PREFIXES = ("pixel_values", "image", "video", "audio", "input_features", "mm_encoder_outputs")


def refuse_other_modalities(arguments: Mapping[str, Any]) -> None:
    """Raise when a connected forward or `generate` is given more than text.

    Raises:
        NotImplementedError: an argument holds pictures, films or sounds; the message names it.
    """
    for name, value in arguments.items():
        # `generate` hands an empty dict on; comparing tensors is slow, so names come first.
        if name.startswith(_PREFIXES) and value is not None and value != {}:
            raise NotImplementedError(
                f"{name}: expected text alone, got {type(value).__name__}; the connection is not defined for other "
                "modalities. Leave it out, or wrap the call in cc_model.connection_disabled(model)"
            )


__all__ = ["refuse_other_modalities"]
