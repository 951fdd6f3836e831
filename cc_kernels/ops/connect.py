"""`connect`: `decide`, then the mixture of the bank that is added into the main pass.

    w = decide(V, e, W, g, τ)                       (K, L)
    update[k] = Σ_l w[k,l] V[l,k]                   soft
    update[k] = V[l*, k], l* = argmax w[k]          hard: the chosen row itself, no sum over zeros

With `rows` `(K,)`, `V[l, rows[k]]` stands for `V[l,k]`: rows may share a bank row, and a row of −1 gets no update.

Gradients in hard mode are those of the soft sum at the one-hot weights: `∂V[l*,k] = ∂update[k]`,
`∂w[k,l] = V[l,k] · ∂update[k]`, which reaches W, e and V through the softmax (straight-through).

Shapes and dtypes as in `decide`; update `(K, d)` in the bank's dtype. Bytes moved by a fused implementation: the bank
once plus the chosen row, the embeddings and W once, the update once.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.op import Op
from cc_kernels.ops.decide import check_decision
from cc_kernels.ops.decision import operator

_op = Op("connect", check_decision, reference.connect, operator.connect_launches)


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
    """Decide and select; differentiable in `bank`, `embeds` and `weight`.

        w = decide(V, e, W, g, τ)                 softmax((W (mean_l V[l,k] + e[k]) + g[k]) / τ), one-hot when `hard`
        update[k] = Σ_l w[k,l] V[l,k]             soft
        update[k] = V[l*, k], l* = argmax w[k]    hard, with the gradients of the soft sum at the one-hot w

    Args:
        bank: captured activations V, `(L, K, d)`, or `(L, P, d)` with `rows`; floating point.
        embeds: input token embeddings e, `(K, d)`, the dtype of `bank`.
        weight: the Decision Maker's W, `(L, d)`, floating point, of any such dtype.
        noise: Gumbel noise g, `(K, L)`, floating point, or None.
        temperature: τ above 0, without unit.
        hard: select one row instead of mixing all.
        bank_weight: the folded `M Wᵀ` in fp32, `(d, L)` or `(L, d, L)`, see `decide`. The update is then still made
            of rows of `bank`, to be mapped by M.
        rows: `(K,)`, int64 or int32 in [−1, P), see `decide`: row k reads `V[l, rows[k]]`. A −1 reads none: its update,
            its weights and all its gradients are zeros, whatever `embeds` and `noise` hold there.

    Returns:
        update `(K, d)` in the dtype of `bank`, and the weights `(K, L)` of `decide`, fp32 (fp64 when `bank` is fp64).

    Raises:
        TypeError: an argument is no floating-point tensor (`rows`: no int64 or int32 tensor), or the dtypes of bank
            and embeds differ.
        ValueError: wrong shape, different devices, or a temperature that is not above 0.

    Source: CC-Tuning section 3.2.

    Example:
        >>> import torch
        >>> bank = torch.eye(2)[:, None]
        >>> connect(bank, torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        (tensor([[0., 1.]]), tensor([[0., 1.]]))
        >>> connect(bank, torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]), rows=torch.tensor([-1, 0]))[0]
        tensor([[0., 0.],
                [0., 1.]])
    """
    return _op(bank, embeds, weight, noise, temperature, hard, bank_weight, rows)


__all__ = ["connect"]
