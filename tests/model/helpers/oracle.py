"""The connection written a second time, slowly: forward hooks on a stock model, loops over rows, two full prefills.

Shares no code with the library, so that an error in one of the two shows: where a family keeps its layers, and which
module's output a layer adds to its stream, stands here a second time.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

LAYERS = {
    "bloom": "transformer.h",
    "codegen": "transformer.h",
    "falcon": "transformer.h",
    "gemma3": "model.language_model.layers",
    "gemma4": "model.language_model.layers",
    "gpt2": "transformer.h",
    "gpt_bigcode": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "gptj": "transformer.h",
    "llama4": "language_model.model.layers",
    "mistral3": "model.language_model.layers",
    "qwen3_5": "model.language_model.layers",
    "qwen3_5_moe": "model.language_model.layers",
}
ADDED = {
    "bloom": "mlp.dense_4h_to_h",
    "exaone4": "post_feedforward_layernorm",
    "falcon_h1": "feed_forward",
    "flex_olmo": "post_feedforward_layernorm",
    "gemma2": "post_feedforward_layernorm",
    "gemma3": "post_feedforward_layernorm",
    "gemma3_text": "post_feedforward_layernorm",
    "gemma4": "post_feedforward_layernorm",
    "gemma4_text": "post_feedforward_layernorm",
    "glm4": "post_mlp_layernorm",
    "granitemoe": "block_sparse_moe",
    "jamba": "feed_forward",
    "lfm2": "feed_forward",
    "llama4": "feed_forward",
    "llama4_text": "feed_forward",
    "olmo2": "post_feedforward_layernorm",
    "olmo3": "post_feedforward_layernorm",
    "xglm": "fc2",
}


def layers(model):
    """The decoder layers of a stock model."""
    return model.get_submodule(LAYERS.get(model.config.model_type, "model.layers"))


def added(model):
    """The module whose output each layer adds to its stream."""
    name = ADDED.get(model.config.model_type, "mlp")
    if model.config.model_type != "olmo_hybrid":
        return [layer.get_submodule(name) for layer in layers(model)]
    return [getattr(layer, "post_feedforward_layernorm", layer.mlp) for layer in layers(model)]  # of attention alone


@contextlib.contextmanager
def hooked(model, make_hook):
    """Forward hooks `make_hook(layer_index)` on what every layer adds."""
    handles = [module.register_forward_hook(make_hook(i)) for i, module in enumerate(added(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def capture(model, ids: Tensor, mask: Tensor | None, index: list[int]) -> Tensor:
    """Bank (L, B, d)."""
    found = {}

    def make_hook(i):
        def hook(module, args, output):
            tensor = output[0] if isinstance(output, tuple) else output
            found[i] = tensor.reshape(*ids.shape, -1).clone()  # some layers write to it

        return hook

    with hooked(model, make_hook):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return torch.stack([torch.stack([found[i][b, p] for b, p in enumerate(index)]) for i in sorted(found)])


def decide(bank: Tensor, embeds: Tensor, weight: Tensor, noise: Tensor | None = None, hard: bool = True) -> Tensor:
    """Weights (B, L), straight-through when hard."""
    logits = (bank.mean(0) + embeds) @ weight.T
    soft = torch.softmax(logits if noise is None else logits + noise, -1)
    if not hard:
        return soft
    one_hot = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[1]).to(soft.dtype)
    return one_hot - soft.detach() + soft


def connected_logits(model, ids, mask, index: list[int], updates: list[Tensor | None], layer: int = 0, **options):
    """The stock model's output with `updates[b]` added to what `layer` adds at `index[b]`."""

    def make_hook(i):
        def hook(module, args, output):
            if i != layer:
                return None
            tensor = output[0] if isinstance(output, tuple) else output
            changed = tensor.reshape(*ids.shape, -1).clone()
            for b, update in enumerate(updates):
                if update is not None:
                    changed[b, index[b]] = changed[b, index[b]] + update
            changed = changed.view_as(tensor)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with hooked(model, make_hook):
        return model(input_ids=ids, attention_mask=mask, use_cache=False, **options)


def training_forward(
    model, weight, batch, noise, main_index, pivot_index, skip=(), pivot_grad=False, hard=True, layer=0
):
    """Loss of one training step; rows in `skip` get no connection."""
    with torch.set_grad_enabled(pivot_grad):
        bank = capture(model, batch["pivot_input_ids"], batch["pivot_attention_mask"], pivot_index)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    rows = torch.stack([embeds[b, q] for b, q in enumerate(main_index)])
    weights = decide(bank, rows, weight, noise, hard)
    updates = [
        None if b in skip else (weights[b][:, None] * bank[:, b]).sum(0) for b in range(batch["input_ids"].shape[0])
    ]
    output = connected_logits(
        model, batch["input_ids"], batch["attention_mask"], main_index, updates, layer, labels=batch["labels"]
    )
    return output.loss


def greedy(model, weight, matrix, ids: Tensor, steps: int, index: int | None = None, pivot=None, bias=None):
    """Greedy tokens of one prompt (1, T) with two full prefills and no cache: every step runs everything again."""
    q = ids.shape[1] - 1 if index is None else index
    if pivot is None:
        bank = capture(model, ids, None, [q])
        bank = bank @ matrix if bias is None else bank @ matrix + (bias if bias.ndim == 1 else bias[:, None])
    else:
        bank = capture(model, pivot, None, [pivot.shape[1] - 1])
    weights = decide(bank, model.get_input_embeddings()(ids)[:, q], weight)
    update = bank[int(weights.argmax()), 0]
    tokens = []
    for _ in range(steps):
        logits = connected_logits(model, ids, None, [q], [update]).logits
        tokens.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], dim=1)
    return tokens
