"""The Decision Maker: it chooses whose activation a row receives, and applies the Transform Matrix to the choice."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cc_kernels import connect, transform_rows
from cc_kernels.backend import device_type
from cc_kernels.library import is_transformed
from cc_model.config import CCConfig


class DecisionMaker(nn.Module):
    """`z[b] = W (mean_l V[l,b] + e[b])`, `W: (L, d)`: which layer's activation a row receives.

    A module of its own and not an `nn.Linear`, because adapters wrap those by type. Arithmetic is fp32 whatever the
    dtype of W. Source: CC-Tuning section 3.2.
    """

    def __init__(self, num_layers: int, hidden_size: int, std: float, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        with torch.inference_mode(False):  # a parameter made in inference mode could never be trained
            self.weight = nn.Parameter(torch.empty(num_layers, hidden_size, device=device, dtype=dtype))
            nn.init.normal_(self.weight, std=std)
        self._folded: tuple[Any, Tensor] | None = None

    def forward(
        self,
        bank: Tensor,
        embeds: Tensor,
        noise: Tensor | None,
        config: CCConfig,
        rows: Tensor | None = None,
        matrix: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decide and select.

        Args:
            bank: `(L, P, d)`: English activations, or non-English ones when `matrix` is given.
            embeds: `(B, d)` input embeddings at the connection index.
            noise: `(B, L)` or None.
            config: temperature and hard.
            rows: `(B,)`, the row of the bank that each row reads; −1 for none: its weights are zeros, and its update
                has no meaning when `matrix` is given, else it is zeros. None: row b reads row b.
            matrix: Transform Matrix `(d, d)` or `(L, d, d)`; the update is then mapped by it (inference only).
            bias: `(d,)` or `(L, d)`, added after the matrix.

        Returns:
            The update `(B, d)` and the weights `(B, L)`.
        """
        embeds = embeds.to(bank.dtype)
        if torch.is_grad_enabled():  # a step of the optimizer may follow, which sharding hides from version counters
            self._folded = None
        with _without_autocast(device_type(bank)):
            if matrix is None:
                return connect(bank, embeds, self.weight, noise, config.temperature, config.hard, rows=rows)
            if bias is not None:  # mean_l (V_l M + c_l) = mean_l V_l M + mean_l c_l
                embeds = embeds + (bias if bias.ndim == 1 else bias.mean(0)).to(embeds.dtype)
            options = (noise, config.temperature, config.hard, self.folded(matrix), rows)
            picked, weights = connect(bank, embeds, self.weight, *options)
            if rows is not None and matrix.ndim == 3 and not config.hard:  # every layer is mapped
                bank = bank.index_select(1, rows.clamp(min=0))
            return _map(picked, bank, weights, matrix, bias, config.hard).to(bank.dtype), weights

    def folded(self, matrix: Tensor) -> Tensor:
        """`M Wᵀ` in fp32, `(d, L)` or `(L, d, L)`: rebuilt when M or W was replaced or changed in place.

        A change past PyTorch's version counter (`weight.data.mul_(2)`) is seen after the next `train()` or `eval()`.
        """
        if torch.compiler.is_exporting() or is_transformed():  # traced tensors have neither version nor memory
            return _fold(matrix, self.weight)
        if matrix.is_inference() or self.weight.is_inference():  # no version counters, so nothing to compare
            return _fold(matrix, self.weight)
        key = (matrix._version, matrix.data_ptr(), self.weight._version, self.weight.data_ptr())
        if self._folded is not None:
            (kept_for, kept_key), kept = self._folded
            if kept_for() is matrix and kept_key == key:
                return kept
        folded = _fold(matrix, self.weight)
        self._folded = (weakref.ref(matrix), key), folded
        return folded

    def train(self, mode: bool = True) -> DecisionMaker:
        """The stock method; what was folded is built anew."""
        self._folded = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the folded matrix out; they build their own."""
        return {**self.__dict__, "_folded": None}

    def extra_repr(self) -> str:
        """The size, as PyTorch prints it."""
        return f"num_layers={self.weight.shape[0]}, hidden_size={self.weight.shape[1]}"


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast would round the decision's matmuls to 16 bits. Turning it off takes time, so only where it is on."""
    on = torch.compiler.is_compiling() or torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


@torch.no_grad()
def _fold(matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix.float() @ weight.float().T


def _map(picked: Tensor, bank: Tensor, weights: Tensor, matrix: Tensor, bias: Tensor | None, hard: bool) -> Tensor:
    """The selected activation after the Transform Matrix: `Σ_l w_l (V_l M_l + c_l)`. Inference only."""
    if matrix.ndim == 2:  # Σ_l w_l V_l M = (Σ_l w_l V_l) M: one row per prompt
        mapped = transform_rows(picked.to(matrix.dtype), matrix)
    elif hard:
        mapped = transform_rows(picked.to(matrix.dtype), matrix, layers=weights.argmax(dim=-1))
    else:
        every_layer = torch.bmm(bank.to(matrix.dtype), matrix)  # (L, B, d)
        mapped = torch.einsum("bl,lbd->bd", weights.to(matrix.dtype), every_layer)
    if bias is None:
        return mapped
    return mapped + (bias if bias.ndim == 1 else weights.to(bias.dtype) @ bias)


@torch.no_grad()
def mapped_bank(bank: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """`V_l M_l + c_l` for the whole bank `(L, B, d)`, without a gradient: what inference puts in the English place."""
    with torch.autocast(bank.device.type, enabled=False):
        mapped = bank.to(matrix.dtype) @ matrix.to(bank.device)
        if bias is not None:
            mapped = mapped + (bias if bias.ndim == 1 else bias[:, None]).to(bank.device)
    return mapped.to(bank.dtype)


__all__ = ["DecisionMaker", "mapped_bank"]
