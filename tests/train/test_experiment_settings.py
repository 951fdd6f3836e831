"""What an experiment refuses when its settings are read, and before its first job: one line that names the entry."""

import pytest
import yaml

from train.experiment import pool
from train.experiment.__main__ import main
from train.experiment.settings import read_settings

TINY = {"scratch": {"model_type": "llama"}, "languages": ["en", "de"], "conditions": {"vanilla": {"method": "vanilla"}}}


def written(tmp_path, **changes):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def condition(**options):
    return {"conditions": {**TINY["conditions"], "cc": options}}


def test_numbers_that_yaml_reads_as_text(tmp_path):
    path = written(tmp_path, maps={"m": {"ridge": "1e-3"}}, **condition(temperature="5e-1", ramp="1e-1"))
    path.write_text(path.read_text().replace("'", "") + "learning_rate: 2e-3\n")
    assert yaml.safe_load(path.read_text())["learning_rate"] == "2e-3"
    settings = read_settings(path)
    assert settings.learning_rate == 0.002
    assert settings.conditions["cc"].config == {"temperature": 0.5}
    assert (settings.conditions["cc"].ramp, settings.maps["m"]["ridge"]) == (0.1, 0.001)
    path.write_text(path.read_text().replace("2e-3", "2.0e-3"))
    assert settings.fingerprint("cc") == read_settings(path).fingerprint("cc")


def test_whole_numbers_stay_what_they_are(tmp_path):
    """Results of earlier versions keep their fingerprint."""
    settings = read_settings(written(tmp_path, held_out=0, learning_rate=1))
    assert (type(settings.held_out), type(settings.learning_rate)) == (int, int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "abc"}, "learning_rate: expected a finite number, got 'abc'"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number, got nan"),
        ({"learning_rate": True}, "learning_rate: expected a finite number, got True"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, got 0"),
        ({"steps": 2.5}, r"steps: expected a whole number, got 2\.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"steps": "3"}, "steps: expected a whole number, got '3'"),
        ({"fit_pairs": 0}, "fit_pairs: expected a number above 0, got 0"),
        ({"workers": -1}, "workers: expected 0 or more, got -1"),
        ({"backend": "cuda"}, "backend: expected one of auto, torch, triton, got 'cuda'"),
        ({"bf16": 1}, "bf16: expected true or false, got 1"),
        ({"seeds": 3}, "seeds: expected a list, got 3"),
        ({"seeds": [0, 1.5]}, r"seeds: expected a whole number, got 1\.5"),
        ({"seeds": [-1]}, r"seeds: expected one or more numbers from 0 on, got \[-1\]"),
        ({"seeds": []}, r"seeds: expected one or more numbers from 0 on, got \[\]"),
        ({"languages": ["en", False]}, "languages: expected text, got False"),  # `no` of YAML 1.1
        ({"scratch": "llama"}, "scratch: expected `name: value` lines, got 'llama'"),
        ({"maps": {"m": 3}}, "maps: m: expected `name: value` lines, got 3"),
        ({"maps": {"m": {"ridge": "x"}}, "maps_of": "vanilla"}, "maps: m: ridge: expected a finite number, got 'x'"),
        ({"maps": {"m": {"pairs": 0}}, "maps_of": "vanilla"}, "maps: m: expected ridge from 0 on and pairs above 0"),
        ({"maps": {"m": {"ridge": -1}}, "maps_of": "vanilla"}, "maps: m: expected ridge from 0 on and pairs above 0"),
        ({"conditions": ["vanilla"]}, r"conditions: expected `name: value` lines, got \['vanilla'\]"),
        ({"conditions": {"vanilla": 3}}, "conditions: vanilla: expected `name: value` lines, got 3"),
        (condition(ramp=2), "conditions: cc: ramp: expected a share from 0 to 1, got 2"),
        (condition(refit_steps=0.5), r"conditions: cc: refit_steps: expected a whole number, got 0\.5"),
        (condition(refit_steps=-1), "conditions: cc: refit_steps: expected 0 or more, got -1"),
        (condition(hard="yes please"), "conditions: cc: hard: expected true or false, got 'yes please'"),
    ],
)
def test_wrong_entries(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_settings(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps: [1, 2", r"config: .*config\.yaml is not valid YAML: while parsing .* line 1, column 8"),
        (b"steps: 2020-13-45", r"config: .*config\.yaml is not valid YAML: month must be in"),
        ("steps: 3\n# für".encode("latin-1"), r"config: expected UTF-8 text, line 2 of .*config\.yaml is not"),
        (b"- a list", r"config: expected `name: value` lines in .*config\.yaml, got list"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(SystemExit, match=f"^train.experiment: {message}") as ended:
        main([str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"languages": ["en", "xx"]}, [], r"languages: expected one or more of ar, .*; got \['xx'\]"),
        ({}, ["--data", "nothere"], r"data: expected rows\.jsonl and held_out\.json in nothere"),
        ({}, ["--data", "{tmp}", "--seeds", "0", "7"], "seeds: expected some of 0, which .* has, got 7"),
    ],
)
def test_wrong_data_is_told_before_the_first_job(tmp_path, monkeypatch, changes, more, message):
    main([str(written(tmp_path)), "--prepare", str(tmp_path), "--seeds", "0"])
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *args, **options: pytest.fail("a job was started"))
    command = [str(written(tmp_path, **changes)), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"^train.experiment: {message}"):
        main([*command, *(text.replace("{tmp}", str(tmp_path)) for text in more)])


def test_where_every_job_fails_the_last_line_says_so(tmp_path, capsys):
    """A model of no known type is found in the job alone."""
    path = written(tmp_path, scratch={"model_type": "no such model"}, seeds=[0])
    with pytest.raises(SystemExit, match=r"^train\.experiment: no job has ended: there is nothing to report"):
        main([str(path), "--out", str(tmp_path / "out")])
    assert "vanilla, seed 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml", "--out", "x"], r"config: expected a YAML file, found no no\.yaml"),
        (["CONFIG"], "out: expected --out DIR, got none"),
        (["CONFIG", "--out", "x", "--only", "y"], r"only: expected some of vanilla, cc, got \['y'\]"),
        (["CONFIG", "--out", "x", "--jobs", "0"], "jobs: expected 1 or more, got 0"),
        (["CONFIG", "--out", "OUT", "--models", "CONFIG"], "models: cannot write into the folder"),
    ],
)
def test_wrong_command_lines(arguments, message, tmp_path):
    config = written(tmp_path, **condition())
    with pytest.raises(SystemExit, match=message):
        main([{"CONFIG": str(config), "OUT": str(tmp_path)}.get(each, each) for each in arguments])
