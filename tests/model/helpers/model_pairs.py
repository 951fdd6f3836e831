"""Batches and models that the model tests share."""

from __future__ import annotations

import torch

from cc_model import CCConfig, patch_model
from cc_model.testing import random_matrix, tiny_model

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # every family stands in test_families


def pair(model_type: str = "llama", config: CCConfig | None = None, matrix: bool = False, **overrides):
    """A stock and a patched model with equal weights, so large that the connection changes choices and tokens."""
    overrides = {"initializer_range": 0.15, **overrides}
    stock, model = tiny_model(model_type, **overrides), tiny_model(model_type, **overrides)
    patch_model(model, config)
    with torch.no_grad():
        model.cc.decision_maker.weight.normal_(generator=torch.Generator().manual_seed(1))
    if matrix:
        model.cc.transform_matrix = random_matrix(model)
    return stock, model


def batch(rows: int = 3, main: int = 12, pivot: int = 9, prompt: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Right-padded rows of different lengths; labels start after the prompt."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        "input_ids": torch.randint(256, (rows, main), generator=generator),
        "attention_mask": torch.ones(rows, main, dtype=torch.long),
        "pivot_input_ids": torch.randint(256, (rows, pivot), generator=generator),
        "pivot_attention_mask": torch.ones(rows, pivot, dtype=torch.long),
    }
    made["labels"] = made["input_ids"].clone()
    for b in range(rows):
        made["attention_mask"][b, main - b :] = 0
        made["pivot_attention_mask"][b, pivot - b :] = 0
        made["labels"][b, : prompt - b] = -100
    made["labels"][made["attention_mask"] == 0] = -100
    return made


def at_end(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """`connection_index` of the last column: a forward in evaluation with a matrix connects only where it is told."""
    return {"connection_index": torch.full((ids.shape[0],), ids.shape[1] - 1)}


def gumbel(rows: int, layers: int = 4, seed: int = 2) -> torch.Tensor:
    noise = torch.empty(rows, layers).exponential_(generator=torch.Generator().manual_seed(seed))
    return -noise.log()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict, expected: dict, tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
