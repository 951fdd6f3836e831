"""`fit_transform_matrix`: fit the Transform Matrix from prompt pairs, in one pass and bounded memory."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cc_model.config import check_flag, check_type
from cc_model.data.columns import INDEX, PIVOT_COLUMNS, check_connection_arguments, check_prompts, check_whole
from cc_model.data.positions import in_range
from cc_model.distributed import Processes, in_one_piece, without_wrappers
from cc_model.forward.bank import captured_bank
from cc_model.matrix.quality import FitQuality, FitReport, measure
from cc_model.matrix.statistics import LeastSquares, Reservoir
from cc_model.specs import unwrap

_INPUTS = ("input_ids", "attention_mask", INDEX)

logger = logging.getLogger("cc_model")

FEWEST_ROWS = 2  # per column of the matrix, below which a fit without ridge is warned of
_FILLER = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "pivot_input_ids": torch.zeros(1, 1, dtype=torch.long)}


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
    process_group: Any = "default",
) -> FitReport:
    """Fit `M = argmin ‖A M − E‖² + ridge ‖M‖²` and set `model.cc.transform_matrix`.

    A and E `(N·L, d)` are the feed-forward outputs of all layers at the connection index of the non-English prompt and
    at the pivot index of the English one. The paper's single matrix for all layers is the default. Memory is O(d²) (for
    `per_layer` O(L·d²)) plus the report's rows, whatever the number of prompts. The statistics are float64, on the
    device of the Decision Maker, or on the CPU when that device is neither CUDA nor XPU (MPS has no float64). The
    stored matrix and bias have the Decision Maker's dtype and device; the report measures them in fp32, before they
    are rounded to that dtype.

    Args:
        model: a patched model; it is run in evaluation mode and without the connection, and left in its mode.
        batches: any iterable, a generator too, of dicts with `input_ids (B, T)`, `attention_mask (B, T)`,
            `pivot_input_ids (B, S)`, `pivot_attention_mask (B, S)`, and optionally `connection_index (B,)` and
            `pivot_index (B,)` (default: the last attended token); with `pivot_row (B,)`, −1 for none, the pivots may
            be fewer, as `ParallelCollator(share_pivots=True)` gives them. Ids and indices are int64 or int32; masks
            have any dtype, are 0 at padding, and may be None or missing. Other keys are ignored. A pair with an index
            out of range or an all-zero mask is skipped and counted.
        ridge: λ ≥ 0, finite, in squared activation units. With 0 a rank-deficient problem gets its minimum-norm
            solution.
        per_layer: one matrix for each layer, `(L, d, d)`.
        affine: also fit a bias, `model.cc.transform_bias`; it is not penalised.
        holdout: share in [0, 1) of the pairs that is kept out of the fit and that the report is measured on.
        report_rows: bound of the rows (prompts × layers) that the report is measured on; at least one prompt is.
        progress: show a progress bar.
        seed: of the choice of held-out pairs and of the report's sample.
        process_group: processes that fit together, each on its own share of the pairs: `"default"`, all processes when
            `torch.distributed` is initialised; or a group; or None, this process alone. Each process of the group must
            call. Numbers of batches may differ, and may be 0. Every process gets the same matrix and the same report,
            those of one process on all pairs. FSDP2 and ZeRO-3 models are fitted as they are, sharded.

    Returns:
        The report. It says on how many rows it was measured, and whether they were part of the fit.

    Raises:
        TypeError: `model` is no torch module, an argument has the wrong type, a batch is no mapping, or one of its
            columns is no tensor or has the wrong dtype.
        ValueError: the model is not patched, an argument is out of range, a batch lacks `input_ids` or
            `pivot_input_ids`, a column has the wrong shape, no pair was usable, activations were not finite, or the
            matrix is not finite in the dtype it is stored in.
        OtherProcessError: a RuntimeError, from `cc_model.distributed`: another process of the group failed; the message
            says which and why. The process that failed raises its own error.

    Warns (logger `cc_model`) when a matrix is fitted to fewer than 2·d activations without ridge: it interpolates them.

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
    processes = Processes(process_group)
    with processes.failing_together():
        root = without_wrappers(model)
        inner: Any = unwrap(root)
        _check_arguments(inner, batches, ridge, holdout, report_rows, seed)
        for name, flag in (("per_layer", per_layer), ("affine", affine), ("progress", progress)):
            check_flag(name, flag)
        collected = _Collected(inner.cc, per_layer, holdout, report_rows, seed, processes)
        checked: Iterable[Mapping[str, Any] | None] = map(partial(_checked, inner.cc.num_layers), batches)
        if processes.size > 1 and not in_one_piece(inner):  # a forward needs the parameters of every process
            checked = processes.in_step(checked)
        hidden = not progress or processes.rank > 0
        with _evaluating(inner):
            for batch in tqdm(checked, desc="fit Transform Matrix", unit="batch", disable=hidden):
                source, target, usable = _pair_banks(root, inner, _FILLER if batch is None else batch)
                if batch is not None:
                    collected.add(source, target, usable)
    pairs, held_out, skipped = collected.counts()
    matrices, bias, rank = collected.solve(ridge, affine)
    if ridge == 0 and processes.rank == 0:
        _warn_of_few_rows(collected.fit.rows, inner.cc.hidden_size)
    inner.cc.transform_matrix = matrices if per_layer else matrices[0]
    inner.cc.transform_bias = None if bias is None else (bias if per_layer else bias[0])
    source, target = collected.sample.share(processes)
    bias = None if bias is None else bias.float().cpu()
    overall, by_layer = measure(source, target, matrices.float().cpu(), bias, processes)
    described = collected.described(holdout > 0)
    return FitReport(pairs, held_out, skipped, rank, inner.cc.hidden_size, described, overall, by_layer)


class _Collected:
    """What one process keeps of the captured rows, and what all processes make of it."""

    def __init__(
        self, connection: Any, per_layer: bool, holdout: float, report_rows: int, seed: int, processes: Processes
    ) -> None:
        layers, width = connection.num_layers, connection.hidden_size
        self.fit = LeastSquares(layers if per_layer else 1, width, connection.decision_maker.weight.device)
        self.sample = Reservoir(max(1, report_rows // layers), (layers, width), seed, processes.rank)
        self.holdout = holdout
        self.processes = processes
        self.chooser = torch.Generator().manual_seed(seed + processes.rank)
        self.pairs = self.held_out = self.skipped = 0

    def add(self, source: Tensor, target: Tensor, usable: Tensor) -> None:
        """Take the usable of the pairs with rows `(L, B, d)`."""
        self.skipped += int((~usable).sum())
        source, target = source[:, usable], target[:, usable]
        _check_finite(source, target)
        kept_out = (torch.rand(source.shape[1], generator=self.chooser) < self.holdout).to(source.device)
        self.fit.add(source[:, ~kept_out], target[:, ~kept_out])
        measured = kept_out if self.holdout > 0 else ~kept_out
        self.sample.add(source[:, measured], target[:, measured])
        self.held_out += int(kept_out.sum())
        self.pairs += int((~kept_out).sum())

    def counts(self) -> tuple[int, int, int]:
        """Pairs fitted, held out and skipped, in all processes."""
        here = (self.pairs, self.held_out, self.skipped, self.sample.seen)
        pairs, held_out, skipped, measurable = (sum(each) for each in zip(*self.processes.gather(here)))
        if pairs == 0 or measurable == 0:
            raise ValueError(
                f"batches: expected at least one usable pair to fit and one to measure, got {pairs} to fit, "
                f"{held_out} held out and {skipped} skipped"
            )
        return pairs, held_out, skipped

    def solve(self, ridge: float, affine: bool) -> tuple[Tensor, Tensor | None, int]:
        """Matrices, biases and smallest rank: solved once and sent, since processors may round differently."""
        fit, processes = self.fit, self.processes
        fit.sum_over(processes)
        matrices, bias, ranks = fit.gram, fit.source_sum if affine else None, [0]
        with processes.failing_together():
            if processes.rank == 0:
                matrices, bias, ranks = fit.solve(ridge, affine)
        processes.broadcast(matrices, *([] if bias is None else [bias]))
        return matrices, bias, processes.gather(min(ranks))[0]

    def described(self, held_out: bool) -> str:
        """Which rows the report is measured on."""
        prompts = min(sum(self.processes.gather(self.sample.seen)), self.sample.capacity)
        where = "held-out pairs" if held_out else "in-sample: pairs of the fit"
        return f"{prompts * self.sample.shape[0]} rows of {prompts} prompts ({where})"


def _warn_of_few_rows(rows: int, width: int) -> None:
    if rows < FEWEST_ROWS * width:
        logger.warning(
            "fit_transform_matrix: %d activations for a matrix of %d x %d, which matches these and may be far off for "
            "others; take more pairs, or ridge > 0, and see the report with holdout > 0",
            rows,
            width,
            width,
        )


def _check_arguments(inner: Any, batches: Any, ridge: Any, holdout: Any, report_rows: Any, seed: Any) -> None:
    if "cc" not in getattr(inner, "_modules", {}):
        raise ValueError(f"model: expected a patched model, got {type(inner).__name__}; call patch_model(model) first")
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches: expected an iterable of dicts, got {type(batches).__name__}")
    for name, number in (("ridge", ridge), ("holdout", holdout)):
        check_type(name, number, Real, "a number")
    for name, number in (("report_rows", report_rows), ("seed", seed)):
        check_type(name, number, Integral, "an int")
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge: expected a finite number, 0 or more, got {ridge}")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout: expected a share in [0, 1), got {holdout}")
    if report_rows < 1:
        raise ValueError(f"report_rows: expected 1 or more, got {report_rows}")


def _checked(layers: int, batch: Any) -> Mapping[str, Any]:
    """`batch`, before any process starts a forward with it."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"batches: expected dicts, got {type(batch).__name__}")
    for name in ("input_ids", "pivot_input_ids"):
        if batch.get(name) is None:
            raise ValueError(f"batches: expected a tensor {name!r} in each batch, got {sorted(batch)}")
    check_whole(batch)
    check_prompts(batch["input_ids"], batch.get("attention_mask"))
    pivots = {name: batch.get(name) for name in (*PIVOT_COLUMNS, "pivot_row", INDEX)}
    check_connection_arguments(pivots, batch["input_ids"].shape[0], layers)
    return batch


def _pair_banks(root: Any, inner: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """A and E, `(L, B, d)` each, and which rows are usable `(B,)`."""
    source, usable = captured_bank(root, inner, *[batch.get(name) for name in _INPUTS])
    target, pivot_usable = captured_bank(root, inner, *[batch.get(name) for name in PIVOT_COLUMNS])
    row = batch.get("pivot_row")
    if row is not None:  # pairs that share an English prompt
        row = row.to(target.device)
        read = row.clamp(0, target.shape[1] - 1)
        target, pivot_usable = target[:, read], pivot_usable[read] & in_range(row, target.shape[1])
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


__all__ = ["FitQuality", "FitReport", "fit_transform_matrix"]
