"""Evaluating one benchmark in one language and mode, and keeping the result: one file each, written when it is done."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval import evaluate
from lm_eval.tasks import TaskManager

from cc_model.files import write_text
from train.evaluation.benchmarks import BENCHMARKS

TASKS = Path(__file__).parent / "tasks"

Result = dict[str, Any]


class Runs:
    """The result files of one evaluation, `<out>/rows/<benchmark>/<language>.<mode>.json`.

    A result says with which settings it was made, and is reused only for the same ones: so a killed evaluation goes on
    with the language that was running, and results of two models are never mixed.

    Args:
        out: folder of the evaluation.
        settings: what the scores depend on, as JSON values.
        overwrite: do everything anew.
    """

    def __init__(self, out: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder = Path(out) / "rows"
        self.settings = json.loads(json.dumps(settings))
        self.overwrite = overwrite

    def path(self, benchmark: str, language: str, mode: str) -> Path:
        """Where a result is kept."""
        return self.folder / benchmark / f"{language}.{mode}.json"

    def saved(self, benchmark: str, language: str, mode: str, task: Any) -> Result | None:
        """The result of an earlier run on the same rows; None if there is none.

        Raises:
            ValueError: it was made with other settings or rows; the message names the first that differs.
        """
        path = self.path(benchmark, language, mode)
        if self.overwrite or not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        now = self._settings_of(task)
        # An earlier version did not write these two; the number of tokens is part of the hash of its rows.
        made = {"engine": "hf", "max_new_tokens": now["max_new_tokens"], **result["settings"]}
        differs = next((name for name, value in now.items() if made.get(name) != value), None)
        if differs is not None:
            hidden = differs == "rows" and "max_new_tokens" not in result["settings"]
            raise ValueError(
                f"out: {path} was made with {'rows or max_new_tokens' if hidden else differs}={made.get(differs)!r}, "
                f"now it is {now[differs]!r}; choose another folder, or --overwrite"
            )
        return result

    def _settings_of(self, task: Any) -> dict[str, Any]:
        tokens = (task.config.generation_kwargs or {}).get("max_gen_toks")
        return {**self.settings, "max_new_tokens": tokens, "rows": fingerprint(task)}

    def run(self, lm: Any, benchmark: str, language: str, mode: str, task: Any) -> Result:
        """Evaluate a task with lm-eval and save its result."""
        start = time.perf_counter()
        with without_bars():
            found = evaluate(lm, {"tasks": {task.config.task: task}}, bootstrap_iters=0, apply_chat_template=True)
        samples = sorted(found["samples"][task.config.task], key=lambda sample: sample["doc_id"])
        result = {
            "benchmark": benchmark,
            "language": language,
            "mode": mode,
            "settings": self._settings_of(task),
            "seconds": round(time.perf_counter() - start, 2),
            "results": [kept(benchmark, sample) for sample in samples],
        }
        path = self.path(benchmark, language, mode)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        return result


@contextmanager
def without_bars() -> Iterator[None]:
    """Without lm-eval's progress bar for writing prompts, one per task, which nothing else turns off."""
    shown = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = shown


def load_task(
    benchmark: str, language: str, data: str | None, limit: int | None = None, max_new_tokens: int | None = None
) -> Any:
    """The lm-eval task of a benchmark and language, with its rows.

    Raises:
        ValueError: see `train.evaluation.rows.load`.
    """
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": data, "limit": limit})
    name = f"cc_{benchmark}_{language}"
    task = manager.load([name])["tasks"][name]
    task.set_config("num_fewshot", 0)
    if max_new_tokens is not None and task.config.generation_kwargs:
        task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    return task


def kept(benchmark: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a row: id, what the model answered, and the scores; of choices the right one and all scores."""
    choices = BENCHMARKS[benchmark].choices
    scores = {name: float(sample[name]) for name in BENCHMARKS[benchmark].metrics}
    if not choices:
        return {"id": sample["doc"]["id"], "answer": sample["filtered_resps"][0].strip(), **scores}
    logprobs = [score for score, _ in sample["filtered_resps"]]
    best = choices[max(range(len(choices)), key=logprobs.__getitem__)]
    right, rounded = sample["doc"]["answers"][0], [round(value, 4) for value in logprobs]
    return {"id": sample["doc"]["id"], "answer": best, "right": right, "logprobs": rounded, **scores}


def fingerprint(task: Any) -> str:
    """A short hash of a task's prompts, answers and options of generation."""
    rows = [(doc["prompt"], doc["answers"]) for doc in task.test_docs()]
    text = json.dumps([rows, task.config.generation_kwargs], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_of(folder: str | Path) -> list[list[Any]]:
    """Names, sizes and dates of a model folder's weights: whether it is still the same model, without reading it.

    Example:
        >>> weights_of("no-such-folder")
        []
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


__all__ = ["Runs", "load_task", "weights_of"]
