"""The model shapes for which the kernels are compiled and their costs are listed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Layers L, hidden size d and intermediate size I of one model, from its published `config.json`."""

    name: str
    layers: int
    hidden: int
    intermediate: int


MODELS = (
    ModelShape("Llama-3.2-1B", layers=16, hidden=2048, intermediate=8192),
    ModelShape("Llama-3.1-8B", layers=32, hidden=4096, intermediate=14336),
    ModelShape("Llama-3.1-70B", layers=80, hidden=8192, intermediate=28672),
    ModelShape("Qwen2.5-7B", layers=28, hidden=3584, intermediate=18944),
    ModelShape("Qwen3-8B", layers=36, hidden=4096, intermediate=12288),
    ModelShape("Mistral-7B", layers=32, hidden=4096, intermediate=14336),
)

# The largest that the kernels are built for. It is compiled like the others but no model has it.
LARGEST = ModelShape("largest", layers=128, hidden=16384, intermediate=53248)
