"""A condition's model, and its training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from cc_model import CCConfig
from cc_model.data.collator import ParallelCollator
from cc_model.integrations.trainer import CCTrainer, SimulatedTraining
from train.common.arguments import SftArguments
from train.common.models import best_device, connect, new_model, new_tokenizer, set_end_of_turn
from train.common.training import make_trainer
from train.experiment.data import Data
from train.experiment.settings import CC, Condition, Settings


class Trained(NamedTuple):
    """What a training leaves behind: Trainer's log, and step and R² of each fit of simulated training."""

    log: list[dict[str, Any]]
    refits: list[tuple[int, float]]


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
    if condition.method == CC:
        connect(model, CCConfig.from_dict(dict(condition.config)))
    collator = ParallelCollator(tokenizer, max_length=settings.max_length, share_pivots=True, loss_only=True)
    set_end_of_turn(model, collator)
    return model.to(best_device()), collator


def train(
    settings: Settings,
    condition: Condition,
    model: Any,
    collator: ParallelCollator,
    data: Data,
    seed: int,
    logs: int = 20,
    title: str | None = None,
    console: Console | None = None,
    kind: Callable[..., CCTrainer] = CCTrainer,
) -> Trained:
    """Train in place.

    Args:
        settings, condition, model, collator, data, seed: as elsewhere in this module.
        logs: how often to log.
        title: of the progress bar; None shows none.
        console: of rich.
        kind: of trainer, as in `train.common.training.make_trainer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = SftArguments(
            output_dir=folder,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=1,
            logging_steps=max(1, settings.steps // logs),
            save_strategy="no",
            seed=seed,
            dataloader_num_workers=settings.workers,
            dataloader_pin_memory=False,
            use_cpu=model.device.type == "cpu",
            bf16=settings.bf16,
        )
        trainer = make_trainer(model, collator, data.train, arguments, None, title, console, kind)
        simulated = None
        share = condition.config.get("simulated_share", 0.0)
        if share > 0:
            pairs = data.pairs[: settings.refit_pairs]
            simulated = SimulatedTraining(collator, pairs, share, condition.ramp, condition.refit_steps, 64)
            trainer.add_callback(simulated)
        trainer.train()
    return Trained(trainer.state.log_history, simulated.fits if simulated else [])


__all__ = ["Trained", "make_model", "train"]
