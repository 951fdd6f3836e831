"""The report of all kinds of records, and its comparison of two commits."""

from __future__ import annotations

import copy
import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks import report
from benchmarks.show import experiment, tests
from benchmarks.show.kinds import KINDS
from benchmarks.show.table import Table

SPREAD = {"median": 2.0, "low": 1.0, "high": 3.0, "min": 1.0, "samples": 3}
FACTS = {"device": "a CPU", "torch": "2.13", "triton": None, "transformers": "5.24", "commit": "abc1234567"}
STEP = {
    "seconds": SPREAD,
    "phases": dict.fromkeys(("forward", "backward", "optimizer"), SPREAD),
    "ratio": SPREAD,
    "tokens_per_second": 100.0,
    "peak_bytes": 2**20,
    "forward_ops": {"ops": 10, "views": 4, "synchronising_ops": 0},
}
PROMPT = {
    "first_token": SPREAD,
    "decode_step": SPREAD,
    "ratio": SPREAD,
    "added_steps": SPREAD,
    "tokens_per_second": 1.0,
    "kernels": 5,
    "device_ms": 1.25,
    "reported_waits": 1,
}
INFER = {
    "rows": 1,
    "tokens": 64,
    "options": {},
    "predicted": {"one prefill": 1.0, "two": 2.0},
    "modes": {"vanilla": PROMPT, "ours": PROMPT},
}
PROFILE = {
    "kind": "profile_fusion",
    "facts": FACTS,
    "arguments": {"model": "tiny", "dtype": "fp32"},
    "train": {
        "rows": 2,
        "tokens": 8,
        "pivot": 6,
        "optimizer": "sgd",
        "predicted": 1.2,
        "predicted_forward_backward": 1.25,
        "modes": {"vanilla": STEP, "ours": STEP, "published": {"refused": "OutOfMemoryError: too large"}},
    },
    "infer": INFER,
    "curve": [INFER],
    "static": {"error": "RuntimeError: broken"},
}
RUN = {"loss": [2.0, 1.0], "seconds": SPREAD, "ratio": SPREAD, "tokens_per_second": 9.0, "peak_bytes": 2**20}
TRAIN_RUN = {
    "kind": "train_run",
    "facts": FACTS,
    "arguments": {"model": "tiny"},
    "steps": 2,
    "loss_difference": {"max": 0.1, "mean": 0.05},
    "runs": {"fused": RUN, "torch": RUN},
}
FIT = {
    "kind": "fit_matrix",
    "facts": FACTS,
    "arguments": {"model": "tiny"},
    "rows": [
        {"pairs": 10, "method": "streaming", "seconds": 1.0, "bytes": 2**20},
        {"pairs": 10, "method": "stacking", "refused": "MemoryError"},
    ],
}
ROWS = [
    {
        "case": "swiglu 4x4",
        "implementation": "cc_kernels",
        "device_us": SPREAD,
        "eager_us": SPREAD,
        "share_of_copy": 0.5,
    },
    {"case": "swiglu 4x4", "implementation": "eager", "refused": "wrong"},
    {"case": "swiglu 8x8", "implementation": "all", "left out": "no time left"},
]
OPS = {"kind": "ops", "facts": FACTS, "copy": 1e12, "ops": {"swiglu": ROWS, "add_rows": ROWS[2:]}}
TESTED = {"returncode": 0, "passed": 7, "skipped": 1, "failures": []}
CHECK = {"sections": {"device": {"gpu": "a GPU", "torch": "2.11"}, "tests": TESTED, "copy": 1e12, "swiglu": ROWS}}
CALL = {"op": "swiglu", "implementation": "cc_kernels", "us": 9.5, "least_us": 9}
FORWARD = {"layers": 32, "implementation": "cc_model", "us": 900.0, "us_per_layer_beyond_two_stock": 4.25}
HOST = {"device": FACTS, "dry": True, "rows": [CALL, FORWARD]}
TUNE = [
    {"case": "swiglu 4x4", "knob": "swiglu_config", "candidate": {"block": size}, "us": {**SPREAD, "median": size / 64}}
    for size in (256, 128)
]
STUDY = {
    "kind": "experiment",
    "facts": FACTS,
    "config": "a.yaml",
    "results": [
        {"condition": "cc", "seed": seed, "modes": {"matrix": {"correct": answers}}}
        for seed, answers in enumerate(("01", "11"))
    ],
}
SUITES = {
    "machine_info": {},
    "commit_info": {"id": "abc"},
    "benchmarks": [
        {
            "name": "test_swiglu[a]",
            "group": "swiglu 4x4",
            "stats": {"median": 1e-6, "q1": 1e-6, "q3": 2e-6},
            "extra_info": {"implementation": "eager", "gb_per_s": 1.0, "share_of_copy": 0.25, **FACTS},
        }
    ],
}
RUNS = {
    "kind": "gpu",
    "smoke": False,
    "facts": {**FACTS, "committed": "2026-01-01"},
    "jobs": {
        "a": {"state": "done", "seconds": 9.0, "content": {"fit": "0"}, "record": FIT},
        "b": {"state": "left out", "why": "no time left"},
        "c": {"state": "failed", "seconds": 1.0, "why": "out of memory"},
    },
}
SERVED = {
    "kind": "serve",
    "facts": {**FACTS, "vllm": "1.2.3"},
    "arguments": {"model": "tiny", "requests": 5, "prompts": [4, 9], "tokens": 3, "batch": 2},
    "clock": "wall",
    "equal": {"plain": 5, "connected": 4},
    "ways": {
        "vLLM, plain": dict.fromkeys(
            ("requests_per_second", "tokens_per_second", "ratio", "first_token", "alone", "alone_ratio"), SPREAD
        )
    },
}
RECORDS = {
    "serve": SERVED,
    "profile": PROFILE,
    "run": TRAIN_RUN,
    "fit": FIT,
    "ops": OPS,
    "check": CHECK,
    "suites": SUITES,
    "gpu": RUNS,
    "host": HOST,
    "tune": TUNE,
    "study": STUDY,
}


@pytest.fixture
def folder(tmp_path):
    """All kinds of records, and JSON of another origin."""
    for name, record in {**RECORDS, "other": [1, 2]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_every_kind_of_record(folder, tmp_path):
    out = tmp_path / "out"
    assert report.main([str(folder), "--out", str(out)]) == 0
    page = (out / "report.md").read_text()
    for name in RECORDS:
        assert f"## {name}\n" in page
    assert "## other" not in page
    assert "| ours | 2000.00 (1000.00–3000.00) |" in page
    assert "| published | refused |" in page
    assert "## gpu/a\n" in page
    assert "## check/tests\n" in page
    assert "- refused or failed: static: RuntimeError: broken" in page
    assert "- refused or failed: train, published: OutOfMemoryError: too large" in page
    assert "| 10 | 1.00 | 1.0 | – | – | – |" in page
    assert page.count("| swiglu 4x4 | 2.0 (50%) | refused |") == 2
    assert "- refused or failed: swiglu 4x4, eager: wrong" in page
    assert "- refused or failed: swiglu 8x8, all: no time left" in page
    assert "| 7 | 0 | 0 | 1 | all ran |" in page
    assert "| swiglu | 9.5 |" in page
    assert "| 32 | 4.2 |" in page
    assert "| swiglu_config | swiglu 4x4 | 4.00 | 2.00 | block 128 |" in page
    assert "| cc | 75.0 % | 2 |" in page
    assert "by the clock on the wall: 5 requests at once" in page
    assert "- refused or failed: connected: 4 of 5 answers equal generate's" in page
    assert "- refused or failed: job c: failed, out of memory" in page
    assert "| eager | 1.0 (1.0–2.0) | 1.0 | 25% |" in page
    assert "| b | left out | – | no time left |" in page
    plots = [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(plots) == 5  # two of a profile, one of a run, two of fits
    assert all((out / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_comparison_of_two_commits(tmp_path):
    """Numbers that both have are divided; others are left out."""
    newer = copy.deepcopy(PROFILE)
    newer["facts"]["commit"] = "def7654321"
    newer["train"]["modes"]["ours"]["seconds"]["median"] = 1.0
    del newer["infer"]
    for name, record in {"old": PROFILE, "new": newer}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    files = [str(tmp_path / f"{name}.json") for name in ("new", "old")]
    assert report.main([files[0], "--against", files[1], "--out", str(out)]) == 0
    comparison = (out / "report.md").read_text().split("## Comparison")[1]
    assert "commit abc1234567" in comparison
    assert "| a CPU, fp32: tiny, train 2 x 8, pivot 6, ours, seconds | 2 | 1 | 0.500 |" in comparison
    assert "infer" not in comparison


def test_every_kind_gives_numbers_with_names_of_their_own(folder):
    records = report.read_all([folder])
    assert {record["kind"] for record in records.values()} == set(KINDS) - {"versions"}  # nothing in it is compared
    for name, record in records.items():
        names = [number.name for number in KINDS[record["kind"]].numbers(record)]
        assert names, name
        assert len(set(names)) == len(names), name


def test_rows_are_as_long_as_their_header():
    with pytest.raises(ValueError, match="rows: expected 2 cells, as the header of 'Times', got"):
        Table("Times", ["mode", "ms"], [["ours"]])


def test_two_files_of_one_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(TRAIN_RUN))
    assert list(report.read_all([tmp_path / "a", tmp_path / "b"])) == ["run", "run-2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "expected a file or a folder, found nothing at"),
        ("broken.json", "{", "expected JSON in"),
        ("other.json", "[1]", "expected a record of one of profile_fusion"),
        ("kind.json", '{"kind": "unheard"}', "expected a record of one of profile_fusion"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, name, content, message, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        report.main([str(path)])
    assert message in capsys.readouterr().err


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="results: found no record in"):
        report.read_all([tmp_path])


def test_halves_of_an_experiment_are_told_apart():
    """What a student was taught and what nobody taught it are no one number."""
    results = [{"condition": "s", "halves": "AAB", "modes": {"vanilla": {"correct": "110"}}}]
    [found] = experiment.tables({**STUDY, "results": results})
    assert found.rows == [["s", "100.0 %", "0.0 %", "1"]]
    assert found.header[1:3] == ["vanilla, A", "vanilla, B"]


@pytest.mark.parametrize(
    ("content", "title"), [("tests", "Kernel tests"), ("golden", "Golden vectors"), ("model-tests", "Model tests")]
)
def test_records_of_tests_say_of_which(content, title):
    record = {"facts": {"device": "a GPU"}, "content": {content: "digest"}, "passed": 3}
    (table,) = tests.tables(record)
    assert table.title == f"{title}, a GPU"
    assert {number.name for number in tests.numbers(record)} == {
        f"{title}, {name}" for name in ("passed", "failed", "errors", "skipped")
    }
