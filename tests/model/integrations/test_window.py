"""WindowTrainer: one pivot pass per accumulation window, and the run is that of Trainer."""

from __future__ import annotations

import logging

import pytest
import torch
import windowed_steps as steps
from adapters import fill, lora, peft
from datasets import Dataset
from distributed_steps import assert_same_training
from model_pairs import batch, pair
from shared_pivots import shared_batch
from trainer_runs import ROWS, NoisyCollator, losses, make_run
from transformers import Trainer
from windowed_steps import Sharing, passes

from cc_model import CCConfig, connection_disabled
from cc_model.integrations.window import WindowTrainer

# Adam divides a gradient by its own size, so that rounding of one near 0 would become a whole step.
OPTIONS = {
    "save_strategy": "no",
    "max_steps": 3,
    "gradient_accumulation_steps": 4,
    "optim": "sgd",
    "learning_rate": 0.1,
}
PROMPTS = 2  # distinct English prompts in ROWS


def run(folder, trainer_class=WindowTrainer, before=None, **options):
    """Losses, weights and the trainer after a run; `before(trainer)` is called first."""
    torch.manual_seed(0)
    trainer = make_run(folder, trainer_class, **{"collator_class": NoisyCollator, **OPTIONS, **options})
    if before is not None:
        before(trainer)
    trainer.train()
    return losses(trainer), {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer


def assert_same_run(folder, tolerance=1e-5, **options):
    expected, weights_expected, _ = run(folder, Trainer, **options)
    found, weights, trainer = run(folder, **options)
    assert found == pytest.approx(expected, rel=1e-6, abs=tolerance)
    for name, weight in weights_expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    return trainer


COLLATORS = {
    "a pivot for each row": {},
    "shared": {"share_pivots": True, "loss_only": True},
    "packed": {"packed": True, "share_pivots": True},
}


@pytest.mark.parametrize("case", COLLATORS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_trains_like_trainer(case, side, tmp_path):
    trainer = assert_same_run(tmp_path, collator_class=Sharing(side, **COLLATORS[case]))
    assert trainer.pivot_rows <= PROMPTS * 3
    assert trainer.pivot_parts <= 3 * 2


def test_fewer_passes(tmp_path):
    """A pass over two prompts for a window of 16 rows, whose micro-batches would run four over four rows each."""
    counts = {}
    for trainer_class in (Trainer, WindowTrainer):
        seen = []
        run(tmp_path, trainer_class, before=lambda t, s=seen: passes(t.model, s), per_device_train_batch_size=4)
        counts[trainer_class] = [rows for rows, grad in seen if not grad]
    assert counts[Trainer] == [4] * 12
    assert counts[WindowTrainer] == [PROMPTS] * 3


@pytest.mark.parametrize(("tokens", "parts"), [(1, 2), (8, 2), (10**6, 1), (None, 1)])
def test_parts_are_bounded(tokens, parts, tmp_path):
    """At most `pivot_tokens` tokens each, or one prompt; the loss does not depend on the cut."""
    expected, _, _ = run(tmp_path, per_device_train_batch_size=4)

    def bounded(trainer):
        trainer.pivot_tokens = tokens

    found, _, trainer = run(tmp_path, before=bounded, per_device_train_batch_size=4)
    assert trainer.pivot_parts == 3 * parts
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_window_of_any_length(accumulate, tmp_path):
    assert_same_run(tmp_path, gradient_accumulation_steps=accumulate, num_train_epochs=1, max_steps=-1)


@pytest.mark.parametrize("config", [{"simulated_share": 0.5}, {"connection_dropout": 0.5}, {"hard": False}])
def test_draws_the_same_rows(config, tmp_path):
    def with_matrix(trainer):
        trainer.model.cc.transform_matrix = torch.eye(64)

    assert_same_run(tmp_path, before=with_matrix, config=CCConfig(**config))


@pytest.mark.parametrize("use", ["adapter", "checkpointing", "reentrant", "compiled", "bf16"])
def test_other_ways_to_train(use, tmp_path):
    options = {
        "adapter": {"wrap": lambda model: fill(peft.get_peft_model(model, lora(lora_dropout=0.0)))},
        "checkpointing": {"gradient_checkpointing": True},
        "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1},
        "bf16": {"bf16": True},
    }[use]
    torch._dynamo.reset()
    # bf16 rounds a bank of other widths differently; the weights differ by less than one step of the optimizer.
    assert_same_run(tmp_path, tolerance=3e-3 if use == "bf16" else 1e-5, **options)
    torch._dynamo.reset()


def test_mixed_precision_reads_in_its_dtype(tmp_path):
    """The pass goes past the wrapper that `Accelerator.prepare` puts around the model, which holds the autocast."""
    found = []

    class Seen(WindowTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            found.append(self._bank.dtype)
            return loss

    run(tmp_path, Seen, bf16=True, max_steps=1)
    assert set(found) == {torch.bfloat16}


def test_evaluation_is_untouched(tmp_path):
    _, _, trainer = run(tmp_path, max_steps=1)
    plain = make_run(tmp_path, Trainer, collator_class=NoisyCollator)
    plain.model.load_state_dict(trainer.model.state_dict())
    seen = []
    passes(trainer.model, seen)
    before = trainer.pivot_parts
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    assert trainer.pivot_parts == before
    assert len(seen) == 2, "one batch of six rows, its pivot pass and its main pass"


def test_evaluation_between_windows(tmp_path):
    assert_same_run(tmp_path, eval_strategy="steps", eval_steps=1)


def test_pivot_grad_falls_back_and_says_so_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "cc_model"):
        trainer = assert_same_run(tmp_path, config=CCConfig(pivot_grad=True))
    assert trainer.pivot_parts == 0
    assert caplog.text.count("each micro-batch runs a pivot pass of its own, because of pivot_grad=True") == 1


def test_data_parallel_falls_back(tmp_path, caplog):
    trainer = make_run(tmp_path, WindowTrainer)
    trainer.args._n_gpu = 2
    with caplog.at_level(logging.WARNING, "cc_model"):
        assert not trainer._reads_windows()
    assert "because of nn.DataParallel, which cuts a bank; use one process per GPU" in caplog.text


def test_no_pass_where_nobody_reads_it(tmp_path):
    """All rows simulated, a connection that is disabled, rows without English, a model that is not patched."""

    def with_matrix(trainer):
        trainer.model.cc.transform_matrix = torch.eye(64)

    assert assert_same_run(tmp_path, before=with_matrix, config=CCConfig(simulated_share=1.0)).pivot_parts == 0
    trainer = make_run(tmp_path, WindowTrainer, **OPTIONS)
    with connection_disabled(trainer.model):
        trainer.train()
    assert trainer.pivot_parts == 0
    stock, _ = pair()
    batches = [{name: batch()[name] for name in ("input_ids", "labels")}] * 2
    trainer = make_run(tmp_path, WindowTrainer, **OPTIONS)
    trainer.model, trainer.current_gradient_accumulation_steps = stock, 2
    taken, _ = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    assert torch.isfinite(trainer.training_step(stock, taken[0]))


def test_rows_without_english(tmp_path):
    def plain(trainer):
        trainer.train_dataset = [{**row, "instruction_en": ""} for row in ROWS]

    trainer = assert_same_run(tmp_path, before=plain)
    assert trainer.pivot_rows == 0


def test_a_batch_of_another_window_keeps_its_pivots(tmp_path):
    """Only what `get_batch_samples` gave is read through the bank: another batch runs its own pass."""
    trainer = make_run(tmp_path, WindowTrainer)
    _, trainer.model = pair("llama", CCConfig(hard=False))
    trainer.current_gradient_accumulation_steps = 1
    first, other = shared_batch(), shared_batch(seed=4)
    trainer.get_batch_samples(iter([first]), 1, torch.device("cpu"))
    noise = {"gumbel_noise": torch.zeros(5, 4)}
    loss = trainer.training_step(trainer.model, {**other, **noise})
    assert trainer.pivot_parts == 1, "that of the window"
    assert torch.equal(loss, trainer.model(**other, **noise).loss)


@pytest.mark.parametrize("name", ["pivot_tokens", "translations_per_batch"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, or None, got 0"):
        WindowTrainer(**{name: 0})
    with pytest.raises(TypeError, match=f"{name}: expected an integer or None, got str"):
        WindowTrainer(**{name: "all"})


def translating(*args, **kwargs):
    return WindowTrainer(*args, translations_per_batch=2, **kwargs)


def test_translations_stand_together(tmp_path):
    """ROWS alternate between two prompts: in random order most batches of two read both."""
    seen = []

    class Recorded(Sharing("right", share_pivots=True)):
        def __call__(self, features):
            seen.append([feature["instruction_en"] for feature in features])
            return super().__call__(features)

    run(tmp_path, translating, collator_class=Recorded, per_device_train_batch_size=2, num_train_epochs=2, max_steps=-1)
    together = [rows for rows in seen if "" not in rows]
    assert len(together) >= 12
    assert all(len(set(rows)) == 1 for rows in together)


def test_translations_resume(tmp_path):
    """In the second epoch, within it, as without the interruption."""
    options = {**OPTIONS, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    expected, weights, _ = run(tmp_path, translating, **options)
    trainer = make_run(tmp_path, translating, collator_class=NoisyCollator, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(trainer) == expected
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_the_sampler_is_told_the_epoch(tmp_path):
    """By Trainer in one process; with several, after a resume, accelerate's loader does not hand it on."""
    trainer = make_run(tmp_path, translating)
    sampler = trainer._get_train_sampler()
    trainer.state.epoch = 2.5
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    assert sampler.epoch == 2


def test_translations_are_not_taken_apart(tmp_path, monkeypatch):
    trainer = make_run(tmp_path, translating, accelerator_config={"split_batches": True})
    assert sorted(trainer._get_train_sampler()) == list(range(len(ROWS))), "one process: nothing is split"
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(ValueError, match=r"translations_per_batch: expected accelerate to give whole .* split_batches"):
        trainer._get_train_sampler()


def test_translations_need_an_order_of_their_own(tmp_path):
    trainer = make_run(tmp_path, translating, train_sampling_strategy="group_by_length")
    with pytest.raises(
        ValueError, match=r"translations_per_batch: expected a data set .* got train_sampling_strategy="
    ):
        trainer.train()
    trainer = make_run(tmp_path, translating)
    trainer.train_dataset = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"translations_per_batch: expected a data set .* got an IterableDataset"):
        trainer._get_train_sampler()


@pytest.mark.parametrize("options", [{"share_pivots": True}, {"loss_only": True}])
def test_batches_that_accelerate_would_cut(options, tmp_path, monkeypatch):
    trainer = make_run(tmp_path, WindowTrainer, collator_class=Sharing("right", **options))
    trainer.train_dataset = Dataset.from_list(ROWS).to_iterable_dataset()
    trainer.get_train_dataloader()  # one process: nothing is cut
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match=r"dispatch_batches: expected False with .*accelerator_config=\{'dispatch"):
        trainer.get_train_dataloader()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("tokens", [None, 9])
def test_two_processes(two_processes, way, tokens):
    """Rank 1 has no English prompt at all; sharded, it runs as many parts as rank 0 does."""
    ranks = two_processes.run(steps.windowed, way, tokens)
    assert_same_training(ranks, steps.one_process_windowed())
    parts = [result["parts"] for result in ranks]
    assert parts[0] >= (2 if tokens else 1) * steps.STEPS
    assert parts[1] == (parts[0] if way == "fsdp" else steps.STEPS)
