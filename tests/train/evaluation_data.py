"""Rows for the evaluation tests: every benchmark in every language, in our own words; and a small fitted model."""

from __future__ import annotations

import json
from pathlib import Path
from string import Formatter

import torch

from cc_model import patch_model
from cc_model.testing import random_matrix
from train.common.models import new_model, new_tokenizer, save_options
from train.evaluation.benchmarks import BENCHMARKS, prompts

WORDS = {
    **{"ar": "مدينة كبيرة", "bn": "বড় শহর", "de": "große Stadt", "el": "μεγάλη πόλη", "en": "large city"},
    **{"es": "ciudad grande", "eu": "hiri handia", "fr": "grande ville", "hi": "बड़ा शहर", "id": "kota besar"},
    **{"ja": "大きな街", "ko": "큰 도시", "pt": "cidade grande", "ru": "большой город", "sw": "mji mkubwa"},
    **{"te": "పెద్ద నగరం", "th": "เมืองใหญ่", "tr": "büyük şehir", "ur": "بڑا شہر", "vi": "thành phố lớn"},
    **{"yo": "ìlú ńlá", "zh": "大城市"},
}
SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}


def made_rows(benchmark: str, language: str, count: int) -> list[dict]:
    """Rows in the format of a local file."""
    template, choices = prompts()[benchmark][language], BENCHMARKS[benchmark].choices
    fields = [name for _, name, _, _ in Formatter().parse(template) if name]
    rows = []
    for number in range(count):
        filled = {name: f"{name} {WORDS[language]} {number}" for name in fields}
        answer = choices[number % len(choices)] if choices else [WORDS[language], f"{WORDS[language]} {number}"]
        rows.append({"language": language, "id": number, "prompt": template.format(**filled), "answer": answer})
    return rows


def write_data(folder: Path, count: int = 3) -> Path:
    """A file per benchmark, with all of its languages."""
    folder.mkdir()
    for benchmark, languages in prompts().items():
        rows = [row for language in languages for row in made_rows(benchmark, language, count)]
        lines = [json.dumps({"benchmark": benchmark, **row}, ensure_ascii=False) for row in rows]
        (folder / f"{benchmark}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_model(folder: Path, patched: bool = True, matrix: bool = True, seed: int = 0, **shape) -> Path:
    """A small model as train.sft and train.fit_transform leave it, with weights so large that the connection counts."""
    tokenizer = new_tokenizer([{"instruction": text} for text in [*WORDS.values(), "1 2 3 A B C D"]], 400)
    torch.manual_seed(seed)
    model = new_model({**SHAPE, **HEADS, "initializer_range": 0.3, **shape}, tokenizer).eval()
    if patched:
        patch_model(model)
        model.cc.transform_matrix = random_matrix(model, scale=3.0) if matrix else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_options(folder, {"collator": {"max_length": 512}})
    return folder


def write_both(folder: Path) -> Path:
    """The data in `data` of a folder, and the model in `model`."""
    write_data(folder / "data")
    write_model(folder / "model")
    return folder


def options(root: Path, out: Path, **changed):
    """Options of a short run of train.evaluate on the data and the model of `root`."""
    from train.evaluate import EvaluateArguments  # needs lm-eval, which not every test of this module needs

    fixed = {"data": str(root / "data"), "max_new_tokens": 6, "batch_size": 4, "device": "cpu", "resamples": 200}
    return EvaluateArguments(str(root / "model"), out=str(out), **{**fixed, **changed})
