"""Records as tables: rows of text from each record, shown by rich and written as Markdown by the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Rows = list[list[str]]


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text."""

    title: str
    header: list[str]
    rows: Rows

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} - {len(self.header)}
        if widths:
            raise ValueError(f"rows: expected {len(self.header)} cells, as the header of {self.title!r}, got {widths}")

    def markdown(self) -> str:
        """As a Markdown table below its title.

        Example:
            >>> print(Table("Times", ["mode", "ms"], [["ours", "1.0"]]).markdown())
            **Times**
            <BLANKLINE>
            | mode | ms |
            | --- | --- |
            | ours | 1.0 |
        """
        lines = [" | ".join(self.header), " | ".join("---" for _ in self.header), *map(" | ".join, self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(f"| {line} |" for line in lines)


def milliseconds(value: dict[str, Any]) -> str:
    """Median and quartiles of seconds, in milliseconds.

    Example:
        >>> milliseconds({"median": 0.002, "low": 0.001, "high": 0.003})
        '2.00 (1.00–3.00)'
    """
    return "{:.2f} ({:.2f}–{:.2f})".format(*(1e3 * value[name] for name in ("median", "low", "high")))


def ratio(value: dict[str, Any]) -> str:
    """Median and quartiles."""
    return "{:.3f} ({:.3f}–{:.3f})".format(*(value[name] for name in ("median", "low", "high")))


def best(mode: dict[str, Any], vanilla: dict[str, Any], name: str) -> str:
    """Fastest round ÷ fastest round of vanilla: what a busy machine disturbs least.

    Example:
        >>> best({"seconds": {"min": 3.0}}, {"seconds": {"min": 2.0}}, "seconds")
        '1.500'
    """
    return f"{mode[name]['min'] / vanilla[name]['min']:.3f}"


def _mebibytes(value: int) -> str:
    return f"{value / 2**20:,.1f}"


def _launches(mode: dict[str, Any], ops: str) -> list[str]:
    """Kernels, their time and waits on a GPU; non-view ops and synchronising ops without."""
    if "kernels" in mode:
        return [str(mode["kernels"]), f"{mode['device_ms']:.2f}", str(mode["reported_waits"])]
    counts = mode.get(ops)
    return [str(counts["ops"]), str(counts["synchronising_ops"])] if counts else ["–", "–"]


def _why(mode: dict[str, Any]) -> str:
    return "absent" if mode["refused"] == "not installed" else "refused"


def training_table(record: dict[str, Any], title: str) -> Table:
    """One row per mode."""
    section = record["train"]
    on_gpu = any("kernels" in mode for mode in section["modes"].values())
    counted = ["kernels", "kernels ms", "waits"] if on_gpu else ["forward ops", "syncs"]
    header = [
        "mode",
        "step ms",
        "forward",
        "backward",
        "optimizer",
        "÷ vanilla",
        "best ÷ best",
        "tokens/s",
        "peak MiB",
        *counted,
    ]
    rows = []
    for name, mode in section["modes"].items():
        if "refused" in mode:
            rows.append([name, *[_why(mode)] * (len(header) - 1)])
            continue
        phases = [f"{1e3 * of['median']:.2f}" for of in mode["phases"].values()]
        rows.append(
            [
                name,
                milliseconds(mode["seconds"]),
                *phases,
                ratio(mode["ratio"]),
                best(mode, section["modes"]["vanilla"], "seconds"),
                f"{mode['tokens_per_second']:,.0f}",
                _mebibytes(mode["peak_bytes"]),
                *_launches(mode, "forward_ops"),
            ]
        )
    what = f"{section['rows']} × {section['tokens']} tokens, pivot {section['pivot']}, {section['optimizer']}"
    predicted = (
        f"FLOPs predict {section['predicted']:.3f} (forward and backward {section['predicted_forward_backward']:.3f})"
    )
    return Table(f"{title}: training step, {what}; {predicted}", header, rows)


def inference_table(section: dict[str, Any], title: str) -> Table:
    """One row per mode."""
    on_gpu = any("kernels" in mode for mode in section["modes"].values())
    counted = ["kernels", "kernels ms", "waits"] if on_gpu else ["ops", "syncs"]
    header = [
        "mode",
        "first token ms",
        "÷ vanilla",
        "best ÷ best",
        "added, decode steps",
        "decode ms",
        "tokens/s",
        "peak MiB",
        *counted,
    ]
    rows = []
    for name, mode in section["modes"].items():
        if "refused" in mode:
            rows.append([name, *[_why(mode)] * (len(header) - 1)])
            continue
        rows.append(
            [
                name,
                milliseconds(mode["first_token"]),
                ratio(mode["ratio"]),
                best(mode, section["modes"]["vanilla"], "first_token"),
                f"{mode['added_steps']['median']:.2f}",
                milliseconds(mode["decode_step"]),
                f"{mode['tokens_per_second']:,.1f}",
                _mebibytes(mode["peak_bytes"]) if "peak_bytes" in mode else "–",
                *_launches(mode, "ops"),
            ]
        )
    cache = section["options"].get("cache_implementation", "dynamic")
    predicted = ", ".join(f"{name} {value:.3f}" for name, value in section["predicted"].items())
    what = f"{section['rows']} × {section['tokens']} tokens, {cache} cache"
    return Table(f"{title}: inference, {what}; FLOPs predict {predicted}", header, rows)


def curve_table(curve: list[dict[str, Any]], title: str) -> Table:
    """Time to the first token ÷ vanilla: one row per prompt length, one column per mode."""
    names = list(dict.fromkeys(name for point in curve for name in point["modes"] if name != "vanilla"))
    rows = []
    for point in curve:
        modes = point["modes"]
        found = [modes.get(name, {}) for name in names]
        cells = [
            f"{ratio(of['ratio'])}, {best(of, modes['vanilla'], 'first_token')}" if "ratio" in of else "–"
            for of in found
        ]
        rows.append([str(point["tokens"]), milliseconds(modes["vanilla"]["first_token"]), *cells])
    header = ["prompt tokens", "vanilla ms", *names]
    return Table(f"{title}: time to first token, ÷ vanilla by round, and best ÷ best", header, rows)


def profile_title(record: dict[str, Any]) -> str:
    """Model, dtype and device."""
    given = record["arguments"]
    layers = f" with {given['layers']} layers" if "layers" in given else ""
    return f"{given['model']}{layers}, {given['dtype']}, {record['facts']['device']}"


def profile_tables(record: dict[str, Any]) -> Iterator[Table]:
    """The tables of a `profile_fusion` record; a section that failed is left out here and told by `failures`."""
    title = profile_title(record)
    if "modes" in record.get("train", {}):
        yield training_table(record, title)
    for name in ("infer", "static"):
        if "modes" in record.get(name, {}):
            yield inference_table(record[name], title)
    if isinstance(record.get("curve"), list) and record["curve"]:
        yield curve_table(record["curve"], title)


def failures(record: dict[str, Any]) -> list[str]:
    """Sections that ended in an error and modes that were refused, with the reason."""
    parts = {name: part for name, part in record.items() if isinstance(part, dict)}
    found = [f"{name}: {part['error']}" for name, part in parts.items() if "error" in part]
    for name, part in parts.items():
        modes = part.get("modes", {}) if name != "arguments" else {}
        found += [f"{name}, {mode}: {of['refused']}" for mode, of in modes.items() if "refused" in of]
    return found


def train_run_table(record: dict[str, Any]) -> Table:
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
                "–" if peak is None else _mebibytes(peak),
                f"{loss[0]:.4f} → {loss[-1]:.4f}",
            ]
        )
    difference = record["loss_difference"]
    title = (
        f"{record['arguments']['model']}, {record['facts']['device']}: {record['steps']} steps, "
        f"losses differ by at most {difference['max']:.1e}, on average {difference['mean']:.1e}"
    )
    return Table(title, ["kernels", "step ms", "÷ torch", "tokens/s", "peak MiB", "loss"], rows)


def fit_table(record: dict[str, Any]) -> Table:
    """One row per number of pairs."""
    by_pairs: dict[int, dict[str, Any]] = {}
    for row in record["rows"]:
        by_pairs.setdefault(row["pairs"], {})[row["method"]] = row
    rows = []
    for pairs, methods in by_pairs.items():
        cells = [f"{pairs:,}"]
        for method in ("streaming", "stacking"):
            of = methods.get(method, {})
            cells += [f"{of['seconds']:.2f}", _mebibytes(of["bytes"])] if "seconds" in of else ["–", "–"]
        difference = methods.get("stacking", {}).get("matrix_difference")
        rows.append([*cells, "–" if difference is None else f"{difference:.1e}"])
    header = ["pairs", "streaming s", "peak MiB", "stacking s", "peak MiB", "difference of the matrices"]
    return Table(f"Matrix fit, {record['arguments']['model']}, {record['facts']['device']}", header, rows)


def kernel_tables(record: dict[str, Any]) -> Iterator[Table]:
    """One table per op of a `gpu_check` record."""
    header = ["case", "implementation", "device µs", "share of copy", "share of read", "eager µs"]
    for op, cases in record["sections"].items():
        if not isinstance(cases, list) or not cases or "implementation" not in cases[0]:
            continue
        rows = []
        for row in cases:
            on_device = f"{row['device_us']['median']:.2f}" if "device_us" in row else row.get("refused", "–")[:60]
            shares = [f"{row[share]:.0%}" if share in row else "–" for share in ("share_of_copy", "share_of_read")]
            eager = f"{row['eager_us']['median']:.1f}" if "eager_us" in row else "–"
            rows.append([row["case"], row["implementation"], on_device, *shares, eager])
        device = record["sections"]["device"]
        yield Table(f"{op}, {device.get('gpu') or device.get('device')}", header, rows)


def suite_tables(record: dict[str, Any]) -> Iterator[Table]:
    """One table per group of a pytest-benchmark record."""
    groups: dict[str, list[list[str]]] = {}
    for test in record["benchmarks"]:
        extra, stats = test["extra_info"], test["stats"]
        row = [
            extra["implementation"],
            f"{1e6 * stats['median']:.1f} ({1e6 * stats['q1']:.1f}–{1e6 * stats['q3']:.1f})",
            f"{extra['gb_per_s']:.1f}",
            f"{extra['share_of_copy']:.0%}",
        ]
        groups.setdefault(test["group"], []).append(row)
    for name, rows in groups.items():
        yield Table(name, ["implementation", "µs", "GB/s", "share of copy"], rows)
