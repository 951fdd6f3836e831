"""What windows of translations do to the loss: K translations of each English prompt together, against shuffled rows.

    python -m train.experiment.translation_order --translations 4 8 --seeds 3 --steps 200

Small Llama models learn the CLDR questions from scratch, with equal weights, rows, noise and steps for each seed; only
the order of the rows differs. The table has, over the seeds, the loss of the last tenth of the steps and that of
held-out questions (mean ± standard deviation), and the English prompts that a step read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, TrainingArguments, set_seed

from cc_model import ParallelCollator, patch_model
from cc_model.integrations.window import WindowTrainer
from train.data import build_rows, train_tokenizer

LANGUAGES = ("en", "de", "fr", "es", "ja", "ru", "sw", "tr", "zh")  # eight translations of each question
VOCABULARY = 2048
MODEL = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
BATCH, ACCUMULATE = 8, 2
Row = Mapping[str, Any]


def measured(
    rows: Sequence[Row], held_out: Sequence[Row], tokenizer: Any, translations: int | None, steps: int, seed: int
) -> tuple[float, float, float]:
    """Training loss at the end, held-out loss, and English prompts per step, of one run."""
    set_seed(seed)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), num_key_value_heads=2, initializer_range=0.08, **MODEL
    )
    model: Any = patch_model(AutoModelForCausalLM.from_config(config))
    with tempfile.TemporaryDirectory() as folder:
        trainer = WindowTrainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=32,
                gradient_accumulation_steps=ACCUMULATE,
                learning_rate=2e-3,
                lr_scheduler_type="cosine",
                warmup_steps=steps // 10,
                logging_steps=max(1, steps // 10),
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=rows,
            eval_dataset=held_out,
            data_collator=ParallelCollator(tokenizer, share_pivots=True, loss_only=True),
            translations_per_batch=translations,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
        return loss, trainer.evaluate()["eval_loss"], trainer.pivot_rows / steps


def table(found: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    """The results as a Markdown table.

    Example:
        >>> print(table({"shuffled": [(1.0, 2.0, 15.0), (1.2, 2.4, 15.0)]}))
        | order | training loss | held-out loss | English prompts per step |
        |---|---|---|---|
        | shuffled | 1.100 ± 0.141 | 2.200 ± 0.283 | 15.0 |
    """
    lines = ["| order | training loss | held-out loss | English prompts per step |", "|---|---|---|---|"]
    for name, runs in found.items():
        train, held_out, prompts = zip(*runs, strict=True)
        lines.append(f"| {name} | {_spread(train)} | {_spread(held_out)} | {statistics.mean(prompts):.1f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.experiment.translation_order", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--translations", type=int, nargs="+", default=[4, 8], help="values of K")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each order")
    parser.add_argument("--steps", type=int, default=200, help=f"optimizer steps of {BATCH * ACCUMULATE} rows")
    options = parser.parse_args(arguments)
    rows = BATCH * ACCUMULATE
    if not all(1 <= k <= rows for k in options.translations):
        parser.error(f"--translations: expected numbers from 1 to {rows}, rows of a step, got {options.translations}")
    for name in ("seeds", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected a positive number, got {getattr(options, name)}")
    torch.set_num_threads(1)  # the operations are too small for more
    splits = build_rows(languages=LANGUAGES)
    tokenizer = train_tokenizer((row["instruction"] + row["output"] for row in splits["train"]), VOCABULARY)
    orders = {"shuffled": None} | {f"{k} translations together": k for k in options.translations}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in orders}
    for seed in range(options.seeds):
        for name, translations in orders.items():
            found[name].append(
                measured(splits["train"], splits["held_out"], tokenizer, translations, options.steps, seed)
            )
            print(f"seed {seed}, {name}: training loss {found[name][-1][0]:.3f}, held out {found[name][-1][1]:.3f}")
    print(table(found))


if __name__ == "__main__":
    main()

__all__ = ["main", "measured", "table"]
