"""A teacher that reads English writes answers; a student learns them, and reads no English.

| module | |
|---|---|
| `teacher` | answers to prompts, each with its mean log-likelihood |
| `selection` | which answers are kept, and what was kept |
| `targets` | the teacher's token distributions along its answers, and the training of a student on them |
| `store` | the answers on disk, written batch by batch |

`python -m train.distil` does all of it. From Python, where `prompts` are rows with `instruction` and `instruction_en`:

    teacher, collator = load_trained("runs/cc")
    taught = taught_rows(prompts, all_answers(teacher, collator, prompts), threshold=-0.5)
    make_trainer(student, collator, labelled + taught, arguments).train()

Example:
    >>> from cc_model import ParallelCollator, patch_model
    >>> from cc_model.testing import tiny_model
    >>> from train.common.models import new_tokenizer
    >>> from train.distillation.selection import taught_rows
    >>> from train.distillation.teacher import all_answers
    >>> prompts = [{"instruction": "Hauptstadt?", "instruction_en": "Capital?"}]
    >>> collator = ParallelCollator(new_tokenizer(prompts, 300))
    >>> teacher = patch_model(tiny_model("llama", vocab_size=300)).eval()
    >>> answers = all_answers(teacher, collator, prompts, max_new_tokens=4)
    >>> [answer.ended for answer in answers], taught_rows(prompts, answers)  # a random model does not end
    ([False], [])
"""
