"""The experiment's plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA
from train.common.reports import save_figure, subplots
from train.experiment.settings import Settings
from train.experiment.statistics import Estimate, accuracy, by_seed, difference, of_half
from train.experiment.taught_report import ways

COLORS = {ENGLISH: "tab:green", MATRIX: "tab:blue", OFF: "tab:gray"}
Results = Sequence[Mapping[str, Any]]


def plot(settings: Settings, results: Results, folder: Path) -> None:
    """Write `differences.png`, and `maps.png` where maps were compared, into `folder`."""
    vanilla = by_seed(results, VANILLA, VANILLA, accuracy)
    names = [name for name in settings.conditions if by_seed(results, name, MATRIX, accuracy)]
    figure, (axes,) = subplots(1, 1, 7.5, 0.55 * max(3, len(names)) + 1.2)
    for shift, (mode, color) in zip((-0.22, 0.0, 0.22), COLORS.items()):
        for place, name in enumerate(names):
            found = difference(by_seed(results, name, mode, accuracy), vanilla)
            _point(axes, found, place + shift, color, mode if place == 0 else None)
    _finish(figure, axes, names, len(COLORS))
    save_figure(figure, folder / "differences.png")
    fits = [name for name in (MATRIX, *settings.maps) if by_seed(results, settings.maps_of, name, accuracy)]
    if len(fits) > 1:
        _plot_maps(settings, results, fits, folder)


def plot_taught(settings: Settings, results: Results, folder: Path) -> None:
    """Write `differences.png` of an experiment with teachers: halves A and B of every condition, less vanilla."""
    rows = [way for way in ways(settings, results) if way[0] != VANILLA]
    figure, (axes,) = subplots(1, 1, 8, 0.5 * max(3, len(rows)) + 1.2)
    for shift, (half, color) in zip((-0.15, 0.15), (("A", "tab:green"), ("B", "tab:gray"))):
        part = of_half(results, half)
        vanilla = by_seed(part, VANILLA, VANILLA, accuracy)
        title = {"A": "A: prompts given, without an answer", "B": "B: never seen"}[half]
        for place, (name, mode) in enumerate(rows):
            found = difference(by_seed(part, name, mode, accuracy), vanilla)
            _point(axes, found, place + shift, color, title if place == 0 else None)
    names = [f"{name} ({mode})" if mode in (ENGLISH, MATRIX) else name for name, mode in rows]
    _finish(figure, axes, names, 2)
    save_figure(figure, folder / "differences.png")


def _point(axes: Any, found: Estimate | None, place: float, color: str, label: str | None) -> None:
    """A mean with its interval, and its seeds as diamonds."""
    if found is None:
        return
    seeds = [place] * len(found.values)
    axes.plot(found.values, seeds, "d", color=color, alpha=0.6, markersize=5, fillstyle="none")
    axes.errorbar(
        found.mean, place, xerr=found.half, fmt="o", color=color, markersize=6, capsize=3, label=label
    )  # fmt: skip


def _finish(figure: Any, axes: Any, names: Sequence[str], columns: int) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("held-out accuracy − vanilla (points; mean with 95 % interval; diamonds: seeds)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=columns, fontsize="small", frameon=False)


def _plot_maps(settings: Settings, results: Results, fits: Sequence[str], folder: Path) -> None:
    """What a map answers, against its R²; one point per seed, compared with the plain matrix of that seed."""
    figure, (axes,) = subplots(1, 1, 7, 4)
    for name, marker in zip(fits, itertools.cycle("os^vDP*X")):
        points = [
            (result["maps"][name]["r2"], accuracy(result["modes"][name]) - accuracy(result["modes"][MATRIX]))
            for result in results
            if result["condition"] == settings.maps_of and name in result["maps"]
        ]
        axes.plot(*zip(*points), marker, label=name, markersize=6, alpha=0.8)
    axes.set(
        xlabel="R² of the map on unseen prompts",
        ylabel="held-out accuracy − that of `matrix` (points)",
        title=f"Maps of `{settings.maps_of}`",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, folder / "maps.png")


__all__ = ["plot", "plot_taught"]
