"""A short Trainer run on a tiny patched model; as a program, runs that are killed.

    python trainer_runs.py FOLDER      # one child process for each way to be killed, each in a folder of its own

The children are forked before the first tensor operation, so that the imports are paid for once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from model_pairs import gumbel, pair
from transformers import Trainer, TrainingArguments
from word_tokenizers import ROW, SHORT, make_tokenizer

from cc_model import CCConfig, ParallelCollator, saving

WORDS = ["eins", "zwei", "drei", "eins zwei", "drei drei eins", "zwei eins drei eins zwei"]
ROWS = [
    {"instruction": word, "instruction_en": english, "output": answer}
    for word in WORDS
    for english, answer in (("one two", "zwei drei"), (ROW["instruction_en"], "eins eins zwei drei"))
] + [{name: SHORT[name] for name in ROW}] * 4


class NoisyCollator(ParallelCollator):
    """Gumbel noise by the length of the answer, so that it does not depend on how rows are batched."""

    def __call__(self, features):
        made = super().__call__(features)
        rows = [gumbel(1, seed=len(feature["output"])) for feature in features]
        return {**made, "gumbel_noise": torch.cat(rows)}


def make_run(folder, trainer_class=Trainer, collator_class=ParallelCollator, config=None, wrap=None, **options):
    """A trainer of 6 steps of 2 × 2 rows, which saves every second step."""
    tokenizer = make_tokenizer("llama3")
    torch.manual_seed(0)
    _, model = pair(vocab_size=len(tokenizer), config=config)
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 2,
            **options,
        }
    )
    return trainer_class(
        model=wrap(model) if wrap else model,
        args=arguments,
        data_collator=collator_class(tokenizer),
        train_dataset=ROWS,
        eval_dataset=ROWS[:6],
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledInAStep(Trainer):
    """Killed in the fourth step, after the first of its two backwards."""

    backwards = 0

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.backwards += 1
        if self.backwards == 7:
            kill()
        return loss


class KilledWhileSavingTheModel(Trainer):
    """Killed in the save of step 4, when the weights are written but not at their place yet."""

    def save_model(self, output_dir=None, _internal_call=False):
        if self.state.global_step == 4:
            saving._move_into = lambda *folders: kill()
        super().save_model(output_dir, _internal_call)


class KilledWhileSavingTheOptimizer(Trainer):
    """Killed in the save of step 4, with the model saved and half of the optimizer's file."""

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.state.global_step == 4:
            file = Path(output_dir) / "optimizer.pt"
            os.truncate(file, file.stat().st_size // 2)
            kill()


KILLED = {
    "step": KilledInAStep,
    "model": KilledWhileSavingTheModel,
    "optimizer": KilledWhileSavingTheOptimizer,
}
CONFIG = CCConfig(pivot_grad=True)


def main(folder):
    """Run and kill; prints how each child ended."""
    for name, trainer_class in KILLED.items():
        child = os.fork()
        if child == 0:
            make_run(Path(folder) / name, trainer_class, config=CONFIG).train()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(name, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "was not killed")


if __name__ == "__main__":
    main(sys.argv[1])
