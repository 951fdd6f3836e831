"""The experiment's plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from train.experiment.settings import VANILLA, Settings
from train.experiment.statistics import accuracy, by_seed, difference

Results = Sequence[Mapping[str, Any]]


def plot(settings: Settings, results: Results, folder: Path) -> None:
    """Write `differences.png`, and `maps.png` where maps were compared, into `folder`."""
    plain = by_seed(results, VANILLA, "plain", accuracy)
    names = [name for name in settings.conditions if by_seed(results, name, "matrix", accuracy)]
    figure, axes = plt.subplots(figsize=(7.5, 0.55 * max(3, len(names)) + 1.2), layout="constrained")
    colors = {"english": "tab:green", "matrix": "tab:blue", "off": "tab:gray"}
    labels = {"english": "true English", "matrix": "matrix (as a user answers)", "off": "connection off"}
    for shift, (mode, color) in zip((-0.22, 0.0, 0.22), colors.items()):
        for place, name in enumerate(names):
            found = difference(by_seed(results, name, mode, accuracy), plain)
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
                label=labels[mode] if place == 0 else None,
            )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("held-out accuracy − vanilla (points; mean with 95 % interval; diamonds: seeds)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(labels), fontsize="small", frameon=False)
    _save(figure, folder / "differences.png")
    fits = [name for name in ("matrix", *settings.maps) if by_seed(results, settings.maps_of, name, accuracy)]
    if len(fits) > 1:
        _plot_maps(settings, results, fits, folder)


def _plot_maps(settings: Settings, results: Results, fits: Sequence[str], folder: Path) -> None:
    """What a map answers, against its R²; one point per seed, compared with the plain matrix of that seed."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, marker in zip(fits, itertools.cycle("os^vDP*X")):
        points = [
            (result["maps"][name]["r2"], accuracy(result["modes"][name]) - accuracy(result["modes"]["matrix"]))
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
    _save(figure, folder / "maps.png")


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=140, format="png")
    plt.close(figure)
    partial.replace(path)


__all__ = ["plot"]
