"""What the wheel has for transformers' Trainer: the log of decisions, simulated training, batches of all kinds."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from trainer_runs import losses, make_run
from transformers import Trainer, TrainingArguments
from windowed_steps import Sharing, passes
from word_tokenizers import ROW, SHORT, make_tokenizer

from cc_model import fit_transform_matrix, patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from cc_model.integrations.trainer import STOCK_KEYS, CCTrainer, PlainCollator, SimulatedTraining, histogram
from cc_model.testing import tiny_model

ROWS = [{**ROW, "instruction": "eins " * n, "instruction_en": "one " * n} for n in range(1, 25)]


def test_importing_the_library_leaves_the_trainer_alone():
    code = "import sys, cc_model; print([m for m in sys.modules if m.startswith('cc_model.integrations.t')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def parts():
    """A collator and the function that makes a patched model for it."""
    collator = ParallelCollator(make_tokenizer("plain"), max_length=64)
    return collator, lambda: patch_model(
        tiny_model("llama", num_hidden_layers=2, hidden_size=32, num_attention_heads=2)
    )


def run_callback(callback, model, steps):
    """Call the callback as Trainer does; returns the share of each step and whether the matrix changed after it."""
    shares, refitted = [], []
    state = SimpleNamespace(global_step=0, max_steps=steps)
    callback.on_train_begin(None, state, None, model=model)
    for step in range(steps):
        callback.on_step_begin(None, state, None, model=model)
        shares.append(model.cc.config.simulated_share)
        before = model.cc.transform_matrix.clone()
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        state.global_step = step + 1
        callback.on_step_end(None, state, None, model=model)
        refitted.append(not torch.equal(before, model.cc.transform_matrix))
    return shares, refitted


def test_ramp_and_refits(parts):
    collator, make = parts
    callback = SimulatedTraining(collator, ROWS, share=0.8, ramp=0.5, refit_steps=2, batch_size=10)
    shares, refitted = run_callback(callback, make(), steps=8)
    assert shares == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])
    assert refitted == [False, True, False, True, False, True, False, False]  # none after the last step
    assert [step for step, _ in callback.fits] == [0, 2, 4, 6]
    assert all(r2 <= 1 for _, r2 in callback.fits)


def test_one_fit_and_full_share_from_the_start(parts):
    collator, make = parts
    callback = SimulatedTraining(collator, ROWS, share=1.0, ramp=0.0, refit_steps=0, fit={"per_layer": True})
    model = make()
    shares, refitted = run_callback(callback, model, steps=3)
    assert shares == [1.0, 1.0, 1.0]
    assert refitted == [False, False, False]
    assert model.cc.transform_matrix.shape == (2, 32, 32)


def test_a_resumed_matrix_is_kept(parts):
    collator, make = parts
    model = make()
    model.cc.transform_matrix = torch.eye(32)
    callback = SimulatedTraining(collator, ROWS, refit_steps=0)
    run_callback(callback, model, steps=2)
    assert torch.equal(model.cc.transform_matrix, torch.eye(32))
    assert callback.fits == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs: expected rows with an English version, got none"),
        ({"share": 0.0}, r"share: expected a share in \(0, 1\], got 0\.0"),
        ({"ramp": 1.5}, r"ramp: expected a share in \[0, 1\], got 1\.5"),
        ({"refit_steps": -1}, "refit_steps: expected 0 or more, got -1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimulatedTraining(None, **{"pairs": ROWS, **arguments})


def train(trainer_class, model, collator, folder):
    arguments = TrainingArguments(
        str(folder),
        **{"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 8, "save_strategy": "no", "seed": 1},
        **{"remove_unused_columns": False, "report_to": "none", "disable_tqdm": True, "use_cpu": True},
    )
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=[*ROWS[:20], *[SHORT] * 4], data_collator=collator
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_the_log_has_the_decisions_and_nothing_else_changes(parts, tmp_path):
    collator, make = parts
    stock, ours = (train(kind, make(), collator, tmp_path / kind.__name__) for kind in (Trainer, CCTrainer))
    # The English prompts of a window run together, so that their shapes, and the last bits, are other ones.
    assert [entry["loss"] for entry in ours] == pytest.approx([entry["loss"] for entry in stock], abs=1e-5)
    assert sum(entry["decision/rows"] for entry in ours) == 20  # SHORT has no English prompt
    assert all(len(histogram(entry)) == 2 and sum(histogram(entry)) == pytest.approx(1) for entry in ours)
    assert not any(map(histogram, stock))
    plain = train(CCTrainer, tiny_model("llama", num_hidden_layers=2), PlainCollator(collator), tmp_path / "plain")
    assert not any(map(histogram, plain))


class Counting(Trainer):
    """The stock Trainer, with the decisions of each optimizer step added up."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.counts = [*getattr(self, "counts", []), outputs.decision_weights.detach().sum(dim=0)]
        return (loss, outputs) if return_outputs else loss


def test_windows_and_decisions_together(tmp_path):
    """One pivot pass for four micro-batches whose rows share prompts, and the log of decisions, as with Trainer."""
    options = {"gradient_accumulation_steps": 4, "max_steps": 4, "optim": "sgd", "learning_rate": 0.1}
    stock = make_run(tmp_path / "stock", Counting, collator_class=Sharing("right"), **options)
    stock.train()
    shared = {"collator_class": Sharing("right", share_pivots=True, loss_only=True), **options}
    ours, seen = make_run(tmp_path / "ours", CCTrainer, **shared), []
    passes(ours.model, seen)
    ours.train()
    assert losses(ours) == pytest.approx(losses(stock), rel=0, abs=1e-5)
    for name, weight in stock.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], weight, rtol=0, atol=1e-5, msg=name)
    assert len([rows for rows, grad in seen if not grad]) == ours.pivot_parts == 4, "one pass for each step"
    entries = [entry for entry in ours.state.log_history if "loss" in entry]
    for entry, counts in zip(entries, torch.stack(stock.counts).unflatten(0, (4, 4)).sum(dim=1), strict=True):
        assert entry["decision/rows"] == counts.sum()
        assert histogram(entry) == pytest.approx((counts / counts.sum()).tolist())
    resumed = make_run(tmp_path / "ours", CCTrainer, **shared)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-2"))
    assert losses(resumed) == losses(ours)
    again = [entry for entry in resumed.state.log_history if "loss" in entry]
    assert list(map(histogram, again)) == list(map(histogram, entries))
    assert all(torch.equal(value, ours.model.state_dict()[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"share_pivots": True, "loss_only": True}])
def test_plain_batches_are_what_a_stock_model_takes(options):
    collator = ParallelCollator(make_tokenizer("plain"), **options)
    whole, plain = collator([ROW, SHORT]), PlainCollator(collator)([ROW, SHORT])
    assert set(whole) - set(plain) >= {"pivot_input_ids", "pivot_attention_mask", "connection_index", "pivot_index"}
    assert set(plain) <= set(STOCK_KEYS)
    assert all(torch.equal(plain[key], whole[key]) for key in plain)
    assert torch.isfinite(tiny_model("llama")(**plain).loss)


def test_prompt_batches(parts):
    collator, make = parts
    model = make()
    batches = list(prompt_batches(model, collator, ROWS, batch_size=10, progress=False))
    assert [len(batch["input_ids"]) for batch in batches] == [10, 10, 4]
    expected = DataLoader(ROWS, batch_size=10, collate_fn=collator.prompts)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert fit_transform_matrix(model, batches, ridge=1.0, progress=False).pairs == 24
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        next(prompt_batches(model, collator, ROWS, batch_size=0))
