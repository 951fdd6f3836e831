"""Which model architectures are supported, as data. A new one is a line in `SPECS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """Where an architecture keeps what the connection needs: attribute names, nothing else."""

    body: str = "model"  # the decoder body inside the causal language model
    layers: str = "layers"  # its decoder layers
    norm: str = "norm"  # what follows the last of them
    mlp: str = "mlp"  # the feed-forward block inside a layer
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"


SPECS: dict[str, ModelSpec] = {
    "llama": ModelSpec(),
    "qwen2": ModelSpec(),
    "qwen3": ModelSpec(),
    "mistral": ModelSpec(),
}


def spec_of(model: Any) -> ModelSpec:
    """The spec of a causal language model, by its `config.model_type`.

    Raises:
        TypeError: the model is no causal language model of transformers.
        ValueError: its architecture is not supported; the message lists those that are.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None or not hasattr(model, "get_input_embeddings"):
        raise TypeError(f"model: expected a causal language model of transformers, got {type(model).__name__}")
    if model_type not in SPECS:
        raise ValueError(
            f"model: architecture {model_type!r} ({type(model).__name__}) is not supported; "
            f"supported are {', '.join(sorted(SPECS))}"
        )
    spec = SPECS[model_type]
    if not hasattr(model, spec.body) or not hasattr(model, "lm_head"):
        raise TypeError(
            f"model: expected a causal language model with a head, got {type(model).__name__}; "
            "load it with AutoModelForCausalLM"
        )
    return spec


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a supported model, in order."""
    spec = spec_of(model)
    return getattr(getattr(model, spec.body), spec.layers)


def unwrap(model: nn.Module) -> nn.Module:
    """The causal language model inside a PEFT model, else `model`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}")
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model
