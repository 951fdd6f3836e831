"""The demo's report: Markdown and plots from its numbers. Every sentence about a result is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA
from train.common.reports import markdown_table, save_figure, subplots
from train.demo.answers import COLUMNS, GUESS, STUDENT
from train.experiment.statistics import Estimate, by_question, verdict

Results = Mapping[str, Any]
TITLES = {
    GUESS: "always the commonest training answer to that kind of question; needs no knowledge",
    VANILLA: "plain fine-tuning",
    ENGLISH: "the connected model, which also reads the English question: the teacher",
    STUDENT: "a new plain model, trained on the same rows and on the teacher's answers to half A; reads no English",
}


def share(correct: int, questions: int) -> str:
    """A percentage with one decimal.

    Example:
        >>> share(1, 8)
        '12.5 %'
    """
    return f"{100 * correct / questions:.1f} %" if questions else ""


def render(results: Results) -> str:
    """The report as Markdown."""
    return "\n".join(
        [
            "# Demo: a model that reads English teaches a plain one",
            "",
            *_set_up(results),
            "",
            "## Half A: the prompts were given, without an answer",
            "",
            *_accuracy(results, "A"),
            "",
            *(f"- *{mode}*: {title}." for mode, title in TITLES.items()),
            "",
            "## Half B: nobody saw these",
            "",
            *_accuracy(results, "B"),
            "",
            "## What this shows, and what it does not",
            "",
            *_words(results),
            "",
            "## Answers (half A)",
            "",
            *_answers(results),
            "",
            "## What it costs",
            "",
            *_costs(results),
            "",
            "## Training",
            "",
            *_training(results),
            "",
            "## Time",
            "",
            *markdown_table(("step", "seconds"), [(name, f"{s:.1f}") for name, s in results["seconds"].items()]),
            "",
            "All numbers of this report are in `results.json`.",
            "",
        ]
    )


def _set_up(results: Results) -> list[str]:
    settings, data = results["settings"], results["data"]
    shape, languages, relations = settings["scratch"], settings["languages"], settings["relations"]
    return [
        "Translated questions are cheap, translated answers are not. So: some questions have an answer in English "
        "only. A model with the cross-lingual connection reads the English question beside the translated one, and "
        "answers in the language of the question. A plain model then learns its answers.",
        "",
        f"Three Llama models of {results['parameters']:,} parameters ({shape['num_hidden_layers']} layers, hidden size "
        f"{shape['hidden_size']}) were trained from scratch on {data['train_rows']:,} questions about territories, "
        f"their currencies and languages (CLDR), in {len(languages)} languages ({', '.join(languages)}; "
        f"{len(relations)} of 4 relations: {', '.join(relations)}): one plainly (*{VANILLA}*), one with the connection "
        f"(*cc*, with gradients through the English pass), and the *{STUDENT}*. Same first weights, "
        f"{settings['steps']} steps of {settings['batch_size']} rows, seed {settings['seeds'][0]}.",
        "",
        f"Asked are {data['questions']:,} held-out facts: seen in English, not in the language that they are asked in, "
        "with an answer that occurs in training in that language. The prompts of half of the facts, "
        f"A ({data['prompts']} prompts), are given in both languages, without an answer; the teacher answers these. "
        "An answer counts when it is exactly the expected text.",
    ]


def _accuracy(results: Results, half: str) -> list[str]:
    rows = [
        (language, str(line["questions"]), *(share(line[mode], line["questions"]) for mode in COLUMNS))
        for language, line in results["accuracy"][half].items()
    ]
    return markdown_table(("language", "questions", *COLUMNS), rows)


def _words(results: Results) -> list[str]:
    asked = results["data"]["known_in_english"]
    known = {mode: share(count, asked) for mode, count in results["known_in_english"].items()}
    gain = _compared(results, STUDENT, VANILLA, "A")
    conclusion = f"is **not clearly different** from plain fine-tuning: {verdict(gain)}. This run shows no gain"
    if gain.clear and gain.mean > 0:
        conclusion = (
            f"**answers more than plain fine-tuning**: {verdict(gain)}. An answer costs what a plain model's costs"
        )
    elif gain.clear:
        conclusion = f"is **worse** than plain fine-tuning: {verdict(gain)}. This run shows a loss"
    return [
        f"- On half A the *{STUDENT}* {conclusion}.",
        f"- *{STUDENT}* against its teacher (*{ENGLISH}*), half A: {_verdict(results, STUDENT, ENGLISH, 'A')}. It "
        f"gives the teacher's very text for {results['agreement']:.0f} % of A's prompts, right or wrong.",
        f"- *{STUDENT}* against *{VANILLA}*, half B, about which nobody asked the teacher: "
        f"{_verdict(results, STUDENT, VANILLA, 'B')}.",
        f"- *{ENGLISH}* against *{VANILLA}*, all questions, what the connection brings when the English question is "
        f"there: {_verdict(results, ENGLISH, VANILLA, 'AB')}.",
        f"- The paper's way to do without English, the Transform Matrix of the same *cc* model: *{MATRIX}* against "
        f"*{VANILLA}*, all questions: {_verdict(results, MATRIX, VANILLA, 'AB')}.",
        f"- The same facts asked in English, which all models saw in training: *{VANILLA}* answers {known[VANILLA]}, "
        f"*cc* {known[OFF]}. What a model does not know in English, it cannot carry over.",
        "- The intervals (95 %, Student's t) are over questions, in pairs. They say what other questions would change, "
        "not what another seed would. The seeds 0 to 2 of this setting, run once, are in `docs/experiments/demo`; "
        "`docs/experiments` has more, with fair baselines: a plain teacher that reads both questions is among them.",
        "- The models have seen nothing but these sentences. What the method does for a pretrained one is for "
        "`train.experiment` or `train.evaluate` to say.",
    ]


def _verdict(results: Results, mode: str, other: str, halves: str) -> str:
    return verdict(_compared(results, mode, other, halves))


def _compared(results: Results, mode: str, other: str, halves: str) -> Estimate:
    kept = [index for index, half in enumerate(results["halves"]) if half in halves]
    marks = ("".join(results["correct"][each][index] for index in kept) for each in (mode, other))
    return by_question(*marks)


def _answers(results: Results) -> list[str]:
    modes = [mode for mode in COLUMNS if mode != GUESS]
    rows = [
        (row["language"], row["question"].replace("\n", " · "), row["expected"], *(row[mode] for mode in modes))
        for row in results["samples"]
    ]
    head = ("language", "question", "expected", *modes)
    return markdown_table(head, rows, left=len(head))


def _costs(results: Results) -> list[str]:
    costs = results["costs"]
    plain_step, plain_token = costs["step"][VANILLA], costs["first_token"][VANILLA]
    rows = []
    for name, trained, mode in (
        (VANILLA, VANILLA, VANILLA),
        (f"cc, {ENGLISH}", "cc", ENGLISH),
        (f"cc, {MATRIX}", "cc", MATRIX),
        (STUDENT, STUDENT, VANILLA),
    ):
        step, token = costs["step"][trained], costs["first_token"][mode]
        rows.append(
            (name, f"{step:.0f} ms", f"{step / plain_step:.2f} ×", f"{token:.1f} ms", f"{token / plain_token:.2f} ×")
        )
    return [
        "Processor time on one thread: of a training step, and to the first token of one question, the median of some "
        f"that take turns. The *{STUDENT}* is a plain model, and is not measured apart at the first token.",
        "",
        *markdown_table(("", "training step", "÷ plain", "first token", "÷ plain"), rows),
    ]


def _training(results: Results) -> list[str]:
    decisions = results["cc"]["decisions"]
    layers = range(len(decisions[0]))
    picks = sorted({0, len(decisions) // 4, len(decisions) // 2, 3 * len(decisions) // 4, len(decisions) - 1})
    rows = [
        (str(results["cc"]["step"][pick]), *(f"{100 * decisions[pick][layer]:.0f} %" for layer in layers))
        for pick in picks
    ]
    return [
        "![Training loss](loss.png)",
        "",
        "The CC model trains with the true English question: its loss does not say what it can do without, and is not "
        "comparable with the plain models' in that respect.",
        "",
        "![Decision histogram](decisions.png)",
        "",
        "Share of connected rows that received each layer's English activation, at some of the logged steps (with the "
        "training noise):",
        "",
        *markdown_table(("step", *(f"layer {layer}" for layer in layers)), rows, left=0),
    ]


def plot(results: Results, folder: Path) -> None:
    """Write `loss.png` and `decisions.png` into `folder`."""
    figure, (axes,) = subplots(1, 1, 7, 4)
    for name in (VANILLA, "cc", STUDENT):
        axes.plot(results[name]["step"], results[name]["loss"], label=name)
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per token)", title="Training loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, folder / "loss.png", dpi=150)

    decisions, steps = results["cc"]["decisions"], results["cc"]["step"]
    figure, (axes,) = subplots(1, 1, 7, 4)
    by_layer = [[100 * shares[layer] for shares in decisions] for layer in range(len(decisions[0]))]
    colors = mpl.colormaps["viridis"]
    for layer, shares in enumerate(by_layer):
        color = colors(layer / max(1, len(by_layer) - 1) * 0.95)
        axes.plot(steps, shares, label=f"layer {layer}", color=color, marker="o", markersize=2.5)
    axes.set(
        xlabel="optimizer step",
        ylabel="share of connected rows (%)",
        title="Which layer's English activation the Decision Maker picks",
        ylim=(0, 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    save_figure(figure, folder / "decisions.png", dpi=150)


__all__ = ["plot", "render", "share"]
