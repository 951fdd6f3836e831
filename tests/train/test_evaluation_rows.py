"""Rows from local files and from the hub's schemas, and the task files."""

import json
import re
from pathlib import Path

import pytest

from train.evaluate import EvaluateArguments, run_evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from evaluation_data import made_rows, write_data, write_model

from train.evaluation import hub
from train.evaluation.benchmarks import BENCHMARKS, chosen, languages_of, prompts
from train.evaluation.hub import hub_rows, rows_from
from train.evaluation.rows import load, local_rows, prepared
from train.evaluation.runs import TASKS, load_task

SAMPLE = Path(__file__).parents[3] / "shared" / "eval_sample"
ROW = {"language": "zh", "id": 1, "prompt": "问？", "answer": "2"}


def mkqa(language, texts, kind=0, aliases=()):
    answers = [{"type": kind, "entity": None, "text": text, "aliases": list(aliases)} for text in texts]
    return {"queries": {language: "何？"}, "answers": {language: answers}}


# Raw rows as the hub has them, by benchmark and language, and the answers that they give.
RAW = [
    ("xnli", "sw", {"premise": "P", "hypothesis": "H", "label": 2}, ["3"]),
    (
        *("xstorycloze", "en"),
        {**{f"input_sentence_{n}": f"S{n}." for n in range(1, 5)}, "sentence_quiz1": "E1", "sentence_quiz2": "E2"}
        | {"answer_right_ending": 2},
        ["2"],
    ),
    ("mmmlu", "yo", {"Question": "Q", "A": "a", "B": "b", "C": "c", "D": 4, "Answer": "C", "Subject": "x"}, ["C"]),
    ("mmmlu", "en", {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "x"}, ["D"]),
    ("xquad", "de", {"context": "K", "question": "F?", "answers": {"text": ["x", "x"], "answer_start": [1, 1]}}, ["x"]),
    ("mkqa", "ja", mkqa("ja", ["一", "二"], aliases=["ひとつ"]), ["一", "ひとつ", "二"]),
    ("mkqa", "zh", mkqa("zh_cn", ["一"], kind="entity"), ["一"]),
    ("xlsum", "ur", {"title": "T", "text": "X", "summary": "S", "url": "u"}, ["S"]),
]


@pytest.mark.parametrize("case", RAW, ids=lambda case: f"{case[0]} {case[1]}")
def test_rows_of_the_hub(case):
    name, language, raw, answers = case
    (row,) = rows_from(name, language, [raw])
    assert row["answer"] == answers
    assert (row["id"], row["language"]) == (0, language)
    assert not re.search(r"\{\w+\}", row["prompt"])
    prepared(name, row)  # the answer is among the choices


def test_prompts_of_the_hub():
    by_name = {(name, language): rows_from(name, language, [raw])[0]["prompt"] for name, language, raw, _ in RAW}
    assert by_name["xnli", "sw"].startswith("Nguzo: P\nNadharia: H\n\n")
    assert by_name["xstorycloze", "en"].startswith("S1.S2.S3.S4.\n(1) E1\n(2) E2\n\n")
    assert "\n\nQ\n(A) a\n(B) b\n(C) c\n(D) 4\n\n" in by_name["mmmlu", "yo"]
    assert "\n\nQ\n(A) a\n(B) b\n(C) c\n(D) d\n\n" in by_name["mmmlu", "en"]
    assert "Kontext: K\nFrage: F?\n\nIhre Antwort:" in by_name["xquad", "de"]
    assert by_name["mkqa", "zh"] == "请回答以下问题。\n\n何？\n\n您的答案："
    assert by_name["xlsum", "ur"].endswith("\nT\nX")


@pytest.mark.parametrize("kind", [1, 2, "long_answer", "unanswerable"])
def test_unanswerable_questions_are_left_out(kind):
    assert rows_from("mkqa", "ja", [mkqa("ja", [None], kind), mkqa("ja", ["一"])])[0]["id"] == 1
    assert rows_from("mkqa", "ja", [mkqa("ja", ["Ja."], kind)]) == []


def test_names_on_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "load_dataset", lambda *args, **options: asked.append((*args, options)) or [])
    for name in BENCHMARKS:
        for language in languages_of(name):
            assert hub_rows(name, language) == []
    configs = [config for path, config, _ in asked if path in ("openai/MMMLU", "cais/mmlu")]
    assert configs == ["AR_XY", "BN_BD", "all", "ES_LA", "HI_IN", "ID_ID", "KO_KR", "PT_BR", "SW_KE", "YO_NG"]
    configs = [config for path, config, _ in asked if path == "csebuetnlp/xlsum"]
    assert configs == [
        *("arabic", "english", "french", "hindi", "indonesian", "russian", "swahili", "turkish", "urdu", "vietnamese")
    ]
    assert ("google/xquad", "xquad.th", {"split": "validation"}) in asked
    assert ("facebook/xnli", "el", {"split": "test"}) in asked
    assert ("cais/mmlu", "all", {"split": "test"}) in asked
    assert len(asked) == 60


def test_data_sets_published_as_scripts_come_from_the_conversion(monkeypatch):
    def download(path, config, split, revision=None):
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found xlsum.py")
        assert revision == "refs/convert/parquet"
        return [{"title": "T", "text": "X", "summary": "S"}]

    monkeypatch.setattr(hub, "load_dataset", download)
    assert load("xlsum", "fr")["test"]["answers"][:] == [["S"]]


def test_hub_errors(monkeypatch):
    def download(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "load_dataset", download)
    with pytest.raises(ValueError, match=r"data: apple/mkqa \(mkqa, train\) could not be loaded from the hub: no netw"):
        load("mkqa", "ja")
    with pytest.raises(ValueError, match=r"language: expected one of ar, .*, got 'ja'"):
        hub_rows("xnli", "ja")
    with pytest.raises(ValueError, match=r"benchmarks: expected some of xnli, .*, got 'glue'"):
        load("glue", "en")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"expected one JSON object per line, line 2 of .*xnli.jsonl is not: '\{'"),
        ("[1]", r"expected one JSON object per line, line 2 of .*xnli.jsonl is '\[1\]'"),
        (json.dumps({**ROW, "prompt": ""}), "expected text in field 'prompt' of xnli.jsonl, line 2, got ''"),
        (json.dumps({**ROW, "language": None}), "expected text in field 'language' of xnli.jsonl, line 2, got None"),
        (json.dumps({**ROW, "id": None}), "expected a number or text in field 'id' of xnli.jsonl, line 2, got None"),
        (json.dumps({**ROW, "answer": 2}), "in field 'answer' of xnli.jsonl, line 2, got 2"),
        (json.dumps({**ROW, "answer": []}), r"in field 'answer' of xnli.jsonl, line 2, got \[\]"),
        (json.dumps({"language": "zh", "id": 1, "prompt": "a"}), "in field 'answer' of xnli.jsonl, line 2, got None"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    (tmp_path / "xnli.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(ValueError, match=f"data: .*{message}"):
        local_rows("xnli", "zh", str(tmp_path))


@pytest.mark.parametrize("field", ["prompt", "id", "answer"])
def test_half_a_character(tmp_path, field):
    (tmp_path / "mkqa.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps({**ROW, field: chr(0xD800)})}\n")
    with pytest.raises(ValueError, match=f"data: field '{field}' of mkqa.jsonl, line 2 must be valid Unicode text"):
        local_rows("mkqa", "zh", str(tmp_path))


def test_local_files_in_every_spelling(tmp_path):
    """Line separators inside texts, a byte order mark, an array: as train.common.files reads them."""
    rows = [{**ROW, "id": number, "prompt": "a\u2028b\x85c"} for number in range(2)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for number, content in enumerate((lines, "\ufeff" + lines, json.dumps(rows, indent=1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "xnli.jsonl").write_text(content, encoding="utf-8")
        assert local_rows("xnli", "zh", str(folder)) == rows


def test_missing_languages_and_wrong_choices(tmp_path):
    (tmp_path / "xnli.jsonl").write_text(json.dumps({**ROW, "answer": "4"}) + "\n\n")
    with pytest.raises(ValueError, match=r"data: expected rows with language 'ar' in xnli\.jsonl, found none"):
        load("xnli", "ar", str(tmp_path))
    with pytest.raises(ValueError, match="answer: expected one of 1, 2, 3 in row 1, got '4'"):
        load("xnli", "zh", str(tmp_path))


def test_limit_and_repeated_answers(tmp_path):
    rows = [{**ROW, "id": number, "answer": ["a", "b", "a"]} for number in range(4)]
    (tmp_path / "mkqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load("mkqa", "zh", str(tmp_path), limit=2)["test"]
    assert found["id"][:] == ["0", "1"]
    assert found["answers"][0] == ["a", "b"]


def test_task_files(tmp_path):
    """One file per benchmark and language, each of which loads with its rows and its prompt."""
    data = write_data(tmp_path / "data", count=2)
    assert {f"{path.parent.name} {path.stem}" for path in TASKS.rglob("*.yaml")} == {
        f"{name} {language}" for name in BENCHMARKS for language in languages_of(name)
    }
    for name, language in chosen(BENCHMARKS):
        task = load_task(name, language, str(data), max_new_tokens=7)
        expected = made_rows(name, language, 2)
        docs = list(task.test_docs())
        assert [task.doc_to_text(doc) for doc in docs] == [row["prompt"] for row in expected]
        assert task.config.tag == f"cc_{name}" or task.config.tag is None
        if BENCHMARKS[name].choices:
            assert [task.doc_to_choice(doc)[task.doc_to_target(doc)] for doc in docs] == [
                row["answer"] for row in expected
            ]
        else:
            assert [task.doc_to_target(doc) for doc in docs] == [row["answer"] for row in expected]
            assert task.config.generation_kwargs["max_gen_toks"] == 7


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of real rows is not beside the checkout")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_prompts_are_those_of_the_sample(name):
    """Every prompt of the real rows is taken apart and written again from its fields."""
    pattern = re.compile(r"\\\{(\w+)\\\}")
    count = 0
    for language in languages_of(name):
        template = prompts()[name][language]
        whole = re.compile(pattern.sub(r"(?P<\1>.*?)", re.escape(template)), re.DOTALL)
        for row in local_rows(name, language, str(SAMPLE)):
            assert template.format(**whole.fullmatch(row["prompt"]).groupdict()) == row["prompt"]
            count += 1
    assert count == 200


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of real rows is not beside the checkout")
def test_real_rows(tmp_path):
    """All rows of the real sample, in all languages; the prompts are the paper's."""
    summary = run_evaluate(
        EvaluateArguments(
            str(write_model(tmp_path / "model")),
            **{"data": str(SAMPLE), "out": str(tmp_path / "out"), "mode": "matrix"},
            **{"max_length": 96, "max_new_tokens": 2, "batch_size": 64},
        )
    )
    assert {benchmark: part["lines"][-1]["rows"] for benchmark, part in summary.items()} == dict.fromkeys(summary, 200)
    for benchmark in summary:
        rows = [json.loads(line) for line in (SAMPLE / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in rows:
            template = prompts()[benchmark][row["language"]]
            start, end = template.split("{", 1)[0], template.rsplit("}", 1)[1]
            assert row["prompt"].startswith(start)
            assert row["prompt"].endswith(end)
