"""From results per language to a summary with differences and intervals, and its tables and plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from rich.table import Table

from train.evaluation.benchmarks import BENCHMARKS, METRIC_NAMES
from train.evaluation.intervals import paired_difference
from train.evaluation.runs import CONNECTED, VANILLA, Result

Summary = dict[str, dict[str, Any]]
ALL = "mean"  # over languages


def summarise(results: Iterable[Result], resamples: int = 10_000) -> Summary:
    """`{benchmark: {metric, lines}}`, with scores in percent; the last line is the mean over languages.

    | field of a line | |
    |---|---|
    | `language`, `rows` | |
    | `constant` | for choices: the accuracy of always giving the same answer, at best |
    | `vanilla`, `connected` | the mean of every metric |
    | `difference` | connected − vanilla of the first metric: mean, and the bounds of its 95 % interval |

    Every language weighs the same in the mean. Where all have the same ids, rows with one id are taken for translations
    of each other, and the interval of the mean redraws them together: they are not so many independent rows.

    Example:
        >>> rows = [{"id": "0", "acc": 1.0, "right": "2"}, {"id": "1", "acc": 0.0, "right": "2"}]
        >>> row = {"benchmark": "xnli", "language": "sw", "results": rows}
        >>> summarise([{**row, "mode": "vanilla"}])["xnli"]["lines"]
        [{'language': 'sw', 'rows': 2, 'constant': 100.0, 'vanilla': {'acc': 50.0}}]
        >>> summarise([{**row, "mode": mode} for mode in ("vanilla", "connected")])["xnli"]["lines"][0]["difference"]
        [0.0, 0.0, 0.0]
    """
    rows: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for result in results:
        languages = rows.setdefault(result["benchmark"], {})
        languages.setdefault(result["language"], {})[result["mode"]] = result["results"]
    summary = {}
    for benchmark in (name for name in BENCHMARKS if name in rows):
        languages = rows[benchmark]
        lines = [_line(benchmark, name, {name: languages[name]}, resamples) for name in languages]
        if len(languages) > 1:
            lines.append(_line(benchmark, ALL, languages, resamples))
        summary[benchmark] = {"metric": BENCHMARKS[benchmark].metrics[0], "lines": lines}
    return summary


def _line(
    benchmark: str, name: str, languages: Mapping[str, Mapping[str, list[dict[str, Any]]]], resamples: int
) -> dict[str, Any]:
    metrics = BENCHMARKS[benchmark].metrics
    modes = [mode for mode in (VANILLA, CONNECTED) if all(mode in given for given in languages.values())]
    line: dict[str, Any] = {"language": name}
    samples = [next(iter(given.values())) for given in languages.values()]
    line["rows"] = sum(map(len, samples))
    if BENCHMARKS[benchmark].choices:
        line["constant"] = round(_mean([constant([row["right"] for row in rows]) for rows in samples]) * 100, 4)
    for mode in modes:
        groups = [given[mode] for given in languages.values()]
        line[mode] = {
            metric: round(_mean([_mean([row[metric] for row in group]) for group in groups]) * 100, 4)
            for metric in metrics
        }
    if len(modes) == 2:
        scores = [[[row[metrics[0]] for row in given[mode]] for given in languages.values()] for mode in modes]
        if all([row["id"] for row in rows] == [row["id"] for row in samples[0]] for rows in samples):
            scores = [[[_mean(column) for column in zip(*groups)]] for groups in scores]
        difference = paired_difference(scores[1], scores[0], resamples)
        line["difference"] = [round(value * 100, 4) for value in difference]
    return line


def constant(right: Sequence[str]) -> float:
    """The share of the most frequent answer.

    Example:
        >>> constant(["1", "2", "2", "2"])
        0.75
    """
    return Counter(right).most_common(1)[0][1] / len(right)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def title(benchmark: str) -> str:
    """What stands above a benchmark's table."""
    metrics = " / ".join(METRIC_NAMES[metric] for metric in BENCHMARKS[benchmark].metrics)
    return f"{BENCHMARKS[benchmark].title}: {metrics} (percent)"


def cells(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A benchmark's table as text, the names of the columns first; the difference is the first metric's."""
    modes = [mode for mode in (VANILLA, CONNECTED) if mode in lines[0]]
    both, known = len(modes) == 2, ["constant"] if "constant" in lines[0] else []
    found = [["language", "rows", *known, *modes, *(["difference [95 %]"] if both else [])]]
    for line in lines:
        row = [line["language"], str(line["rows"]), *[f"{line[name]:.1f}" for name in known]]
        row += [" / ".join(f"{value:.1f}" for value in line[mode].values()) for mode in modes]
        if both:
            mean, low, high = (round(value, 1) + 0.0 for value in line["difference"])  # never −0.0
            row.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        found.append(row)
    return found


def tables(summary: Summary) -> list[Table]:
    """One table per benchmark, for the terminal."""
    shown = []
    for benchmark, part in summary.items():
        names, *rows = cells(part["lines"])
        table = Table(title=title(benchmark), title_justify="left")
        for number, name in enumerate(names):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == ALL else "")
        shown.append(table)
    return shown


def markdown(summary: Summary) -> str:
    """The tables as Markdown."""
    parts = []
    for benchmark, part in summary.items():
        names, *rows = cells(part["lines"])
        ruled = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
        parts += [f"## {title(benchmark)}", "", *[f"| {' | '.join(row)} |" for row in ruled], ""]
    return "\n".join(parts)


def plot(summary: Summary, path: str | Path) -> bool:
    """Differences per language with their intervals, one panel per benchmark; False if there is nothing to compare."""
    panels = {name: [line for line in part["lines"] if "difference" in line] for name, part in summary.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return False
    height = 1.2 + 0.28 * max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(1.2 + 2.6 * len(panels), height), squeeze=False)
    for axis, (benchmark, lines) in zip(axes[0], panels.items()):
        for place, line in enumerate(reversed(lines)):
            mean, low, high = line["difference"]
            color = "black" if line["language"] == ALL else "tab:blue"
            axis.plot([low, high], [place, place], color=color)
            axis.plot(mean, place, "o", color=color)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(lines)), [line["language"] for line in reversed(lines)])
        axis.set_title(BENCHMARKS[benchmark].title)
        axis.set_xlabel(f"{METRIC_NAMES[summary[benchmark]['metric']]}, points")
    figure.suptitle("connected − vanilla, with 95 % bootstrap intervals", fontsize=10)
    figure.tight_layout()
    partial = Path(path).with_name(f".writing-{Path(path).name}")
    figure.savefig(partial, dpi=150)
    plt.close(figure)
    partial.replace(path)
    return True


__all__ = ["markdown", "plot", "summarise", "tables"]
