"""`share_pivots` and `loss_only` under what touches head, loss and batches: the run is that without them."""

from __future__ import annotations

import importlib

import pytest
import torch
import windowed_steps as steps
from distributed_steps import assert_same_training
from model_pairs import assert_same_gradients, gradients, gumbel, pair
from shared_pivots import ROWS as SHARED_ROWS
from shared_pivots import loss_rows_of, shared_batch, unshared
from torch.nn.functional import cross_entropy
from trainer_runs import losses, make_run
from transformers import Trainer, set_seed
from trl_runs import sft, trl
from windowed_steps import Sharing

from cc_model import CCConfig
from cc_model.integrations.window import WindowTrainer

# Adam divides a gradient by its own size, so that rounding of one near 0 would become a whole step.
SGD = {"optim": "sgd", "learning_rate": 0.1, "save_strategy": "no"}
BOTH = {"share_pivots": True, "loss_only": True}


def mean_loss(outputs, labels, num_items_in_batch=None):
    """A `compute_loss_func`, which reads all logits."""
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return cross_entropy(logits, labels, reduction="sum") / items


def run(folder, options, trainer_class=Trainer, loss=None, config=None, **arguments):
    """Losses and weights after three steps with the collator's `options`."""
    set_seed(0)
    collator = Sharing("right", **options)
    trainer = make_run(folder, trainer_class, collator, config, **{**SGD, "max_steps": 3, **arguments})
    trainer.compute_loss_func = loss
    set_seed(1)
    trainer.train()
    return [*losses(trainer), trainer.evaluate()["eval_loss"]], trainer.model.state_dict()


CASES = {
    "plain": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"loss": mean_loss},
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "pivot_grad": {"config": CCConfig(pivot_grad=True)},
    "accumulation of 4": {"gradient_accumulation_steps": 4},
    "bf16": {"bf16": True},
}


@pytest.mark.parametrize("trainer_class", [Trainer, WindowTrainer])
@pytest.mark.parametrize("case", CASES)
def test_trainer(case, trainer_class, tmp_path):
    if case == "NEFTune" and trainer_class is WindowTrainer:
        pytest.skip("draws in the English prompts, too: once per window instead of once per row, as its docstring says")
    options = BOTH
    if case == "NEFTune":  # likewise, once for each prompt of the batch
        options = {"loss_only": True}
    expected, weights_expected = run(tmp_path, {}, **CASES[case])
    found, weights = run(tmp_path, options, trainer_class, **CASES[case])
    tolerance = 3e-3 if case == "bf16" else 1e-5
    assert found == pytest.approx(expected, abs=tolerance)
    for name, weight in weights_expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", ["fused head", "label smoothing", "compute_loss_func", "packed"])
def test_trl(case, tmp_path):
    """TRL's head scores the labelled tokens alone by itself; it takes those that are left to it."""
    arguments = {**SGD, "max_steps": 2}
    if case == "label smoothing":
        arguments["label_smoothing_factor"] = 0.1
    found = []
    for options in ({}, BOTH):
        trainer = sft(tmp_path, **arguments)
        trainer.data_collator = Sharing("right", packed=case == "packed", **options)(trainer.processing_class)
        trainer.compute_loss_func = mean_loss if case == "compute_loss_func" else None
        set_seed(1)
        trainer.train()
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        accuracy = [entry["mean_token_accuracy"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses(trainer), accuracy, trainer.evaluate()["eval_loss"], weights))
    for one, other in zip(*[result[:3] for result in found]):
        assert one == pytest.approx(other, abs=1e-5)
    for name, weight in found[0][3].items():
        torch.testing.assert_close(found[1][3][name], weight, rtol=0, atol=1e-5)


def test_trl_through_the_window(tmp_path):
    """WindowTrainer works in front of SFTTrainer, too."""
    made = type("WindowedSFTTrainer", (WindowTrainer, trl.SFTTrainer), {})
    found = []
    for cls in (trl.SFTTrainer, made):
        trainer = sft(tmp_path, cls=cls, max_steps=2, save_strategy="no")
        trainer.data_collator = Sharing("right", **BOTH)(trainer.processing_class)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert trainer.pivot_parts == 2


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("pivot_grad", [False, True])
def test_processes(two_processes, way, pivot_grad):
    """Shared pivots and labelled tokens on rank 0; none of either's pivots on rank 1."""
    ranks = two_processes.run(steps.sharing_steps, way, pivot_grad)
    assert_same_training(ranks, steps.one_process(pivot_grad=pivot_grad))


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_a_stock_head_that_caps_or_scales(name):
    """The forwards of Gemma 2 and Granite's causal language models, bound to a patched Llama's body and head."""
    modeling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    forward = getattr(modeling, {"gemma2": "Gemma2ForCausalLM", "granite": "GraniteForCausalLM"}[name]).forward
    _, model = pair()
    model.config.final_logit_softcapping, model.config.logits_scaling = 3.0, 4.0
    model.forward = forward.__get__(model)
    data = shared_batch()
    found = []
    for given in (unshared(data), {**data, "loss_rows": loss_rows_of(data["labels"], pad=3)}):
        model.train().zero_grad()
        output = model(**given, gumbel_noise=gumbel(SHARED_ROWS))
        output.loss.backward()
        found.append((output, gradients(model)))
    assert found[1][0].logits.shape[0] == 1
    if name == "gemma2":
        assert 1 < found[1][0].logits.abs().max() < 3.0
    torch.testing.assert_close(found[1][0].loss, found[0][0].loss, rtol=0, atol=1e-6)
    assert_same_gradients(found[1][1], found[0][1])
