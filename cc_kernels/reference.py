"""The definition of every op in plain PyTorch: the specification, and the implementation for CPU tensors.

Arithmetic on fp16 and bf16 tensors is done in fp32 and rounded once at the end; fp32 and fp64 stay what they are. The
public functions in `cc_kernels.ops` check the arguments and document shapes, dtypes and errors.

Source of the method: CC-Tuning (ACL 2025, arXiv 2506.00875), sections 3.1 to 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, reduce
from torch import Tensor

from cc_kernels.library import is_transformed


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arithmetic on `dtype` is done: fp32 for the 16-bit types, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    wide = wide_dtype(gate.dtype)
    return (F.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


def capture_rows(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    """`out[k] = x[rows[k]]`, a zero row where `rows[k]` is −1."""
    if assume_valid:
        return x.index_select(0, rows)
    if x.shape[0] == 0:  # only −1 can be asked of a tensor without rows; the empty sum keeps x in the graph
        return x.new_zeros(rows.shape[0], x.shape[1]) + x.sum(0)
    picked = x.index_select(0, rows.clamp(min=0))
    return torch.where((rows >= 0)[:, None], picked, 0.0)


def capture_rows_through(x: Tensor, rows: Tensor, assume_valid: bool = False) -> tuple[Tensor, Tensor]:
    """`x` itself, and `capture_rows(x, rows)`."""
    return x, capture_rows(x, rows, assume_valid)


def add_rows(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    """`out = x`, then `out[rows[k]] += values[k]` where `rows[k]` is not −1."""
    kept = torch.where((rows >= 0)[:, None], values, 0.0).to(x.dtype)
    if x.shape[0] == 0:  # no row to add to; the broadcast keeps values in the graph, with a zero gradient
        return x.add_(kept.sum(0)) if inplace else x + kept.sum(0)
    target = rows.clamp(min=0)
    return x.index_add_(0, target, kept) if inplace else x.index_add(0, target, kept)


def decision_logits(bank: Tensor, embeds: Tensor, weight: Tensor, bank_weight: Tensor | None = None) -> Tensor:
    """`z[k] = W (mean_l V[l,k] + e[k])`, with `mean_l V[l,k] Fₗ + W e[k]` for a folded `F = M Wᵀ`. Shape (K, L)."""
    wide = wide_dtype(bank.dtype)
    if bank_weight is None:
        decision_vector = reduce(bank.to(wide), "l k d -> k d", "mean") + embeds.to(wide)
        return F.linear(decision_vector, weight.to(wide))
    if bank_weight.ndim == 2:
        from_bank = reduce(bank.to(wide), "l k d -> k d", "mean") @ bank_weight.to(wide)
    else:
        from_bank = einsum(bank.to(wide), bank_weight.to(wide), "l k d, l d m -> k m") / bank.shape[0]
    return from_bank + F.linear(embeds.to(wide), weight.to(wide))


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
    """Forward: `bank[index[k], k]`, copied. Backward: that of `Σ_l weights[k,l] bank[l,k]` at one-hot weights."""

    @staticmethod
    def forward(ctx: Any, bank: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(bank, index)
        ctx.weights_dtype = weights.dtype
        return bank[index, torch.arange(bank.shape[1], device=bank.device)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        bank, index = ctx.saved_tensors
        grad_bank = grad_weights = None
        if ctx.needs_input_grad[0]:
            chosen = (index, torch.arange(bank.shape[1], device=bank.device))
            zeros, grad = torch.zeros_like(bank), grads[0].to(bank.dtype)
            # vmap cannot write rows that differ from sample to sample into a bank that they share.
            grad_bank = zeros.index_put(chosen, grad) if is_transformed() else zeros.index_put_(chosen, grad)
        if ctx.needs_input_grad[1]:
            wide = wide_dtype(bank.dtype)
            grad_weights = einsum(grads[0].to(wide), bank.to(wide), "k d, l k d -> k l").to(ctx.weights_dtype)
        return grad_bank, grad_weights, None


class _TransformedSelectRow(_SelectRow):
    """The same under `torch.func`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(bank: Tensor, weights: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        return bank[index, torch.arange(bank.shape[1], device=bank.device)]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        bank, weights, index = inputs
        ctx.save_for_backward(bank, index)
        ctx.weights_dtype = weights.dtype


def _choose(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The weights (K, L) and, when `hard`, the chosen layer of each row (K,)."""
    logits = decision_logits(bank, embeds, weight, bank_weight)
    if noise is not None:
        logits = logits + noise.to(logits.dtype)
    if temperature != 1.0:
        logits = logits / temperature
    soft = torch.softmax(logits, dim=-1)
    if not hard:
        return soft, None
    index = logits.argmax(dim=-1)
    one_hot = torch.zeros_like(soft).scatter(1, index[:, None], 1.0)
    straight_through = _TransformedStraightThrough if is_transformed() else _StraightThrough
    return straight_through.apply(soft, one_hot), index


def decide(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    hard: bool = True,
    bank_weight: Tensor | None = None,
) -> Tensor:
    """`softmax((z + g) / τ)`, or the one-hot of its maximum with the gradient of the softmax."""
    return _choose(bank, embeds, weight, noise, temperature, hard, bank_weight)[0]


def connect(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    hard: bool = True,
    bank_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`decide`, then `update[k] = Σ_l weights[k,l] bank[l,k]`; when `hard`, the chosen row itself."""
    weights, index = _choose(bank, embeds, weight, noise, temperature, hard, bank_weight)
    if index is not None:
        select_row = _TransformedSelectRow if is_transformed() else _SelectRow
        return select_row.apply(bank, weights, index), weights
    mixed = einsum(weights, bank.to(weights.dtype), "k l, l k d -> k d")
    return mixed.to(bank.dtype), weights


def transform_rows(values: Tensor, matrix: Tensor, layers: Tensor | None = None) -> Tensor:
    """`values @ matrix`, or each row with the matrix of its layer; matmuls accumulate in fp32 and round once."""
    if layers is None:
        return values @ matrix
    return torch.bmm(values[:, None], matrix.index_select(0, layers))[:, 0]


def gate_up_swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """`silu(x W_gᵀ) * (x W_uᵀ)`; each matmul accumulates in fp32 and rounds once."""
    return swiglu(F.linear(x, w_gate), F.linear(x, w_up))
