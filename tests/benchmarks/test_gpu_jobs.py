"""One job of the GPU command: a process of its own, how it ends, what it needs, and what is prepared for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_programs import PROGRAM, arguments

from benchmarks import gpu
from benchmarks.jobs import kernel_tests, prepare, running
from benchmarks.jobs.listing import JOBS
from benchmarks.jobs.running import run
from benchmarks.measure.record import ROOT
from train.experiment.data import prepare as prepare_rows
from train.experiment.settings import read_settings

pytestmark = pytest.mark.usefixtures("without_device")


def test_a_job_is_a_process_of_its_own(tmp_path, program):
    record = tmp_path / "record.json"
    ended = run(program, ["record", str(record)], tmp_path / "log", 30, needs_gpu=False)
    assert (ended.status, ended.tail) == (0, "doing record\n")
    assert json.loads(record.read_text())["kind"] == "train_run"
    assert "told" not in sys.modules


@pytest.mark.parametrize(
    ("told", "status", "said"),
    [(["status", "3"], 3, "doing status"), (["raise"], 1, "RuntimeError: broken"), (["exit"], 1, "said why")],
)
def test_how_a_job_fails_is_told(tmp_path, program, told, status, said):
    ended = run(program, told, tmp_path / "log", 30, needs_gpu=False)
    assert ended.status == status
    assert said in ended.tail


@pytest.mark.parametrize("listens", [True, False], ids=["listens", "ignores"])
def test_a_job_is_stopped_with_what_it_started(tmp_path, program, monkeypatch, listens):
    """Also one that does not listen, and whose children do not either."""
    monkeypatch.setattr(running, "GRACE", 0.5)
    seconds = f"61.{os.getpid()}"
    deaf = "" if listens else "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    told = f"{deaf}import subprocess; subprocess.run(['sleep', '{seconds}'])"
    (tmp_path / "told.py").write_text(PROGRAM.replace("time.sleep(60)", told))
    started = time.monotonic()
    ended = run(program, ["sleep", str(tmp_path / "record.json")], tmp_path / "log", 1.5, needs_gpu=False)
    assert ended.status is None
    assert time.monotonic() - started < 30
    assert not running_commands(seconds)


def test_what_a_job_left_behind_does_not_outlive_it(tmp_path, program):
    seconds = f"62.{os.getpid()}"
    told = f"__import__('subprocess').Popen(['sleep', '{seconds}'])\n    return int"
    (tmp_path / "told.py").write_text(PROGRAM.replace("return int", told))
    assert run(program, ["nothing"], tmp_path / "log", 30, needs_gpu=False).status == 0
    assert not running_commands(seconds)


def running_commands(word):
    """Commands of living processes that have a word in them; one that is killed may take a moment to go."""
    for _ in range(40):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                found.append((process / "cmdline").read_text())
            except OSError:  # gone meanwhile
                continue
        found = [command for command in found if word in command]
        if not found:
            break
        time.sleep(0.05)
    return found


def test_an_unusable_device_starts_a_fresh_interpreter(tmp_path, monkeypatch):
    """In its place, with the same arguments: here it is a module that only a new process can have run."""
    monkeypatch.setattr(running, "_device_works", lambda: False)
    (tmp_path / "fresh.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run("fresh", ["a", "b"], tmp_path / "log", 30, needs_gpu=True)
    assert (ended.status, ended.tail) == (0, "__main__ ['a', 'b']\n")


ABSENT = """
from importlib.machinery import PathFinder

NAMES = {"datasets", "babel", "liger_kernel", "trl", "lm_eval", "gguf", "nnsight"}
stock = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in NAMES else stock(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""


STUDY = "train/configs/experiment_cpu.yaml"


@pytest.fixture
def few_packages(tmp_path):
    """Runs a module in a Python that has no datasets, Babel, Liger, TRL and lm-eval, as the machine."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ABSENT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])

    def start(*command):
        call = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run([sys.executable, *command], **call)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        return done.stdout

    assert start("-c", "import importlib.util; print(importlib.util.find_spec('babel'))") == "None\n"
    return start


def test_jobs_run_with_few_packages(tmp_path, few_packages):
    chosen = ["--only", "golden", "first-token-1b", "swiglu", "train-run-1b"]
    few_packages("-m", "benchmarks.gpu", "--smoke", "--out", str(tmp_path / "out"), *chosen)


def test_an_experiment_runs_on_what_was_prepared(tmp_path, few_packages):
    pytest.importorskip("babel")
    prepare_rows(read_settings(STUDY), tmp_path / "rows")
    out = tmp_path / "record.json"
    given = ["--data", str(tmp_path / "rows"), "--steps", "2", "--seeds", "0", "--only", "vanilla", "--seconds", "200"]
    few_packages("-m", "benchmarks.jobs.experiment", STUDY, "--out", str(out), *given)
    (result,) = json.loads(out.read_text())["results"]
    assert result["condition"] == "vanilla"


def test_prepare_writes_rows_and_says_what_does_not_fit(tmp_path, monkeypatch):
    pytest.importorskip("babel")
    monkeypatch.setattr(prepare, "find_weights", lambda: (Path("weights.gguf"), 200 * 2**20))
    said = "\n".join(prepare.prepare(tmp_path / "data"))
    assert "SmolLM2 is left out: 400 MiB in bfloat16" in said
    assert prepare.size_of(tmp_path / "data") < prepare.MOST_BYTES
    for needed in ("smollm2", "llama"):
        assert (tmp_path / "data" / needed / "rows" / "rows.jsonl").is_file()
    given = arguments(tmp_path, "--prepared", str(tmp_path / "data"))
    obstacles = {job.name: gpu.obstacle(job, given) for job in JOBS if job.needs}
    assert obstacles["experiment-llama"] == ""
    assert obstacles["experiment-smollm2"].startswith("needs smollm2/model in ")


def test_prepare_refuses_rows_that_are_too_large(tmp_path):
    pytest.importorskip("babel")
    with pytest.raises(ValueError, match="prepare: expected rows of at most 10 bytes, got"):
        prepare.prepare(tmp_path, most_bytes=10)


def test_kernel_tests_tell_what_failed_and_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_tests, "contents", lambda parts: dict.fromkeys(parts, "0"))
    outcomes = kernel_tests.Outcomes("tests", tmp_path / "record.json", seconds=-1)

    class Report:
        nodeid, when, outcome, longrepr = "tests/a.py::b", "call", "failed", "AssertionError: 1\n is not 2"

    outcomes.pytest_runtest_logreport(Report())
    with pytest.raises(pytest.exit.Exception, match="no time left"):
        outcomes.pytest_runtest_logfinish("tests/a.py::b", None)
    outcomes.save()
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["failed"], record["stopped"]) == (1, True)
    assert record["failures"] == ["tests/a.py::b: AssertionError: 1 is not 2"]


@pytest.mark.parametrize("seconds", ["-1", "400"])
def test_kernel_tests_that_ran_out_of_time_are_not_done(tmp_path, seconds):
    command = ["-m", "benchmarks.jobs.kernel_tests", "tests/golden", "--smoke", "--seconds", seconds]
    out = tmp_path / "record.json"
    done = subprocess.run([sys.executable, *command, "--out", str(out)], cwd=ROOT, capture_output=True, timeout=300)
    record = json.loads(out.read_text())
    assert record["stopped"] is (seconds == "-1")
    assert (done.returncode == 0) is not record["stopped"]
    assert record["passed"] >= 1
    assert record["failed"] == 0
    assert list(record["content"]) == ["golden"]


def test_forks_do_not_inherit_a_device():
    """What the parent imports asks the driver's management library whether there is one."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    asked = f"import benchmarks.gpu, os, torch; print(os.environ[{name!r}], torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 False\n"
