"""The experiment's plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA
from train.common.reports import save_figure, subplots
from train.experiment.settings import Settings
from train.experiment.statistics import accuracy, by_seed, difference

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
            if found is None:
                continue
            axes.plot(
                found.values,
                [place + shift] * len(found.values),
                "d",
                color=color,
                alpha=0.6,
                markersize=5,
                fillstyle="none",
            )
            axes.errorbar(
                found.mean, place + shift, xerr=found.half, fmt="o", color=color, markersize=6, capsize=3,
                label=mode if place == 0 else None,
            )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("held-out accuracy − vanilla (points; mean with 95 % interval; diamonds: seeds)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(COLORS), fontsize="small", frameon=False)
    save_figure(figure, folder / "differences.png")
    fits = [name for name in (MATRIX, *settings.maps) if by_seed(results, settings.maps_of, name, accuracy)]
    if len(fits) > 1:
        _plot_maps(settings, results, fits, folder)


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


__all__ = ["plot"]
