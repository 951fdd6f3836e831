"""The demo's report: Markdown and plots from its numbers. Every sentence about a result is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from train.common.modes import ENGLISH, MATRIX, OFF, TITLES, VANILLA
from train.common.reports import markdown_table, save_figure, subplots
from train.demo.answers import GUESS, MODES
from train.experiment.statistics import Estimate, by_question, verdict

Results = Mapping[str, Any]


def share(correct: int, questions: int) -> str:
    """A percentage with one decimal.

    Example:
        >>> share(1, 8)
        '12.5 %'
    """
    return f"{100 * correct / questions:.1f} %"


def render(results: Results) -> str:
    """The report as Markdown."""
    return "\n".join(
        [
            "# Demo: cross-lingual connection on a small Llama",
            "",
            *_set_up(results),
            "",
            "## Held-out accuracy",
            "",
            *_accuracy(results),
            "",
            "## What this shows, and what it does not",
            "",
            *_words(results),
            "",
            "## Answers",
            "",
            *_answers(results),
            "",
            "## Training",
            "",
            *_training(results),
            "",
            "## Transform Matrix",
            "",
            *_matrix(results),
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
        f"Two Llama models of {results['parameters']:,} parameters ({shape['num_hidden_layers']} layers, hidden size "
        f"{shape['hidden_size']}) were trained from scratch on {data['train_rows']:,} questions about territories, "
        f"their currencies and languages (CLDR), in {len(languages)} languages ({', '.join(languages)}): one plainly "
        "(*vanilla*), one with the cross-lingual connection (*cc*). Same first weights, same batches in the same "
        f"order, {settings['steps']} steps of {settings['batch_size']} rows, seed {settings['seeds'][0]}. This is a "
        f"subset of the data: {len(relations)} of 4 relations ({', '.join(relations)}), {len(languages)} of 22 "
        "languages, so that it fits in a few minutes on two CPU cores.",
        "",
        f"A held-out fact was seen in English, not in the language that it is asked in. Of {data['held_out_rows']:,} "
        f"held-out rows {data['questions']:,} whose answer occurs in training in that language are asked; the others "
        "nobody could answer without knowing the language from elsewhere. An answer counts when it is exactly the "
        "expected text.",
    ]


def _accuracy(results: Results) -> list[str]:
    rows = [
        (language, str(line["questions"]), *(share(line[mode], line["questions"]) for mode in MODES))
        for language, line in results["accuracy"].items()
    ]
    return [
        *markdown_table(("language", "questions", *MODES), rows),
        "",
        f"- *{GUESS}*: always the commonest training answer to that kind of question; needs no knowledge.",
        *(f"- *{mode}*: {title}." for mode, title in TITLES.items()),
    ]


def _words(results: Results) -> list[str]:
    asked = results["data"]["known_in_english"]
    known = {mode: share(count, asked) for mode, count in results["known_in_english"].items()}
    lines = [
        f"- The same facts asked in English, which both models saw in training: *{VANILLA}* answers {known[VANILLA]}, "
        f"*{OFF}* (as the CC model trains on English rows) {known[OFF]}. What a model does not know in English, it "
        "cannot carry over."
    ]
    for mode, other, meaning in (
        (ENGLISH, VANILLA, "what the connection brings when the English question is there"),
        (ENGLISH, OFF, "how much the CC model relies on the connection"),
        (MATRIX, ENGLISH, "what is lost by simulating the English activations"),
        (MATRIX, OFF, "what the simulated connection brings to the same weights"),
        (MATRIX, VANILLA, "what a user gains over plain fine-tuning"),
        (VANILLA, GUESS, "how much vanilla knows beyond the commonest answer"),
    ):
        lines.append(f"- *{mode}* against *{other}*, {meaning}: {verdict(_compared(results, mode, other))}.")
    found = _compared(results, MATRIX, VANILLA)
    conclusion = "is **not clearly different** from"
    if found.clear:
        conclusion = "answers clearly more questions than" if found.mean > 0 else "is **clearly worse** than"
    return [
        *lines,
        f"- So in this run the method as a user would apply it (with the matrix) {conclusion} plain fine-tuning of the "
        "same small model.",
        "- The intervals (95 %, Student's t) are over questions, in pairs. They say what other questions would change, "
        "not what another seed would: `train.experiment` runs several.",
        "- One run, one seed, and a model that has seen nothing but these sentences, while the method presupposes one "
        "that knows the languages. The numbers show that patching, training, fitting and generating work together. "
        "They are no measure of what the method does for a pretrained model; the paper reports that.",
    ]


def _compared(results: Results, mode: str, other: str) -> Estimate:
    return by_question(results["correct"][mode], results["correct"][other])


def _answers(results: Results) -> list[str]:
    modes = [mode for mode in MODES if mode != GUESS]
    rows = [
        (row["language"], row["question"].replace("\n", " · "), row["expected"], *(row[mode] for mode in modes))
        for row in results["samples"]
    ]
    head = ("language", "question", "expected", *modes)
    return markdown_table(head, rows, left=len(head))


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
        "comparable with vanilla's in that respect.",
        "",
        "![Decision histogram](decisions.png)",
        "",
        "Share of connected rows that received each layer's English activation, at some of the logged steps (with the "
        "training noise):",
        "",
        *markdown_table(("step", *(f"layer {layer}" for layer in layers)), rows, left=0),
    ]


def _matrix(results: Results) -> list[str]:
    quality = results["matrix"]
    rows = [
        (name, *(f"{line[key]:.3f}" for key in ("r2", "cosine", "cosine_before")))
        for name, line in [("all", quality["overall"]), *((str(i), q) for i, q in enumerate(quality["layers"]))]
    ]
    return [
        f"Fitted on {quality['pairs']:,} pairs of training prompts, measured on {quality['sample']}. R² is the "
        "explained share of the variance of the English activations; the cosine is between mapped and English "
        "activations (before: between those of the two languages).",
        "",
        *markdown_table(("layer", "R²", "cosine", "cosine before"), rows),
    ]


def plot(results: Results, folder: Path) -> None:
    """Write `loss.png` and `decisions.png` into `folder`."""
    figure, (axes,) = subplots(1, 1, 7, 4)
    for name in (VANILLA, "cc"):
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
