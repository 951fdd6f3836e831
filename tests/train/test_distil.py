"""train.distil: what a teacher answers and how sure it is, what is kept, going on where it was, and a student."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cc_model import patch_model
from cc_model.data.collator import ParallelCollator
from cc_model.testing import tiny_model
from train import distil
from train.common.answers import generate_answers
from train.common.models import load_trained, new_tokenizer
from train.distil import main
from train.distillation.selection import kept_report, taught_rows
from train.distillation.store import AnswerFile
from train.distillation.teacher import Answer, all_answers, write_answers
from train.sft import main as sft

SCRATCH = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SCRATCH |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
PROMPTS = [
    {"instruction": f"Wie heißt die Währung?\n{name}", "instruction_en": f"Which currency?\n{english}"}
    for name, english in (("Japan", "Japan"), ("Schweiz", "Switzerland"), ("Brasilien", "Brazil"), ("Indien", "India"))
]
SHORT = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
LABELLED = ["--dataset", "cldr", "--languages", "de", "en", "--relations", "currency", "--max_samples", "60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CC model; the vanilla one is in `vanilla` beside it, the prompts in `prompts.jsonl`."""
    root = tmp_path_factory.mktemp("runs")
    common = ["--scratch", json.dumps(SCRATCH), "--scratch_vocab_size", "400", *SHORT, *LABELLED]
    sft([*common, "--output_dir", str(root / "cc"), "--max_length", "80"])
    sft([*common, "--output_dir", str(root / "vanilla"), "--method", "vanilla"])
    write(root / "prompts.jsonl", [*PROMPTS, {"instruction": "Ohne Englisch?", "instruction_en": ""}])
    return root


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def command(folder, out, *more):
    given = ["--teacher", str(folder / "cc"), "--prompts", str(folder / "prompts.jsonl"), "--output_dir", str(out)]
    return [*given, "--device", "cpu", "--answer_batch_size", "2", "--max_new_tokens", "5", *more]


def student(*more):
    return ["--scratch", json.dumps(SCRATCH), "--scratch_vocab_size", "400", *SHORT, *LABELLED, *more]


@pytest.mark.parametrize("patched", [True, False])
def test_likelihood_is_that_of_the_answers_tokens(patched):
    """Against a forward of each row alone; some rows end early, some are cut off."""
    torch.manual_seed(0)
    model = tiny_model("llama", vocab_size=300, initializer_range=0.3)
    model = (patch_model(model) if patched else model).eval()
    collator = ParallelCollator(new_tokenizer(PROMPTS, 300))
    alone = {}
    for number, row in enumerate(PROMPTS):
        batch = collator.prompts([row], pivot=patched)
        names = batch if patched else ("input_ids", "attention_mask")
        asked = {name: batch[name] for name in names}
        alone[number] = (
            asked,
            model.generate(**asked, do_sample=False, max_new_tokens=6)[0, batch["input_ids"].shape[1] :],
        )
    end = int(alone[0][1][2])  # the first row then ends with its third token, if not before
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [end, 299], 0
    found = all_answers(model, collator, PROMPTS, batch_size=3, pivot=patched, max_new_tokens=6)
    for number, (asked, tokens) in alone.items():
        stop = (tokens == end).nonzero()
        tokens = tokens[: int(stop[0]) + 1] if len(stop) else tokens
        prompt = asked["input_ids"].shape[1]
        ids = torch.cat([asked["input_ids"], tokens[None]], dim=1)
        with torch.no_grad():
            logits = model(**{**asked, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[
                0, prompt - 1 : -1
            ]
        chosen = logits.log_softmax(-1)[range(len(tokens)), tokens]
        assert found[number].log_likelihood == pytest.approx(chosen.mean().item(), abs=2e-4)
        assert found[number].ended == bool(len(stop))
    assert {answer.ended for answer in found} == {True, False}


def test_answers_are_those_of_generate_and_the_prompts_alone_are_read():
    torch.manual_seed(1)
    model = patch_model(tiny_model("llama", vocab_size=300, initializer_range=0.3)).eval()
    collator = ParallelCollator(new_tokenizer(PROMPTS, 300))
    expected = generate_answers(model, collator, PROMPTS, 2, pivot=True, progress=False, max_new_tokens=4)
    labelled = [{**row, "output": "never read"} for row in PROMPTS]
    parts = list(write_answers(model, collator, labelled, batch_size=2, max_new_tokens=4))
    assert [len(part) for part in parts] == [2, 2]
    assert [answer.text for answer in all_answers(model, collator, labelled, max_new_tokens=4)] == expected
    off = all_answers(model, collator, PROMPTS, pivot=False, max_new_tokens=4)
    assert [answer.log_likelihood for answer in off] != [
        answer.log_likelihood for answer in all_answers(model, collator, PROMPTS, max_new_tokens=4)
    ]


def test_what_is_kept():
    answers = [Answer("Yen", -0.1), Answer("Franken", -0.9), Answer("", -0.1), Answer("Real", -0.2, ended=False)]
    assert [row["output"] for row in taught_rows(PROMPTS, answers)] == ["Yen", "Franken"]
    assert [row["output"] for row in taught_rows(PROMPTS, answers, -0.9)] == ["Yen", "Franken"]
    assert [row["output"] for row in taught_rows(PROMPTS, answers, -0.5)] == ["Yen"]
    report = kept_report(answers, -0.5)
    numbers = {"answers": 4, "kept": 1, "empty": 1, "cut off": 1, "below the threshold": 1, "less likely": 0}
    assert report["numbers"] == numbers
    assert report["quantiles"]["0.05"] == -0.9
    assert report["quantiles"]["0.95"] == -0.1
    assert kept_report([Answer("", -0.1)])["quantiles"] == {}
    with pytest.raises(ValueError, match=r"threshold: expected a mean log-likelihood, at most 0, got 0\.5"):
        taught_rows([], [], 0.5)
    with pytest.raises(ValueError, match="answers: expected one for each of 4 rows, got 1"):
        taught_rows(PROMPTS, answers[:1])


@pytest.mark.parametrize(
    ("keep", "kept"), [(0.4, ["Yen"]), (0.5, ["Yen", "Real"]), (0.01, ["Yen"]), (1.0, ["Yen", "Rand", "Real"])]
)
def test_the_likeliest_share_is_kept(keep, kept):
    """A share of the answers that could be kept: those that are empty or cut off are none of them."""
    answers = [
        Answer("Yen", -0.1),
        Answer("Rand", -0.9),
        Answer("", -0.01),
        Answer("Real", -0.5),
        Answer("x", 0, False),
    ]
    rows = [*PROMPTS, PROMPTS[0]]
    assert [row["output"] for row in taught_rows(rows, answers, keep=keep)] == kept
    numbers = kept_report(answers, keep=keep)["numbers"]
    assert (numbers["kept"], numbers["less likely"]) == (len(kept), 3 - len(kept))
    assert kept_report(answers, keep=keep)["quantiles"] == kept_report(answers)["quantiles"]


def test_a_chat_gets_its_answer_as_a_turn():
    question = {"role": "user", "content": "Land?"}
    for turns in ([question], [question, {"role": "assistant", "content": "old"}]):
        row = {"messages": turns, "messages_en": [{"role": "user", "content": "Country?"}]}
        [kept] = taught_rows([row], [Answer("Japan", -0.1)])
        assert kept["messages"] == [question, {"role": "assistant", "content": "Japan"}]


def test_answers_then_a_plain_student(folder, tmp_path, capsys):
    out = tmp_path / "student"
    main(command(folder, out, "--answers_only"))
    shown = capsys.readouterr().out
    assert "1 prompts have no English version and are left out" in shown
    lines = read(out / "answers.jsonl")
    assert sorted(line["row"] for line in lines) == [0, 1, 2, 3]
    teacher, collator = load_trained(str(folder / "cc"), device="cpu")
    expected = generate_answers(teacher, collator, PROMPTS, 1, pivot=True, progress=False, max_new_tokens=5)
    assert [line["output"] for line in sorted(lines, key=lambda line: line["row"])] == expected
    assert not (out / "rows.jsonl").exists()
    for line in lines:  # an untrained teacher does not end: as if it had
        line |= {"ended": True, "output": f"Antwort {line['row']}"}
    lines[0]["log_likelihood"] = -50.0
    write(out / "answers.jsonl", lines)
    main(command(folder, out, "--answers_only", "--keep", "0.25"))
    assert json.loads((out / "distil_report.json").read_text())["numbers"]["less likely"] == 3
    assert "keep 0.25" in capsys.readouterr().out
    main(command(folder, out, *student("--threshold", "-40")))
    rows = read(out / "rows.jsonl")
    assert len(rows) == 60 + 3
    assert {row["output"] for row in rows[60:]} == {f"Antwort {line['row']}" for line in lines[1:]}
    assert json.loads((out / "distil_report.json").read_text())["numbers"]["below the threshold"] == 1
    assert "60 labelled rows and 3 answers of the teacher" in capsys.readouterr().out
    model, _ = load_trained(str(out), device="cpu")
    assert not hasattr(model, "cc")


def test_a_connected_student(folder, tmp_path):
    main(command(folder, tmp_path, "--answers_only"))
    write(
        tmp_path / "answers.jsonl",
        [{**line, "ended": True, "output": "x"} for line in read(tmp_path / "answers.jsonl")],
    )
    main(command(folder, tmp_path, *student("--method", "cc")))
    assert hasattr(load_trained(str(tmp_path), device="cpu")[0], "cc")


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch, capsys):
    main(command(folder, tmp_path / "whole", "--answers_only"))
    whole = (tmp_path / "whole" / "answers.jsonl").read_text(encoding="utf-8")
    out = tmp_path / "cut"
    main(command(folder, out, "--answers_only"))
    first, second, _ = whole.split("\n", 2)
    (out / "answers.jsonl").write_text(f"{first}\n{second[:20]}", encoding="utf-8")  # killed in the middle of a line
    asked = []
    monkeypatch.setattr(
        distil, "write_answers", lambda *args, **options: asked.extend(args[2]) or write_answers(*args, **options)
    )
    main(command(folder, out, "--answers_only"))
    assert len(asked) == 3
    assert sorted((out / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == sorted(whole.splitlines())
    assert "1 of 4 prompts have an answer" in capsys.readouterr().out
    main(command(folder, out, "--answers_only"))
    assert len(asked) == 3
    main(command(folder, out, "--answers_only", "--overwrite"))
    assert len(asked) == 7


def test_answers_of_other_options_or_prompts_are_refused(folder, tmp_path):
    main(command(folder, tmp_path, "--answers_only"))
    with pytest.raises(SystemExit, match=r"max_new_tokens: the answers in .* were written with 5, now it is 6"):
        main([*command(folder, tmp_path, "--answers_only"), "--max_new_tokens", "6"])
    write(tmp_path / "others.jsonl", PROMPTS[::-1])
    with pytest.raises(SystemExit, match=r"prompts: line 1 of .*answers\.jsonl answers another prompt than row"):
        main([*command(folder, tmp_path, "--answers_only"), "--prompts", str(tmp_path / "others.jsonl")])
    with pytest.raises(ValueError, match=r"prompts: line . of .* answers another prompt than row [23] of these"):
        AnswerFile(tmp_path, PROMPTS[:2], {})  # fewer prompts than there are answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", ""], "train.distil: teacher: expected --teacher, got none"),
        (["--prompts", ""], "prompts: expected --prompts, got none"),
        (["--teacher", "nowhere"], "model: expected the output folder of train.sft, found no config.json in 'nowhere'"),
        (["--teacher", "{vanilla}"], "teacher: expected a model that reads English .*vanilla reads the question alone"),
        (["--prompts", "nowhere.jsonl"], "prompts: dataset: found no file 'nowhere.jsonl'"),
        (["--prompts", "{english}"], "prompts: expected rows with instruction_en, .* got none of 1"),
        (["--threshold", "0.5"], "threshold: expected a mean log-likelihood, at most 0, got 0.5"),
        (["--keep", "0"], "keep: expected a share of the answers, above 0 and at most 1, got 0.0"),
        (["--keep", "1.5"], "keep: expected a share of the answers, above 0 and at most 1, got 1.5"),
        (["--keep", "0.5", "--threshold", "-1"], "keep: expected either a threshold or a share .* got -1.0 and 0.5"),
        (["--max_new_tokens", "0"], "max_new_tokens: expected a positive number, got 0"),
        (["--answer_batch_size", "0"], "answer_batch_size: expected a positive number, got 0"),
        (["--answers_only", "false"], "dataset: expected --dataset with labelled rows, or --answers_only, got neither"),
        (
            ["--answers_only", "false", *LABELLED, "--model", "{vanilla}"],
            "threshold: expected answers to learn from, got none of 4",
        ),
    ],
)
def test_bad_arguments(folder, tmp_path, arguments, message):
    write(tmp_path / "english.jsonl", [{"instruction": "Hello", "instruction_en": ""}])
    names = {"vanilla": str(folder / "vanilla"), "english": str(tmp_path / "english.jsonl")}
    with pytest.raises(SystemExit, match=message):
        main([*command(folder, tmp_path / "out", "--answers_only"), *(each.format(**names) for each in arguments)])


def test_several_processes_are_told_what_to_do(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(
        SystemExit, match=r"expected one process, got 2: answer with --answers_only .* give rows\.jsonl to"
    ):
        main(command(folder, tmp_path, "--answers_only"))


def test_processes_that_do_not_know_of_each_other(folder, tmp_path, monkeypatch):
    """As accelerate starts them on a machine without an accelerator, unless it is told to use the CPU."""
    monkeypatch.setattr(distil, "launched_processes", lambda: 2)
    with pytest.raises(SystemExit, match="expected one process, got 2"):
        main(command(folder, tmp_path, "--answers_only"))
