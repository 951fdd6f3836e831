"""Records as PNG plots, with matplotlib and without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.show.tables import profile_title

COLOURS = {"vanilla": "0.6", "two-forwards": "0.75", "published": "#c44e52", "hooks": "#dd8452", "ours": "#4c72b0"}


def _finish(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    partial.replace(path)
    return path


def _colour(name: str) -> str:
    return COLOURS.get(name.removesuffix("+compile"), "#55a868")


def throughput_plot(record: dict[str, Any], path: Path) -> Path:
    """Bars of training tokens/s per mode, and the line that the FLOP count predicts for a connected step."""
    section = record["train"]
    modes = {name: mode for name, mode in section["modes"].items() if "seconds" in mode}
    figure, axes = plt.subplots(figsize=(7, 3.6))
    heights = [mode["tokens_per_second"] for mode in modes.values()]
    bars = axes.bar(list(modes), heights, color=[_colour(name) for name in modes])
    axes.bar_label(
        bars, [f"÷ {mode['ratio']['median']:.2f}" for mode in modes.values()], label_type="center", fontsize=8
    )
    predicted = modes["vanilla"]["tokens_per_second"] / section["predicted"]
    axes.axhline(
        predicted, color="black", linestyle=":", linewidth=1, label=f"FLOPs predict ÷ {section['predicted']:.2f}"
    )
    axes.set_ylabel("main tokens / s")
    axes.set_title(f"Training step: {profile_title(record)}", fontsize=9)
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    axes.legend(fontsize=8)
    return _finish(figure, path)


def curve_plot(record: dict[str, Any], path: Path) -> Path:
    """Time to the first token ÷ vanilla against prompt length, with quartiles."""
    curve = record["curve"]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    names = dict.fromkeys(name for point in curve for name, mode in point["modes"].items() if "ratio" in mode)
    for name in names:
        points = [
            (point["tokens"], point["modes"][name]["ratio"]) for point in curve if "ratio" in point["modes"][name]
        ]
        x, values = zip(*points)
        axes.plot(x, [value["median"] for value in values], marker="o", label=name, color=_colour(name))
        low, high = ([value[end] for value in values] for end in ("low", "high"))
        axes.fill_between(x, low, high, alpha=0.2, color=_colour(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks([point["tokens"] for point in curve], [str(point["tokens"]) for point in curve])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel("time to first token ÷ vanilla")
    axes.set_title(profile_title(record), fontsize=9)
    axes.legend(fontsize=8)
    return _finish(figure, path)


def loss_plot(record: dict[str, Any], path: Path) -> Path:
    """Loss curves of a training run, one over the other, and their difference."""
    figure, (axes, below) = plt.subplots(2, figsize=(6, 4.5), sharex=True, height_ratios=[3, 1])
    for (name, run), style in zip(record["runs"].items(), ("-", "--")):
        axes.plot(run["loss"], style, label=name)
    axes.set_ylabel("loss")
    axes.legend()
    fused, torch_ = (record["runs"][name]["loss"] for name in ("fused", "torch"))
    below.plot([a - b for a, b in zip(fused, torch_)], linewidth=0.8)
    below.set_ylabel("fused − torch")
    below.set_xlabel("step")
    axes.set_title(f"{record['arguments']['model']}, {record['facts']['device']}", fontsize=9)
    return _finish(figure, path)


def fit_plot(record: dict[str, Any], path: Path) -> Path:
    """Peak memory and time of the matrix fit against the number of pairs."""
    figure, sides = plt.subplots(1, 2, figsize=(9, 3.6))
    for method, colour in (("streaming", COLOURS["ours"]), ("stacking", COLOURS["hooks"])):
        rows = [row for row in record["rows"] if row["method"] == method and "seconds" in row]
        pairs = [row["pairs"] for row in rows]
        sides[0].plot(pairs, [row["bytes"] / 2**20 for row in rows], marker="o", label=method, color=colour)
        sides[1].plot(pairs, [row["seconds"] for row in rows], marker="o", label=method, color=colour)
    for axes, label in zip(sides, ("peak memory, MiB", "seconds")):
        axes.set_xscale("log")
        axes.set_xlabel("prompt pairs")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return _finish(figure, path)


def plot_profile(record: dict[str, Any], folder: Path, prefix: str = "") -> list[Path]:
    """The plots that a `profile_fusion` record has the numbers for."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if "modes" in record.get("train", {}):
        made.append(throughput_plot(record, folder / f"{prefix}throughput.png"))
    if isinstance(record.get("curve"), list) and record["curve"]:
        made.append(curve_plot(record, folder / f"{prefix}first_token.png"))
    return made
