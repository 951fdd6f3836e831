"""How well a fitted Transform Matrix maps activations: the report of `fit_transform_matrix`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cc_model.distributed import Processes


@dataclass(frozen=True)
class FitQuality:
    """How well activations are mapped, over the report's rows: E is the English activation, A the non-English one.

    `mse` is the mean of (Â − E)² over all entries, in squared activation units; `r2` is 1 − Σ(Â − E)² / Σ(E − Ē)²
    with Ē the mean English row (of the layer, or of each layer in the overall value); the cosines are means over rows
    of cos(Â, E) and, before, cos(A, E).
    """

    mse: float
    r2: float
    cosine: float
    cosine_before: float


@dataclass(frozen=True)
class FitReport:
    """What `fit_transform_matrix` did. `str(report)` is a table.

    `pairs` were fitted, `held_out` kept apart, `skipped` had no usable index, in all processes together. `rank` is the
    smallest rank of AᵀA over the fitted matrices, of `width` (d). `sample` names the rows that the qualities are
    measured on.
    """

    pairs: int
    held_out: int
    skipped: int
    rank: int
    width: int
    sample: str
    overall: FitQuality
    layers: tuple[FitQuality, ...]

    def __str__(self) -> str:
        """The overall quality, then one line for each layer."""
        lines = [
            f"fitted on {self.pairs} prompt pairs ({self.skipped} skipped), rank {self.rank} of {self.width}; "
            f"measured on {self.sample}",
            "layer       R²       MSE   cosine (before)",
        ]
        for name, quality in [("all", self.overall), *((str(i), q) for i, q in enumerate(self.layers))]:
            lines.append(
                f"{name:>5} {quality.r2:8.4f} {quality.mse:9.3g} {quality.cosine:8.4f} ({quality.cosine_before:.4f})"
            )
        return "\n".join(lines)


def measure(
    source: Tensor, target: Tensor, matrices: Tensor, bias: Tensor | None, processes: Processes
) -> tuple[FitQuality, tuple[FitQuality, ...]]:
    """Overall and per-layer quality on the rows of all processes.

    Args:
        source: A, `(L, K, d)`: the rows of this process, of which there may be none.
        target: E, `(L, K, d)`.
        matrices: `(1, d, d)` or `(L, d, d)`.
        bias: `(1, d)` or `(L, d)`, or None.
        processes: that measure together.
    """
    layers, here, width = target.shape
    count, mean = torch.tensor(here), target.sum(1, dtype=torch.float64)
    processes.sum(count, mean)
    mean /= count
    matrices = matrices.expand(layers, -1, -1)
    biases = [None] * layers if bias is None else bias.expand(layers, -1).unbind()
    # One layer at a time, so that what is computed on the way takes a layer's memory.
    sums = torch.stack([_sums(*layer) for layer in zip(source, target, matrices, biases, mean)])
    processes.sum(sums)
    rows = int(count)
    by_layer = tuple(_quality(each, rows, width) for each in sums)
    return _quality(sums.sum(0), rows * layers, width), by_layer


def _sums(source: Tensor, target: Tensor, matrix: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
    """Of one layer's rows `(K, d)`: Σ(Â − E)², Σ(E − Ē)², Σ cos(Â, E), Σ cos(A, E), in float64."""
    mapped = source @ matrix if bias is None else source @ matrix + bias
    return torch.stack(
        [
            (mapped - target).double().square().sum(),
            (target - mean).square().sum(),
            F.cosine_similarity(mapped, target, dim=-1).double().sum(),
            F.cosine_similarity(source, target, dim=-1).double().sum(),
        ]
    )


def _quality(sums: Tensor, rows: int, width: int) -> FitQuality:
    residual, spread, after, before = sums.tolist()
    r2 = 1.0 - residual / spread if spread > 0 else float("nan")
    return FitQuality(residual / (rows * width), r2, after / rows, before / rows)
