"""The models that are profiled: shapes of published ones with random weights, or any folder of `save_pretrained`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from cc_kernels.aot.shapes import MODELS, ModelShape

# On a CPU: a training step that takes tenths of a second, and a prompt whose time is that of its matrix products.
TINY = ModelShape("tiny", layers=8, hidden=256, intermediate=704)
SMALL = ModelShape("small", layers=4, hidden=768, intermediate=2048)
# What a `ModelShape` does not say, from the published `config.json` of each model.
_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "tiny",
        {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 2048},
    ),
    "tiny-8k": (  # the head has a fifth of the weights, as in Llama-3.2-1B
        "tiny",
        {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 8192},
    ),
    "small": (
        "small",
        {
            "model_type": "llama",
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "vocab_size": 4096,
        },
    ),
    "1b": (
        "Llama-3.2-1B",
        {
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "8b": (
        "Llama-3.1-8B",
        {
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
        },
    ),
    "qwen2.5-7b": (
        "Qwen2.5-7B",
        {"model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    ),
    "qwen3-8b": (
        "Qwen3-8B",
        {
            "model_type": "qwen3",
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
    ),
}
NAMES = tuple(_FIELDS)


def shape_of(name: str) -> ModelShape:
    """Layers, hidden and intermediate size of a registered model.

    Raises:
        ValueError: unknown `name`.

    Example:
        >>> shape_of("1b").hidden
        2048
    """
    if name not in _FIELDS:
        raise ValueError(f"model: expected one of {', '.join(NAMES)}, got {name!r}")
    full_name = _FIELDS[name][0]
    return next(shape for shape in (TINY, SMALL, *MODELS) if shape.name == full_name)


def build(name: str, device: torch.device, dtype: torch.dtype, layers: int | None = None, seed: int = 0) -> nn.Module:
    """A stock causal language model on `device`, in evaluation mode.

    Args:
        name: a registered name, with random weights made on the device; or a folder.
        device: of the weights.
        dtype: of the weights.
        layers: decoder layers, where fewer than the model has are wanted; registered models only.
        seed: of the random weights.

    Raises:
        ValueError: `name` is neither registered nor a folder; `layers` for a folder, or below 1.

    Example:
        >>> build("tiny", torch.device("cpu"), torch.float32, layers=2).config.num_hidden_layers
        2
    """
    if name not in _FIELDS and Path(name).is_dir():
        if layers is not None:
            raise ValueError(f"layers: expected none for a saved model, got {layers}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        return loaded.to(device).eval()
    if layers is not None and layers < 1:
        raise ValueError(f"layers: expected 1 or more, got {layers}")
    shape = shape_of(name)
    config = AutoConfig.for_model(
        **{
            **_FIELDS[name][1],
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers if layers is None else layers,
            "max_position_embeddings": 32768,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def twin(model: nn.Module) -> Any:
    """A second model with the very same parameters and buffers, whose modules can be changed without changing `model`.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> twin(model).weight is model.weight
        True
    """
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
