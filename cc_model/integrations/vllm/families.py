"""Which model classes of vLLM serve with the connection, as data. A new one is a line in `FAMILIES`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cc_model.saving import SERVED_PREFIX as PREFIX

MODELS = "vllm.model_executor.models"


@dataclass(frozen=True)
class Family:
    """A causal language model of vLLM whose layers add one module's output to their stream, whole.

    `tensor_parallel` is False where that output is a part only on each of several devices, summed after the addition.
    """

    module: str  # of `MODELS`, where vLLM keeps the class
    name: str = ""  # its name there, if it is not that of the architecture
    addend: str = "mlp"  # the module inside a layer, as `cc_model.specs` has it
    layers: str = "model.layers"
    tensor_parallel: bool = True


_AFTER = "post_feedforward_layernorm"
_HF = Family(
    "transformers", "TransformersForCausalLM"
)  # vLLM runs transformers' layers, with its own attention in them
_HF_MOE = replace(_HF, name="TransformersMoEForCausalLM")

FAMILIES: dict[str, Family] = {
    # Dense.
    "ApertusForCausalLM": Family("apertus"),
    "BloomForCausalLM": Family("bloom", layers="transformer.h"),
    "CohereForCausalLM": Family("commandr", tensor_parallel=False),
    "Cohere2ForCausalLM": Family("commandr", "CohereForCausalLM", tensor_parallel=False),
    "Ernie4_5ForCausalLM": Family("ernie45"),
    "Exaone4ForCausalLM": Family("exaone4", addend=_AFTER),
    "GemmaForCausalLM": Family("gemma"),
    "Gemma2ForCausalLM": Family("gemma2", addend=_AFTER),
    "Gemma3ForCausalLM": Family("gemma3", addend=_AFTER),
    "Gemma4ForCausalLM": Family("gemma4", addend=_AFTER),
    "Glm4ForCausalLM": Family("glm4", addend="post_mlp_layernorm"),
    "GPT2LMHeadModel": Family("gpt2", layers="transformer.h"),
    "GPTJForCausalLM": Family("gpt_j", layers="transformer.h"),
    "GraniteForCausalLM": Family("granite"),
    "GraniteSWAForCausalLM": Family("granite", "GraniteForCausalLM"),
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("mistral"),
    "Ministral3ForCausalLM": Family("mistral", "MistralForCausalLM"),
    "NemotronForCausalLM": Family("nemotron"),
    "Phi3ForCausalLM": Family("phi3"),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3"),
    "StableLmForCausalLM": Family("stablelm", "StablelmForCausalLM"),
    # Mixtures of experts.
    "Ernie4_5_MoeForCausalLM": Family("ernie45_moe"),
    "Glm4MoeForCausalLM": Family("glm4_moe"),
    "GptOssForCausalLM": Family("gpt_oss"),
    "GraniteMoeForCausalLM": Family("granitemoe", addend="block_sparse_moe"),
    "Llama4ForCausalLM": Family("llama4", addend="feed_forward"),
    "MixtralForCausalLM": Family("mixtral", addend="block_sparse_moe"),
    "OlmoeForCausalLM": Family("olmoe"),
    "Qwen2MoeForCausalLM": Family("qwen2_moe"),
    "Qwen3MoeForCausalLM": Family("qwen3_moe"),
    # Without a class of vLLM's own, or with one in some versions only.
    "ArceeForCausalLM": _HF,
    "CwmForCausalLM": _HF,
    "Dots1ForCausalLM": _HF_MOE,
    "GlmForCausalLM": _HF,
    "HeliumForCausalLM": _HF,
    "HunYuanDenseV1ForCausalLM": _HF,
    "MellumForCausalLM": _HF_MOE,
    "MinistralForCausalLM": _HF,
    "OlmoForCausalLM": _HF,
    "Olmo2ForCausalLM": replace(_HF, addend=_AFTER),
    "Olmo3ForCausalLM": replace(_HF, addend=_AFTER),
    "PhiForCausalLM": _HF,
    "SeedOssForCausalLM": _HF,
    "SmolLM3ForCausalLM": _HF,
    "Starcoder2ForCausalLM": _HF,
    "VaultGemmaForCausalLM": _HF,
}
"""By the architecture in a stock model's `config.json`; the connected one is called `CC` and that name."""


def stock_architecture(name: str) -> str | None:
    """The stock architecture of a connected one; None for any other name.

    Example:
        >>> stock_architecture("CCLlamaForCausalLM"), stock_architecture("LlamaForCausalLM")
        ('LlamaForCausalLM', None)
    """
    stock = name.removeprefix(PREFIX)
    return stock if stock != name and stock in FAMILIES else None
