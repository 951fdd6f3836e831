"""The definition of every op in plain PyTorch: the specification, and the implementation for CPU tensors.

Arithmetic on fp16 and bf16 tensors is done in fp32 and rounded once at the end; fp32 and fp64 stay what they are. The
public functions in `cc_kernels.ops` check the arguments and document shapes, dtypes and errors.

Source of the method: CC-Tuning (ACL 2025, arXiv 2506.00875), sections 3.1 to 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which arithmetic on `dtype` is done: fp32 for the 16-bit types, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    wide = wide_dtype(gate.dtype)
    return (F.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


def geglu(gate: Tensor, up: Tensor, tanh: bool) -> Tensor:
    """`gelu(gate) * up`, with the GELU of erf or its tanh approximation."""
    wide = wide_dtype(gate.dtype)
    return (F.gelu(gate.to(wide), approximate="tanh" if tanh else "none") * up.to(wide)).to(gate.dtype)


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


def read_bank(bank: Tensor, rows: Tensor | None) -> Tensor:
    """`bank[:, rows]` `(L, K, d)`, zeros where a row is −1; the bank itself without `rows`."""
    if rows is None:
        return bank
    picked = capture_rows(rearrange(bank, "l p d -> p (l d)"), rows)
    return rearrange(picked, "k (l d) -> l k d", l=bank.shape[0])


def add_to_bank(values: Tensor, rows: Tensor, sources: int) -> Tensor:
    """`out[:, p] = Σ values[:, k]` over the k with `rows[k] == p`, `(L, P, d)`: the derivative of `read_bank`."""
    kept = rows >= 0
    out = values.new_zeros(sources, values.shape[0], values.shape[2])
    if sources > 0:
        out.index_put_((rows.clamp(min=0).long(),), torch.where(kept[:, None, None], values.transpose(0, 1), 0.0), True)
    return out.transpose(0, 1)


def decision_logits(
    bank: Tensor, embeds: Tensor, weight: Tensor, bank_weight: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """`z[k] = W (mean_l V[l,k] + e[k])`, with `mean_l V[l,k] Fₗ + W e[k]` for a folded `F = M Wᵀ`. Shape (K, L).

    With `rows`, `V[l, rows[k]]` stands for `V[l,k]`, and a row of −1 reads zeros. Rows are read before they meet a
    matrix, so that a row of the bank that nobody reads cannot reach the matrix's gradient.
    """
    wide = wide_dtype(bank.dtype)
    if bank_weight is not None and bank_weight.ndim == 3:
        read = read_bank(bank.to(wide), rows)
        from_bank = einsum(read, bank_weight.to(wide), "l k d, l d m -> k m") / bank.shape[0]
        return from_bank + F.linear(embeds.to(wide), weight.to(wide))
    mean = reduce(bank.to(wide), "l p d -> p d", "mean")  # of the bank's own rows, which several k may share
    mean = mean if rows is None else capture_rows(mean, rows)
    if bank_weight is not None:
        return mean @ bank_weight.to(wide) + F.linear(embeds.to(wide), weight.to(wide))
    return F.linear(mean + embeds.to(wide), weight.to(wide))


class _StraightThrough(torch.autograd.Function):
    """Forward: `hard`, exactly. Backward: the gradient goes to `soft` unchanged."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        bank, index, source = ctx.saved_tensors
        wide = wide_dtype(bank.dtype)
        grad_bank = grad_weights = None
        if ctx.needs_input_grad[0]:
            total = torch.zeros_like(bank, dtype=wide if ctx.shared else bank.dtype)
            grad_bank = total.index_put_((index, source), grads[0].to(total.dtype), ctx.shared).to(bank.dtype)
        if ctx.needs_input_grad[1]:
            read = bank[:, source] if ctx.shared else bank
            grad_weights = einsum(grads[0].to(wide), read.to(wide), "k d, l k d -> k l").to(ctx.weights_dtype)
        return grad_bank, grad_weights, None, None, None


def _choose(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The weights (K, L) and, when `hard`, the chosen layer of each row (K,)."""
    if rows is not None:  # what a row that reads none holds must not matter, nor its gradient
        here = (rows >= 0)[:, None]
        embeds = torch.where(here, embeds, 0.0)
        noise = None if noise is None else torch.where(here, noise, 0.0)
    logits = decision_logits(bank, embeds, weight, bank_weight, rows)
    if noise is not None:
        logits = logits + noise.to(logits.dtype)
    if temperature != 1.0:
        logits = logits / temperature
    weights, index = torch.softmax(logits, dim=-1), None
    if hard:
        index = logits.argmax(dim=-1)
        weights = _StraightThrough.apply(weights, torch.zeros_like(weights).scatter_(1, index[:, None], 1.0))
    if rows is not None:
        weights = torch.where(here, weights, 0.0)
    return weights, index


def decide(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    hard: bool = True,
    bank_weight: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """`softmax((z + g) / τ)`, or the one-hot of its maximum with the gradient of the softmax; zeros for a row of −1."""
    return _choose(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)[0]


def connect(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    hard: bool = True,
    bank_weight: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`decide`, then `update[k] = Σ_l weights[k,l] bank[l, rows[k]]`; when `hard`, the chosen row itself."""
    weights, index = _choose(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)
    if index is None:
        mixed = einsum(weights, read_bank(bank.to(weights.dtype), rows), "k l, l k d -> k d")
        return mixed.to(bank.dtype), weights
    if rows is None:
        return _SelectRow.apply(bank, weights, index, torch.arange(bank.shape[1], device=bank.device), False), weights
    if bank.shape[1] == 0:  # nothing to read: every row is −1
        return read_bank(bank[:1], rows)[0], weights
    update = _SelectRow.apply(bank, weights, index, rows.clamp(min=0).long(), True)
    return torch.where((rows >= 0)[:, None], update, 0.0), weights


def transform_rows(values: Tensor, matrix: Tensor, layers: Tensor | None = None) -> Tensor:
    """`values @ matrix`, or each row with the matrix of its layer; matmuls accumulate in fp32 and round once."""
    if layers is None:
        return values @ matrix
    return torch.bmm(values[:, None], matrix.index_select(0, layers))[:, 0]


def gate_up_swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """`silu(x W_gᵀ) * (x W_uᵀ)`; each matmul accumulates in fp32 and rounds once."""
    return swiglu(F.linear(x, w_gate), F.linear(x, w_up))
