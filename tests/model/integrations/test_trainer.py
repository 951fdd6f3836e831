"""The Trainer of transformers around a patched model: columns, accumulation, evaluation, and runs that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import fill, lora, peft
from datasets import Dataset
from model_pairs import assert_same_gradients, gradients
from trainer_runs import CONFIG, KILLED, ROWS, NoisyCollator, losses, make_run
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from cc_model import CCConfig, from_pretrained
from train.common.checkpoints import last_complete_checkpoint

COLUMNS = {
    "Dataset": Dataset.from_list(ROWS),
    "list": ROWS,
    "iterable": Dataset.from_list(ROWS).to_iterable_dataset(),
    "a column that the model takes": Dataset.from_list([{**row, "labels": 1} for row in ROWS]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_removed_columns_raise(kind, tmp_path):
    """`remove_unused_columns=True` is Trainer's default. It takes all text away, never some of it."""
    trainer = make_run(tmp_path, remove_unused_columns=True)
    trainer.train_dataset = COLUMNS[kind]
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()
    trainer.args.remove_unused_columns = False
    trainer.args.max_steps = 1
    trainer.train()
    assert len(losses(trainer)) == 1


def test_tokenised_rows_keep_their_pivots(tmp_path):
    """Columns with the names of the patched forward's arguments are not removed, also within an adapter."""
    for wrap in (None, lambda model: peft.get_peft_model(model, lora())):
        trainer = make_run(tmp_path, remove_unused_columns=True, max_steps=1, wrap=wrap)
        batch = trainer.data_collator(ROWS[:4])
        trainer.train_dataset = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
        trainer.data_collator = seen = Recorder()
        trainer.train()
        assert seen.keys == set(batch)


class Recorder:
    """The default collator of equally long rows, and which columns it got."""

    def __call__(self, features):
        self.keys = set(features[0])
        return {name: torch.tensor([feature[name] for feature in features]) for name in features[0]}


class KeepGradients(TrainerCallback):
    """The gradients that the first optimizer step gets."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.kept = gradients(model)


@pytest.mark.parametrize("pivot_grad", [False, True])
@pytest.mark.parametrize("wrap", [None, "adapter"])
def test_gradient_accumulation(pivot_grad, wrap, tmp_path):
    """16 rows in 1 and in 4 parts: lengths differ, so that a mean of means would be another gradient."""
    adapter = (lambda model: fill(peft.get_peft_model(model, lora()))) if wrap else None
    kept, loss = {}, {}
    for parts in (1, 4):
        trainer = make_run(
            tmp_path,
            collator_class=NoisyCollator,
            config=CCConfig(pivot_grad=pivot_grad),
            wrap=adapter,
            max_steps=1,
            max_grad_norm=0,
            per_device_train_batch_size=16 // parts,
            gradient_accumulation_steps=parts,
        )
        callback = KeepGradients()
        trainer.add_callback(callback)
        trainer.train()
        kept[parts], loss[parts] = callback.kept, losses(trainer)[0]
    assert loss[4] == pytest.approx(loss[1], abs=1e-5)
    assert [name for name in kept[1] if "decision_maker" in name and kept[1][name].any()]
    assert_same_gradients(kept[4], kept[1], tolerance=1e-5)


def test_compiled(tmp_path):
    """`torch_compile` in Trainer's options: the same losses, in training and in the evaluation loop."""
    found = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        torch._dynamo.reset()
        trainer = make_run(tmp_path, max_steps=1, save_strategy="no", **options)
        trainer.train()
        found.append([*losses(trainer), trainer.evaluate()["eval_loss"]])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_evaluation_gathers_logits_only(tmp_path):
    """`decision_weights` is in `keys_to_ignore_at_inference`: predictions are one array, as without the patch."""
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        picked = prediction.predictions[:, :-1].argmax(-1)
        labels = prediction.label_ids[:, 1:]
        return {"accuracy": float((picked == labels)[labels != -100].mean())}

    trainer = make_run(tmp_path, per_device_eval_batch_size=2)
    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert isinstance(seen[0].predictions, np.ndarray)
    assert seen[0].predictions.shape[::2] == (6, trainer.model.config.vocab_size)
    model, batch = trainer.model.eval(), trainer.data_collator(ROWS[:6])
    with torch.no_grad():
        output = model(**batch)
    tokens = batch["labels"][:, 1:] != -100
    expected = (output.logits[:, :-1].argmax(-1) == batch["labels"][:, 1:])[tokens].float().mean()
    assert metrics["eval_accuracy"] == pytest.approx(expected.item())
    assert output.decision_weights.any(), "the evaluation loop reads the English prompts"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders of runs that were killed, by the place where it happened."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parents[1] / "helpers" / "trainer_runs.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = [line for line in done.stdout.splitlines() if line.split()[0] in KILLED]
    assert ends == [f"{name} {int(signal.SIGKILL)}" for name in KILLED], done.stdout
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make_run(tmp_path_factory.mktemp("whole"), config=CONFIG)
    trainer.train()
    return trainer


@pytest.mark.parametrize("place", KILLED)
def test_resumed_run_equals_the_uninterrupted_one(place, killed, uninterrupted):
    checkpoint = last_complete_checkpoint(killed / place)
    assert Path(checkpoint).name == "checkpoint-2"
    assert from_pretrained(checkpoint).cc.config == CONFIG
    trainer = make_run(killed / place, config=CONFIG)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert losses(trainer) == losses(uninterrupted)
    assert len(losses(trainer)) == 6
    expected = uninterrupted.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    assert not list((killed / place).glob("*/.saving-*")), "the next save removes what the killed one left"


def test_half_a_checkpoint_is_not_resumed_from(tmp_path):
    """What the killed runs leave: transformers takes the folder for a checkpoint."""
    trainer = make_run(tmp_path, max_steps=2)
    trainer.train()
    half = tmp_path / "checkpoint-4"
    trainer.model.save_pretrained(half)
    assert get_last_checkpoint(tmp_path) == str(half)
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
        make_run(tmp_path).train(resume_from_checkpoint=True)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (half / "trainer_state.json").write_text('{"epoch": ')
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert last_complete_checkpoint(half) is None


def test_adapter_resumes_with_its_decision_maker(tmp_path):
    """Trainer saves and loads the adapter alone; the noise, the optimizer and the data go on where they were."""
    wrap = lambda model: peft.get_peft_model(model, lora())  # noqa: E731
    whole = make_run(tmp_path, wrap=wrap)
    whole.train()
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()
    resumed = make_run(tmp_path, wrap=wrap)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(resumed) == losses(whole)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_best_model_is_loaded_with_its_decision_maker(tmp_path):
    trainer = make_run(
        tmp_path,
        trainer_class=GetsWorse,
        load_best_model_at_end=True,
        metric_for_best_model="step",
        greater_is_better=False,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    best = from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


class GetsWorse(Trainer):
    """An evaluation whose first result stays the best."""

    def evaluate(self, *args, **kwargs):
        metrics = {"eval_step": float(self.state.global_step)}
        self.log(metrics)
        return metrics
