"""Records of `benchmarks.train_run`: a run with the kernels beside one with plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.show.table import Kind, Number, Record, Table, mebibytes, milliseconds, numbers_of, ratio


def tables(record: Record) -> Iterator[Table]:
    """One row per backend."""
    rows = []
    for name, run in record["runs"].items():
        loss, peak = run["loss"], run["peak_bytes"]
        rows.append(
            [
                name,
                milliseconds(run["seconds"]),
                ratio(run["ratio"]),
                f"{run['tokens_per_second']:,.0f}",
                "–" if peak is None else mebibytes(peak),
                f"{loss[0]:.4f} → {loss[-1]:.4f}",
            ]
        )
    difference = record["loss_difference"]
    title = (
        f"{record['arguments']['model']}, {record['facts']['device']}: {record['steps']} steps, "
        f"losses differ by at most {difference['max']:.1e}, on average {difference['mean']:.1e}"
    )
    yield Table(title, ["kernels", "step ms", "÷ torch", "tokens/s", "peak MiB", "loss"], rows, "run")


def numbers(record: Record) -> Iterator[Number]:
    """Of both backends: seconds of a step, its ratio to plain PyTorch, the peak."""
    for name, run in record["runs"].items():
        what = f"{record['arguments']['model']}, run, {name}"
        yield from numbers_of(what, "run", run, ("seconds", "ratio", "peak_bytes"))


def plots(record: Record, folder: Path, prefix: str = "") -> list[Path]:
    """Loss curves, one over the other, and their difference."""
    from benchmarks.show.figure import finish, plt

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
    return [finish(figure, folder / f"{prefix}loss.png")]


KIND = Kind(tables, numbers, plots=plots)
