"""`fit_transform_matrix`: fit the Transform Matrix from prompt pairs, in one pass and bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from cc_model.bank import captured_bank
from cc_model.patch import unwrap
from cc_model.statistics import LeastSquares, Reservoir

_INPUTS = ("input_ids", "attention_mask", "connection_index")
_PIVOTS = ("pivot_input_ids", "pivot_attention_mask", "pivot_index")


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

    `pairs` were fitted, `held_out` kept apart, `skipped` had no usable index. `rank` is the smallest rank of AᵀA over
    the fitted matrices, of `width` (d). `sample` names the rows that the qualities are measured on.
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


@torch.no_grad()
def fit_transform_matrix(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    ridge: float = 0.0,
    per_layer: bool = False,
    affine: bool = False,
    holdout: float = 0.0,
    report_rows: int = 8192,
    progress: bool = True,
    seed: int = 0,
) -> FitReport:
    """Fit `M = argmin ‖A M − E‖² + ridge ‖M‖²` and set `model.cc.transform_matrix`.

    A and E `(N·L, d)` are the feed-forward outputs of all layers at the connection index of the non-English prompt and
    at the pivot index of the English one. The paper's single matrix for all layers is the default. Memory is O(d²) (for
    `per_layer` O(L·d²)) plus the report's rows, whatever the number of prompts; the statistics are float64.

    Args:
        model: a patched model; it is run in evaluation mode and without the connection, and left in its mode.
        batches: any iterable, a generator too, of dicts with `input_ids (B, T)`, `attention_mask (B, T)`,
            `pivot_input_ids (B, S)`, `pivot_attention_mask (B, S)`, and optionally `connection_index (B,)` and
            `pivot_index (B,)` (default: the last attended token). Masks may be None. Other keys are ignored. A pair
            with an index out of range or an all-zero mask is skipped and counted.
        ridge: λ ≥ 0 in squared activation units. With 0 a rank-deficient problem gets its minimum-norm solution.
        per_layer: one matrix for each layer, `(L, d, d)`.
        affine: also fit a bias, `model.cc.transform_bias`; it is not penalised.
        holdout: share in [0, 1) of the pairs that is kept out of the fit and that the report is measured on.
        report_rows: bound of the rows (prompts × layers) that the report is measured on.
        progress: show a progress bar.
        seed: of the choice of held-out pairs and of the report's sample.

    Returns:
        The report. It says on how many rows it was measured, and whether they were part of the fit.

    Raises:
        ValueError: the model is not patched, an argument is out of range, a batch lacks a key, no pair was usable, or
            activations were not finite.

    Source: CC-Tuning section 3.3.

    Example:
        >>> import torch
        >>> from cc_model import fit_transform_matrix, patch_model
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("llama"))
        >>> ids = torch.randint(256, (32, 6), generator=torch.Generator().manual_seed(0))
        >>> batch = {"input_ids": ids, "attention_mask": None, "pivot_input_ids": ids, "pivot_attention_mask": None}
        >>> report = fit_transform_matrix(model, [batch], progress=False)  # equal prompts: M is the identity
        >>> round(report.overall.r2, 3), tuple(model.cc.transform_matrix.shape)
        (1.0, (64, 64))
    """
    inner: Any = unwrap(model)
    _check_arguments(inner, ridge, holdout, report_rows)
    connection = inner.cc
    layers, width = connection.num_layers, connection.hidden_size
    device = connection.decision_maker.weight.device
    fit = LeastSquares(layers if per_layer else 1, width, device)
    sample = Reservoir(max(1, report_rows // layers), seed)
    chooser = torch.Generator().manual_seed(seed)
    pairs = held_out = skipped = 0
    with _evaluating(inner):
        for batch in tqdm(batches, desc="fit Transform Matrix", unit="batch", disable=not progress):
            source, target, usable = _pair_banks(inner, batch)
            skipped += int((~usable).sum())
            source, target = source[:, usable], target[:, usable]
            _check_finite(source, target)
            kept_out = (torch.rand(source.shape[1], generator=chooser) < holdout).to(source.device)
            fit.add(source[:, ~kept_out], target[:, ~kept_out])
            measured = kept_out if holdout > 0 else ~kept_out
            sample.add(source[:, measured], target[:, measured])
            held_out += int(kept_out.sum())
            pairs += int((~kept_out).sum())
    if pairs == 0 or sample.seen == 0:
        raise ValueError(
            f"batches: expected at least one usable pair to fit and one to measure, got {pairs} to fit, "
            f"{held_out} held out and {skipped} skipped"
        )
    matrices, bias, ranks = fit.solve(ridge, affine)
    connection.transform_matrix = matrices if per_layer else matrices[0]
    connection.transform_bias = None if bias is None else (bias if per_layer else bias[0])
    prompts = len(sample.source)
    where = "held-out pairs" if holdout > 0 else "in-sample: pairs of the fit"
    described = f"{prompts * layers} rows of {prompts} prompts ({where})"
    overall, by_layer = _qualities(*sample.rows(), matrices.float().cpu(), None if bias is None else bias.float().cpu())
    return FitReport(pairs, held_out, skipped, min(ranks), width, described, overall, by_layer)


def _check_arguments(inner: Any, ridge: float, holdout: float, report_rows: int) -> None:
    if "cc" not in getattr(inner, "_modules", {}):
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    if not ridge >= 0:
        raise ValueError(f"ridge: expected 0 or more, got {ridge}")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout: expected a share in [0, 1), got {holdout}")
    if report_rows < 1:
        raise ValueError(f"report_rows: expected 1 or more, got {report_rows}")


def _pair_banks(inner: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """A and E, `(L, B, d)` each, and which rows are usable `(B,)`."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"batches: expected dicts, got {type(batch).__name__}")
    for name in ("input_ids", "pivot_input_ids"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"batches: expected a tensor {name!r} in each batch, got {sorted(batch)}")
    if batch["input_ids"].shape[0] != batch["pivot_input_ids"].shape[0]:
        raise ValueError(
            f"pivot_input_ids: expected {batch['input_ids'].shape[0]} rows, as input_ids, "
            f"got {batch['pivot_input_ids'].shape[0]}"
        )
    source, usable = captured_bank(inner, *[batch.get(name) for name in _INPUTS])
    target, pivot_usable = captured_bank(inner, *[batch.get(name) for name in _PIVOTS])
    return source, target, usable & pivot_usable


def _check_finite(source: Tensor, target: Tensor) -> None:
    for name, rows in (("input_ids", source), ("pivot_input_ids", target)):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name}: expected finite feed-forward activations, got NaN or infinity")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is back in its own mode, also after an exception."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _qualities(
    source: Tensor, target: Tensor, matrices: Tensor, bias: Tensor | None
) -> tuple[FitQuality, tuple[FitQuality, ...]]:
    """Overall and per-layer quality on rows `(L, K, d)`."""
    mapped = source @ matrices if matrices.shape[0] > 1 else source @ matrices[0]
    if bias is not None:
        mapped = mapped + bias[:, None]
    residual = (mapped - target).double().square().sum((1, 2))
    spread = (target - target.mean(1, keepdim=True)).double().square().sum((1, 2))
    after = F.cosine_similarity(mapped, target, dim=-1).mean(1)
    before = F.cosine_similarity(source, target, dim=-1).mean(1)
    entries = target.shape[1] * target.shape[2]

    def quality(res: Tensor, total: Tensor, cosine: Tensor, cosine_before: Tensor, count: int) -> FitQuality:
        r2 = 1.0 - float(res / total) if float(total) > 0 else float("nan")
        return FitQuality(float(res) / count, r2, float(cosine), float(cosine_before))

    layers = tuple(quality(*values, entries) for values in zip(residual, spread, after, before))
    sums = (residual.sum(), spread.sum(), after.mean(), before.mean())
    return quality(*sums, entries * len(layers)), layers


__all__ = ["FitQuality", "FitReport", "fit_transform_matrix"]
