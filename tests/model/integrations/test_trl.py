"""TRL's SFTTrainer around a patched model: it puts a `forward` of its own on the model, and trains the same."""

from __future__ import annotations

import logging

import pytest
import torch
from adapters import lora
from model_pairs import pair
from safetensors.torch import load_file
from trainer_runs import ROWS, losses, make_run
from trl_runs import sft
from word_tokenizers import make_tokenizer

from cc_model import ParallelCollator, from_pretrained
from cc_model.integrations.peft import load_adapter

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'cc-tuning[trl]')")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Losses of transformers' own Trainer."""
    trainer = make_run(tmp_path_factory.mktemp("trainer"), save_strategy="no")
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize("case", ["padded", "packed", "checkpointing"])
def test_trains_like_trainer(case, expected, tmp_path):
    trainer = sft(tmp_path, packed=case == "packed", gradient_checkpointing=case == "checkpointing")
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate()["eval_mean_token_accuracy"] > 0.5
    again = from_pretrained(tmp_path / "checkpoint-6")
    trained = trainer.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in again.state_dict().items())


def test_adapter(tmp_path):
    trainer = sft(tmp_path, peft_config=lora())
    before = trainer.model.get_base_model().cc.decision_maker.weight.detach().clone()
    trainer.train()
    weight = trainer.model.get_base_model().cc.decision_maker.weight
    assert not torch.equal(weight, before)
    saved = load_file(tmp_path / "checkpoint-6" / "adapter_model.safetensors")
    assert torch.equal(saved["base_model.model.cc.decision_maker.weight"], weight)
    _, base = pair(vocab_size=trainer.model.config.vocab_size)
    again = load_adapter(base, tmp_path / "checkpoint-6")
    assert torch.equal(again.get_base_model().cc.decision_maker.weight, weight)


def test_dropped_text_raises(tmp_path):
    trainer = sft(tmp_path, remove_unused_columns=True)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()


def test_dropped_pivots_warn(tmp_path, caplog):
    """Of tokenised rows SFTTrainer keeps `input_ids` and `labels` only, so that the step would be plain."""
    batch = ParallelCollator(make_tokenizer("llama3"))(ROWS[:2])
    rows = [{name: value[b].tolist() for name, value in batch.items()} for b in range(2)] * 2
    trainer = sft(tmp_path, rows=rows, collate=False, remove_unused_columns=True, max_steps=2)
    with caplog.at_level(logging.WARNING, "cc_model"):
        trainer.train()
    assert caplog.text.count("training without pivot_input_ids: this is plain fine-tuning") == 1
