"""From results per language to a summary with differences and intervals, and its tables and plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from train.common.modes import MATRIX, OFF, VANILLA
from train.common.reports import markdown_table, save_figure, subplots
from train.evaluation.benchmarks import BENCHMARKS, METRIC_NAMES
from train.evaluation.intervals import paired_difference
from train.evaluation.runs import Result

Summary = dict[str, dict[str, Any]]
ALL = "mean"  # over languages
MODES = (VANILLA, OFF, MATRIX)
COLORS = {OFF: "tab:blue", VANILLA: "tab:orange"}  # of what the matrix is compared with


def summarise(results: Iterable[Result], resamples: int = 10_000) -> Summary:
    """`{benchmark: {metric, lines}}`, with scores in percent; the last line is the mean over languages.

    | field of a line | |
    |---|---|
    | `language`, `rows` | |
    | `constant` | for choices: the accuracy of always giving the same answer, at best |
    | `vanilla`, `off`, `matrix` | the mean of every metric, for the modes that were evaluated |
    | `differences` | matrix − off and matrix − vanilla of the first metric: mean, and the bounds of its 95 % interval |

    Every language weighs the same in the mean. Where all have the same ids, rows with one id are taken for translations
    of each other, and the interval of the mean redraws them together: they are not so many independent rows.

    Example:
        >>> rows = [{"id": "0", "acc": 1.0, "right": "2"}, {"id": "1", "acc": 0.0, "right": "2"}]
        >>> row = {"benchmark": "xnli", "language": "sw", "results": rows}
        >>> summarise([{**row, "mode": "vanilla"}])["xnli"]["lines"]
        [{'language': 'sw', 'rows': 2, 'constant': 100.0, 'vanilla': {'acc': 50.0}}]
        >>> summarise([{**row, "mode": mode} for mode in ("off", "matrix")])["xnli"]["lines"][0]["differences"]
        {'off': [0.0, 0.0, 0.0]}
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
    modes = [mode for mode in MODES if all(mode in given for given in languages.values())]
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
    references = [mode for mode in modes if mode != MATRIX] if MATRIX in modes else []
    if references:
        given = list(languages.values())
        line["differences"] = {mode: _difference(given, mode, metrics[0], resamples) for mode in references}
    return line


def _difference(
    given: Sequence[Mapping[str, list[dict[str, Any]]]], reference: str, metric: str, resamples: int
) -> list[float]:
    """matrix − reference in percent: mean, and the bounds of its interval."""
    scores = [[[row[metric] for row in rows[mode]] for rows in given] for mode in (MATRIX, reference)]
    ids = [[row["id"] for row in rows[MATRIX]] for rows in given]
    if all(each == ids[0] for each in ids):
        scores = [[[_mean(column) for column in zip(*groups)]] for groups in scores]
    return [round(value * 100, 4) for value in paired_difference(scores[0], scores[1], resamples)]


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
    """A benchmark's table as text, the names of the columns first; the differences are the first metric's."""
    modes = [mode for mode in MODES if mode in lines[0]]
    references = list(lines[0].get("differences", {}))
    known = ["constant"] if "constant" in lines[0] else []
    found = [["language", "rows", *known, *modes, *(f"{MATRIX} − {mode} [95 %]" for mode in references)]]
    for line in lines:
        row = [line["language"], str(line["rows"]), *[f"{line[name]:.1f}" for name in known]]
        row += [" / ".join(f"{value:.1f}" for value in line[mode].values()) for mode in modes]
        for mode in references:
            mean, low, high = (round(value, 1) + 0.0 for value in line["differences"][mode])  # never −0.0
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
        parts += [f"## {title(benchmark)}", "", *markdown_table(names, rows), ""]
    return "\n".join(parts)


def plot(summary: Summary, path: str | Path) -> bool:
    """Differences per language with their intervals, one panel per benchmark; False if there is nothing to compare."""
    panels = {name: [line for line in part["lines"] if "differences" in line] for name, part in summary.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return False
    height = 1.2 + 0.28 * max(map(len, panels.values()))
    figure, axes = subplots(1, len(panels), 1.2 + 2.6 * len(panels), height)
    references = [mode for mode in COLORS if any(mode in lines[0]["differences"] for lines in panels.values())]
    for axis, (benchmark, lines) in zip(axes, panels.items()):
        for mode, shift in zip(references, (0.12, -0.12) if len(references) > 1 else (0.0,)):
            for place, line in enumerate(reversed(lines)):
                mean, low, high = line["differences"][mode]
                color = "black" if line["language"] == ALL and len(references) == 1 else COLORS[mode]
                label = f"{MATRIX} − {mode}" if place == 0 and axis is axes[0] else None
                axis.plot([low, high], [place + shift] * 2, color=color)
                axis.plot(mean, place + shift, "o", color=color, label=label)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(lines)), [line["language"] for line in reversed(lines)])
        axis.set_title(BENCHMARKS[benchmark].title)
        axis.set_xlabel(f"{METRIC_NAMES[summary[benchmark]['metric']]}, points")
    figure.legend(loc="outside upper center", ncols=len(references), fontsize="small", frameon=False)
    save_figure(figure, Path(path), dpi=150)
    return True


__all__ = ["markdown", "plot", "summarise", "tables"]
