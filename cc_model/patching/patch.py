"""`patch_model` and `unpatch_model`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cc_model.compat import keys_ignored_at_inference
from cc_model.config import CCConfig
from cc_model.connection.adapters import wrap_decision_maker
from cc_model.connection.state import CrossLingualConnection
from cc_model.distributed import refuse_fsdp
from cc_model.fast_paths import pivot_graph, product
from cc_model.fast_paths.fused import fused_block
from cc_model.forward.passes import LayerSlot
from cc_model.patching.classes import is_patched, patched_class, swap_class
from cc_model.saving import IGNORED_AT_INFERENCE
from cc_model.specs import ModelSpec, addend_of, block_of, body_of, layers_of, spec_of, unwrap

logger = logging.getLogger("cc_model")


def patch_model(model: nn.Module, config: CCConfig | None = None) -> nn.Module:
    """Add the cross-lingual connection to a causal language model of transformers, in place.

        z[b] = W (mean_l V[l,b] + e[b])        V: feed-forward outputs of the pivot pass at p[b], e: embedding at q[b]
        w[b] = softmax((z[b] + g[b]) / τ)      g: Gumbel noise, in training; `hard`: the one-hot of its maximum
        f_i[b, q[b]] += Σ_l w[b,l] V[l,b]      f_i: feed-forward output of the main pass, i = `inject_layer`

    The patched `model(...)` also takes these, by keyword, and its output has `decision_weights` w `(B, L)` in fp32
    (fp64 in an fp64 model), all zero for a row without a connection:

    | argument | shape | dtype |
    |---|---|---|
    | `pivot_input_ids` | (B, S) | int64 or int32 |
    | `pivot_attention_mask` | (B, S) | any, 0 at padding; None: all attended |
    | `connection_index` q, `pivot_index` p | (B,) | int64 or int32 |
    | `gumbel_noise` g | (B, L) | floating point; None: in training drawn in fp32, in evaluation none |
    | `pivot_row` | (B,) | int64 or int32: which of P pivots each row reads, −1 none; pivots have P rows then |
    | `pivot_bank` | (L, P, d) | floating point, or what `cc_model.pivot_bank` gives, in the place of the pivots |
    | `loss_rows` | (K,) | int64 or int32: flattened tokens whose next token has a label, −1 pads |
    | `batch_shape` | (B, N, P, K, 0) | of `ParallelCollator`; shows, and raises, when something cut the batch |

    With `loss_rows`, head and loss run in training on these tokens alone: `logits` is `(1, K, vocabulary)`.

    Given `pivot_input_ids` it connects. Without them it is the plain model in training; in evaluation it connects when
    `model.cc.transform_matrix` is set: V are then the main prompt's own activations at q, mapped by the matrix. Where,
    it is told by `connection_index`, or, while no earlier tokens are cached, by `labels`; a forward without both is
    plain after cached tokens, and raises otherwise. `model.generate` connects once for each prompt.

    `connection_index` defaults to the token before the first label ≠ −100, or, with an English prompt and without
    labels, to the last attended token; `pivot_index` to the last attended pivot token. A row without labels, with index
    −1 or with an all-zero pivot mask gets no connection; its contribution and its gradients are exact zeros. An index
    out of range skips the row. Packed rows (N examples in B rows) take N pivots and N indices into the flattened
    tokens, see `cc_model.forward.packing`.

    The patched forward raises, besides what the stock one does:

    - TypeError: an added argument is no tensor or has the wrong dtype.
    - ValueError: in evaluation with a matrix and an empty cache neither `connection_index` nor `labels` nor an English
      prompt is given; an added argument has the wrong shape, or a pivot row has no token (S = 0);
      `pivot_attention_mask` or `pivot_index`, in training also `connection_index` or `gumbel_noise`, comes without
      `pivot_input_ids`; `simulated_share` is above 0 in training and no matrix is set; packed rows come without
      `position_ids`, or with a 2-dimensional mask or a cache.
    - NotImplementedError: `cu_seq_lens_q`, `cu_seq_lens_k` or `seq_idx` without one pivot and index per example.
    - RuntimeError: `position_ids` restart without one pivot and index per example, or less often than there are
      examples (on a GPU a device-side assertion).
    - RuntimeError: `pivot_grad=True` and the captures carry no gradient, as under reentrant gradient checkpointing; or
      a module was replaced, wrapped or bypassed after `patch_model`, so that nothing would be connected.

    Args:
        model: a causal language model of a family in docs/models.md, also inside a PEFT model.
        config: options; None for the published recipe.

    Returns:
        `model` itself. Patching a patched model again with the same options changes nothing.

    Raises:
        TypeError: `model` or `config` has the wrong type.
        ValueError: the architecture is not supported, the options do not fit the model or its present patch, or the
            model is sharded already (FSDP2).

    Source: CC-Tuning (ACL 2025, arXiv 2506.00875).

    Example:
        >>> from cc_model import patch_model
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("qwen2"))
        >>> tuple(model.cc.decision_maker.weight.shape)  # (layers, hidden size)
        (4, 64)
    """
    inner = unwrap(model)
    if config is not None and not isinstance(config, CCConfig):
        raise TypeError(f"config: expected a CCConfig, got {type(config).__name__}")
    if "cc" in inner._modules:
        present = inner.cc.config  # type: ignore[union-attr]
        if config is not None and config != present:
            raise ValueError(f"config: the model is patched with {present}, got {config}; call unpatch_model first")
        return model
    refuse_fsdp(model, "patch_model")
    spec = spec_of(inner)
    config = config or CCConfig()
    parts = list(_parts(inner, spec))
    if config.inject_layer >= len(parts):
        raise ValueError(f"inject_layer: expected a layer below {len(parts)}, got {config.inject_layer}")
    connection = _new_connection(inner, config, len(parts))
    # Everything has been checked; nothing below fails.
    for index, (layer, block, addend) in enumerate(parts):
        addend.cc_slot = LayerSlot(index, injects=index == config.inject_layer)  # type: ignore[assignment]
        block.cc_fused = fused_block(block, spec)  # type: ignore[assignment]
        if addend is block:
            swap_class(block, patched_class(type(block), "PatchedFeedForwardAddend"))
        else:
            swap_class(block, patched_class(type(block), "PatchedFeedForward"))
            swap_class(addend, patched_class(type(addend), "PatchedAddend"))
        swap_class(layer, patched_class(type(layer), "PatchedLayer" if spec.hands_on else "PatchedSilentLayer"))
    body = body_of(inner)
    swap_class(body, patched_class(type(body), "PatchedBody"))
    body.__dict__["cc_connection"] = connection  # a reference, not a submodule: its parameters belong to the model
    inner.cc_hands_on = body.cc_hands_on = spec.hands_on  # type: ignore[assignment]
    if not is_patched(inner):
        swap_class(inner, patched_class(type(inner), "PatchedCausalLM"))
    inner.cc = connection
    ignored = keys_ignored_at_inference(inner.config)
    if IGNORED_AT_INFERENCE not in ignored:
        inner.config.keys_to_ignore_at_inference = [*ignored, IGNORED_AT_INFERENCE]  # type: ignore[union-attr]
    connection.train(inner.training)
    has_adapter = inner is not model or getattr(inner, "_hf_peft_config_loaded", False)
    if has_adapter and not wrap_decision_maker(model, connection):
        logger.warning(
            "patch_model: %s saves no modules of the model, so that saving it leaves out the Decision Maker; save the "
            "model itself, model.get_base_model().save_pretrained(...)",
            type(model).__name__,
        )
    return model


def unpatch_model(model: nn.Module) -> nn.Module:
    """Undo `patch_model`, in place: stock classes, stock attributes, bit-equal logits. The connection is dropped.

    Args:
        model: a patched model, also inside a PEFT model.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no torch module.
        ValueError: the model is not patched, or it is sharded (FSDP2).

    Example:
        >>> from cc_model import patch_model, unpatch_model
        >>> from cc_model.testing import tiny_model
        >>> model = unpatch_model(patch_model(tiny_model("llama")))
        >>> hasattr(model, "cc")
        False
    """
    inner = unwrap(model)
    if "cc" not in inner._modules:
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__} without a connection")
    refuse_fsdp(model, "unpatch_model")
    spec = spec_of(inner)
    for layer in layers_of(inner):
        parts: list[Any] = [addend_of(layer, spec), block_of(layer, spec), layer]
        for module in parts:
            if is_patched(module):
                for name in ("cc_slot", "cc_fused", product.FLAG):
                    module.__dict__.pop(name, None)
                swap_class(module, type(module).cc_stock_class)
    body = body_of(inner)
    body.__dict__.pop(pivot_graph.ATTRIBUTE, None)
    del body.__dict__["cc_connection"], body.__dict__["cc_hands_on"], inner.__dict__["cc_hands_on"]
    swap_class(body, type(body).cc_stock_class)
    swap_class(inner, type(inner).cc_stock_class)  # type: ignore[attr-defined]
    del inner.cc
    config: Any = inner.config
    others = [key for key in config.keys_to_ignore_at_inference if key != IGNORED_AT_INFERENCE]
    config.__dict__.pop("keys_to_ignore_at_inference", None)
    if others != keys_ignored_at_inference(config):
        config.keys_to_ignore_at_inference = others
    return model


def _parts(model: nn.Module, spec: ModelSpec) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    """Each decoder layer, its feed-forward block, and what it adds to its stream.

    Raises:
        ValueError: there is no layer, or one lacks a module that the spec names.
    """
    layers = layers_of(model)
    if len(layers) == 0:
        raise ValueError("model: expected at least one decoder layer, got none")
    for index, layer in enumerate(layers):
        block, addend = _module(block_of, layer, spec), _module(addend_of, layer, spec)
        if block is None:
            raise ValueError(f"model: layer {index} ({type(layer).__name__}) has no feed-forward block {spec.mlp!r}")
        if addend is None:
            raise ValueError(
                f"model: layer {index} ({type(layer).__name__}) has no {spec.addend[-1]!r}, whose output this "
                f"architecture's layers add; its spec does not fit this version of transformers"
            )
        yield layer, block, addend


def _module(find: Callable[[Any, ModelSpec], Any], layer: nn.Module, spec: ModelSpec) -> nn.Module | None:
    try:
        found = find(layer, spec)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) else None


def _new_connection(model: Any, config: CCConfig, num_layers: int) -> CrossLingualConnection:
    weight = model.get_input_embeddings().weight
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    text_config = model.config.get_text_config(decoder=True)
    std = getattr(text_config, "initializer_range", 0.02)
    return CrossLingualConnection(config, num_layers, text_config.hidden_size, std, device, model.dtype)


__all__ = ["patch_model", "unpatch_model"]
