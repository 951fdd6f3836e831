"""One job of an experiment: one condition with one seed. Train, fit, evaluate; the result is plain data."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cc_kernels import use_backend
from cc_model import fit_transform_matrix
from cc_model.connection.decision_maker import mapped_bank
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.forward.bank import captured_bank
from cc_model.integrations.trainer import STOCK_KEYS
from train.common.answers import generate_answers, is_correct
from train.common.english_in_prompt import with_english
from train.common.modes import ENGLISH, MATRIX, OFF, VANILLA, answering
from train.experiment.data import Data, load
from train.experiment.settings import BOTH, CC, Settings
from train.experiment.teaching import student_trainer, teach, token_costs, training_data
from train.experiment.training import Trained, make_model, train

IGNORE = -100


def run_job(
    settings: Settings, name: str, seed: int, teacher: Mapping[str, Any] | None = None, models: str | Path | None = None
) -> dict[str, Any]:
    """Train one condition with one seed and evaluate it.

    Args:
        settings: of the experiment.
        name: of the condition.
        seed: of all that is random.
        teacher: the result of the condition's teacher with this seed, where it has one.
        models: the folder that keeps the trained model as `NAME-SEED`, without a matrix; None keeps none.

    Returns:
        `condition`, `seed`, `fingerprint`; `modes`: per way of answering `correct` (a string of 0 and 1, one per
        question) and `nll` (nats per answer token, one number per question); `maps`: the quality of each fit;
        `losses`, `refits`, `seconds`, `backend`, `device`. With teachers also `halves`: A or B for each question;
        `tokens`: what is read; `answers`: for each prompt of half A text, log-likelihood, and 1 if right.
    """
    condition = settings.conditions[name]
    logging.getLogger("cc_model").setLevel(logging.ERROR)
    data = load(settings, seed)
    with use_backend(settings.backend):
        kind = student_trainer(settings, name, data, teacher, seed)
    start = time.perf_counter()
    model, collator = make_model(settings, condition, data, seed)
    data = training_data(settings, name, data, teacher)
    with use_backend(settings.backend):
        trained = train(settings, condition, model, collator, data, seed, kind=kind)
        gc.collect()  # the trainer and its optimizer hold each other
        middle = time.perf_counter()
        if models is not None:
            for part in (model, collator.tokenizer):
                part.save_pretrained(Path(models) / f"{name}-{seed}")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            modes, maps = evaluate(settings, name, model.eval(), collator, data)
            taught = _teaching(settings, name, model, collator, data) if settings.taught else {}
    device = model.device
    return {
        "condition": name,
        "seed": seed,
        "fingerprint": settings.fingerprint(name),
        "questions": len(data.questions),
        "train_rows": len(data.train),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "modes": modes,
        "maps": maps,
        "losses": [round(entry["loss"], 4) for entry in trained.log if "loss" in entry],
        "refits": [[step, round(r2, 4)] for step, r2 in trained.refits],
        "seconds": {"train": round(middle - start, 1), "evaluate": round(time.perf_counter() - middle, 1)},
        "backend": settings.backend,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **taught,
    }


def _teaching(settings: Settings, name: str, model: Any, collator: ParallelCollator, data: Data) -> dict[str, Any]:
    answers = teach(settings, name, model, collator, data)
    right = marks([answer.text for answer in answers], data.prompts)
    return {
        "halves": data.halves,
        "tokens": token_costs(collator, data, settings.conditions[name].method),
        "answers": [
            [answer.text, answer.log_likelihood, int(mark)] for answer, mark in zip(answers, right, strict=True)
        ],
    }


def fit(settings: Settings, model: Any, collator: ParallelCollator, data: Data, **options: Any) -> Any:
    """Fit the matrix to the first pairs of the training; returns the report of `fit_transform_matrix`.

    Args:
        settings, model, collator, data: as elsewhere in this module.
        options: of `fit_transform_matrix`, and `pairs`, how many, instead of the settings'.
    """
    pairs = data.pairs[: options.pop("pairs", settings.fit_pairs)]
    batches = prompt_batches(model, collator, pairs, settings.eval_batch_size, progress=False)
    return fit_transform_matrix(model, batches, progress=False, **options)


def evaluate(
    settings: Settings, name: str, model: Any, collator: ParallelCollator, data: Data
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and likelihoods in every mode, and the quality of every fitted map."""
    method = settings.conditions[name].method
    if method != CC:
        questions = with_english(data.questions) if method == BOTH else data.questions
        return {method: ask(settings, model, collator, questions, VANILLA)}, {}
    modes = {mode: ask(settings, model, collator, data.questions, mode) for mode in (ENGLISH, OFF)}
    maps: dict[str, Any] = {}
    wanted: dict[str, Mapping[str, Any]] = {MATRIX: {}}
    if name == settings.maps_of:
        wanted |= settings.maps
    for label, options in wanted.items():
        report = fit(settings, model, collator, data, **options)
        maps[label] = {"pairs": report.pairs, **map_quality(model, collator, data.questions, settings.eval_batch_size)}
        modes[label] = ask(settings, model, collator, data.questions, MATRIX)
    return modes, maps


def map_quality(model: Any, collator: ParallelCollator, rows: Sequence[Any], batch_size: int) -> dict[str, float]:
    """R² of the fitted map on prompts that were not fitted, over all layers and the median layer's.

    R² = 1 − Σ ‖A M − E‖² / Σ ‖E − mean_l E‖²
    """
    sources, targets = [], []
    with torch.no_grad():
        for batch in prompt_batches(model, collator, rows, batch_size, progress=False):
            source = captured_bank(model, model, *(batch[key] for key in _MAIN))[0]
            bank = captured_bank(model, model, *(batch[key] for key in _PIVOT))[0]
            row = batch.get("pivot_row")  # rows with an English version only, so none of it is −1
            targets.append((bank if row is None else bank[:, row]).double())
            sources.append(mapped_bank(source, model.cc.transform_matrix, model.cc.transform_bias).double())
    mapped, target = torch.cat(sources, dim=1), torch.cat(targets, dim=1)
    error = (mapped - target).square().sum(dim=(1, 2))
    spread = (target - target.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    by_layer = 1 - error / spread
    overall = float(1 - error.sum() / spread.sum())
    return {"r2": round(overall, 4), "median_layer_r2": round(float(by_layer.median()), 4)}


_MAIN = ("input_ids", "attention_mask", "connection_index")
_PIVOT = ("pivot_input_ids", "pivot_attention_mask", "pivot_index")


def answer(
    settings: Settings, model: Any, collator: ParallelCollator, rows: Sequence[Any], mode: str, progress: bool = False
) -> list[str]:
    """Greedy answers in a mode of `train.common.modes`."""
    longest = max(len(collator.tokenizer(row["output"])["input_ids"]) for row in rows)
    options: dict[str, Any] = {"description": mode, "progress": progress, "max_new_tokens": longest + 2}
    with answering(model, mode) as english:
        return generate_answers(model, collator, rows, settings.eval_batch_size, english, **options)


def marks(answers: Sequence[str], rows: Sequence[Any]) -> str:
    """Which answers are right: a 1 or a 0 for each.

    Example:
        >>> marks(["yen", "Mark"], [{"output": "Yen"}, {"output": "Euro"}])
        '10'
    """
    return "".join(str(int(is_correct(text, row["output"]))) for text, row in zip(answers, rows, strict=True))


def ask(settings: Settings, model: Any, collator: ParallelCollator, rows: Sequence[Any], mode: str) -> dict[str, Any]:
    """Exact matches of greedy answers, and the negative log-likelihood of the right ones."""
    correct = marks(answer(settings, model, collator, rows, mode), rows)
    with answering(model, mode) as english:
        likelihood = [
            value
            for batch in likelihood_batches(model, collator, rows, settings, english)
            for value in answer_nll(model, batch)
        ]
    return {"correct": correct, "nll": likelihood}


def likelihood_batches(
    model: Any, collator: ParallelCollator, rows: Sequence[Any], settings: Settings, pivot: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Rows with their answers, on the model's device, with what the mode may read."""
    size = max(1, settings.eval_batch_size // 8)  # logits of every token; several processes share a device
    for start in range(0, len(rows), size):
        batch = collator(rows[start : start + size])
        connected = {"connection_index": batch["connection_index"]} if hasattr(model, "cc") else {}
        kept = batch if pivot else {**{key: batch[key] for key in STOCK_KEYS if key in batch}, **connected}
        yield {key: value.to(model.device) for key, value in kept.items()}


@torch.no_grad()
def answer_nll(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    """Nats per answer token of each row: `−1/n Σ log p(token | prompt, tokens before)`."""
    labels = batch.pop("labels")
    targets = labels[:, 1:]
    if hasattr(model, "cc") and not model.cc.enabled:
        batch.pop("connection_index", None)
    logits = model(**batch).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none", ignore_index=IGNORE
    ).view_as(targets)
    counts = (targets != IGNORE).sum(dim=1)
    return [round(value, 4) for value in (losses.sum(dim=1) / counts).tolist()]


__all__ = [
    "Trained",
    "answer",
    "answer_nll",
    "ask",
    "evaluate",
    "fit",
    "make_model",
    "map_quality",
    "marks",
    "run_job",
    "train",
]
