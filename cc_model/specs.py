"""Which model architectures are supported, as data. A new one is a line in `SPECS`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelSpec:
    """Where an architecture keeps what the connection needs: attribute names, dotted where they are nested.

    The *addend* of a layer is the module whose output the layer adds to its stream after attention: the feed-forward
    block, or the norm that follows it. Captured and injected is what the addend returns.
    """

    body: str = "model"  # the decoder body inside the model
    layers: str = "layers"  # its decoder layers
    norm: str = "norm"  # what follows the last of them
    mlp: str = "mlp"  # the feed-forward block inside a layer
    addend: tuple[str, ...] = ()  # what the layer adds: the first of these that it has; empty: the block
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""  # gate and up in one projection, the gate in front; then `gate` and `up` are not read
    activation: str = "act_fn"  # empty: SiLU, without a module for it
    scaled: str = ""  # why the block computes more than `down(act(gate(x)) * up(x))`; it runs its stock forward
    dropout: str = ""  # the block's own dropout of its output, a number; where it is not 0, the stock forward runs
    cuts: bool = False  # the head tells by the length of the body's result whether `logits_to_keep` has cut it
    hands_on: bool = True  # forwards of all versions hand unknown keyword arguments on, down to the layers


_GATE_UP = ModelSpec(gate_up="gate_up_proj", activation="activation_fn")
_TEXT = ModelSpec(layers="language_model.layers", norm="language_model.norm")  # the text decoder of several modalities
_AFTER = ModelSpec(addend=("post_feedforward_layernorm",))  # the layer adds the output of a norm after the block

SPECS: dict[str, ModelSpec] = {
    # Dense, the block is added.
    "apertus": ModelSpec(),
    "arcee": ModelSpec(),
    "cohere": ModelSpec(),
    "cohere2": ModelSpec(),
    "cwm": ModelSpec(),
    "diffllama": ModelSpec(),
    "ernie4_5": ModelSpec(),
    "gemma": ModelSpec(),
    "glm": _GATE_UP,
    "granite": ModelSpec(),
    "granite_swa": ModelSpec(),
    "helium": ModelSpec(),
    "hunyuan_v1_dense": ModelSpec(),
    "llama": ModelSpec(),
    "ministral": ModelSpec(),
    "ministral3": ModelSpec(),
    "mistral": ModelSpec(),
    "nemotron": ModelSpec(),
    "olmo": ModelSpec(),
    "persimmon": ModelSpec(norm="final_layernorm"),
    "phi": ModelSpec(norm="final_layernorm"),
    "phi3": _GATE_UP,
    "qwen2": ModelSpec(),
    "qwen3": ModelSpec(),
    "seed_oss": ModelSpec(dropout="residual_dropout"),
    "smollm3": ModelSpec(),
    "stablelm": ModelSpec(),
    "starcoder2": ModelSpec(),
    "vaultgemma": ModelSpec(),
    # Dense, a norm after the block is added.
    "exaone4": _AFTER,
    "gemma2": _AFTER,
    "gemma3_text": _AFTER,
    "gemma4_text": replace(_AFTER, cuts=True),
    "glm4": replace(_GATE_UP, addend=("post_mlp_layernorm",)),
    "olmo2": _AFTER,
    "olmo3": _AFTER,
    # Dense, other names.
    "bloom": ModelSpec(
        body="transformer", layers="h", norm="ln_f", addend=("mlp.dense_4h_to_h",), hands_on=False
    ),  # the block adds the stream itself, to what its second projection returns
    "codegen": ModelSpec(body="transformer", layers="h", norm="ln_f", hands_on=False),
    "falcon": ModelSpec(body="transformer", layers="h", norm="ln_f", hands_on=False),
    "gpt2": ModelSpec(body="transformer", layers="h", norm="ln_f"),
    "gpt_bigcode": ModelSpec(body="transformer", layers="h", norm="ln_f"),
    "gpt_neox": ModelSpec(body="gpt_neox", norm="final_layer_norm"),
    "gptj": ModelSpec(body="transformer", layers="h", norm="ln_f", hands_on=False),
    "xglm": ModelSpec(norm="layer_norm", mlp="fc2"),  # no block of its own: its second projection is added
    # Mixtures of experts.
    "deepseek_v2": ModelSpec(),
    "deepseek_v3": ModelSpec(),
    "dots1": ModelSpec(),
    "ernie4_5_moe": ModelSpec(),
    "flex_olmo": _AFTER,
    "glm4_moe": ModelSpec(),
    "glm4_moe_lite": ModelSpec(),
    "gpt_oss": ModelSpec(),
    "granitemoe": ModelSpec(mlp="block_sparse_moe"),
    "hunyuan_v1_moe": ModelSpec(),
    "llama4_text": ModelSpec(mlp="feed_forward", activation="activation_fn"),
    "mellum": ModelSpec(),
    "mixtral": ModelSpec(),
    "olmoe": ModelSpec(),
    "phimoe": ModelSpec(),
    "qwen2_moe": ModelSpec(),
    "qwen3_moe": ModelSpec(),
    # Linear attention, state spaces and convolutions beside attention.
    "falcon_h1": ModelSpec(
        norm="final_layernorm", mlp="feed_forward", scaled="gate and output are scaled by mlp_multipliers"
    ),
    "jamba": ModelSpec(norm="final_layernorm", mlp="feed_forward"),
    "lfm2": ModelSpec(norm="embedding_norm", mlp="feed_forward", gate="w1", up="w3", down="w2", activation=""),
    "minimax": ModelSpec(),
    "olmo_hybrid": ModelSpec(addend=("post_feedforward_layernorm", "mlp")),  # layers of two kinds
    "qwen3_5_moe_text": ModelSpec(),
    "qwen3_5_text": ModelSpec(),
    "qwen3_next": ModelSpec(),
    # A text decoder inside a model of several modalities, for text prompts.
    "gemma3": replace(_TEXT, addend=_AFTER.addend),
    "gemma4": replace(_TEXT, addend=_AFTER.addend, cuts=True),
    "llama4": ModelSpec(body="language_model.model", mlp="feed_forward", activation="activation_fn"),
    "mistral3": _TEXT,
    "qwen3_5": _TEXT,
    "qwen3_5_moe": _TEXT,
}

UNSUPPORTED = {
    "granitemoehybrid": "its layers add the sum of two modules, experts and a shared block",
    "granitemoeshared": "its layers add the sum of two modules, experts and a shared block",
    "mamba": "its layers have no feed-forward block",
    "mamba2": "its layers have no feed-forward block",
}
"""Why a family does not fit, where that is known."""


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
        reason = UNSUPPORTED.get(model_type)
        raise ValueError(
            f"model: architecture {model_type!r} ({type(model).__name__}) is not supported"
            f"{': ' + reason if reason else ''}; supported are {', '.join(sorted(SPECS))}"
        )
    spec = SPECS[model_type]
    if not _has(model, spec.body) or model.get_output_embeddings() is None:
        raise TypeError(
            f"model: expected a causal language model with a head, got {type(model).__name__}; "
            "load it with AutoModelForCausalLM"
        )
    return spec


def body_of(model: Any) -> Any:
    """The decoder body of a supported model."""
    return attrgetter(spec_of(model).body)(model)


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers of a supported model, in order."""
    spec = spec_of(model)
    return attrgetter(f"{spec.body}.{spec.layers}")(model)


def block_of(layer: Any, spec: ModelSpec) -> Any:
    """The feed-forward block of a decoder layer."""
    found = layer._modules.get(spec.mlp)  # the quick way; the name may be dotted
    return attrgetter(spec.mlp)(layer) if found is None else found


def addend_of(layer: Any, spec: ModelSpec) -> Any:
    """The module whose output the layer adds to its stream: what is captured and injected.

    Raises:
        AttributeError: the layer has no module of that name.
    """
    if not spec.addend:
        return block_of(layer, spec)
    found = next((name for name in spec.addend if _has(layer, name)), spec.addend[-1])
    return attrgetter(found)(layer)


def _has(module: Any, path: str) -> bool:
    try:
        return attrgetter(path)(module) is not None
    except AttributeError:
        return False


def unwrap(model: nn.Module) -> nn.Module:
    """The causal language model inside a PEFT model, else `model`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}")
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model
