"""The report of an experiment with teachers: halves A and B apart, teachers, students, and what they cost in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from train.common.modes import ENGLISH, MATRIX, VANILLA
from train.common.reports import markdown_table
from train.experiment.report_parts import asked, compared, footer, intervals, number_range, shown, training
from train.experiment.settings import BOTH, CC, TRUTH, Settings
from train.experiment.statistics import (
    accuracy,
    by_seed,
    difference,
    estimate,
    likelihood,
    of_half,
    signed,
    verdict,
)

Results = Sequence[Mapping[str, Any]]
Measure = Callable[[Mapping[str, Any]], float]
READS = {
    VANILLA: "the question",
    MATRIX: "the question, with the Transform Matrix",
    ENGLISH: "the question, connected to the English one",
    BOTH: "the English question, then the question",
}


def render_taught(settings: Settings, results: Results) -> list[str]:
    """The report's lines."""
    return [
        "# A teacher that reads English, and plain students of its answers",
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
        "",
        "## What it costs",
        "",
        *_costs(settings, results),
        "",
        "## What the likelihood of an answer says",
        "",
        *_sure(settings, results),
        "",
        "## Training",
        "",
        *training(settings, results),
        "",
        *footer(settings),
    ]


def _set_up(settings: Settings, results: Results) -> list[str]:
    counts = [{half: result["halves"].count(half) for half in "AB"} for result in results]
    prompts = [{"prompts": len(result["answers"])} for result in results]
    return [
        compared(settings, [result for result in results if result["condition"] == VANILLA]),
        "",
        asked(results),
        "",
        f"Half A ({number_range(counts, 'A')} questions): the prompts of these facts are given without an answer, in "
        f"their language and in English ({number_range(prompts, 'prompts')} prompts, with those whose answer does not "
        "occur in training). A teacher answers them. Its student is a new plain model, trained on the labelled rows "
        f"and on these answers, for the same number of steps. Half B ({number_range(counts, 'B')} questions): no "
        "teacher and no student sees them in training.",
        "",
        intervals(settings, results),
    ]


def ways(settings: Settings, results: Results) -> Iterator[tuple[str, str]]:
    """Condition and mode of what is compared: students and plain models as they are, CC models in two modes."""
    for name, condition in settings.conditions.items():
        for mode in (ENGLISH, MATRIX) if condition.method == CC else (condition.method,):
            if by_seed(results, name, mode, accuracy):
                yield name, mode


def _table(settings: Settings, results: Results, measure: Measure, unit: str, digits: int) -> list[str]:
    rows = []
    halves = {half: of_half(results, half) for half in "AB"}
    for name, mode in ways(settings, results):
        row = [name, READS[mode], str(len(by_seed(results, name, mode, measure)))]
        for half in halves.values():
            values, plain = (by_seed(half, *way, measure) for way in ((name, mode), (VANILLA, VANILLA)))
            against = difference(values, plain) if name != VANILLA else None
            mean = shown(estimate(list(values.values())), unit, digits) if values else "no question"
            row += [mean, signed(against, digits) if against else ""]
        rows.append(row)
    head = ("condition", "reads", "seeds", "A", f"A − {VANILLA}", "B", f"B − {VANILLA}")
    return markdown_table(head, rows, left=2)


def _students(settings: Settings, results: Results) -> dict[str, str]:
    """The students with results, and their teachers."""
    ran = {name for name, _ in ways(settings, results)}
    return {name: each.teacher for name, each in settings.conditions.items() if each.teacher and name in ran}


def _words(settings: Settings, results: Results) -> list[str]:
    half_a, half_b = of_half(results, "A"), of_half(results, "B")
    students = _students(settings, results)
    lines = [
        _clear(students, half_a, accuracy, 1, "A, by accuracy"),
        _clear(students, half_a, likelihood, -1, "A, by likelihood"),
    ]
    lines += [
        _clear(students, half_b, accuracy, 1, "B, by accuracy"),
        _clear(students, half_b, likelihood, -1, "B, by likelihood"),
    ]
    lines.append("")
    for name, teacher in students.items():
        mode = _mode(settings, name)
        own, plain = (by_seed(half_a, *way, accuracy) for way in ((name, mode), (VANILLA, VANILLA)))
        gain = difference(own, plain)
        other = difference(by_seed(half_b, name, mode, accuracy), by_seed(half_b, VANILLA, VANILLA, accuracy))
        if gain is None and other is None:
            continue
        on_a, on_b = (verdict(found) if found else "no question" for found in (gain, other))
        line = f"- **{name}** against *{VANILLA}*, on A: {on_a}; on B: {on_b}."
        if teacher != TRUTH:
            lost = difference(own, by_seed(half_a, teacher, _mode(settings, teacher), accuracy))
            line += f" Against its teacher {teacher}, on A: {verdict(lost)}." if lost else ""
            line += f" It gives its teacher's text for {_agreement(results, name, teacher):.0f} % of A's prompts."
            line += _against_text(settings, half_a, half_b, name)
        lines.append(line)
    return [*lines, *_teachers(settings, results)]


def _against_text(settings: Settings, half_a: Results, half_b: Results, name: str) -> str:
    """A student of the likeliest answers, or of distributions, against that of the text of all, if there is one."""
    own = settings.conditions[name]
    plain = replace(own, keep=None, top=None, text_weight=0.0)
    full = next((other for other, each in settings.conditions.items() if each == plain != own), None)
    if full is None:
        return ""
    found = []
    for half, results in (("A", half_a), ("B", half_b)):
        points, nats = (
            difference(*(by_seed(results, each, own.method, measure) for each in (name, full)))
            for measure in (accuracy, likelihood)
        )
        if points and nats:
            found.append(f"on {half}: {verdict(points)}, and {signed(nats, 3)} nats per answer token")
    return f" Against {full}, {'; '.join(found)}." if found else ""


def _mode(settings: Settings, name: str) -> str:
    """How a condition answers when it teaches, or is a student."""
    return ENGLISH if settings.conditions[name].method == CC else settings.conditions[name].method


def _clear(students: Mapping[str, str], half: Results, measure: Measure, better: int, where: str) -> str:
    plain = by_seed(half, VANILLA, VANILLA, measure)
    gains = {name: difference(by_seed(half, name, VANILLA, measure), plain) for name in students}
    signs = {name: better * found.mean > 0 for name, found in gains.items() if found and found.clear}
    above, below = (", ".join(name for name, gain in signs.items() if gain == side) or "none" for side in (True, False))
    return f"- Students on {where}: clearly better than {VANILLA}: {above}; worse: {below}."


def _agreement(results: Results, student: str, teacher: str) -> float:
    """Percent of A's prompts that a student answers with its teacher's text, over all seeds."""
    texts = {(each["condition"], each["seed"]): [answer[0] for answer in each["answers"]] for each in results}
    pairs = [
        (one, other)
        for (name, seed), given in texts.items()
        if name == student and (teacher, seed) in texts
        for one, other in zip(given, texts[teacher, seed], strict=True)
    ]
    return 100 * sum(one == other for one, other in pairs) / len(pairs)


def _teachers(settings: Settings, results: Results) -> list[str]:
    """Those that read English, against each other and with the matrix, on all questions: they have seen none."""
    able = [
        name for name, mode in ways(settings, results)
        if mode in (ENGLISH, BOTH) and settings.conditions[name].teacher is None
    ]  # fmt: skip
    lines = []
    for place, name in enumerate(able):
        for other in able[place + 1 :]:
            found = difference(*(by_seed(results, each, _mode(settings, each), accuracy) for each in (other, name)))
            if found:
                lines.append(f"- Teachers, on all questions: {other} against {name}: {verdict(found)}.")
    for name, mode in ways(settings, results):
        if mode == MATRIX:
            found = difference(by_seed(results, name, mode, accuracy), by_seed(results, VANILLA, VANILLA, accuracy))
            lines += (
                [f"- {name} with the matrix against *{VANILLA}*, on all questions: {verdict(found)}."] if found else []
            )
    return lines


def _costs(settings: Settings, results: Results) -> list[str]:
    rows = []
    for name in dict.fromkeys(name for name, _ in ways(settings, results)):
        mine = [result["tokens"] for result in results if result["condition"] == name]
        rows.append((name, *(f"{sum(tokens[key] for tokens in mine) / len(mine):.1f}" for key in mine[0])))
    return [
        "Mean tokens of a training row (question and answer) and of a question as it is asked, and tokens that a pivot "
        "pass reads beside them. A pivot pass has no head; it has a backward with `pivot_grad` only; in training one "
        "pass over an English question serves all rows of a batch that share it. Tokens of one context attend to each "
        "other, and all have a backward. With the matrix a question costs one token more than a plain one.",
        "",
        *markdown_table(("condition", "training row", "pivot pass", "question", "pivot pass of a question"), rows),
    ]


def _sure(settings: Settings, results: Results) -> list[str]:
    """How many answers are right among the likelier and the less likely half of each teacher's."""
    rows = []
    for name in dict.fromkeys(teacher for teacher in _students(settings, results).values() if teacher != TRUTH):
        shares = []
        for result in results:
            if result["condition"] == name:
                marks = [answer[2] for answer in sorted(result["answers"], key=lambda answer: -answer[1])]
                middle = len(marks) // 2
                if middle > 0:  # one answer has no halves
                    shares.append([100 * sum(part) / len(part) for part in (marks, marks[:middle], marks[middle:])])
        if shares:
            rows.append((name, *(shown(estimate(list(column)), " %", 1) for column in zip(*shares))))
    return [
        "Right answers of each teacher to the prompts of A: among all, and among the likelier and the less likely half "
        f"by mean log-likelihood. {_learned(settings, results)}",
        "",
        *markdown_table(("teacher", "all", "likelier half", "less likely half"), rows),
    ]


def _learned(settings: Settings, results: Results) -> str:
    """Which students learned a part of the answers."""
    shares = {name: settings.conditions[name].keep for name in _students(settings, results)}
    some = [f"{name} learned the likeliest {100 * keep:g} % of them" for name, keep in shares.items() if keep]
    if not some:
        return "No threshold was used in training: all answers were learned."
    return "; ".join([*some, "the other students learned all"]) + "."


__all__ = ["READS", "render_taught", "ways"]
