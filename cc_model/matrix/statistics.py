"""Streaming least squares: sufficient statistics of row pairs, and the matrix that they determine.

    M = argmin ‖A M − E‖² + ridge ‖M‖²            A, E: (rows, d), row-vector convention

The statistics `AᵀA` and `AᵀE` are O(d²), whatever the number of rows. They are kept in float64; on devices that have
none they are kept on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cc_model.distributed import Processes


class LeastSquares:
    """Accumulates `AᵀA`, `AᵀE` and column sums, one set for all layers or one per layer.

    Args:
        groups: 1 for one shared matrix, L for one per layer.
        width: d.
        device: where the rows arrive; the statistics stay there when it has float64.
    """

    def __init__(self, groups: int, width: int, device: torch.device) -> None:
        self.device = device if device.type in ("cpu", "cuda", "xpu") else torch.device("cpu")
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        self.gram = torch.zeros(groups, width, width, **options)  # AᵀA
        self.cross = torch.zeros(groups, width, width, **options)  # AᵀE
        self.source_sum = torch.zeros(groups, width, **options)
        self.target_sum = torch.zeros(groups, width, **options)
        self.rows = 0

    def add(self, source: Tensor, target: Tensor) -> None:
        """Add the rows `(L, K, d)` of every layer; with one group the layers are stacked."""
        groups, width = self.source_sum.shape
        source = source.to(device=self.device, dtype=torch.float64).reshape(groups, -1, width)
        target = target.to(device=self.device, dtype=torch.float64).reshape(groups, -1, width)
        transposed = source.transpose(1, 2)
        self.gram.baddbmm_(transposed, source)
        self.cross.baddbmm_(transposed, target)
        self.source_sum += source.sum(1)
        self.target_sum += target.sum(1)
        self.rows += source.shape[1]

    def sum_over(self, processes: Processes) -> None:
        """Add up the statistics of all processes: as if every row had been added in each of them."""
        processes.sum(self.gram, self.cross, self.source_sum, self.target_sum)
        self.rows = sum(processes.gather(self.rows))

    def solve(self, ridge: float = 0.0, affine: bool = False) -> tuple[Tensor, Tensor | None, list[int]]:
        """The matrices `(groups, d, d)`, the biases `(groups, d)` when `affine`, and the rank of each `AᵀA`.

        Without ridge a rank-deficient problem gets its minimum-norm solution, as `lstsq` gives it. Singular values of
        A below about `√(d ε) σ_max` (1e-6 of the largest at d = 4096) count as zero, because `AᵀA` squares them. The
        bias of an affine map is not penalised: A and E are centred first.
        """
        gram, cross = self.gram, self.cross
        if affine:
            mean_source, mean_target = self.source_sum / self.rows, self.target_sum / self.rows
            gram = gram - self.rows * mean_source[:, :, None] * mean_source[:, None, :]
            cross = cross - self.rows * mean_source[:, :, None] * mean_target[:, None, :]
        values, vectors = torch.linalg.eigh(gram)  # ascending
        width = gram.shape[-1]
        cutoff = values[:, -1:] * width * torch.finfo(torch.float64).eps
        kept = values > cutoff
        inverse = torch.where(kept | (ridge > 0), 1.0 / (values.clamp(min=0) + ridge), 0.0)
        matrices = vectors @ (inverse[:, :, None] * (vectors.transpose(1, 2) @ cross))
        ranks = kept.sum(1).tolist()
        if not affine:
            return matrices, None, ranks
        bias = mean_target - torch.einsum("gd,gde->ge", mean_source, matrices)
        return matrices, bias, ranks


class Reservoir:
    """A bounded uniform sample of prompts, each with its rows `(L, d)` of A and E (Vitter 1985, algorithm R).

    Args:
        capacity: number of prompts kept.
        shape: (L, d).
        seed: of the sample.
        stream: tells processes with the same seed apart.
    """

    def __init__(self, capacity: int, shape: tuple[int, int], seed: int = 0, stream: int = 0) -> None:
        self.capacity = capacity
        self.shape = shape
        self.seed = seed
        self.seen = 0
        # A and E, in one block: prompts that come and go one by one would leave holes in the heap.
        self.rows = torch.empty(2, 0, *shape, dtype=torch.float32)
        self._random = torch.Generator().manual_seed(seed + stream)

    @property
    def size(self) -> int:
        """Number of prompts kept."""
        return min(self.seen, self.capacity)

    def add(self, source: Tensor, target: Tensor) -> None:
        """Offer the prompts of `(L, K, d)` rows."""
        taken: dict[int, int] = {}  # by place in the sample; a later prompt of the batch may take an earlier one's
        for k in range(source.shape[1]):
            self.seen += 1
            full = self.seen > self.capacity
            place = int(torch.randint(self.seen, (1,), generator=self._random)) if full else self.seen - 1
            if place < self.capacity:
                taken[place] = k
        if taken:
            self._make_room()
            places, prompts = list(taken), list(taken.values())
            for side, rows in zip(self.rows, (source, target)):
                side[places] = rows[:, prompts].transpose(0, 1).to("cpu", torch.float32)

    def _make_room(self) -> None:
        """Room for `size` prompts; it doubles, so that a small fit with a large bound stays small."""
        room = self.rows.shape[1]
        if self.size > room:
            grown = torch.empty(2, min(max(self.size, 2 * room), self.capacity), *self.shape, dtype=torch.float32)
            grown[:, :room] = self.rows
            self.rows = grown

    def share(self, processes: Processes) -> tuple[Tensor, Tensor]:
        """This process's part, `(L, prompts, d)` each, of a uniform sample of what all processes were offered.

        How many of the sample come from each process is a draw without replacement from the prompts that each was
        offered (multivariate hypergeometric), which every process draws alike.
        """
        offered = processes.gather(self.seen)
        count = self.size
        if sum(offered) > self.capacity:
            random = np.random.default_rng(self.seed)
            counts = random.multivariate_hypergeometric(offered, self.capacity, method="marginals")
            count = int(counts[processes.rank])
        kept = self.rows[:, : self.size]
        if count < self.size:
            kept = kept[:, torch.randperm(self.size, generator=self._random)[:count]]
        source, target = kept.transpose(1, 2)
        return source, target
