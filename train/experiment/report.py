"""The experiment's report: Markdown whose every sentence about a result is computed from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cc_model.files import write_text
from train.experiment.plots import plot
from train.experiment.settings import VANILLA, Settings
from train.experiment.statistics import Estimate, accuracy, by_seed, difference, estimate, likelihood

Results = Sequence[Mapping[str, Any]]
ANSWERS = {"matrix": "at inference", "english": "true English", "off": "off"}


def write_report(settings: Settings, results: Results, folder: Path) -> Path:
    """Write `report.md` and the plots of `results` into `folder`.

    Raises:
        ValueError: no result of vanilla, with which the others are compared.
    """
    plain = by_seed(results, VANILLA, "plain", accuracy)
    if not plain:
        raise ValueError(f"results: expected at least one of condition 'vanilla' in {folder}, got none")
    folder.mkdir(parents=True, exist_ok=True)
    plot(settings, results, folder)
    path = folder / "report.md"
    write_text(path, "\n".join(render(settings, results)) + "\n")
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
        "*At inference* is what a user gets: plain answers of vanilla, the Transform Matrix for the others. *True "
        "English* reads the English question too, *off* is the same model without the connection.",
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
    plain = by_seed(results, VANILLA, "plain", measure)
    rows: list[tuple[str, ...]] = [
        ("vanilla", str(len(plain)), _shown(estimate(list(plain.values())), unit, digits), "", "", "")
    ]
    for name in settings.conditions:
        cells = {mode: by_seed(results, name, mode, measure) for mode in ANSWERS}
        if not cells["matrix"]:
            continue
        gain = difference(cells["matrix"], plain)
        shown = [_shown(estimate(list(values.values())), unit, digits) for values in cells.values()]
        rows.append((name, str(len(cells["matrix"])), *shown, _signed(gain, digits) if gain else ""))
    head = ("condition", "seeds", *ANSWERS.values(), "at inference − vanilla")
    return _markdown(head, rows)


def _words(settings: Settings, results: Results) -> list[str]:
    plain = by_seed(results, VANILLA, "plain", accuracy)
    lines = []
    for name in settings.conditions:
        modes = {mode: by_seed(results, name, mode, accuracy) for mode in ANSWERS}
        if not modes["matrix"]:
            continue
        gain, lost = difference(modes["matrix"], plain), difference(modes["english"], modes["matrix"])
        brought = difference(modes["matrix"], modes["off"])
        if gain and lost and brought:
            lines.append(
                f"- **{name}**, answering with the matrix, against vanilla: {_verdict(gain)}. True English activations "
                f"against the matrix: {_verdict(lost)}. The matrix against no connection, same weights: "
                f"{_verdict(brought)}."
            )
    summary = (
        f"{_clear(settings, results, accuracy, 1)} {_clear(settings, results, likelihood, -1)} The others cannot be "
        "told from vanilla with these seeds."
    )
    base = by_seed(results, "cc", "matrix", accuracy)
    for name in settings.conditions:
        against = difference(by_seed(results, name, "matrix", accuracy), base) if name != "cc" else None
        if against and against.clear:
            lines.append(f"- {name} against the published recipe (cc), both with the matrix: {_verdict(against)}.")
    return [summary, "", *lines]


def _clear(settings: Settings, results: Results, measure: Any, better: int) -> str:
    """Which conditions differ clearly from vanilla at inference; `better` is the sign of a gain."""
    plain = by_seed(results, VANILLA, "plain", measure)
    gains = {name: difference(by_seed(results, name, "matrix", measure), plain) for name in settings.conditions}
    signs = {name: better * found.mean > 0 for name, found in gains.items() if found and found.clear}
    above, below = ([name for name, gain in signs.items() if gain == side] for side in (True, False))
    what = "accuracy" if measure is accuracy else "the likelihood of the right answers"
    return f"By {what}, clearly better than vanilla: {', '.join(above) or 'none'}; worse: {', '.join(below) or 'none'}."


def _maps(settings: Settings, results: Results) -> list[str]:
    base = by_seed(results, settings.maps_of, "matrix", accuracy)
    rows = []
    for name in ("matrix", *settings.maps):
        fits = [
            result["maps"][name]
            for result in results
            if result["condition"] == settings.maps_of and name in result["maps"]
        ]
        if not fits:
            continue
        right = by_seed(results, settings.maps_of, name, accuracy)
        against = difference(right, base) if name != "matrix" else None
        rows.append(
            (
                name,
                f"{sum(fit['pairs'] for fit in fits) / len(fits):.0f}",
                *(f"{sum(fit[key] for fit in fits) / len(fits):.2f}" for key in ("r2", "median_layer_r2")),
                _shown(estimate(list(right.values())), " %", 1),
                _shown(estimate(list(by_seed(results, settings.maps_of, name, likelihood).values())), "", 3),
                _signed(against, 1) if against else "",
            )
        )
    head = ("map", "pairs", "R²", "R², median layer", "accuracy", "nats per token", "accuracy − matrix")
    return [
        f"Fitted to the models of condition `{settings.maps_of}` after training; R² on the prompts of the held-out "
        "questions, which no fit has seen. `matrix` is the paper's: one for all layers, no bias, no ridge.",
        "",
        *_markdown(head, rows),
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
        *_markdown(("condition", "loss", "time to train", "R² while training"), rows),
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


def _verdict(found: Estimate) -> str:
    """A difference in points, in words.

    Example:
        >>> _verdict(estimate([1.0, 2.0, 3.0]))
        '+2.0 ± 2.5 points: no clear difference'
    """
    word = ("clearly higher" if found.mean > 0 else "clearly lower") if found.clear else "no clear difference"
    return f"{_signed(found, 1)} points: {word}"


def _signed(found: Estimate, digits: int) -> str:
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    mean = round(found.mean, digits) + 0.0  # no negative zero
    return f"{mean:+.{digits}f}{half}".replace("-", "−")


def _shown(found: Estimate, unit: str, digits: int) -> str:
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}{unit}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines]


__all__ = ["render", "write_report"]
