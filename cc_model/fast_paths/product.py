"""The product that a down projection saves for its backward, computed again from gate and up instead of kept.

A gated block computes `down(act(gate) * up)`. Autograd keeps gate and up for the gradient of the product, and the
product, as large as each of them, for the gradient of the projection's weight. The product follows from the other two
by one elementwise kernel. So the hooks of PyTorch for saved tensors put a recipe in its place; the projection is still
called as a module, whatever is attached to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cc_model.distributed import is_partitioned
from cc_model.specs import block_of, layers_of, spec_of, unwrap

FLAG = "cc_computes_again"


class _Recipe(NamedTuple):
    """In the place of a saved view of the product: how autograd had seen it."""

    shape: torch.Size
    stride: tuple[int, ...]


class _Kept(NamedTuple):
    """Any other saved tensor, with the version at which it was saved: behind hooks autograd does not look at it."""

    tensor: Tensor
    version: int


def save_memory(model: nn.Module, enabled: bool = True) -> nn.Module:
    """Let training keep one large activation less per layer: the down projection's input is computed again.

        f = down(p),  p = act(gate(x)) * up(x)        p: (B, T, I), not kept; gate(x) and up(x) are, as before

    Peak memory of a training step falls by B · T · I elements per layer, for one elementwise kernel more per layer in
    the backward. Gradients are the same. Modules are called as before, so adapters and hooks stay in effect.

    The switch is an attribute of the feed-forward blocks: it survives `copy.deepcopy` and pickling, is no part of the
    state dict, and `unpatch_model` takes it away. A block that runs its own forward, a layer under `torch.compile` and
    a parameter that ZeRO-3 partitions stay as they are; `report` says so. Under gradient checkpointing, and under other
    hooks for saved tensors, nothing is kept that could be left out: nothing changes there.

    Args:
        model: a patched model, also inside a PEFT model.
        enabled: False switches it off again.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no torch module, or `enabled` no bool.
        ValueError: the model is not patched.

    Example:
        >>> from cc_model import patch_model, report, save_memory
        >>> from cc_model.testing import tiny_model
        >>> model = save_memory(patch_model(tiny_model("llama")))
        >>> print(report(model).notes[-1])
        memory: the down projections of layers 0-3 compute their input again in the backward
    """
    inner: Any = unwrap(model)
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled: expected a bool, got {type(enabled).__name__}")
    if "cc" not in inner._modules:
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    spec = spec_of(inner)
    for layer in layers_of(inner):
        block = block_of(layer, spec)
        if enabled:
            block.__dict__[FLAG] = True
        else:
            block.__dict__.pop(FLAG, None)
    return model


def computes_again(product: Tensor, down: nn.Module) -> bool:
    """Whether the call `down(product)` may leave the product to be computed again.

    Without a gradient for the product nothing else keeps gate and up. Hooks that are there already, such as those of
    gradient checkpointing, are about to keep less than gate and up; autograd asks the innermost hooks alone.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and product.requires_grad):
        return False
    hooks: Any = torch._C._autograd
    free = hooks._saved_tensors_hooks_is_enabled() and hooks._top_saved_tensors_default_hooks(False) is None
    return free and product.is_contiguous() and not is_partitioned(down)


def without_product(product: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """A context in which autograd saves a recipe in the place of `product`, and everything else as it is.

    Args:
        product: `(..., I)`, contiguous.
        compute: makes the product again. It holds gate and up, which autograd keeps, too: were they written to before
            the backward, autograd would find out.
    """
    # Not `product` itself, which a hook would keep alive. While the call runs, nothing else can be at its address.
    kind = _memory_of(product), product._version

    def pack(saved: Tensor) -> _Recipe | _Kept:
        if (_memory_of(saved), saved._version) == kind:
            return _Recipe(saved.shape, saved.stride())
        return _Kept(saved, saved._version)

    def unpack(packed: _Recipe | _Kept) -> Tensor:
        if isinstance(packed, _Kept):
            if packed.tensor._version != packed.version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a tensor {tuple(packed.tensor.shape)} that a down projection saved is at version "
                    f"{packed.tensor._version}; expected version {packed.version} instead"
                )
            return packed.tensor
        with torch.no_grad():
            return compute().as_strided(packed.shape, packed.stride)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """What the product and its views of all its elements share; a view, transposed or flattened, begins where it does.

    Autograd hands hooks a detached alias, so that identity says nothing.
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        return (type(tensor), id(tensor))
    return tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor.device


__all__ = ["FLAG", "computes_again", "save_memory", "without_product"]
