"""One job of an experiment: one condition with one seed. Train, fit, evaluate; the result is plain data."""

from __future__ import annotations

import gc
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from cc_kernels import use_backend
from cc_model import CCConfig, connection_disabled, fit_transform_matrix, patch_model
from cc_model.connection.decision_maker import mapped_bank
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.forward.bank import captured_bank
from cc_model.integrations.trainer import PIVOT_KEYS, CCTrainer, PlainCollator, RichProgress, use_rich_progress
from train.common.answers import generate_answers, is_correct
from train.common.arguments import SftArguments
from train.common.models import best_device, new_model, new_tokenizer, set_end_of_turn
from train.experiment.data import Data, load
from train.experiment.settings import VANILLA, Condition, Settings
from train.simulated import SimulatedTraining

IGNORE = -100


def run_job(settings: Settings, name: str, seed: int) -> dict[str, Any]:
    """Train one condition with one seed and evaluate it.

    Returns:
        `condition`, `seed`, `fingerprint`; `modes`: per way of answering `correct` (a string of 0 and 1, one per
        question) and `nll` (nats per answer token, one number per question); `maps`: the quality of each fit;
        `losses`, `refits`, `seconds`, `backend`, `device`.
    """
    condition, start = settings.conditions[name], time.perf_counter()
    logging.getLogger("cc_model").setLevel(logging.ERROR)
    data = load(settings, seed)
    model, collator = make_model(settings, condition, data, seed)
    with use_backend(settings.backend):
        losses, refits = train(settings, condition, model, collator, data, seed)
        gc.collect()  # the trainer and its optimizer hold each other
        trained = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            modes, maps = evaluate(settings, name, model.eval(), collator, data)
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
        "losses": losses,
        "refits": refits,
        "seconds": {"train": round(trained - start, 1), "evaluate": round(time.perf_counter() - trained, 1)},
        "backend": settings.backend,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def make_model(settings: Settings, condition: Condition, data: Data, seed: int) -> tuple[Any, ParallelCollator]:
    """The pretrained or new model, patched for CC-Tuning, and the collator."""
    set_seed(seed)
    if settings.model is not None:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
        model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    else:
        tokenizer = new_tokenizer(data.train, settings.vocab_size)
        set_seed(seed)
        model = new_model(dict(settings.scratch or {}), tokenizer)
    if condition.method != VANILLA:
        options = dict(condition.config)
        if "simulated_share" in options:  # SimulatedTraining sets it
            options["simulated_share"] = 0.0
        patch_model(model, CCConfig.from_dict(options))
    collator = ParallelCollator(tokenizer, max_length=settings.max_length)
    set_end_of_turn(model, collator)
    return model.to(best_device()), collator


def train(
    settings: Settings, condition: Condition, model: Any, collator: ParallelCollator, data: Data, seed: int
) -> tuple[list[float], list[list[float]]]:
    """Train in place; returns the logged losses and, of simulated training, step and R² of each fit."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SftArguments(
            output_dir=folder,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=1,
            logging_steps=max(1, settings.steps // 20),
            save_strategy="no",
            seed=seed,
            dataloader_num_workers=settings.workers,
            dataloader_pin_memory=False,
            use_cpu=model.device.type == "cpu",
            bf16=settings.bf16,
        )
        trainer = CCTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            data_collator=collator if hasattr(model, "cc") else PlainCollator(collator),
            processing_class=collator.tokenizer,
        )
        use_rich_progress(trainer, "", Console(quiet=True))
        trainer.remove_callback(RichProgress)
        simulated = None
        share = condition.config.get("simulated_share", 0.0)
        if share > 0:
            pairs = data.pairs[: settings.refit_pairs]
            simulated = SimulatedTraining(collator, pairs, share, condition.ramp, condition.refit_steps, 64)
            trainer.add_callback(simulated)
        trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    return losses, [[step, round(r2, 4)] for step, r2 in simulated.fits] if simulated else []


def evaluate(
    settings: Settings, name: str, model: Any, collator: ParallelCollator, data: Data
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and likelihoods in every mode, and the quality of every fitted map."""
    if settings.conditions[name].method == VANILLA:
        return {"plain": ask(settings, model, collator, data.questions)}, {}
    modes: dict[str, Any] = {}
    modes["english"] = ask(settings, model, collator, data.questions, pivot=True)
    with connection_disabled(model):
        modes["off"] = ask(settings, model, collator, data.questions)
    maps: dict[str, Any] = {}
    wanted: dict[str, Mapping[str, Any]] = {"matrix": {}}
    if name == settings.maps_of:
        wanted |= settings.maps
    for label, options in wanted.items():
        options = dict(options)
        pairs = data.pairs[: options.pop("pairs", settings.fit_pairs)]
        batches = prompt_batches(model, collator, pairs, settings.eval_batch_size, progress=False)
        fit_transform_matrix(model, batches, progress=False, **options)
        unseen = map_quality(model, collator, data.questions, settings.eval_batch_size)
        maps[label] = {"pairs": len(pairs), **unseen}
        modes[label] = ask(settings, model, collator, data.questions)
    return modes, maps


def map_quality(model: Any, collator: ParallelCollator, rows: Sequence[Any], batch_size: int) -> dict[str, float]:
    """R² of the fitted map on prompts that were not fitted, over all layers and the median layer's.

    R² = 1 − Σ ‖A M − E‖² / Σ ‖E − mean_l E‖²
    """
    sources, targets = [], []
    with torch.no_grad():
        for batch in prompt_batches(model, collator, rows, batch_size, progress=False):
            source = captured_bank(model, model, *(batch[key] for key in _MAIN))[0]
            targets.append(captured_bank(model, model, *(batch[key] for key in _PIVOT))[0].double())
            sources.append(mapped_bank(source, model.cc.transform_matrix, model.cc.transform_bias).double())
    mapped, target = torch.cat(sources, dim=1), torch.cat(targets, dim=1)
    error = (mapped - target).square().sum(dim=(1, 2))
    spread = (target - target.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    by_layer = 1 - error / spread
    overall = float(1 - error.sum() / spread.sum())
    return {"r2": round(overall, 4), "median_layer_r2": round(float(by_layer.median()), 4)}


_MAIN = ("input_ids", "attention_mask", "connection_index")
_PIVOT = ("pivot_input_ids", "pivot_attention_mask", "pivot_index")


def ask(
    settings: Settings, model: Any, collator: ParallelCollator, rows: Sequence[Any], pivot: bool = False
) -> dict[str, Any]:
    """Exact matches of greedy answers, and the negative log-likelihood of the right ones."""
    longest = max(len(collator.tokenizer(row["output"])["input_ids"]) for row in rows)
    answers = generate_answers(
        model, collator, rows, settings.eval_batch_size, pivot, progress=False, max_new_tokens=longest + 2
    )
    correct = "".join(str(int(is_correct(text, row["output"]))) for text, row in zip(answers, rows))
    likelihood = [
        value
        for batch in likelihood_batches(model, collator, rows, settings, pivot)
        for value in answer_nll(model, batch)
    ]
    return {"correct": correct, "nll": likelihood}


def likelihood_batches(
    model: Any, collator: ParallelCollator, rows: Sequence[Any], settings: Settings, pivot: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Rows with their answers, on the model's device, with what the mode may read."""
    patched = hasattr(model, "cc")
    hidden = PIVOT_KEYS if not patched else () if pivot else ("pivot_input_ids", "pivot_attention_mask", "pivot_index")
    size = max(1, settings.eval_batch_size // 8)  # logits of every token; several processes share a device
    for start in range(0, len(rows), size):
        batch = collator(rows[start : start + size])
        yield {key: value.to(model.device) for key, value in batch.items() if key not in hidden}


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


__all__ = ["answer_nll", "ask", "evaluate", "make_model", "map_quality", "run_job", "train"]
