"""Records of `benchmarks.profile_fusion`: training steps, generation, and the first token against prompt length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.show.table import Kind, Number, Record, Table, mebibytes, milliseconds, numbers_of, ratio

_OF_A_STEP = ("seconds", "ratio", "peak_bytes", "kernels", "device_ms", "reported_waits")
_OF_A_PROMPT = ("first_token", "ratio", "added_steps", "decode_step", "peak_bytes", "kernels", "device_ms")


def title_of(record: Record) -> str:
    """Model, dtype and device."""
    given = record["arguments"]
    layers = f" with {given['layers']} layers" if "layers" in given else ""
    return f"{given['model']}{layers}, {given['dtype']}, {record['facts']['device']}"


def best(mode: Record, vanilla: Record, name: str) -> str:
    """Fastest round ÷ fastest round of vanilla: what a busy machine disturbs least.

    Example:
        >>> best({"seconds": {"min": 3.0}}, {"seconds": {"min": 2.0}}, "seconds")
        '1.500'
    """
    return f"{mode[name]['min'] / vanilla[name]['min']:.3f}"


def _peak(mode: Record) -> str:
    return mebibytes(mode["peak_bytes"]) if "peak_bytes" in mode else "–"


def _launches(mode: Record, ops: str, columns: list[str]) -> list[str]:
    """Kernels, their time and waits on a GPU; non-view ops and synchronising ops without."""
    if "kernels" in mode:
        return [str(mode["kernels"]), f"{mode['device_ms']:.2f}", str(mode["reported_waits"])]
    counts = mode.get(ops)
    return (
        [str(counts["ops"]), str(counts["synchronising_ops"])] if counts and len(columns) == 2 else ["–"] * len(columns)
    )


def _why(mode: Record) -> str:
    return "absent" if mode["refused"] == "not installed" else "refused"


def _counted(section: Record, ops: str) -> list[str]:
    on_gpu = any("kernels" in mode for mode in section["modes"].values())
    return ["kernels", "kernels ms", "waits"] if on_gpu else [ops, "syncs"]


def training_table(record: Record) -> Table:
    """One row per mode."""
    section = record["train"]
    times = ["mode", "step ms", "forward", "backward", "optimizer", "÷ vanilla", "best ÷ best", "tokens/s", "peak MiB"]
    counted = _counted(section, "forward ops")
    header = [*times, *counted]
    rows = []
    for name, mode in section["modes"].items():
        if "refused" in mode:
            rows.append([name, *[_why(mode)] * (len(header) - 1)])
            continue
        rows.append(
            [
                name,
                milliseconds(mode["seconds"]),
                *(f"{1e3 * of['median']:.2f}" for of in mode["phases"].values()),
                ratio(mode["ratio"]),
                best(mode, section["modes"]["vanilla"], "seconds"),
                f"{mode['tokens_per_second']:,.0f}",
                _peak(mode),
                *_launches(mode, "forward_ops", counted),
            ]
        )
    what = f"{section['rows']} × {section['tokens']} tokens, pivot {section['pivot']}, {section['optimizer']}"
    what += _of_translations(section)
    alone = section["predicted_forward_backward"]
    predicted = f"FLOPs predict {section['predicted']:.3f} (forward and backward {alone:.3f}"
    less = section.get("predicted_with_less_work")
    predicted += ")" if less is None else f"; {less:.3f} with shared prompts and the head on labels)"
    compiled = " with compiled layers" if any(name.endswith("+compile") for name in section["modes"]) else ""
    return Table(f"{title_of(record)}: training step{compiled}, {what}; {predicted}", header, rows, "train")


def _of_translations(section: Record) -> str:
    count = section.get("translations", 1)
    return "" if count == 1 else f", {count} translations per prompt"


def translations_table(record: Record) -> Table:
    """Step and peak memory ÷ vanilla: one row per number of translations, one column per mode."""
    points = record["translations"]
    names = list(dict.fromkeys(name for point in points for name in point["modes"] if name != "vanilla"))
    rows = []
    for point in points:
        modes = point["modes"]
        cells = [_step_and_peak(modes.get(name, {}), modes["vanilla"]) for name in names]
        less = f"{point['predicted_with_less_work']:.3f}"
        rows.append([str(point["translations"]), milliseconds(modes["vanilla"]["seconds"]), *cells, less])
    first = points[0]
    what = f"{first['rows']} × {first['tokens']} tokens, pivot {first['pivot']}, {first['optimizer']}"
    header = ["translations", "vanilla ms", *names, "FLOPs predict for ours"]
    title = f"{title_of(record)}: training step, {what}; ÷ vanilla by round, and peak memory ÷ vanilla"
    return Table(title, header, rows, "translations")


def _step_and_peak(mode: Record, vanilla: Record) -> str:
    if "ratio" not in mode:
        return "–"
    peak = f", {mode['peak_bytes'] / vanilla['peak_bytes']:.2f}" if "peak_bytes" in mode else ""
    return f"{ratio(mode['ratio'])}{peak}"


def inference_table(record: Record, part: str) -> Table:
    """One row per mode."""
    section = record[part]
    times = ["mode", "first token ms", "÷ vanilla", "best ÷ best", "added, decode steps", "decode ms", "tokens/s"]
    counted = _counted(section, "ops")
    header = [*times, "peak MiB", *counted]
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
                _peak(mode),
                *_launches(mode, "ops", counted),
            ]
        )
    held = f", {section['cached']} of them held already" if section.get("cached") else ""
    cache = f"{section['options'].get('cache_implementation', 'dynamic')} cache{held}"
    predicted = ", ".join(f"{name} {value:.3f}" for name, value in section["predicted"].items())
    what = f"{section['rows']} × {section['tokens']} tokens, {cache}; FLOPs predict {predicted}"
    return Table(f"{title_of(record)}: inference, {what}", header, rows, part)


def curve_table(record: Record) -> Table:
    """Time to the first token ÷ vanilla: one row per prompt length, one column per mode."""
    curve = record["curve"]
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
    title = f"{title_of(record)}: time to first token, ÷ vanilla by round, and best ÷ best"
    return Table(title, ["prompt tokens", "vanilla ms", *names], rows, "curve")


def _parts(record: Record) -> Iterator[str]:
    """The parts that have numbers; one that failed is told by `failures`."""
    yield from (name for name in ("train", "infer", "static", "prefix") if record.get(name, {}).get("modes"))
    yield from (name for name in ("curve", "translations") if isinstance(record.get(name), list) and record[name])


def tables(record: Record) -> Iterator[Table]:
    """One table per part."""
    for part in _parts(record):
        if part == "train":
            yield training_table(record)
        elif part == "curve":
            yield curve_table(record)
        elif part == "translations":
            yield translations_table(record)
        else:
            yield inference_table(record, part)


def _of_part(what: str, part: str, section: Record, keys: tuple[str, ...]) -> Iterator[Number]:
    vanilla = section["modes"].get("vanilla", {})
    for mode, of in section["modes"].items():
        derived: Record = {}
        if isinstance(section.get("predicted"), float) and "ratio" in of:
            derived["ratio to prediction"] = of["ratio"]["median"] / section["predicted"]
        if "decode_step" in of and "decode_step" in vanilla:
            derived["decode ratio"] = of["decode_step"]["median"] / vanilla["decode_step"]["median"]
        yield from numbers_of(f"{what}, {mode}", part, {**of, **derived}, (*keys, *derived))


def numbers(record: Record) -> Iterator[Number]:
    """Of each mode: times in seconds, ratios to vanilla, peaks in bytes, counts."""
    given = record["arguments"]
    model = f"{given['model']}, {given['layers']} layers" if "layers" in given else given["model"]
    for part in _parts(record):
        if part == "curve":
            for point in record["curve"]:
                what = f"{model}, curve {point['rows']} x {point['tokens']}"
                yield from _of_part(what, part, point, _OF_A_PROMPT)
            continue
        steps = record[part] if part == "translations" else [record[part]]
        for section in steps:
            what = f"{model}, {'train' if part == 'translations' else part} {section['rows']} x {section['tokens']}"
            what += f", pivot {section['pivot']}{_of_translations(section)}" if "pivot" in section else ""
            yield from _of_part(what, part, section, _OF_A_STEP if "pivot" in section else _OF_A_PROMPT)


def throughput_plot(record: Record, path: Path, of: str | None = None) -> Path:
    """Bars of training tokens/s per mode, and the line that the FLOP count predicts for a connected step."""
    from benchmarks.show.figure import colour_of, finish, plt

    section = record["train"]
    modes = {name: mode for name, mode in section["modes"].items() if "seconds" in mode}
    figure, axes = plt.subplots(figsize=(7, 3.6))
    heights = [mode["tokens_per_second"] for mode in modes.values()]
    bars = axes.bar(list(modes), heights, color=[colour_of(name) for name in modes])
    labels = [f"÷ {mode['ratio']['median']:.2f}" for mode in modes.values()]
    axes.bar_label(bars, labels, label_type="center", fontsize=8)
    predicted, label = section["predicted"], f"FLOPs predict ÷ {section['predicted']:.2f}"
    line = modes["vanilla"]["tokens_per_second"] / predicted
    axes.axhline(line, color="black", linestyle=":", linewidth=1, label=label)
    axes.set_ylabel("main tokens / s")
    axes.set_title(f"Training step: {title_of(record)}", fontsize=9)
    axes.tick_params(axis="x", labelrotation=20, labelsize=8)
    axes.legend(fontsize=8)
    return finish(figure, path, of)


def translations_plot(record: Record, path: Path, of: str | None = None) -> Path:
    """Step ÷ vanilla against the number of translations, with quartiles, and what the FLOP count predicts."""
    from benchmarks.show.figure import colour_of, finish, plt

    points = record["translations"]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    counts = [point["translations"] for point in points]
    for name in dict.fromkeys(name for point in points for name, mode in point["modes"].items() if "ratio" in mode):
        values = [point["modes"][name]["ratio"] for point in points if "ratio" in point["modes"].get(name, {})]
        x = [point["translations"] for point in points if "ratio" in point["modes"].get(name, {})]
        axes.plot(x, [value["median"] for value in values], marker="o", label=name, color=colour_of(name))
        axes.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], alpha=0.2, color=colour_of(name))
    predicted = [point["predicted_with_less_work"] for point in points]
    axes.plot(counts, predicted, color="black", linestyle=":", linewidth=1, label="FLOPs predict for ours")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("translations of each English prompt in the batch")
    axes.set_ylabel("training step ÷ vanilla")
    axes.set_title(title_of(record), fontsize=9)
    axes.legend(fontsize=7)
    return finish(figure, path, of)


def curve_plot(record: Record, path: Path, of: str | None = None) -> Path:
    """Time to the first token ÷ vanilla against prompt length, with quartiles."""
    from benchmarks.show.figure import colour_of, finish, plt

    curve = record["curve"]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    names = dict.fromkeys(name for point in curve for name, mode in point["modes"].items() if "ratio" in mode)
    for name in names:
        measured = [point for point in curve if "ratio" in point["modes"].get(name, {})]
        x, values = [point["tokens"] for point in measured], [point["modes"][name]["ratio"] for point in measured]
        axes.plot(x, [value["median"] for value in values], marker="o", label=name, color=colour_of(name))
        low, high = ([value[end] for value in values] for end in ("low", "high"))
        axes.fill_between(x, low, high, alpha=0.2, color=colour_of(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks([point["tokens"] for point in curve], [str(point["tokens"]) for point in curve])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel("time to first token ÷ vanilla")
    axes.set_title(title_of(record), fontsize=9)
    axes.legend(fontsize=8)
    return finish(figure, path, of)


def plots(record: Record, folder: Path, prefix: str = "") -> list[Path]:
    """The plots that the record has the numbers for."""
    made, parts = [], set(_parts(record))
    if "train" in parts:
        made.append(throughput_plot(record, folder / f"{prefix}throughput.png"))
    if "translations" in parts:
        made.append(translations_plot(record, folder / f"{prefix}translations.png"))
    if "curve" in parts:
        made.append(curve_plot(record, folder / f"{prefix}first_token.png"))
    return made


def failures(record: Record) -> list[str]:
    """Sections that ended in an error and modes that were refused, with the reason."""
    names = ("train", "translations", "infer", "curve", "static", "prefix")
    sections = {name: record[name] for name in names if isinstance(record.get(name), dict)}
    found = [f"{name}: {part['error']}" for name, part in sections.items() if "error" in part]
    for name, part in sections.items():
        found += [f"{name}, {mode}: {of['refused']}" for mode, of in part.get("modes", {}).items() if "refused" in of]
    return found


KIND = Kind(tables, numbers, plots=plots, failures=failures)
