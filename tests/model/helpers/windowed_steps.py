"""Runs of WindowTrainer: collators of one padding side, which passes run, and the steps of one process of a group."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from distributed_steps import RATE, STEPS, one_process, sharded, share, training_model, whole
from model_pairs import gradients
from shared_pivots import loss_rows_of
from torch.nn.parallel import DistributedDataParallel
from trainer_runs import NoisyCollator
from transformers import TrainingArguments

from cc_model.integrations.window import WindowTrainer

ACCUMULATE = 2


def Sharing(side: str, **options: Any) -> type:
    """A collator class with the noise of `NoisyCollator`, a padding side, and options."""

    class Collator(NoisyCollator):
        def __init__(self, tokenizer: Any) -> None:
            tokenizer.padding_side = side
            super().__init__(tokenizer, **options)

    return Collator


def passes(model: Any, seen: list[Any]) -> None:
    """Note in `seen` the rows of each pass through the first layer, and whether it has a gradient."""

    def note(module: Any, args: Any) -> None:
        seen.append((args[0].shape[0], torch.is_grad_enabled()))

    model.model.layers[0].register_forward_pre_hook(note)


def windowed(way: str, tokens: int | None) -> dict[str, Any]:
    """As `distributed_steps.ddp` with two micro-batches per step, through the `training_step` of `WindowTrainer`."""
    plain = training_model()
    model: Any = DistributedDataParallel(plain) if way == "ddp" else sharded(plain)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, report_to=[], gradient_accumulation_steps=ACCUMULATE)
        trainer = WindowTrainer(plain, arguments, pivot_tokens=tokens)
    trainer.accelerator.gradient_accumulation_steps = 1  # the loss is divided below
    trainer.optimizer = optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [share(dist.get_rank(), step * ACCUMULATE + part) for part in range(ACCUMULATE)]
        batches, _ = trainer.get_batch_samples(iter(parts), ACCUMULATE, torch.device("cpu"))
        trainer.current_gradient_accumulation_steps = ACCUMULATE
        for part, inputs in enumerate(batches):
            late = way == "ddp" and part < ACCUMULATE - 1
            with model.no_sync() if late else contextlib.nullcontext():
                losses.append(trainer.training_step(model, inputs).item() * ACCUMULATE)
        optimizer.step()
    if way == "ddp":
        found, weights = gradients(plain), plain.state_dict()
    else:
        found = whole({name: parameter.grad for name, parameter in model.named_parameters()})
        weights = whole(model.state_dict())
    return {"losses": losses, "gradients": found, "weights": weights, "parts": trainer.pivot_parts}


def one_process_windowed() -> dict[str, Any]:
    """What one process makes of the rows of both ranks, with a pivot pass for each micro-batch."""
    return one_process(accumulate=ACCUMULATE)


def sharing_steps(way: str, pivot_grad: bool) -> dict[str, Any]:
    """As `distributed_steps.ddp` and `fsdp`, with shared pivots and head and loss on the labelled tokens."""
    plain = training_model(pivot_grad=pivot_grad)
    model: Any = DistributedDataParallel(plain) if way == "ddp" else sharded(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        data = share(dist.get_rank(), step)
        data["loss_rows"] = loss_rows_of(data["labels"], pad=1)
        order = torch.tensor([1, 0])  # each row's pivot, in another order
        for name in ("pivot_input_ids", "pivot_attention_mask"):
            data[name] = data[name][order]
        data["pivot_row"] = torch.where(data["pivot_attention_mask"].any(1)[order], order, -1)
        loss = model(**data).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    if way == "ddp":
        return {"losses": losses, "gradients": gradients(plain), "weights": plain.state_dict()}
    found = whole({name: parameter.grad for name, parameter in model.named_parameters()})
    return {"losses": losses, "gradients": found, "weights": whole(model.state_dict())}
