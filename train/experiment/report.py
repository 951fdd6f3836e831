"""The experiment's report: Markdown whose every sentence about a result is computed from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cc_model.files import write_text
from train.common.files import output_folder
from train.common.modes import ENGLISH, MATRIX, OFF, TITLES, VANILLA
from train.common.reports import markdown_table
from train.experiment.plots import plot
from train.experiment.settings import Settings
from train.experiment.statistics import (
    Estimate,
    accuracy,
    by_seed,
    difference,
    estimate,
    likelihood,
    signed,
    verdict,
)

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
    plot(settings, results, folder)
    return path


def render(settings: Settings, results: Results) -> list[str]:
    """The report's lines."""
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
    return [*lines, "", "## Training", "", *_training(settings, results), "", *_footer(settings)]


def _set_up(settings: Settings, results: Results) -> list[str]:
    seeds = sorted({result["seed"] for result in results})
    model = "SmolLM2-135M-Instruct" if "smollm2" in str(settings.model) else settings.model or "a new Llama"
    some = results[0]
    missing = len(settings.conditions) * len(settings.seeds) - len(results)
    return [
        f"Model: {model}, {min(result['parameters'] for result in results):,} parameters. Data: questions about "
        f"territories (CLDR), {len(settings.languages)} languages ({', '.join(settings.languages)}), "
        f"{_range(results, 'train_rows')} training rows; {settings.steps} steps of {settings.batch_size} rows, "
        f"peak learning rate {settings.learning_rate:g}, cosine; seeds {', '.join(map(str, seeds))}. "
        "For a seed all conditions have "
        f"the same split, the same first weights and the same batches in the same order. Device: {some['device']}"
        f"{', under autocast to bf16' if settings.bf16 else ''}.",
        "",
        f"Asked are {_range(results, 'questions')} held-out facts per seed: trained on in English, but not in the "
        "language of the question; the answer occurs in training in that language. An answer counts when "
        "it is exactly the expected text (greedy decoding).",
        "",
        "; ".join(f"*{mode}*: {TITLES[mode]}" for mode in (VANILLA, *MODES)) + ".",
        "",
        "Numbers are means over seeds; ± is the half width of the 95 % interval over seeds (Student's t, paired where "
        "a difference is shown). With so few seeds the intervals are wide, and none is corrected for the number of "
        "comparisons: about one in twenty leaves out 0 by chance."
        + (f" **{missing} of the planned jobs have not run.**" if missing > 0 else ""),
    ]


def _range(results: Results, key: str) -> str:
    least, most = (extreme(result[key] for result in results) for extreme in (min, max))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _table(settings: Settings, results: Results, measure: Any, unit: str, digits: int) -> list[str]:
    vanilla = by_seed(results, VANILLA, VANILLA, measure)
    shown = _shown(estimate(list(vanilla.values())), unit, digits)
    rows: list[tuple[str, ...]] = [(VANILLA, str(len(vanilla)), shown, "", "", "", "")]
    for name in settings.conditions:
        cells = {mode: by_seed(results, name, mode, measure) for mode in MODES}
        if not cells[MATRIX]:
            continue
        gain = difference(cells[MATRIX], vanilla)
        values = [_shown(estimate(list(each.values())), unit, digits) for each in cells.values()]
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
                _shown(estimate(list(right.values())), " %", 1),
                _shown(estimate(list(by_seed(results, settings.maps_of, name, likelihood).values())), "", 3),
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


def _training(settings: Settings, results: Results) -> list[str]:
    rows = []
    for name in settings.conditions:
        mine = [result for result in results if result["condition"] == name]
        if mine:
            loss = sum(sum(result["losses"][-3:]) / len(result["losses"][-3:]) for result in mine) / len(mine)
            seconds = sum(result["seconds"]["train"] for result in mine) / len(mine)
            refits = mine[0]["refits"]
            fitted = f"{refits[0][1]:.2f} → {refits[-1][1]:.2f} in {len(refits)} fits" if refits else ""
            rows.append((name, f"{loss:.3f}", f"{seconds:.0f} s", fitted))
    return [
        "The last losses, with what each condition reads while it trains (not comparable between conditions that read "
        "English and those that do not), and R² of the matrix on the pairs of its fit, at the start and at the end. "
        "Times are of jobs that shared the device.",
        "",
        *markdown_table(("condition", "loss", "time to train", "R² while training"), rows),
    ]


def _footer(settings: Settings) -> list[str]:
    conditions = ", ".join(
        f"`{name}` ({', '.join(f'{key} {value}' for key, value in _options(condition).items()) or 'published recipe'})"
        for name, condition in settings.conditions.items()
    )
    return [f"Conditions: {conditions}.", "", "All numbers of this report come from `results.jsonl`."]


def _options(condition: Any) -> dict[str, Any]:
    options = dict(condition.config)
    if condition.method == VANILLA:
        options = {"method": VANILLA}
    if "simulated_share" in options:
        options |= {"ramp": condition.ramp, "refit_steps": condition.refit_steps}
    return options


def _shown(found: Estimate, unit: str, digits: int) -> str:
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}{unit}"


__all__ = ["render", "write_report"]
