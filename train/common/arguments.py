"""Command lines: a YAML file first, then options that override it, into dataclasses.

python -m train.sft config.yaml --learning_rate 2e-5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import HfArgumentParser, TrainingArguments

from train.common.connection_arguments import ConnectionArguments, connection_config, option
from train.common.console import open_console
from train.common.files import read_yaml


@dataclass
class ModelArguments(ConnectionArguments):
    """Which model, and how the connection is made."""

    _argument_group_name = "model"

    model: str | None = option(None, "Folder or hub name of the model to fine-tune, for example Qwen/Qwen2.5-7B.")
    scratch: str | None = option(
        None,
        'Instead of --model: fields of a new, random model as JSON, for example \'{"model_type": "llama", '
        '"hidden_size": 128, "num_hidden_layers": 4}\'. A tokenizer is then trained on the data.',
    )
    scratch_vocab_size: int = option(4096, "Vocabulary of the tokenizer trained for --scratch.")
    tokenizer: str | None = option(None, "Folder or hub name of the tokenizer; the model's own if left out.")
    chat_template: str | None = option(
        None,
        "llama3, qwen2, mistral (the published templates) or a Jinja file. Base models often come without one; left "
        "out, the tokenizer's own is used, or a plain 'User: ... Assistant: ...'.",
    )
    method: Literal["cc", "vanilla"] = option(
        "cc", "cc: with the cross-lingual connection; vanilla: plain fine-tuning on the same rows."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the weights in memory; auto: as they were saved."
    )
    attn_implementation: str | None = option(None, "sdpa, flash_attention_2, eager, ...; transformers' choice.")
    simulated_ramp: float = option(0.5, "Share of the steps over which --simulated_share is reached, from 0.")
    refit_steps: int = option(50, "With --simulated_share: steps between fits of the matrix; 0: once, at the start.")


@dataclass
class CollatorArguments:
    """How a row becomes tokens. Saved beside the model, so that later steps use the same."""

    _argument_group_name = "tokens"

    max_length: int = option(1024, "Most tokens of a row (prompt and answer) and of an English prompt.")
    position: Literal["last", "published"] = option(
        "last", "Token that is connected: the last prompt token, or the published code's position."
    )
    system: str | None = option(None, "Text of a system turn for conversations without one.")
    english_in_prompt: bool = option(
        False,
        "With --method vanilla: the model reads the English question, an empty line and the question in one prompt, "
        "in training and afterwards; in a chat each turn of the user with its own. Rows without an English version "
        "stay as they are.",
    )
    packed: bool = option(False, "Put the examples of a batch into one row, one after the other, without padding.")


@dataclass
class DataArguments:
    """Which rows."""

    _argument_group_name = "data"

    dataset: str | None = option(
        None,
        "A .jsonl, .json, .csv or .parquet file, a folder with <split>.jsonl (or the others), a data set saved with "
        "save_to_disk, a hub name; or what is built offline in 22 languages: 'cldr' (questions), 'udhr' (prose), "
        "'cldr+udhr' (both).",
    )
    dataset_config: str | None = option(None, "Configuration of a hub data set.")
    split: str = option("train", "Split to read.")
    eval_split: str | None = option(None, "Split for the evaluation loss (with --eval_strategy steps or epoch).")
    instruction_column: str = option("instruction", "Column with the question.")
    instruction_en_column: str = option("instruction_en", "Column with its English version; empty cells: none.")
    output_column: str = option("output", "Column with the answer. Chat data: columns messages and messages_en.")
    max_samples: int | None = option(None, "Use only the first N rows.")
    languages: list[str] | None = option(None, "With cldr and udhr: language codes; all 22 if left out.")  # noqa: RUF009
    relations: list[str] | None = option(None, "With cldr: relations; all 4 if left out.")  # noqa: RUF009
    held_out: float = option(0.1, "With cldr and udhr: share of the rows held out in every language but English.")


@dataclass
class SftArguments(TrainingArguments):
    """`TrainingArguments` with the published recipe as defaults."""

    _argument_group_name = "training (all further options of transformers.TrainingArguments work too; --help_all)"

    output_dir: str | None = option("runs/sft", "Folder for the model, its checkpoints and the log.")
    learning_rate: float = option(1e-5, "Peak learning rate.")
    lr_scheduler_type: str = option("cosine", "Learning rate schedule.")
    warmup_steps: float = option(0.1, "Below 1: share of all steps used for warm-up; otherwise a number of steps.")
    num_train_epochs: float = option(3.0, "Passes over the data.")
    max_steps: int = option(-1, "Optimizer steps; overrides --num_train_epochs when positive.")
    per_device_train_batch_size: int = option(4, "Rows per device and forward pass.")
    gradient_accumulation_steps: int = option(4, "Forward passes per optimizer step.")
    logging_steps: float = option(10, "Log the loss and the decisions every so many steps.")
    save_strategy: str = option("epoch", "When to save a checkpoint: no, steps or epoch.")
    save_steps: float = option(500, "With --save_strategy steps.")
    save_total_limit: int | None = option(2, "Checkpoints kept.")
    remove_unused_columns: bool = option(False, "Must stay false: the collator reads the text columns.")
    bucket_by_length: bool = option(
        False, "Batch rows of similar length (prompt + answer + English prompt) together; faster, less random order."
    )
    share_pivots: bool = option(True, "Read each distinct English prompt of a batch once; the numbers stay the same.")
    loss_only: bool = option(True, "Run head and loss where there is a label alone; the numbers stay the same.")
    pivot_graph: bool = option(
        True, "On a GPU, replay the pass over the English prompts as a CUDA graph; faster, for some memory."
    )
    translations_per_batch: int | None = option(
        None,
        "Let so many rows of one English prompt follow each other, so that they share its pass; less random order. "
        "Left out: random rows.",
    )
    overwrite: bool = option(False, "Train from the start although --output_dir holds checkpoints or a model.")

    def __post_init__(self) -> None:
        """Hand `gradient_checkpointing` on under the name that transformers 5.24 gives it, which else warns."""
        if getattr(self, "activation_checkpointing", True) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()


COMMON = (
    *("output_dir", "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16", "seed"),
    *("logging_steps", "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint", "report_to"),
    *("bucket_by_length", "share_pivots", "loss_only", "pivot_graph", "translations_per_batch"),
    *("eval_strategy", "overwrite", "use_cpu", "deepspeed"),
)


# Shown instead of what transformers says, which is about its own scripts.
HELP = {
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, about a third more time.",
    "bf16": "Mixed precision: bfloat16 arithmetic, weights as --dtype says.",
    "resume_from_checkpoint": "'true': continue from the last checkpoint in --output_dir; or a checkpoint folder.",
    "eval_strategy": "When to compute the loss on --eval_split: no, steps (see --eval_steps) or epoch.",
    "deepspeed": "DeepSpeed configuration file, for models that do not fit on one device.",
    "use_cpu": "Do not use an accelerator.",
    "report_to": "tensorboard, wandb, ... or none.",
    "seed": "Of the data order, a new model's weights and the decisions' noise.",
}


def as_typed(text: str) -> str:
    """A text of the command line as it was typed.

    Where the locale is not UTF-8, Python has the bytes of the command line as surrogates. Names of files stay so.

    Example:
        >>> as_typed("\\udce6\\udc97\\udca5")
        '日'
    """
    try:
        return text.encode("ascii", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text


class _Help(argparse.HelpFormatter):
    """One spelling per option, with its default."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings, action.option_strings = action.option_strings, action.option_strings[:1]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = spellings

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default in (None, argparse.SUPPRESS, "", []) or not action.help
        return action.help if unset else f"{action.help} [default: %(default)s]"


def parse(
    groups: Sequence[type],
    prog: str,
    description: str,
    arguments: Sequence[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """One instance per dataclass in `groups`, from a YAML file (first argument, if it ends in .yaml) and options.

    Options on the command line override the file. An unknown key, in either, ends the program with a message.

    Args:
        groups: dataclasses with `_argument_group_name`.
        prog: name shown by `--help`.
        description: text shown by `--help`.
        arguments: the command line; None for that of the process.
        renamed: options of an earlier version and their names now; they work, and what is new is said.
        defaults: of options whose default in this program is another than their dataclass's.

    Example:
        >>> data, = parse([DataArguments], "demo", "An example.", ["--dataset", "rows.jsonl", "--max_samples", "10"])
        >>> data.dataset, data.max_samples, data.split
        ('rows.jsonl', 10, 'train')
    """
    open_console()  # for --help
    given = list(sys.argv[1:] if arguments is None else arguments)
    renamed = renamed or {}
    parser = HfArgumentParser(
        groups,  # type: ignore[arg-type]
        prog=f"python -m {prog}",
        usage=f"python -m {prog} [config.yaml] [options]",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    parser.set_defaults(**(defaults or {}))
    asked = parser.add_argument_group("help")
    asked.add_argument("--help", "-h", action="help", help="Show this.", default=argparse.SUPPRESS)
    asked.add_argument("--help_all", action="help", help="Show every option.", default=argparse.SUPPRESS)
    if "--help_all" not in given:
        _shorten(parser, groups)
    if given and given[0].lower().endswith((".yaml", ".yml")):
        given = [*_yaml_options(given[0], parser, renamed), *given[1:]]
    given = [_new_name(text, renamed, prog) for text in given]
    try:
        return parser.parse_args_into_dataclasses(given, look_for_args_file=False)
    except (ValueError, ImportError) as error:
        parser.error(str(error))


def _new_name(text: str, renamed: Mapping[str, str], prog: str) -> str:
    """An option by its name of today."""
    name, *value = text.split("=", 1)
    if name.removeprefix("--") not in renamed or not name.startswith("--"):
        return text
    new = f"--{renamed[name.removeprefix('--')]}"
    print(f"{prog}: {name} is now {new}; the old name goes away with the next version", file=sys.stderr)
    return "=".join([new, *value])


def _shorten(parser: argparse.ArgumentParser, groups: Sequence[type]) -> None:
    """Hide what few need: the options that only transformers' own training arguments have."""
    own = [group for group in groups if not issubclass(group, TrainingArguments)]
    ours = {each.name for group in own for each in dataclasses.fields(group)}  # type: ignore[arg-type]
    for action in parser._actions:
        if action.dest in HELP and action.dest in COMMON:
            action.help = HELP[action.dest]
        elif action.dest not in ours and action.dest not in COMMON and action.dest not in ("help", "help_all"):
            action.help = argparse.SUPPRESS
        if action.option_strings[0].startswith("--no_"):  # HfArgumentParser's second spelling of `--name false`
            action.help = argparse.SUPPRESS


def _yaml_options(path: str, parser: argparse.ArgumentParser, renamed: Mapping[str, str]) -> list[str]:
    """The entries of a YAML file as options, so that they are checked like those of the command line."""
    try:
        entries = read_yaml(path)
    except ValueError as error:
        parser.error(str(error))
    known = {option.removeprefix("--") for option in parser._option_string_actions} | set(renamed)
    options: list[str] = []
    for name, value in entries.items():
        if name not in known:
            parser.error(f"config: unknown option {name!r} in {path}; --help_all lists all")
        if value is None:
            continue
        options.append(f"--{name}")
        values = value if isinstance(value, list) else [value]
        options += [json.dumps(v) if isinstance(v, dict | bool) else str(v) for v in values]
    return options


__all__ = [
    "CollatorArguments",
    "DataArguments",
    "ModelArguments",
    "SftArguments",
    "as_typed",
    "connection_config",
    "option",
    "parse",
]
