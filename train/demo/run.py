"""The steps of the demo: data, two trainings, fit, answers. `train.demo` puts them together and reports."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import set_seed

from cc_model import connection_disabled, fit_transform_matrix, patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.integrations.trainer import CCTrainer, histogram
from train.common.answers import generate_answers, is_correct
from train.common.arguments import SftArguments
from train.common.models import new_model, set_end_of_turn
from train.common.rows import choose_pairs
from train.data import build_dataset
from train.sft import make_trainer

MODES = ("guess", "vanilla", "matrix", "english", "off")


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the demo's numbers depend on."""

    steps: int = 1100
    seed: int = 0
    languages: tuple[str, ...] = ("en", "de", "es", "fr", "ja", "ko", "ru", "zh")
    relations: tuple[str, ...] = ("currency", "official_language")
    held_out: float = 0.2
    hidden_size: int = 128
    layers: int = 6
    vocab_size: int = 4096
    batch_size: int = 16
    learning_rate: float = 2e-3
    initializer_range: float = 0.08  # the usual 0.02 suits wide models; here it costs hundreds of steps
    fit_pairs: int = 1000
    eval_rows: int | None = None  # most questions per language


@dataclass(frozen=True)
class DemoData:
    """`questions` are the held-out rows whose answer occurs in training; `known` are the same facts in English."""

    train: Dataset
    held_out: int
    questions: list[dict[str, Any]]
    known: list[dict[str, Any]]


def prepare(settings: DemoSettings) -> DemoData:
    """Training rows, and the held-out questions that a model trained on them alone could answer."""
    splits = build_dataset(settings.languages, settings.relations, settings.held_out, settings.seed)
    train, held_out = splits["train"], splits["held_out"]
    seen = set(zip(train["language"], train["output"]))
    per_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in held_out:
        if (row["language"], row["output"]) in seen:
            per_language[row["language"]].append(row)
    questions = [row for rows in per_language.values() for row in rows[: settings.eval_rows]]
    if not questions:
        raise ValueError(f"languages: expected held-out questions besides English, got none with {settings.languages}")
    facts = {row["fact_id"] for row in questions}
    known = [row for row in train if row["language"] == "en" and row["fact_id"] in facts]
    return DemoData(train, len(held_out), questions, known)


def train_model(
    settings: DemoSettings,
    data: DemoData,
    tokenizer: Any,
    connected: bool,
    folder: Path,
    console: Console,
) -> tuple[Any, ParallelCollator, CCTrainer]:
    """A new model with the settings' seed, trained plainly or with the connection; saved to `folder`."""
    set_seed(settings.seed)
    fields = {
        "model_type": "llama",
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.hidden_size * 8 // 3,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": settings.initializer_range,
    }
    model = new_model(fields, tokenizer)
    if connected:
        patch_model(model)
    collator = ParallelCollator(tokenizer, max_length=256)
    set_end_of_turn(model, collator)
    arguments = SftArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        logging_steps=max(1, settings.steps // 45),
        save_strategy="no",
        seed=settings.seed,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    title = "with the connection" if connected else "vanilla"
    trainer = make_trainer(model, collator, data.train, arguments, title=title, console=console)
    trainer.train()
    trainer.save_model()
    return model.eval(), collator, trainer


def fit(settings: DemoSettings, data: DemoData, model: Any, collator: ParallelCollator) -> Any:
    """The Transform Matrix from training prompts; measured on pairs that are kept out of the fit."""
    pairs = choose_pairs(data.train, settings.fit_pairs, settings.seed)
    batches = prompt_batches(model, collator, pairs, batch_size=32)
    return fit_transform_matrix(model, batches, holdout=0.1, progress=False, seed=settings.seed)


def guesses(data: DemoData) -> list[str]:
    """For each question the most frequent training answer of its language and relation: what needs no knowledge."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in data.train:
        counts[row["language"], row["relation"]][row["output"]] += 1
    return [counts[row["language"], row["relation"]].most_common(1)[0][0] for row in data.questions]


def answer(
    data: DemoData, vanilla: Any, connected: Any, collator: ParallelCollator
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Answers to the held-out questions in every mode, and accuracy on the same facts asked in English."""
    longest = max(len(collator.tokenizer(row["output"])["input_ids"]) for row in data.questions + data.known)
    options: dict[str, Any] = {"batch_size": 64, "max_new_tokens": longest + 2}
    answers = {"guess": guesses(data)}
    answers["vanilla"] = generate_answers(vanilla, collator, data.questions, description="vanilla", **options)
    answers["matrix"] = generate_answers(connected, collator, data.questions, description="matrix", **options)
    answers["english"] = generate_answers(
        connected, collator, data.questions, pivot=True, description="true English", **options
    )
    with connection_disabled(connected):
        answers["off"] = generate_answers(connected, collator, data.questions, description="off", **options)
        english = generate_answers(connected, collator, data.known, description="known, connected", **options)
    plain = generate_answers(vanilla, collator, data.known, description="known, vanilla", **options)
    known = {
        name: sum(is_correct(text, row["output"]) for text, row in zip(texts, data.known)) / len(data.known)
        for name, texts in (("vanilla", plain), ("connected", english))
    }
    return answers, known


def score(data: DemoData, answers: dict[str, list[str]]) -> dict[str, dict[str, int]]:
    """Correct answers per language and mode, and the number of questions under `"questions"`; `"all"` is the sum."""
    table: dict[str, dict[str, int]] = {}
    for index, row in enumerate(data.questions):
        for key in (row["language"], "all"):
            line = table.setdefault(key, dict.fromkeys(("questions", *MODES), 0))
            line["questions"] += 1
            for mode in MODES:
                line[mode] += is_correct(answers[mode][index], row["output"])
    table["all"] = table.pop("all")
    return table


def samples(data: DemoData, answers: dict[str, list[str]]) -> list[dict[str, str]]:
    """The first held-out question of each relation and language, by turns, with every mode's answer."""
    chosen: dict[tuple[str, str], int] = {}
    relations = sorted({row["relation"] for row in data.questions})
    languages = list(dict.fromkeys(row["language"] for row in data.questions))
    for number, language in enumerate(languages):
        for index, row in enumerate(data.questions):
            if row["language"] == language and row["relation"] == relations[number % len(relations)]:
                chosen.setdefault((language, row["relation"]), index)
    return [
        {
            "language": data.questions[index]["language"],
            "question": unicodedata.normalize("NFC", data.questions[index]["instruction"]),
            "expected": data.questions[index]["output"],
            **{mode: answers[mode][index] for mode in MODES},
        }
        for index in chosen.values()
    ]


def curves(trainer: CCTrainer) -> dict[str, list[Any]]:
    """Steps, losses and decision histograms of a training, from its log."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "step": [entry["step"] for entry in entries],
        "loss": [entry["loss"] for entry in entries],
        "decisions": [shares for entry in entries if (shares := histogram(entry))],
    }


def layer_quality(report: Any) -> dict[str, Any]:
    """R² and cosines of a fit, overall and per layer."""

    def numbers(quality: Any) -> dict[str, float]:
        return {"r2": quality.r2, "cosine": quality.cosine, "cosine_before": quality.cosine_before}

    layers: Sequence[Any] = report.layers
    return {
        "pairs": report.pairs,
        "sample": report.sample,
        "overall": numbers(report.overall),
        "layers": [numbers(quality) for quality in layers],
    }


__all__ = ["MODES", "DemoData", "DemoSettings", "answer", "curves", "fit", "prepare", "samples", "score", "train_model"]
