"""Loads the folder that this file lies in with its cross-lingual connection; needs the package `cc-tuning`.

`save_pretrained(..., remote_code=True)` copies this file, and `config.json` names its class. Transformers runs it with
`trust_remote_code=True` and only then.
"""

import os
from typing import Any

import cc_model


class ConnectedCausalLM:
    """What `AutoModelForCausalLM` asks for a model: one of the stock class, patched."""

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **hf_kwargs: Any) -> Any:
        """The model of `cc_model.from_pretrained`, with its arguments and errors."""
        return cc_model.from_pretrained(directory, **hf_kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """What `AutoModelForCausalLM.from_config` asks for new weights: ValueError, none are connected."""
        raise ValueError(
            "trust_remote_code: expected False with from_config, which makes new weights and so the plain model, got "
            "True; from_pretrained loads the model with its connection, cc_model.patch_model makes a new one"
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Transformers calls it so that a save copies the class's file; `save_pretrained` copies this one, if told."""
