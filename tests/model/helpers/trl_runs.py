"""A run of `trainer_runs.make_run` under TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from model_pairs import pair
from trainer_runs import ROWS
from word_tokenizers import make_tokenizer

from cc_model import ParallelCollator

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install 'cc-tuning[trl]')")


def sft(folder, packed=False, rows=ROWS, collate=True, peft_config=None, cls=trl.SFTTrainer, **options):
    """The run of `make_run` under SFTTrainer."""
    tokenizer = make_tokenizer("llama3")
    torch.manual_seed(0)
    _, model = pair(vocab_size=len(tokenizer))
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 6,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **options,
    }
    return cls(
        model=model,
        args=trl.SFTConfig(**arguments),
        data_collator=ParallelCollator(tokenizer, packed=packed) if collate else None,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:6]),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
