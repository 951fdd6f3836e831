"""`decide`: the Decision Maker, which chooses one layer's activation for each row.

    z[k] = W (mean_l V[l,k] + e[k])                 W: (L, d), no bias
    z[k] = mean_l (V[l,k] Fₗ) + W e[k]              with a folded `bank_weight` F = M Wᵀ, for activations before M
    y = softmax((z + g) / τ)                        g: Gumbel noise, or none
    out = y, or onehot(argmax y) with the gradient of y (straight-through) when `hard`

With `rows` `(K,)`, `V[l, rows[k]]` stands for `V[l,k]`, and a row of −1 has weights of 0.

Shapes: bank V `(L, K, d)` (`(L, P, d)` with `rows`), embeds e `(K, d)`, weight W `(L, d)`, noise g `(K, L)`, out
`(K, L)` in fp32 (fp64 for fp64 inputs). Bytes moved by a fused implementation: the bank, the embeddings and W once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cc_kernels import reference
from cc_kernels.checks import check_device, check_float, check_rows, check_same, check_shape
from cc_kernels.op import Op
from cc_kernels.ops.decision import operator


def check_decision(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None,
    temperature: float,
    hard: bool,
    bank_weight: Tensor | None,
    rows: Tensor | None,
) -> None:
    """Raise unless the arguments shared by `decide` and `connect` fit together; see `decide`."""
    layers, count, width = check_float("bank", bank, ndim=3).shape
    check_float("embeds", embeds, ndim=2)
    check_float("weight", weight, ndim=2)
    if layers == 0:
        raise ValueError(f"bank: expected at least one layer, got shape {tuple(bank.shape)}")
    if rows is not None:
        count = check_rows("rows", rows, bank, like_name="bank").shape[0]
    check_shape("embeds", embeds, (count, width), "(K, d)")
    check_shape("weight", weight, (layers, width), "(L, d)")
    check_same("embeds", embeds, "bank", bank)
    check_device("weight", weight, "bank", bank)
    if noise is not None:
        check_shape("noise", check_float("noise", noise, ndim=2), (count, layers), "(K, L)")
        check_device("noise", noise, "bank", bank)
    if bank_weight is not None:
        check_float("bank_weight", bank_weight)
        folded = (width, layers) if bank_weight.ndim == 2 else (layers, width, layers)
        check_shape("bank_weight", bank_weight, folded, "(d, L)" if bank_weight.ndim == 2 else "(L, d, L)")
        check_device("bank_weight", bank_weight, "bank", bank)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature!r}")


_op = Op("decide", check_decision, reference.decide, operator.decide_launches)


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
    """Weights of the layers for each row; differentiable in `bank`, `embeds` and `weight`.

        z[k] = W (mean_l V[l,k] + e[k]), with `bank_weight` F = M Wᵀ: mean_l (V[l,k] Fₗ) + W e[k]
        y = softmax((z + g) / τ)
        out = y, or onehot(argmax y) with the gradient of y (straight-through) when `hard`

    Args:
        bank: captured activations V, `(L, K, d)`, or `(L, P, d)` with `rows`; floating point.
        embeds: input token embeddings e at the connection index, `(K, d)`, the dtype of `bank`.
        weight: the Decision Maker's W, `(L, d)`, floating point.
        noise: Gumbel noise g, `(K, L)`, floating point; None decides by the logits alone.
        temperature: τ above 0, without unit.
        hard: one-hot weights with the softmax's gradient (straight-through); False gives the softmax itself.
        bank_weight: the folded `M Wᵀ` in fp32, `(d, L)`, or `(L, d, L)` for a matrix per layer. The bank then holds
            activations before the Transform Matrix.
        rows: `(K,)`, int64 or int32 in [−1, P): row k reads `V[l, rows[k]]` instead of `V[l,k]`. Several rows may read
            the same; its gradient is their sum, in a fixed order. A −1 reads none: the weights of that row and all its
            gradients are zeros, whatever `embeds` and `noise` hold there. The range is not checked, because that would
            synchronise with the device.

    Returns:
        `(K, L)`, fp32, or fp64 when `bank` is fp64. Each row sums to 1, and to 0 where `rows` is −1.

    Raises:
        TypeError: an argument is no floating-point tensor (`rows`: no int64 or int32 tensor), the dtypes of bank
            and embeds differ, or the temperature is no number.
        ValueError: wrong shape, different devices, or a temperature that is not above 0.

    Source: CC-Tuning section 3.2; Gumbel softmax: Jang et al. 2017, arXiv 1611.01144.

    Example:
        >>> import torch
        >>> bank = torch.eye(2)[:, None]  # two layers, one row, d = 2
        >>> decide(bank, torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([[0., 1.]])
        >>> decide(bank, torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]), rows=torch.tensor([0, -1, 0]))
        tensor([[0., 1.],
                [0., 0.],
                [0., 1.]])
    """
    return _op(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)


__all__ = ["decide"]
