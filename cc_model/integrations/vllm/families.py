"""Which model classes of vLLM serve with the connection, as data. A new one is a line in `FAMILIES`."""

from __future__ import annotations

from dataclasses import dataclass

from cc_model.saving import SERVED_PREFIX as PREFIX


@dataclass(frozen=True)
class Family:
    """A causal language model of vLLM whose layers add one module's output to their stream, whole.

    `tensor_parallel` is False where that output is a part only on each of several devices, summed after the addition.
    """

    module: str  # where vLLM keeps the class
    name: str  # its name there
    addend: str = "mlp"  # the module inside a layer, as `cc_model.specs` has it
    layers: str = "model.layers"
    tensor_parallel: bool = True


_MODELS = "vllm.model_executor.models"
_AFTER = "post_feedforward_layernorm"
FAMILIES: dict[str, Family] = {
    "CohereForCausalLM": Family(f"{_MODELS}.commandr", "CohereForCausalLM", tensor_parallel=False),
    "Cohere2ForCausalLM": Family(f"{_MODELS}.commandr", "CohereForCausalLM", tensor_parallel=False),
    "GemmaForCausalLM": Family(f"{_MODELS}.gemma", "GemmaForCausalLM"),
    "Gemma2ForCausalLM": Family(f"{_MODELS}.gemma2", "Gemma2ForCausalLM", _AFTER),
    "Gemma3ForCausalLM": Family(f"{_MODELS}.gemma3", "Gemma3ForCausalLM", _AFTER),
    "LlamaForCausalLM": Family(f"{_MODELS}.llama", "LlamaForCausalLM"),
    "MistralForCausalLM": Family(f"{_MODELS}.mistral", "MistralForCausalLM"),
    "Phi3ForCausalLM": Family(f"{_MODELS}.phi3", "Phi3ForCausalLM"),
    "Qwen2ForCausalLM": Family(f"{_MODELS}.qwen2", "Qwen2ForCausalLM"),
    "Qwen3ForCausalLM": Family(f"{_MODELS}.qwen3", "Qwen3ForCausalLM"),
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
