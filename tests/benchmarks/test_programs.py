"""The programs, on models so small that their numbers mean nothing."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from benchmarks import fit_matrix, profile_fusion, train_run
from benchmarks.baselines import MODES
from benchmarks.measure.sources import contents
from benchmarks.show.profile_fusion import failures, plots, tables
from benchmarks.show.terminal import show

SMALL = ["--model", "tiny", "--layers", "2", "--prompt", "12", "--answer", "4"]
PROFILE = [*SMALL, "--pivot", "8", "--batch", "2", "--rounds", "3", "--new-tokens", "3", "--lengths", "6,9"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A record with every section, its file, and the folder of traces."""
    folder = tmp_path_factory.mktemp("profile")
    arguments = ["--section", "train,infer,static,curve,prefix", "--out", str(folder / "new" / "profile.json")]
    assert profile_fusion.main([*PROFILE, *arguments, "--trace", str(folder / "traces")]) == 0
    return json.loads((folder / "new" / "profile.json").read_text()), folder


def test_profile(profile):
    record, folder = profile
    absent = [f"train, {kind.name}: {kind.unavailable}" for kind in MODES if not (kind.available or kind.compiles)]
    assert failures(record) == absent
    assert record["content"] == contents(["train", "infer", "static", "curve", "prefix"])
    modes = {name: mode for name, mode in record["train"]["modes"].items() if "refused" not in mode}
    assert set(modes) == {kind.name for kind in MODES if kind.available and not kind.compiles}
    assert record["train"]["predicted"] > 1
    for mode in modes.values():
        assert mode["seconds"]["samples"] == 3
        assert set(mode["phases"]) == {"forward", "backward", "optimizer"}
        assert mode["peak_bytes"] > 0
        assert mode["forward_ops"]["ops"] > 0
    infer = record["infer"]["modes"]
    assert list(infer) == ["vanilla", "published", "hooks", "ours"]
    assert all(mode["decode_step"]["median"] > 0 and mode["ops"]["ops"] > 0 for mode in infer.values())
    assert list(record["static"]["modes"]) == ["vanilla", "ours"]
    assert list(record["prefix"]["modes"]) == ["vanilla", "ours"]
    assert all("refused" not in mode for mode in record["prefix"]["modes"].values())
    assert (record["infer"]["cached"], record["prefix"]["tokens"], record["prefix"]["cached"]) == (0, 12, 6)
    assert [point["tokens"] for point in record["curve"]] == [6, 9]
    assert {path.name for path in (folder / "traces").iterdir()} == {
        *(f"train-{name}.json" for name in modes),
        *(f"infer-{name}.json" for name in infer),
    }


def test_tables_and_plots(profile, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    record, _ = profile
    assert len(list(tables(record))) == 5
    assert any("12 tokens, dynamic cache, 6 of them held already" in table.title for table in tables(record))
    show({**record, "static": {"error": "ValueError: nothing"}})
    printed = capsys.readouterr().out
    assert "training step" in printed
    assert "refused or failed: static: ValueError: nothing" in printed
    made = plots(record, tmp_path)
    assert [path.name for path in made] == ["throughput.png", "first_token.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_a_section_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def fail(self, deadline, trace):
        raise RuntimeError("broken")

    monkeypatch.setattr(profile_fusion.Profile, "train", fail)
    out = tmp_path / "record.json"
    assert profile_fusion.main([*PROFILE, "--section", "train,curve", "--mode", "ours", "--out", str(out)]) == 1
    record = json.loads(out.read_text())
    assert record["train"] == {"error": "RuntimeError: broken"}
    assert [point["tokens"] for point in record["curve"]] == [6, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--section", "train,sleep"],
            "--section: expected names of train, translations, infer, curve, static, prefix, got sleep",
        ),
        (["--mode", "theirs"], "mode: expected names of"),
        (["--model", "2b"], "model: expected one of tiny"),
    ],
)
def test_profile_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        profile_fusion.main(arguments)
    assert message in capsys.readouterr().err


def test_training_run(tmp_path):
    out = tmp_path / "run.json"
    assert train_run.main([*SMALL, "--batch", "2", "--steps", "6", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["steps"] == 6
    runs = record["runs"]
    assert len(runs["fused"]["loss"]) == len(runs["torch"]["loss"]) == 6
    # on a CPU both backends are the plain definitions
    assert runs["fused"]["loss"] == runs["torch"]["loss"]
    assert record["loss_difference"]["max"] == 0
    assert runs["fused"]["loss"][-1] != runs["fused"]["loss"][0], "nothing was learnt"
    assert runs["fused"]["peak_bytes"] > 0


def test_training_run_ends_in_time(capsys):
    assert train_run.main([*SMALL, "--batch", "2", "--steps", "50", "--seconds", "0"]) == 0
    assert f"stopped after {train_run.FEWEST_STEPS} steps: no time left" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures this process where there is no GPU")
def test_fit_matrix(tmp_path, capsys):
    out = tmp_path / "fit.json"
    arguments = ["--layers", "2", "--pairs", "400", "--batch", "50", "--prompt", "4", "--out", str(out)]
    assert fit_matrix.main(arguments) == 0
    streaming, stacking = json.loads(out.read_text())["rows"]
    assert (streaming["method"], stacking["method"]) == ("streaming", "stacking")
    assert stacking["matrix_difference"] < 1e-2
    assert min(streaming["seconds"], stacking["seconds"]) > 0
    assert "400 pairs, streaming" in capsys.readouterr().out


def test_fit_matrix_tells_of_a_fit_that_failed(tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="Traceback\nMemoryError: too many rows\n")

    monkeypatch.setattr(fit_matrix.subprocess, "run", run)
    out = tmp_path / "fit.json"
    assert fit_matrix.main(["--pairs", "4", "--out", str(out)]) == 1
    rows = json.loads(out.read_text())["rows"]
    assert [row["refused"] for row in rows] == ["MemoryError: too many rows"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs: expected numbers of 1 or more, got 0"),
        (["--model", "2b"], "--model: expected one of tiny"),
    ],
)
def test_fit_matrix_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        fit_matrix.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "expected cpu or cuda, got 'foo'"), ("cuda", "expected cpu on a machine without a GPU, got 'cuda'")],
)
def test_a_device_that_is_not_there(monkeypatch, capsys, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        profile_fusion.main([*PROFILE, "--device", device])
    assert f"error: argument --device: {message}" in capsys.readouterr().err
