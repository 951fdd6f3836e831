"""train.distil from Python: the documented lines train a student that reads no English, whichever teacher it has."""

import pytest
import torch
from transformers import TrainingArguments

from cc_model import patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.testing import tiny_model
from train.common.arguments import SftArguments
from train.common.english_in_prompt import EnglishInPrompt
from train.common.models import new_tokenizer
from train.common.training import make_trainer

ROWS = [
    {"instruction": "Frage", "instruction_en": "Question", "output": "Antwort"},
    {"instruction": "Land", "instruction_en": "Country", "output": "Japan"},
]


def arguments(folder, kind=SftArguments, **more):
    return kind(str(folder), max_steps=1, use_cpu=True, save_strategy="no", report_to="none", **more)


def batch_of(trainer):
    return trainer.data_collator(ROWS)


@pytest.mark.parametrize("connected", [False, True])
def test_the_student_of_a_teacher_with_english_in_its_prompt_reads_the_question_alone(tmp_path, connected):
    tokenizer = new_tokenizer(ROWS, 300)
    student = tiny_model("llama", vocab_size=300)
    student = patch_model(student) if connected else student
    collator = EnglishInPrompt(tokenizer, max_length=16)
    trainer = make_trainer(student, collator, ROWS, arguments(tmp_path), title=None)
    expected = ParallelCollator(tokenizer, max_length=16)(ROWS)
    batch = batch_of(trainer)
    for name in batch:
        torch.testing.assert_close(batch[name], expected[name], rtol=0, atol=0)
    assert ("pivot_input_ids" in batch) == connected  # a connected one reads English by its connection
    trainer.train()
    read = make_trainer(student, collator, ROWS, arguments(tmp_path), title=None, english_in_prompt=True)
    assert "Question\n\nFrage" in tokenizer.decode(batch_of(read)["input_ids"][0])


def test_plain_training_arguments(tmp_path):
    student, collator = tiny_model("llama", vocab_size=300), ParallelCollator(new_tokenizer(ROWS, 300))
    options = arguments(tmp_path, TrainingArguments, remove_unused_columns=False)
    assert make_trainer(student, collator, ROWS, options, title=None).train().global_step == 1
    with pytest.raises(ValueError, match=r"remove_unused_columns: expected False .* got True"):
        make_trainer(student, collator, ROWS, arguments(tmp_path, TrainingArguments), title=None)
