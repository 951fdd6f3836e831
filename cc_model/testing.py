"""Tiny random models of every supported architecture, for tests, examples and dry runs. No download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from cc_model.specs import SPECS

_OPTIONS: dict[str, Any] = {
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
}
_WINDOW = {"sliding_window": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {**_EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 32}
_GEMMA4 = {
    **_WINDOW,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 256,
    "global_head_dim": 32,
    "pad_token_id": 0,
}
_ROTATED = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}

# What a family needs beside `_OPTIONS` or instead of them; `...` takes an option away.
_FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "head_dim": ...},
    "codegen": {"head_dim": ..., "n_inner": 160, "rotary_dim": 8},
    "cohere2": _WINDOW,
    "cwm": {**_WINDOW, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "deepseek_v3": {**_ROUTED, **_LATENT, "head_dim": 8, "num_key_value_heads": 4},
    "deepseek_v2": {**_ROUTED, **_LATENT, "head_dim": 8, "num_key_value_heads": 4, "topk_method": "greedy"},
    "dots1": {**_ROUTED, "n_shared_experts": 1},
    "ernie4_5_moe": {
        **_EXPERTS,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "exaone4": {**_WINDOW, "sliding_window_pattern": 2},
    "falcon": {"head_dim": ..., "bias": True},
    "falcon_h1": {
        **_MAMBA,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mlp_multipliers": [0.7, 1.3],
    },
    "gemma2": _WINDOW,
    "gemma3_text": _WINDOW,
    "gemma4_text": _GEMMA4,
    "glm4_moe": _ROUTED,
    "glm4_moe_lite": {**_ROUTED, **_LATENT, "head_dim": 8, "num_key_value_heads": 4},
    "gpt2": {"head_dim": ..., "n_inner": 160},
    "gpt_bigcode": {"head_dim": ..., "n_inner": 160, "num_key_value_heads": ...},
    "gptj": {"head_dim": ..., "n_inner": 160, "rotary_dim": 8},
    "granite_swa": _WINDOW,
    "gpt_oss": {**_LOCAL_EXPERTS, **_WINDOW},
    "granitemoe": _LOCAL_EXPERTS,
    "flex_olmo": _EXPERTS,
    "hunyuan_v1_moe": {**_EXPERTS, "moe_topk": 2},
    "mellum": {**_EXPERTS, **_WINDOW},
    "ministral": _WINDOW,
    "vaultgemma": _WINDOW,
    "jamba": {
        **_MAMBA,
        **_EXPERTS,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "lfm2": {"block_auto_adjust_ff_dim": False, "full_attn_idxs": [1, 3]},
    "llama4_text": {
        **_LOCAL_EXPERTS,
        "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16,
    },
    "minimax": {**_LOCAL_EXPERTS, "block_size": 8},
    "mixtral": _LOCAL_EXPERTS,
    "olmo3": _WINDOW,
    "olmo_hybrid": {**_DELTA, "linear_num_value_heads": 2},
    "olmoe": _EXPERTS,
    "phimoe": _LOCAL_EXPERTS,
    "qwen2_moe": {**_EXPERTS, **_SHARED_EXPERT},
    "qwen3_5_moe_text": {**_DELTA, **_EXPERTS, **_SHARED_EXPERT, **_ROTATED},
    "qwen3_5_text": {**_DELTA, **_ROTATED},
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_DELTA, **_EXPERTS, **_SHARED_EXPERT},
    "xglm": {"d_model": 64, "ffn_dim": 160, "num_layers": 4, "attention_heads": 4},
}
# Models of several modalities: the text decoder inside, and the smallest vision tower.
_INSIDE = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_TOWER = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
_VISION: dict[str, dict[str, Any]] = {
    "gemma3": {"model_type": "siglip_vision_model", **_TOWER},
    "gemma4": {"num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 16, **_TOWER},
    "llama4": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32, **_TOWER},
    "mistral3": {"model_type": "pixtral", "head_dim": 16, **_TOWER},
    "qwen3_5": {"num_position_embeddings": 16, **_QWEN_TOWER},
    "qwen3_5_moe": {"num_position_embeddings": 16, **_QWEN_TOWER},
}
# Tokens that stand for pictures; the tests' prompts hold none of them.
_OUTSIDE = {name: 250 + i for i, name in enumerate(("image_token_id", "video_token_id", "audio_token_id"))}
_OUTSIDE |= {"image_token_index": 250, "mm_tokens_per_image": 4}


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: Any) -> nn.Module:
    """A random causal language model: 4 layers, hidden size 64, 256 tokens, fp32, in evaluation mode.

    Families with sliding windows have one of 16 tokens in some layers, mixtures four experts. A model of several
    modalities has a vision tower of one layer, and is loaded as its checkpoints are.

    Args:
        model_type: one of the supported architectures.
        seed: of the weights; the caller's random state is left as it was.
        overrides: any field of the model's config (of the text decoder's, where there are several modalities).

    Raises:
        ValueError: unknown `model_type`.

    Example:
        >>> tiny_model("qwen3", num_hidden_layers=2).config.num_hidden_layers
        2
    """
    if model_type not in SPECS:
        raise ValueError(f"model_type: expected one of {sorted(SPECS)}, got {model_type!r}")
    config: Any = tiny_config(model_type, **overrides)
    loader: Any = AutoModelForImageTextToText if model_type in _INSIDE else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config)
    return model.eval()


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """The config of `tiny_model`.

    Raises:
        ValueError: the installed transformers does not know `model_type`.

    Example:
        >>> tiny_config("gemma3").text_config.hidden_size
        64
    """
    text = _INSIDE.get(model_type, model_type)
    options = {**_OPTIONS, **_FAMILIES.get(text, {}), **overrides}
    options = {name: value for name, value in options.items() if value is not ...}
    if model_type not in _INSIDE:
        return AutoConfig.for_model(model_type, **options)
    outer = {"text_config": {"model_type": text, **options}, "vision_config": _VISION[model_type]}
    return AutoConfig.for_model(model_type, **outer, **_OUTSIDE, tie_word_embeddings=options["tie_word_embeddings"])


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
