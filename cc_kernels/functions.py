"""The autograd functions behind `reference.decide` and `reference.connect`, for plain calls and for `torch.func`.

A transform of `torch.func` asks for a `setup_context`, which every plain call would pay for, so each
function exists in both forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from einops import einsum
from torch import Tensor
from torch.autograd.function import once_differentiable

from cc_kernels.library import is_transformed


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arithmetic on `dtype` is done: fp32 for the 16-bit types, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


Function = TypeVar("Function", bound=Callable[..., Any])


def exact(function: Function) -> Function:
    """`function` outside autocast, which would round what its matmuls read and what they give to 16 bits."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        device = next(x.device.type for x in arguments if isinstance(x, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*arguments, **named)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **named)

    return run  # type: ignore[return-value]


class _StraightThrough(torch.autograd.Function):
    """Forward: `hard`, exactly. Backward: the gradient goes to `soft` unchanged."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _TransformedStraightThrough(_StraightThrough):
    """The same under `torch.func`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, hard: Tensor) -> Tensor:  # type: ignore[override]
        return hard.view_as(hard)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _SelectRow(torch.autograd.Function):
    """Forward: `bank[index[k], source[k]]`, copied. Backward: that of `Σ_l weights[k,l] bank[l, source[k]]` at one-hot
    weights. Each k has a source of its own, or several share one (`shared`) and their gradients are added up.
    """

    @staticmethod
    def forward(ctx: Any, bank: Tensor, weights: Tensor, index: Tensor, source: Tensor, shared: bool) -> Tensor:
        ctx.save_for_backward(bank, index, source)
        ctx.weights_dtype, ctx.shared = weights.dtype, shared
        return bank[index, source]

    @staticmethod
    @once_differentiable
    @exact
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        bank, index, source = ctx.saved_tensors
        wide = wide_dtype(bank.dtype)
        grad_bank = grad_weights = None
        if ctx.needs_input_grad[0]:
            total = torch.zeros_like(bank, dtype=wide if ctx.shared else bank.dtype)
            # vmap cannot write rows that differ from sample to sample into a bank that they share.
            put = total.index_put if is_transformed() else total.index_put_
            grad_bank = put((index, source), grads[0].to(total.dtype), ctx.shared).to(bank.dtype)
        if ctx.needs_input_grad[1]:
            read = bank[:, source] if ctx.shared else bank
            grad_weights = einsum(grads[0].to(wide), read.to(wide), "k d, l k d -> k l").to(ctx.weights_dtype)
        return grad_bank, grad_weights, None, None, None


class _TransformedSelectRow(_SelectRow):
    """The same under `torch.func`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(bank: Tensor, weights: Tensor, index: Tensor, source: Tensor, shared: bool) -> Tensor:  # type: ignore[override]
        return bank[index, source]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        bank, weights, index, source, shared = inputs
        ctx.save_for_backward(bank, index, source)
        ctx.weights_dtype, ctx.shared = weights.dtype, shared


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """`hard`, exactly, with the gradient of `soft`."""
    return (_TransformedStraightThrough if is_transformed() else _StraightThrough).apply(soft, hard)


def select_row(bank: Tensor, weights: Tensor, index: Tensor, source: Tensor, shared: bool) -> Tensor:
    """`bank[index[k], source[k]]`, with the gradient of `Σ_l weights[k,l] bank[l, source[k]]` at one-hot weights."""
    return (_TransformedSelectRow if is_transformed() else _SelectRow).apply(bank, weights, index, source, shared)


__all__ = ["exact", "select_row", "straight_through", "wide_dtype"]
