"""The controlled comparison at a toy size: equal terms, resuming, and a report that says what the numbers say."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from cc_model import fit_transform_matrix, from_pretrained
from cc_model.data.collator import ParallelCollator
from cc_model.data.prompt_batches import prompt_batches
from train.experiment import job as jobs
from train.experiment.__main__ import main
from train.experiment.data import load, prepare
from train.experiment.job import answer_nll, ask, make_model, map_quality
from train.experiment.pool import read_results, run_all
from train.experiment.report import write_report
from train.experiment.settings import Condition, read_settings
from train.experiment.statistics import accuracy, by_seed

TINY = {
    "scratch": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    },
    "vocab_size": 400,
    "languages": ["en", "de", "fr"],
    "relations": ["currency"],
    "seeds": [0, 1],
    "steps": 3,
    "batch_size": 4,
    "max_length": 96,
    "fit_pairs": 20,
    "refit_pairs": 10,
    "questions": 5,
    "eval_batch_size": 8,
    "conditions": {
        "vanilla": {"method": "vanilla"},
        "cc": {},
        "ramp": {"simulated_share": 1.0, "ramp": 0.5, "refit_steps": 2},
        "impossible": {"inject_layer": 9},
    },
    "maps": {"per_layer": {"per_layer": True}, "few": {"pairs": 4, "ridge": 1.0}},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run of every job in two processes, one condition of which cannot work, and what it printed."""
    out = tmp_path_factory.mktemp("experiment")
    console = Console(record=True, width=200, force_terminal=False, file=(out / "printed").open("w"))
    settings = read_settings(config)
    results = run_all(settings, out, jobs=2, console=console)
    write_report(settings, results, out)
    return settings, out, results, console.export_text()


def test_every_job_ends_and_a_failing_one_is_told(run):
    settings, out, results, printed = run
    ran = {(result["condition"], result["seed"]) for result in results}
    assert ran == {(name, seed) for name in ("vanilla", "cc", "ramp") for seed in (0, 1)}
    assert "impossible, seed 0 failed" in printed
    assert "inject_layer: expected a layer below 2, got 9" in printed
    assert read_results(out, settings) == sorted(results, key=results.index)


def test_results_hold_every_mode(run):
    settings, _, results, _ = run
    for result in results:
        expected = {
            "vanilla": {"vanilla"},
            "cc": {"matrix", "english", "off", "per_layer", "few"},
            "ramp": {"matrix", "english", "off"},
        }[result["condition"]]
        assert set(result["modes"]) == expected
        for mode in result["modes"].values():
            assert re.fullmatch("[01]{5}", mode["correct"])
            assert len(mode["nll"]) == 5
            assert all(0 < value < 20 for value in mode["nll"])
        assert len(result["losses"]) == settings.steps
    refits = [result["refits"] for result in results if result["condition"] == "ramp"]
    assert [[step for step, _ in each] for each in refits] == [[0, 2], [0, 2]]
    maps = next(result["maps"] for result in results if result["condition"] == "cc")
    assert (maps["matrix"]["pairs"], maps["few"]["pairs"]) == (20, 4)


def test_conditions_start_from_the_same_weights_and_rows(config):
    settings = read_settings(config)
    weights = []
    for name in ("vanilla", "cc", "ramp"):
        data = load(settings, seed=1)
        model, _ = make_model(settings, settings.conditions[name], data, seed=1)
        weights.append(model.get_input_embeddings().weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_the_first_loss_is_equal_where_the_first_step_is(run):
    """With the same rows, weights and noise, the first step of the ramp is the published recipe's."""
    _, _, results, _ = run
    for seed in (0, 1):
        first = {r["condition"]: r["losses"][0] for r in results if r["seed"] == seed}
        assert first["ramp"] == first["cc"]
        assert first["vanilla"] != first["cc"]


def test_running_again_runs_only_what_is_missing(run, config, tmp_path):
    settings, finished, results, _ = run
    out = shutil.copytree(finished, tmp_path / "again")
    kept = (out / "results.jsonl").read_text()
    main([str(config), "--out", str(out), "--only", "cc", "ramp"])  # nothing is missing of these
    assert (out / "results.jsonl").read_text() == kept
    other = read_settings(config, steps=4)
    assert read_results(out, other) == []  # results of other settings do not count
    changed = replace(settings, conditions={**settings.conditions, "cc": Condition(config={"hard": False})})
    assert {result["condition"] for result in read_results(out, changed)} == {"vanilla", "ramp"}
    console = Console(record=True, width=200, file=(out / "printed").open("w"))
    run_all(settings, out, stop_after=-1.0, console=console)
    assert "time is up: 2 jobs are left" in console.export_text()
    assert len(read_results(out, settings)) == len(results)


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_autocast_in_training_and_evaluation(config, bf16, monkeypatch):
    settings = replace(read_settings(config), bf16=bf16, maps={}, questions=2)
    seen, made = set(), jobs.make_model

    def watched(*arguments):
        model, collator = made(*arguments)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        projection = model.model.layers[0].mlp.up_proj
        projection.register_forward_hook(lambda module, args, output: seen.add((module.training, output.dtype)))
        return model, collator

    monkeypatch.setattr(jobs, "make_model", watched)
    jobs.run_job(settings, "cc", 0)
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert seen == {(True, dtype), (False, dtype)}
    assert (settings.fingerprint("cc") == replace(settings, bf16=False).fingerprint("cc")) == (not bf16)


def test_results_of_other_settings_are_kept(run, config, tmp_path):
    _, finished, results, _ = run
    out = shutil.copytree(finished, tmp_path / "other")
    command = [str(config), "--out", str(out), "--only", "cc", "--steps", "1", "--seeds", "5"]
    main([*command, "--models", str(tmp_path / "models")])
    assert len(read_results(out)) == len(results) + 2
    settings = read_settings(config, steps=1, seeds=[5])
    vanilla, cc = read_results(out, settings)
    assert (vanilla["seed"], cc["seed"]) == (5, 5)
    kept = from_pretrained(tmp_path / "models" / "cc-5")  # it answers as its result says
    collator = ParallelCollator(AutoTokenizer.from_pretrained(tmp_path / "models" / "cc-5"), max_length=96)
    for mode in ("english", "off"):
        assert ask(settings, kept, collator, load(settings, 5).questions, mode) == cc["modes"][mode]
    assert kept.cc.transform_matrix is None
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "vanilla-5")
    asked = ask(settings, stock, collator, load(settings, 5).questions, "vanilla")
    assert asked["correct"] == vanilla["modes"]["vanilla"]["correct"]
    assert asked["nll"] == pytest.approx(vanilla["modes"]["vanilla"]["nll"], abs=1e-4)


def cells(report, heading):
    """The rows of the first table after a heading."""
    lines = report.split(heading)[1].splitlines()
    table = [line for line in lines[: lines.index("", 4) if "" in lines[4:] else None] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table][2:]


def test_report_shows_the_results(run):
    _, out, results, _ = run
    report = (out / "report.md").read_text(encoding="utf-8")
    table = {row[0]: row[1:] for row in cells(report, "## Held-out accuracy")}
    assert set(table) == {"vanilla", "cc", "ramp"}
    for name, mode in (("vanilla", "vanilla"), ("cc", "matrix"), ("ramp", "matrix")):
        mean = sum(by_seed(results, name, mode, accuracy).values()) / 2
        assert float(table[name][{"vanilla": 1, "matrix": 3}[mode]].split(" ")[0]) == pytest.approx(mean, abs=0.05)
    assert "**2 of the planned jobs have not run.**" in report
    assert {row[0] for row in cells(report, "## Maps")} == {"matrix", "per_layer", "few"}
    for name in ("differences.png", "maps.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_report_needs_vanilla(tmp_path, config):
    with pytest.raises(SystemExit, match="results: expected at least one of condition 'vanilla'"):
        main([str(config), "--out", str(tmp_path), "--report"])


def test_prepared_data_is_the_built_data(config, tmp_path):
    built = read_settings(config)
    prepare(built, tmp_path)
    prepared = read_settings(config, data=str(tmp_path))
    assert all(prepared.fingerprint(name) == built.fingerprint(name) for name in built.conditions)
    for seed in built.seeds:
        assert load(prepared, seed) == load(built, seed)
    assert load(built, 0).questions != load(built, 1).questions
    with pytest.raises(ValueError, match=f"seeds: expected some of 0, 1, which {tmp_path} has, got 7"):
        load(prepared, 7)
    with pytest.raises(ValueError, match=r"data: expected rows\.jsonl and held_out\.json"):
        load(read_settings(config, data=str(tmp_path / "no")), 0)


def test_questions_are_known_in_english_only(config):
    data = load(read_settings(config, questions=1000), seed=0)
    train = {(row["language"], row["fact_id"]) for row in data.train}
    assert data.questions
    for row in data.questions:
        assert ("en", row["fact_id"]) in train
        assert (row["language"], row["fact_id"]) not in train
        assert row["language"] != "en"
    assert all(row["instruction_en"] for row in data.pairs)


@pytest.fixture
def job(config):
    """Settings, data, a patched model in evaluation mode and its collator."""
    settings = read_settings(config)
    data = load(settings, 0)
    model, collator = make_model(settings, settings.conditions["cc"], data, 0)
    return settings, data, model.eval(), collator


def test_likelihood_is_the_loss_per_answer(job):
    settings, data, model, collator = job
    found = ask(settings, model, collator, data.questions, "english")["nll"]
    for row, value in zip(data.questions, found):
        with torch.no_grad():
            assert model(**collator([row])).loss.item() == pytest.approx(value, abs=2e-3)
    batch = collator(data.questions)
    both = [answer_nll(model, {**batch}), answer_nll(model, {k: v for k, v in batch.items() if "pivot" not in k})]
    assert both[0] != both[1]


def test_map_quality_is_one_for_equal_prompts(job):
    _, data, model, collator = job
    rows = [{**row, "instruction": row["instruction_en"]} for row in data.pairs[:40]]
    fit_transform_matrix(model, prompt_batches(model, collator, rows, 8, progress=False), progress=False)
    assert map_quality(model, collator, rows, 8)["r2"] == pytest.approx(1.0, abs=1e-3)
    model.cc.transform_matrix = torch.zeros(32, 32)
    assert map_quality(model, collator, rows, 8)["r2"] < 0.01


def test_translations_share_their_prompt_in_an_experiment(job):
    """Training, fit and evaluation read it once; the map's quality is that of a pivot for each row."""
    settings, data, model, collator = job
    assert collator.share_pivots
    assert collator.loss_only
    rows = sorted(data.pairs, key=lambda row: row["instruction_en"])[:16]
    assert collator.prompts(rows)["pivot_input_ids"].shape[0] < 16
    fit_transform_matrix(model, prompt_batches(model, collator, rows, 8, progress=False), ridge=1.0, progress=False)
    apart = ParallelCollator(collator.tokenizer, max_length=settings.max_length)
    assert map_quality(model, collator, rows, 8) == pytest.approx(map_quality(model, apart, rows, 8), abs=2e-4)
    found, expected = (ask(settings, model, each, rows, "english") for each in (collator, apart))
    assert found["correct"] == expected["correct"]
    assert found["nll"] == pytest.approx(expected["nll"], abs=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "config: unknown entry 'stepz'"),
        ({"conditions": {"cc": {}}}, "conditions: expected one named 'vanilla', got cc"),
        ({"model": "both"}, "model: expected either model or scratch, got both"),
        ({"scratch": None}, "model: expected either model or scratch, got neither"),
        ({"maps_of": "nothing"}, "maps_of: expected one of vanilla, cc"),
        ({"maps": {"odd": {"rigde": 1}}}, r"maps: odd: expected some of ridge, .*, got \['rigde'\]"),
        ({"steps": 0}, "steps: expected a number above 0, got 0"),
        (
            {"conditions": {"vanilla": {"method": "plain"}}},
            "conditions: vanilla: method: expected one of vanilla, cc, both, got 'plain'",
        ),
        ({"conditions": {"vanilla": {"hardd": True}}}, "conditions: vanilla: config: unknown key 'hardd'"),
    ],
)
def test_wrong_configs(changes, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps({**TINY, **changes}))
    with pytest.raises(ValueError, match=message):
        read_settings(path)
