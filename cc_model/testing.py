"""Tiny random models of every supported architecture, for tests, examples and dry runs. No download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from cc_model.specs import SPECS


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: Any) -> nn.Module:
    """A random causal language model: 4 layers, hidden size 64, 256 tokens, fp32, in evaluation mode.

    Args:
        model_type: one of the supported architectures.
        seed: of the weights; the caller's random state is left as it was.
        overrides: any field of the model's config.

    Raises:
        ValueError: unknown `model_type`.

    Example:
        >>> tiny_model("qwen3", num_hidden_layers=2).config.num_hidden_layers
        2
    """
    if model_type not in SPECS:
        raise ValueError(f"model_type: expected one of {sorted(SPECS)}, got {model_type!r}")
    options: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **overrides,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    return model.eval()


def random_matrix(model: Any, seed: int = 0, scale: float = 1.0) -> Tensor:
    """A random `(d, d)` Transform Matrix with entries N(0, scale² / d), for a patched model.

    Example:
        >>> from cc_model import patch_model
        >>> model = patch_model(tiny_model())
        >>> tuple(random_matrix(model).shape)
        (64, 64)
    """
    width = model.cc.hidden_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, width, generator=generator) * (scale / width**0.5)
