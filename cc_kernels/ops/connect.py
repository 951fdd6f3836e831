"""`connect`: `decide`, then the mixture of the bank that is added into the main pass.

    w = decide(V, e, W, g, τ)                       (K, L)
    update[k] = Σ_l w[k,l] V[l,k]                   soft
    update[k] = V[l*, k], l* = argmax w[k]          hard: the chosen row itself, no sum over zeros

Gradients in hard mode are those of the soft sum at the one-hot weights: `∂V[l*,k] = ∂update[k]`,
`∂w[k,l] = V[l,k] · ∂update[k]`, which reaches W, e and V through the softmax (straight-through).

Shapes and dtypes as in `decide`; update `(K, d)` in the bank's dtype. Bytes moved by a fused implementation: the bank
once plus the chosen row, the embeddings and W once, the update once.
"""

from __future__ import annotations

from torch import Tensor

from cc_kernels import reference
from cc_kernels.backend import choose
from cc_kernels.ops.decide import check_decision


def connect(
    bank: Tensor,
    embeds: Tensor,
    weight: Tensor,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    hard: bool = True,
    bank_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decide and select; differentiable in `bank`, `embeds` and `weight`.

    Args:
        bank: captured activations V, `(L, K, d)`, floating point.
        embeds: input token embeddings e, `(K, d)`, the dtype of `bank`.
        weight: the Decision Maker's W, `(L, d)`.
        noise: Gumbel noise, `(K, L)`, or None.
        temperature: τ above 0, without unit.
        hard: select one row instead of mixing all.
        bank_weight: the folded `M Wᵀ`, see `decide`. The update is then still a row of `bank`, to be mapped by M.

    Returns:
        update `(K, d)` in the dtype of `bank`, and the weights `(K, L)` of `decide`.

    Raises:
        TypeError, ValueError: as `decide`.

    Source: CC-Tuning section 3.2.

    Example:
        >>> import torch
        >>> bank = torch.eye(2)[:, None]
        >>> connect(bank, torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        (tensor([[0., 1.]]), tensor([[0., 1.]]))
    """
    check_decision(bank, embeds, weight, noise, temperature, bank_weight)
    return choose("connect", bank, reference.connect)(bank, embeds, weight, noise, temperature, hard, bank_weight)


__all__ = ["connect"]
