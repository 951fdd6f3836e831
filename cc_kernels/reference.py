"""The definition of every op in plain PyTorch: the specification, and the implementation for CPU tensors.

Arithmetic on fp16 and bf16 tensors is done in fp32 and rounded once at the end; fp32 and fp64 stay what they are. The
public functions in `cc_kernels.ops` check the arguments and document shapes, dtypes and errors.

Source of the method: CC-Tuning (ACL 2025, arXiv 2506.00875), sections 3.1 to 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

from cc_kernels.functions import exact, select_row, straight_through, wide_dtype
from cc_kernels.library import is_transformed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    wide = wide_dtype(gate.dtype)
    return (F.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    wide = wide_dtype(gate.dtype)
    incoming, x = grad.to(wide), gate.to(wide)
    sigmoid = torch.sigmoid(x)
    grad_gate = incoming * up.to(wide) * sigmoid * (1 + x * (1 - sigmoid))
    return grad_gate.to(gate.dtype), (incoming * x * sigmoid).to(up.dtype)


def geglu(gate: Tensor, up: Tensor, tanh: bool) -> Tensor:
    """`gelu(gate) * up`, with the GELU of erf or its tanh approximation."""
    wide = wide_dtype(gate.dtype)
    return (F.gelu(gate.to(wide), approximate=_gelu_name(tanh)) * up.to(wide)).to(gate.dtype)


def geglu_backward(grad: Tensor, gate: Tensor, up: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    wide = wide_dtype(gate.dtype)
    incoming, x = grad.to(wide), gate.to(wide)
    grad_gate = torch.ops.aten.gelu_backward(incoming * up.to(wide), x, approximate=_gelu_name(tanh))
    return grad_gate.to(gate.dtype), (incoming * F.gelu(x, approximate=_gelu_name(tanh))).to(up.dtype)


def _gelu_name(tanh: bool) -> str:
    return "tanh" if tanh else "none"


def capture_rows(x: Tensor, rows: Tensor, assume_valid: bool = False) -> Tensor:
    """`out[k] = x[rows[k]]`, a zero row where `rows[k]` is −1."""
    rows = rows.long()  # PyTorch adds the gradients of repeated int32 indices in 16 bits
    if assume_valid:
        return x.index_select(0, rows)
    if x.shape[0] == 0:  # only −1 can be asked of a tensor without rows; the empty sum keeps x in the graph
        return x.new_zeros(rows.shape[0], x.shape[1]) + x.sum(0)
    picked = x.index_select(0, rows.clamp(min=0))
    return torch.where((rows >= 0)[:, None], picked, 0.0)


def capture_rows_through(x: Tensor, rows: Tensor, assume_valid: bool = False) -> tuple[Tensor, Tensor]:
    """`x` itself, and `capture_rows(x, rows)`."""
    return x, capture_rows(x, rows, assume_valid)


def capture_rows_backward(grad: Tensor, rows: Tensor, base: Tensor | None, length: int) -> Tensor:
    """The gradient of x: `base`, zeros of `length` rows when None, with the rows of `grad` added."""
    rows = rows.long()
    out = grad.new_zeros(length, grad.shape[1]) if base is None else base.clone()
    return out if length == 0 else out.index_add_(0, rows.clamp(min=0), torch.where((rows >= 0)[:, None], grad, 0.0))


def add_rows(x: Tensor, rows: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    """`out = x`, then `out[rows[k]] += values[k]` where `rows[k]` is not −1."""
    kept = torch.where((rows >= 0)[:, None], values, 0.0).to(x.dtype)
    if x.shape[0] == 0:  # no row to add to; the broadcast keeps values in the graph, with a zero gradient
        return x.add_(kept.sum(0)) if inplace else x + kept.sum(0)
    target = rows.clamp(min=0)
    inplace = inplace and not is_transformed()  # vmap cannot write what differs between samples into what they share
    return x.index_add_(0, target, kept) if inplace else x.index_add(0, target, kept)


def capture_add_rows_(x: Tensor, bank: Tensor, captured: Tensor, added: Tensor, update: Tensor) -> None:
    """`bank[k] = x[captured[k]]`, then `x[added[k]] += update[k]`, both in place; a row below 0 is skipped."""
    if x.numel() == 0 or bank.numel() == 0:
        return
    bank.copy_(torch.where((captured >= 0)[:, None], x.index_select(0, captured.clamp(min=0)), bank))
    some = added >= 0
    # A k that adds nothing repeats the first k that adds, so that no two write different values to one row.
    source = torch.where(some, torch.arange(len(added), device=added.device), some.long().argmax())
    rows = added.index_select(0, source).long()
    target, wide = rows.clamp(min=0), wide_dtype(x.dtype)
    old = x.index_select(0, target)
    total = (old.to(wide) + update.index_select(0, source).to(wide)).to(x.dtype)
    x.index_copy_(0, target, torch.where((rows >= 0)[:, None], total, old))


class Reads(NamedTuple):
    """`rows` of `decide` and `connect`, taken apart once: what is read, and which rows read none."""

    source: Tensor  # (K,) in [0, P); anything where none is read
    none: Tensor  # (K, 1) bool


def reads_of(rows: Tensor | None) -> Reads | None:
    """`rows` `(K,)` taken apart; None when each row reads its own."""
    return None if rows is None else Reads(rows.clamp(min=0).long(), (rows < 0)[:, None])


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
    bank: Tensor, embeds: Tensor, weight: Tensor, bank_weight: Tensor | None = None, reads: Reads | None = None
) -> Tensor:
    """`z[k] = W (mean_l V[l,k] + e[k])`, with `mean_l V[l,k] Fₗ + W e[k]` for a folded `F = M Wᵀ`. Shape (K, L).

    With `reads`, `V[l, rows[k]]` stands for `V[l,k]`, and a row that reads none has zeros in the place of V and e.
    They are filled in, not multiplied: what the row holds must not matter, nor its gradient. Rows are read before they
    meet a matrix, so that a row of the bank that nobody reads cannot reach the matrix's gradient.
    """
    wide = wide_dtype(bank.dtype)
    if bank_weight is not None and bank_weight.ndim == 3:
        per_layer = bank.to(wide)
        if reads is not None:
            per_layer = (
                _read(per_layer.transpose(0, 1), reads.source).masked_fill(reads.none[:, None], 0.0).transpose(0, 1)
            )
        from_bank = einsum(per_layer, bank_weight.to(wide), "l k d, l d m -> k m") / bank.shape[0]
        return from_bank + F.linear(_filled(embeds, reads).to(wide), weight.to(wide))
    mean = reduce(bank.to(wide), "l p d -> p d", "mean")  # of the bank's own rows, which several k may share
    if reads is not None:
        mean = _read(mean, reads.source)
    if bank_weight is not None:
        from_bank = _filled(mean, reads) @ bank_weight.to(wide)
        return from_bank + F.linear(_filled(embeds, reads).to(wide), weight.to(wide))
    return F.linear(_filled(mean + embeds.to(wide), reads), weight.to(wide))


def _read(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]`; zeros when x has no row, so that every row reads none. The empty sum keeps x in the graph."""
    if x.shape[0] == 0:
        return x.new_zeros(index.shape[0], *x.shape[1:]) + x.sum(0)
    return x.index_select(0, index)


def _filled(x: Tensor, reads: Reads | None) -> Tensor:
    return x if reads is None else x.masked_fill(reads.none, 0.0)


def _choose(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    reads: Reads | None,
) -> tuple[Tensor, Tensor | None]:
    """The weights (K, L) and, when `hard`, the chosen layer of each row (K,)."""
    logits = decision_logits(bank, embeds, weight, bank_weight, reads)
    if noise is not None:
        logits = logits + _filled(noise, reads).to(logits.dtype)
    if temperature != 1.0:
        logits = logits / temperature
    weights, index = torch.softmax(logits, dim=-1), None
    if hard:
        index = logits.argmax(dim=-1)
        weights = straight_through(weights, torch.zeros_like(weights).scatter(1, index[:, None], 1.0))
    return _filled(weights, reads), index


@exact
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
    return _choose(bank, embeds, weight, noise, temperature, hard, bank_weight, reads_of(rows))[0]


@exact
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
    reads = reads_of(rows)
    weights, index = _choose(bank, embeds, weight, noise, temperature, hard, bank_weight, reads)
    if index is None or bank.shape[1] == 0:  # in an empty bank every row is −1: a sum of zeros, in the graph of all
        mixed = einsum(weights, read_bank(bank.to(weights.dtype), rows), "k l, l k d -> k d")
        return mixed.to(bank.dtype), weights
    if reads is None:
        return select_row(bank, weights, index, torch.arange(bank.shape[1], device=bank.device), False), weights
    return _filled(select_row(bank, weights, index, reads.source, True), reads), weights


def decision(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    with_update: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What one operator returns for both: `connect`, the softmax when `hard`, and `mean_l V + e` when not folded."""
    update, weights = connect(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)
    nothing = weights.new_empty(0)
    soft = decide(bank, embeds, weight, noise, temperature, False, bank_weight, rows) if hard else nothing
    vector = nothing
    if bank_weight is None:
        vector = read_bank(bank.to(weights.dtype).mean(0, keepdim=True), rows)[0] + embeds.to(weights.dtype)
        vector = vector if rows is None else torch.where((rows >= 0)[:, None], vector, 0.0)
    return update if with_update else update.new_empty(0), weights, soft, vector


@exact
def decision_backward(
    grad_update: Tensor | None,
    grad_weights: Tensor | None,
    bank: Tensor,
    weight: Tensor,
    weights: Tensor,
    soft: Tensor,
    vector: Tensor | None,
    temperature: float,
    want_bank: bool,
    want_embeds: bool,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of logits, embeddings, bank and W, by the formulas of `ops.decision.backward`."""
    wide, layers = weights.dtype, bank.shape[0]
    total = torch.zeros_like(weights) if grad_weights is None else grad_weights.to(wide)
    if grad_update is not None:
        total = total + einsum(grad_update.to(wide), read_bank(bank.to(wide), rows), "k d, l k d -> k l")
    grad_logits = soft * (total - (soft * total).sum(-1, keepdim=True)) / temperature
    if rows is not None:
        grad_logits = torch.where((rows >= 0)[:, None], grad_logits, 0.0)
    grad_vector = grad_logits @ weight.to(wide)
    grad_embeds = grad_vector.to(bank.dtype) if want_embeds else bank.new_empty(0)
    grad_bank = bank.new_empty(0)
    if want_bank:
        each = (grad_vector / layers).expand(layers, *grad_vector.shape)
        if grad_update is not None:
            share = weights.T[:, :, None]
            each = each + torch.where(share != 0, share * grad_update.to(wide), 0.0)
        grad_bank = (each if rows is None else add_to_bank(each, rows, bank.shape[1])).to(bank.dtype).contiguous()
    grad_weight = weight.new_empty(0) if vector is None else (grad_logits.T @ vector.to(wide)).to(weight.dtype)
    return grad_logits, grad_embeds, grad_bank, grad_weight


@exact
def transform_rows(values: Tensor, matrix: Tensor, layers: Tensor | None = None) -> Tensor:
    """`values @ matrix`, or each row with the matrix of its layer; matmuls accumulate in fp32 and round once."""
    if layers is None:
        return values @ matrix
    return torch.bmm(values[:, None], matrix.index_select(0, layers))[:, 0]


@exact
def gate_up_swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor) -> Tensor:
    """`silu(x W_gᵀ) * (x W_uᵀ)`; each matmul accumulates in fp32 and rounds once."""
    return swiglu(F.linear(x, w_gate), F.linear(x, w_up))
