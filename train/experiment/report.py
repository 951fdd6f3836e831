"""The experiment's report: Markdown whose every sentence about a result is computed from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cc_model.files import write_text
from train.common.files import output_folder
from train.common.modes import ENGLISH, MATRIX, OFF, TITLES, VANILLA
from train.common.reports import markdown_table
from train.experiment.plots import plot, plot_taught
from train.experiment.report_parts import asked, compared, footer, intervals, shown, training
from train.experiment.settings import Settings
from train.experiment.statistics import (
    accuracy,
    by_seed,
    difference,
    estimate,
    likelihood,
    signed,
    verdict,
)
from train.experiment.taught_report import render_taught

Results = Sequence[Mapping[str, Any]]
MODES = (OFF, MATRIX, ENGLISH)


def write_report(settings: Settings, results: Results, folder: Path) -> Path:
    """Write `report.md` and the plots of `results` into `folder`.

    Raises:
        ValueError: no result of vanilla, with which the others are compared.
    """
    vanilla = by_seed(results, VANILLA, VANILLA, accuracy)
    if not vanilla:
        raise ValueError(f"results: expected at least one of condition 'vanilla' in {folder}, got none")
    path = output_folder(folder, "out") / "report.md"
    write_text(path, "\n".join(render(settings, results)) + "\n")
    (plot_taught if settings.taught else plot)(settings, results, folder)
    return path


def render(settings: Settings, results: Results) -> list[str]:
    """The report's lines."""
    if settings.taught:
        return render_taught(settings, results)
    lines = [
        "# Plain fine-tuning and CC-Tuning on equal terms",
        "",
        *_set_up(settings, results),
        "",
        "## Held-out accuracy",
        "",
        *_table(settings, results, accuracy, " %", 1),
        "",
        "![Difference to vanilla](differences.png)",
        "",
        "## What this says",
        "",
        *_words(settings, results),
        "",
        "## Likelihood of the right answers",
        "",
        "Nats per answer token, less is better.",
        "",
        *_table(settings, results, likelihood, "", 3),
    ]
    if any(name in result["modes"] for result in results for name in settings.maps):
        lines += ["", "## Maps", "", *_maps(settings, results), "", "![Maps](maps.png)"]
    return [*lines, "", "## Training", "", *training(settings, results), "", *footer(settings)]


def _set_up(settings: Settings, results: Results) -> list[str]:
    return [
        compared(settings, results),
        "",
        asked(results),
        "",
        "; ".join(f"*{mode}*: {TITLES[mode]}" for mode in (VANILLA, *MODES)) + ".",
        "",
        intervals(settings, results),
    ]


def _table(settings: Settings, results: Results, measure: Any, unit: str, digits: int) -> list[str]:
    vanilla = by_seed(results, VANILLA, VANILLA, measure)
    plain = shown(estimate(list(vanilla.values())), unit, digits)
    rows: list[tuple[str, ...]] = [(VANILLA, str(len(vanilla)), plain, "", "", "", "")]
    for name in settings.conditions:
        cells = {mode: by_seed(results, name, mode, measure) for mode in MODES}
        if not cells[MATRIX]:
            continue
        gain = difference(cells[MATRIX], vanilla)
        values = [shown(estimate(list(each.values())), unit, digits) for each in cells.values()]
        rows.append((name, str(len(cells[MATRIX])), "", *values, signed(gain, digits) if gain else ""))
    return markdown_table(("condition", "seeds", VANILLA, *MODES, f"{MATRIX} − {VANILLA}"), rows)


def _words(settings: Settings, results: Results) -> list[str]:
    vanilla = by_seed(results, VANILLA, VANILLA, accuracy)
    lines = []
    for name in settings.conditions:
        modes = {mode: by_seed(results, name, mode, accuracy) for mode in MODES}
        if not modes[MATRIX]:
            continue
        gain, lost = difference(modes[MATRIX], vanilla), difference(modes[ENGLISH], modes[MATRIX])
        brought = difference(modes[MATRIX], modes[OFF])
        if gain and lost and brought:
            lines.append(
                f"- **{name}**: *{MATRIX}* against *{VANILLA}*: {verdict(gain)}. *{ENGLISH}* against *{MATRIX}*: "
                f"{verdict(lost)}. *{MATRIX}* against *{OFF}*, same weights: {verdict(brought)}."
            )
    summary = (
        f"{_clear(settings, results, accuracy, 1)} {_clear(settings, results, likelihood, -1)} The others cannot be "
        "told from vanilla with these seeds."
    )
    base = by_seed(results, "cc", MATRIX, accuracy)
    for name in settings.conditions:
        against = difference(by_seed(results, name, MATRIX, accuracy), base) if name != "cc" else None
        if against and against.clear:
            lines.append(f"- {name} against the published recipe (cc), both *{MATRIX}*: {verdict(against)}.")
    return [summary, "", *lines]


def _clear(settings: Settings, results: Results, measure: Any, better: int) -> str:
    """Which conditions, answering with the matrix, differ clearly from vanilla; `better` is the sign of a gain."""
    vanilla = by_seed(results, VANILLA, VANILLA, measure)
    gains = {name: difference(by_seed(results, name, MATRIX, measure), vanilla) for name in settings.conditions}
    signs = {name: better * found.mean > 0 for name, found in gains.items() if found and found.clear}
    above, below = ([name for name, gain in signs.items() if gain == side] for side in (True, False))
    what = "accuracy" if measure is accuracy else "the likelihood of the right answers"
    return f"By {what}, clearly better than vanilla: {', '.join(above) or 'none'}; worse: {', '.join(below) or 'none'}."


def _maps(settings: Settings, results: Results) -> list[str]:
    base = by_seed(results, settings.maps_of, MATRIX, accuracy)
    rows = []
    for name in (MATRIX, *settings.maps):
        fits = [
            result["maps"][name]
            for result in results
            if result["condition"] == settings.maps_of and name in result["maps"]
        ]
        if not fits:
            continue
        right = by_seed(results, settings.maps_of, name, accuracy)
        against = difference(right, base) if name != MATRIX else None
        rows.append(
            (
                name,
                f"{sum(fit['pairs'] for fit in fits) / len(fits):.0f}",
                *(f"{sum(fit[key] for fit in fits) / len(fits):.2f}" for key in ("r2", "median_layer_r2")),
                shown(estimate(list(right.values())), " %", 1),
                shown(estimate(list(by_seed(results, settings.maps_of, name, likelihood).values())), "", 3),
                signed(against, 1) if against else "",
            )
        )
    head = ("map", "pairs", "R²", "R², median layer", "accuracy", "nats per token", "accuracy − matrix")
    return [
        f"Fitted to the models of condition `{settings.maps_of}` after training; R² on the prompts of the held-out "
        "questions, which no fit has seen. `matrix` is the paper's: one for all layers, no bias, no ridge.",
        "",
        *markdown_table(head, rows),
    ]


__all__ = ["render", "write_report"]
