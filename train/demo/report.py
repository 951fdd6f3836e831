"""The demo's report: Markdown and plots from its numbers. Every sentence about a result is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

Results = Mapping[str, Any]

NAMES = {
    "guess": "most frequent answer",
    "vanilla": "vanilla",
    "matrix": "connected, matrix",
    "english": "connected, true English",
    "off": "connection off",
}


def share(correct: int, questions: int) -> str:
    """A percentage with one decimal.

    Example:
        >>> share(1, 8)
        '12.5 %'
    """
    return f"{100 * correct / questions:.1f} %"


def compare(table: Mapping[str, Mapping[str, int]], mode: str, other: str) -> str:
    """How two modes differ over all questions, in words, with the standard error of the difference.

        SE = √(p(1 − p)/n + q(1 − q)/n)        in percentage points; "clearly" means more than two of them

    The error treats the two answers to a question as independent, which overstates it: the words are careful.

    Example:
        >>> compare({"all": {"questions": 400, "matrix": 80, "vanilla": 160}}, "matrix", "vanilla")
        '20.0 points below (standard error 3.2): clearly lower'
    """
    line = table["all"]
    count = line["questions"]
    p, q = line[mode] / count, line[other] / count
    error = 100 * math.sqrt((p * (1 - p) + q * (1 - q)) / count)
    points = 100 * (p - q)
    if points == 0:
        return "equal"
    side = "above" if points > 0 else "below"
    verdict = "no clear difference"
    if abs(points) > 2 * error:
        verdict = "clearly higher" if points > 0 else "clearly lower"
    return f"{abs(points):.1f} points {side} (standard error {error:.1f}): {verdict}"


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
            *_table(("step", "seconds"), [(name, f"{s:.1f}") for name, s in results["seconds"].items()], "lr"),
            "",
            "All numbers of this report are in `results.json`.",
            "",
        ]
    )


def _set_up(results: Results) -> list[str]:
    settings, data = results["settings"], results["data"]
    return [
        f"Two Llama models of {results['parameters']:,} parameters ({settings['layers']} layers, hidden size "
        f"{settings['hidden_size']}) were trained from scratch on {data['train_rows']:,} questions about territories, "
        f"their currencies and languages (CLDR), in {len(settings['languages'])} languages "
        f"({', '.join(settings['languages'])}): one plainly (*vanilla*), one with the cross-lingual connection. Same "
        f"first weights, same batches in the same order, {settings['steps']} steps of {settings['batch_size']} rows, "
        f"seed {settings['seed']}. This is a subset of the data: {len(settings['relations'])} of 4 relations "
        f"({', '.join(settings['relations'])}), {len(settings['languages'])} of 22 languages, so that it fits in a few "
        "minutes on two CPU cores.",
        "",
        f"A held-out fact was seen in English, not in the language that it is asked in. Of {data['held_out_rows']:,} "
        f"held-out rows the {data['questions']:,} whose answer occurs in training in that language are asked; the "
        "others nobody could answer without knowing the language from elsewhere. An answer counts when it is exactly "
        "the expected text.",
    ]


def _accuracy(results: Results) -> list[str]:
    table = results["accuracy"]
    rows = [
        (language, str(line["questions"]), *(share(line[mode], line["questions"]) for mode in NAMES))
        for language, line in table.items()
    ]
    return [
        *_table(("language", "questions", *NAMES.values()), rows, "l" + "r" * (1 + len(NAMES))),
        "",
        "- *most frequent answer*: always the commonest training answer to that kind of question; needs no knowledge.",
        "- *connected, matrix*: real inference; the English activations are simulated by the Transform Matrix.",
        "- *connected, true English*: the model also gets the English question; this is what the matrix tries to "
        "imitate.",
        "- *connection off*: the same weights without the connection.",
    ]


def _words(results: Results) -> list[str]:
    table, known = results["accuracy"], results["known_in_english"]
    lines = [
        f"- The same facts asked in English, which both models saw in training: vanilla answers "
        f"{100 * known['vanilla']:.1f} %, the connected model (without a connection, as English rows are trained) "
        f"{100 * known['connected']:.1f} %. What a model does not know in English, it cannot carry over."
    ]
    for mode, other, meaning in (
        ("english", "vanilla", "what the connection brings when the English question is there"),
        ("english", "off", "how much the connected model relies on the connection"),
        ("matrix", "english", "what is lost by simulating the English activations"),
        ("matrix", "off", "what the simulated connection brings to the same weights"),
        ("matrix", "vanilla", "what a user gains over plain fine-tuning"),
        ("vanilla", "guess", "how much vanilla knows beyond the commonest answer"),
    ):
        lines.append(f"- *{NAMES[mode]}* against *{NAMES[other]}*, {meaning}: {compare(table, mode, other)}.")
    verdict = compare(table, "matrix", "vanilla")
    if verdict.endswith("clearly higher"):
        conclusion = "answers clearly more questions than"
    elif verdict.endswith("clearly lower"):
        conclusion = "is **clearly worse** than"
    else:
        conclusion = "is **not clearly different** from"
    lines.append(
        f"- So in this run the method as a user would apply it (with the matrix) {conclusion} plain fine-tuning of the "
        "same small model."
    )
    lines.append(
        "- One run, one seed, and a model that has seen nothing but these sentences, while the method presupposes one "
        "that knows the languages. The numbers show that patching, training, fitting and generating work together. "
        "They are no measure of what the method does for a pretrained model; the paper reports that."
    )
    return lines


def _answers(results: Results) -> list[str]:
    modes = [mode for mode in NAMES if mode != "guess"]
    rows = [
        (row["language"], row["question"].replace("\n", " · "), row["expected"], *(row[mode] for mode in modes))
        for row in results["samples"]
    ]
    return _table(("language", "question", "expected", *(NAMES[mode] for mode in modes)), rows, "l" * (3 + len(modes)))


def _training(results: Results) -> list[str]:
    decisions = results["connected"]["decisions"]
    layers = range(len(decisions[0]))
    picks = sorted({0, len(decisions) // 4, len(decisions) // 2, 3 * len(decisions) // 4, len(decisions) - 1})
    rows = [
        (str(results["connected"]["step"][pick]), *(f"{100 * decisions[pick][layer]:.0f} %" for layer in layers))
        for pick in picks
    ]
    return [
        "![Training loss](loss.png)",
        "",
        "The connected model trains with the true English question: its loss does not say what it can do without, "
        "and is not comparable with vanilla's in that respect.",
        "",
        "![Decision histogram](decisions.png)",
        "",
        "Share of connected rows that received each layer's English activation, at some of the logged steps (with the "
        "training noise):",
        "",
        *_table(("step", *(f"layer {layer}" for layer in layers)), rows, "r" * (1 + len(layers))),
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
        *_table(("layer", "R²", "cosine", "cosine before"), rows, "lrrr"),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """A Markdown table; `align` has `l` or `r` per column."""
    rule = {"l": "---", "r": "---:"}
    lines = [
        header,
        [rule[side] for side in align],
        *[[cell.replace("|", "\\|") or " " for cell in row] for row in rows],
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def plot(results: Results, folder: Path) -> None:
    """Write `loss.png` and `decisions.png` into `folder`."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("vanilla", "vanilla"), ("connected", "with the connection")):
        axes.plot(results[name]["step"], results[name]["loss"], label=label)
    axes.set(xlabel="optimizer step", ylabel="training loss (nats per token)", title="Training loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, folder / "loss.png")

    decisions, steps = results["connected"]["decisions"], results["connected"]["step"]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
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
    _save(figure, folder / "decisions.png")


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    partial.replace(path)


__all__ = ["compare", "plot", "render", "share"]
