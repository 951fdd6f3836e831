"""The command for a few minutes of a GPU: its list, its plan, its limits, what it keeps; all of it without a GPU."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest
from gpu_programs import arguments, job

from benchmarks import gpu
from benchmarks.baselines import MODES
from benchmarks.jobs import book, kernel_tests, planning, running
from benchmarks.jobs.listing import JOBS
from benchmarks.jobs.running import Ended
from benchmarks.measure.record import ROOT
from benchmarks.measure.sources import SOURCES, contents
from benchmarks.ops.__main__ import OPS
from benchmarks.show.kinds import KINDS, read

pytestmark = pytest.mark.usefixtures("without_device")

# The list


def test_names_differ_and_parts_are_known():
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert all(set(job.parts) <= set(SOURCES) for job in JOBS)


def test_the_first_jobs_are_the_tests_and_the_step():
    names = [job.name for job in JOBS]
    assert names[:4] == ["golden", "kernel-tests", "model-tests", "step-1b"]
    assert sum(job.seconds for job in JOBS[:2]) <= 100
    assert sum(job.seconds for job in JOBS[:3]) <= 150


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
@pytest.mark.parametrize("smoke", [False, True], ids=["gpu", "smoke"])
def test_commands_are_understood_by_their_programs(job, smoke, tmp_path):
    command = gpu.command_of(job, arguments(tmp_path, *(["--smoke"] if smoke else [])), tmp_path, 30)
    module = import_module(command[0])
    if hasattr(module, "parser"):
        known, others = module.parser().parse_known_args(command[1:])
        assert not others or job.parts == ("experiment",)
        configs = [word for word in command if word.startswith("train/configs/")]
        assert all((ROOT / config).is_file() for config in configs)
        assert getattr(known, "seconds", 30) == 30
    else:
        assert callable(module.main)


def test_every_op_has_a_job():
    measured = {part for job in JOBS for part in job.parts}
    assert set(OPS) <= measured


def test_modes_are_asked_of_the_registry():
    """A mode is one line in MODES; no job names one that could be missing."""
    names = {kind.name for kind in MODES} | {"eager", "compiled", "all"}
    for listed_job in JOBS:
        words = shlex.split(listed_job.command)
        asked = words[words.index("--mode") + 1].split(",") if "--mode" in words else []
        assert set(asked) <= names


def test_what_the_kernel_tests_leave_out_exists():
    assert all((ROOT / name).is_file() for name in kernel_tests.WITHOUT_GPU)
    assert all((ROOT / path / file).is_file() for path, (_, file) in kernel_tests.PARTS.items())
    assert all((ROOT / path / file).is_file() for path, files in kernel_tests.FILES.items() for file in files)


# The plan


def test_plan_needs_no_gpu(tmp_path):
    """As a person types it; no device and no output folder are asked for."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--plan", "--minutes", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Jobs for 4 minutes" in done.stdout
    assert all(job.name in done.stdout for job in JOBS)


def test_plan_says_what_is_answered_left_out_and_out_of_time(tmp_path, listed):
    listed(
        job("a", "told"), job("b", "told"), job("c", "told", needs="weights"), job("d", "told", 600), job("e", "told")
    )
    table = gpu.plan(arguments(tmp_path, "--minutes", "1"), {"a": "run.json, commit abc"})
    assert [row[3] for row in table.rows] == [
        "answered: run.json, commit abc",
        "ends after about 30 s",
        "left out: needs --prepared DIR with weights",
        "no time left",
        "ends after about 60 s",
    ]


def test_two_calls_have_room_for_what_the_document_says():
    rows = {row[0].strip("`"): row[3] for row in planning.calls_table().rows}
    assert rows["step-1b"] == "1 (7 minutes)"
    assert "2 (4 minutes)" in rows.values()
    assert sum(job.seconds for job in JOBS if rows[job.name].startswith("2")) <= 1.5 * 240


# A run


def test_what_ended_is_kept_whatever_comes_after(tmp_path, program, listed, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT_EXTRA", 0.5)
    jobs = (
        job("good", "told record {folder}/record.json"),
        job("broken", "told raise"),
        job("silent", "told nothing"),
        job("slow", "told sleep {folder}/record.json", 1),
        job("late", "told record {folder}/record.json", 6000),
        job("last", "told status 0", 1),
    )
    listed(*jobs)
    given = arguments(tmp_path, "--minutes", "1")
    assert gpu.run_all(given, {}) == 4
    (path,) = [file for file in given.out.iterdir() if file.is_file()]
    kept = json.loads(path.read_text())
    assert {name: entry["state"] for name, entry in kept["jobs"].items()} == {
        "good": "done",
        "broken": "failed",
        "silent": "failed",
        "slow": "stopped",
        "late": "left out",
        "last": "failed",
    }
    assert kept["jobs"]["good"]["record"]["kind"] == "train_run"
    assert kept["jobs"]["slow"]["record"]["partial"] is True
    assert "RuntimeError: broken" in kept["jobs"]["broken"]["why"]
    assert "ended without a record" in kept["jobs"]["silent"]["why"]
    assert "no time left" in kept["jobs"]["late"]["why"]


def test_the_file_is_written_as_each_job_ends(tmp_path, program, listed, monkeypatch):
    listed(job("one", "told record {folder}/record.json"), job("two", "told nothing"))
    stock, seen = gpu.run, []

    def watch(module, given, log, limit, needs_gpu):
        seen.append(json.loads((tmp_path / "out" / "gpu.json").read_text())["jobs"])
        return stock(module, given, log, limit, needs_gpu)

    monkeypatch.setattr(gpu, "run", watch)
    gpu.run_all(arguments(tmp_path), {})
    assert [entry["state"] for entry in seen[1].values()] == ["done", "running"]


def test_the_same_miniature_runs_once_in_a_smoke_test_only(tmp_path, program, listed, monkeypatch):
    listed(job("one", "told record {folder}/record.json"), job("two", "told record {folder}/record.json"))
    for smoke, states in ((["--smoke"], ["", "the miniature of one"]), ([], ["", ""])):
        gpu.run_all(arguments(tmp_path, *smoke), {})
        kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["jobs"]
        assert [entry.get("why", "") for entry in kept.values()] == states
        assert {entry["state"] for entry in kept.values()} == {"done"}


def test_a_run_that_is_told_to_stop_keeps_what_the_job_had(tmp_path, program, listed, monkeypatch):
    listed(job("one", "told record {folder}/record.json"), job("two", "told sleep {folder}/record.json"))
    stock, record = running._wait, tmp_path / "out" / "jobs" / "two" / "work" / "record.json"

    def told(child, deadline):
        """As the handler of a signal: in the middle of waiting for the second job."""
        if not record.parent.is_dir():
            return stock(child, deadline)
        while not (record.is_file() and record.read_text()):
            time.sleep(0.05)
        monkeypatch.setattr(running, "_wait", stock)
        raise SystemExit(143)

    monkeypatch.setattr(running, "_wait", told)
    with pytest.raises(SystemExit):
        gpu.run_all(arguments(tmp_path), {})
    jobs = json.loads((tmp_path / "out" / "gpu.json").read_text())["jobs"]
    assert [entry["state"] for entry in jobs.values()] == ["done", "stopped"]
    assert jobs["two"]["record"]["partial"] is True


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path, program, listed):
    jobs = listed(job("one", "told record {folder}/record.json"), job("two", "told raise"))
    given = arguments(tmp_path)
    gpu.run_all(given, {})
    answers = book.answered(given.out)
    assert list(answers) == ["one"]
    assert answers["one"].startswith("gpu.json, commit ")
    assert gpu.run_all(given, answers) == 1
    states = {name: entry["state"] for name, entry in json.loads((given.out / "gpu.json").read_text())["jobs"].items()}
    assert states == {"one": "answered", "two": "failed"}
    assert gpu.run_all(arguments(tmp_path, "--only", jobs[0].name), answers) == 0, (
        "what is asked for by name runs again"
    )


@pytest.mark.parametrize("change", [{"content": {"fit": "other"}}, {"state": "stopped"}, {"smoke": True}])
def test_other_code_a_stopped_job_and_a_smoke_test_answer_nothing(tmp_path, listed, change):
    listed(job("one", "told"))
    entry = {"state": "done", "content": contents(["fit"]), "record": {"facts": {"commit": "abc"}}}
    kept = {"kind": "gpu", "facts": {}, "jobs": {"one": entry}}
    for run_file, answered in ((kept, ["one"]), ({**kept, "smoke": change.get("smoke", False)}, [])):
        if answered == [] and "smoke" not in change:
            entry |= change
        (tmp_path / "gpu.json").write_text(json.dumps(run_file))
        assert list(book.answered(tmp_path)) == answered


def test_smoke_runs_every_job_in_miniature(tmp_path):
    """In a process of its own, as a person does: jobs are forks of it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["smoke"] is True
    assert {name: entry["state"] for name, entry in kept["jobs"].items()} == {job.name: "done" for job in JOBS}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["gpu.json"], "one file comes back"
    shown = read(tmp_path / "gpu.json")
    for listed_job in JOBS:
        record = shown[f"gpu/{listed_job.name}"]
        assert list(KINDS[record["kind"]].tables(record)), listed_job.name
        assert kept["jobs"][listed_job.name]["content"] == contents(listed_job.parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--plan", "--only", "step-2b"], "--only: expected names of golden, kernel-tests, model-tests"),
        (["--plan", "--minutes", "0"], "--minutes: expected a positive number, got 0"),
        ([], "--out: expected a folder, got none"),
        (["--out", "x"], "expected a GPU that torch can use, found none"),
    ],
)
def test_what_cannot_run_is_refused(given, message, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "_has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(given)
    assert message in capsys.readouterr().err


def test_signals_of_the_parent_end_the_run():
    with pytest.raises(SystemExit) as ended:
        gpu._stop(signal.SIGTERM, None)
    assert ended.value.code == 143


def test_ended_is_what_the_book_says(tmp_path, listed):
    (one,) = listed(job("one", "told"))
    kept = book.Book(tmp_path, smoke=False)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "record.json").write_text("{broken")
    assert kept.keep(one, ["told"], Ended(0, 1.0, ""), tmp_path / "work") == "failed"
