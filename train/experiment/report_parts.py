"""What all reports of an experiment say in the same way: what was compared, how it trained, and the last lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.common.modes import VANILLA
from train.common.reports import markdown_table
from train.experiment.settings import BOTH, Settings
from train.experiment.statistics import Estimate

Results = Sequence[Mapping[str, Any]]


def compared(settings: Settings, results: Results) -> str:
    """Model, data, steps and seeds, in sentences."""
    seeds = sorted({result["seed"] for result in results})
    model = "SmolLM2-135M-Instruct" if "smollm2" in str(settings.model) else settings.model or "a new Llama"
    some = results[0]
    same = "the same split, the same first weights and the same batches in the same order"
    if settings.taught:
        same = "the same split and the same first weights; students have more rows, and so other batches"
    return (
        f"Model: {model}, {min(result['parameters'] for result in results):,} parameters. Data: questions about "
        f"territories (CLDR), {len(settings.languages)} languages ({', '.join(settings.languages)}), "
        f"{number_range(results, 'train_rows')} training rows; {settings.steps} steps of {settings.batch_size} rows, "
        f"peak learning rate {settings.learning_rate:g}, cosine; seeds {', '.join(map(str, seeds))}. "
        f"For a seed all conditions have {same}. Device: {some['device']}"
        f"{', under autocast to bf16' if settings.bf16 else ''}."
    )


def asked(results: Results) -> str:
    """What is asked, and which answers count."""
    return (
        f"Asked are {number_range(results, 'questions')} held-out facts per seed: trained on in English, but not in "
        "the language of the question; the answer occurs in training in that language. An answer counts when it is "
        "exactly the expected text (greedy decoding)."
    )


def intervals(settings: Settings, results: Results) -> str:
    """What ± means, and how many jobs are missing."""
    missing = len(settings.conditions) * len(settings.seeds) - len(results)
    return (
        "Numbers are means over seeds; ± is the half width of the 95 % interval over seeds (Student's t, paired where "
        "a difference is shown). With so few seeds the intervals are wide, and none is corrected for the number of "
        "comparisons: about one in twenty leaves out 0 by chance."
        + (f" **{missing} of the planned jobs have not run.**" if missing > 0 else "")
    )


def number_range(results: Results, key: str) -> str:
    """The least and the most of a number of the results."""
    least, most = (extreme(result[key] for result in results) for extreme in (min, max))
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def training(settings: Settings, results: Results) -> list[str]:
    """Last losses, times and fits, as a table."""
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


def footer(settings: Settings) -> list[str]:
    """The conditions, and where the numbers are."""
    conditions = ", ".join(
        f"`{name}` ({', '.join(f'{key} {value}' for key, value in _options(condition).items()) or 'published recipe'})"
        for name, condition in settings.conditions.items()
    )
    return [f"Conditions: {conditions}.", "", "All numbers of this report come from `results.jsonl`."]


def _options(condition: Any) -> dict[str, Any]:
    options = dict(condition.config)
    if condition.method in (VANILLA, BOTH):
        options = {"method": condition.method}
    if condition.teacher:
        options |= {"teacher": condition.teacher}
    for name in ("keep", "top", "text_weight"):
        if getattr(condition, name):
            options |= {name: getattr(condition, name)}
    if "simulated_share" in options:
        options |= {"ramp": condition.ramp, "refit_steps": condition.refit_steps}
    return options


def shown(found: Estimate, unit: str, digits: int) -> str:
    """A mean with its interval."""
    half = "" if found.half is None else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}{unit}"


__all__ = ["asked", "compared", "footer", "intervals", "number_range", "shown", "training"]
