"""A training is resumed with the options that it was begun with, or says which one is another."""

import json
import shutil

import pytest
from transformers import TrainerState

from train.common.arguments import CollatorArguments, DataArguments, ModelArguments, SftArguments
from train.common.checkpoints import last_complete_checkpoint
from train.common.models import load_options, save_options
from train.common.resume import options_of, other_rows
from train.data import build_rows
from train.sft import main

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2}
TEMPLATE = "{% for m in messages %}{{ m['content'] ~ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two steps of both methods, a checkpoint after each, and a second set of rows."""
    root = tmp_path_factory.mktemp("resume")
    data = build_rows(languages=["en", "de"], relations=["currency"])["train"]
    rows = [{**row, "question": row["instruction"]} for row in data if row["language"] == "de"]
    for name, part in (("rows", rows[:40]), ("others", rows[40:80])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (root / "template.jinja").write_text(TEMPLATE)
    for method in ("cc", "vanilla"):
        main(arguments(root, root / method, method=method, max_steps=2))
    return root


def arguments(root, out, **changed):
    options = {
        **{"scratch": json.dumps(SHAPE), "scratch_vocab_size": 400, "dataset": root / "rows.jsonl", "output_dir": out},
        **{"max_length": 64, "max_steps": 3, "save_strategy": "steps", "save_steps": 1, "use_cpu": True},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1},
        **{"chat_template": root / "template.jinja", "save_total_limit": 9, **changed},
    }
    return [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]


@pytest.fixture
def resume(root, tmp_path):
    """Resume a copy of the run of a method with changed options."""

    def run(kept="cc", **changed):
        out = tmp_path / kept
        if not out.exists():
            shutil.copytree(root / kept, out)
        main(arguments(root, out, **{"method": kept, "resume_from_checkpoint": "true", **changed}))
        return out

    return run


CONNECTION = {
    "inject_layer": (1, "0"),
    "temperature": (2.0, "1.0"),
    "hard": (False, "True"),
    "pivot_grad": (True, "False"),
    "connection_dropout": (0.5, "0.0"),
    "simulated_share": (0.5, "0.0"),
    "simulated_ramp": (0.1, "0.5"),
    "refit_steps": (7, "50"),
}
TOKENS = {"max_length": (48, "64"), "system": ("Kurz.", "None"), "packed": (True, "False")}


@pytest.mark.parametrize(("name", "values"), {**CONNECTION, **TOKENS}.items())
def test_another_option_of_the_connection_or_the_tokens(resume, name, values):
    new, old = values
    message = rf"train.sft: {name}: the checkpoint .*checkpoint-2 was trained with {old}, now it is {new}; resume with"
    with pytest.raises(SystemExit, match=message):
        resume(**{name: new})


@pytest.mark.parametrize(("kept", "given"), [("cc", "vanilla"), ("vanilla", "cc")])
def test_another_method(root, tmp_path, kept, given):
    shutil.copytree(root / kept, tmp_path / "out")
    message = f"method: the checkpoint .* was trained with {kept}, now it is {given}"
    with pytest.raises(SystemExit, match=message):
        main(arguments(root, tmp_path / "out", method=given, resume_from_checkpoint="true"))


@pytest.mark.parametrize("method", ["cc", "vanilla"])
def test_another_model_or_tokenizer(root, resume, tmp_path, method):
    (tmp_path / "other.jinja").write_text(TEMPLATE + " ")
    wide = {**SHAPE, "hidden_size": 64}
    for changed, message in (
        ({"scratch": json.dumps(wide)}, "scratch: .* trained with hidden_size=32, now it is hidden_size=64"),
        ({"scratch": json.dumps({**SHAPE, "rms_norm_eps": 0.1})}, "scratch: .* with rms_norm_eps=.*, now .*=0.1;"),
        ({"scratch_vocab_size": 420}, "scratch_vocab_size: .* with vocab_size=400, now it is vocab_size=420"),
        ({"dataset": root / "others.jsonl"}, "dataset: .* with 400 tokens, now it is 400 other tokens"),
        ({"chat_template": tmp_path / "other.jinja"}, "chat_template: the checkpoint"),
        ({"chat_template": None}, "chat_template: the checkpoint"),
        ({"dtype": "bfloat16"}, "dtype: .* with float32, now it is bfloat16"),
        ({"model": root / method, "scratch": None}, "model: .* with None, now it is"),
        ({"instruction_column": "question"}, "instruction_column: .* with instruction, now it is question"),
    ):
        with pytest.raises(SystemExit, match=f"train.sft: {message}"):
            resume(method, **changed)


def test_a_model_of_the_same_size_is_another_model(root, tmp_path):
    """Its weights would not be read: those of the checkpoint are."""
    shutil.copytree(root / "vanilla", tmp_path / "same")
    common = {"scratch": None, "chat_template": None, "save_steps": 1}
    main(arguments(root, tmp_path / "out", model=root / "vanilla", max_steps=1, **common))
    with pytest.raises(SystemExit, match=r"model: the checkpoint .* was trained with .*vanilla, now it is .*same;"):
        main(arguments(root, tmp_path / "out", model=tmp_path / "same", resume_from_checkpoint="true", **common))
    (tmp_path / "link").symlink_to(root / "vanilla")  # another path to the same folder
    main(arguments(root, tmp_path / "out", model=tmp_path / "link", resume_from_checkpoint="true", **common))


@pytest.mark.parametrize("method", ["cc", "vanilla"])
def test_the_same_options_in_other_words_resume(root, resume, tmp_path, method, capsys):
    (tmp_path / "copy.jinja").write_text(TEMPLATE)
    spelled = json.dumps(dict(reversed(SHAPE.items())), indent=1)
    out = resume(method, scratch=spelled, chat_template=tmp_path / "copy.jinja", dtype="float32", learning_rate=1e-3)
    assert "resuming from" in capsys.readouterr().out
    history = [entry for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]
    assert [entry["step"] for entry in history] == [1, 2, 3]
    assert load_options(out / "checkpoint-3")["model"]["method"] == method


def test_options_of_the_connection_mean_nothing_to_vanilla(resume):
    resume("vanilla", inject_layer=1, hard=False)


def test_other_rows_are_told(root, resume, capsys):
    resume(max_samples=40)
    shown = capsys.readouterr().out
    assert "resuming with other rows: max_samples: the checkpoint was trained with None, now it is 40" in shown


def test_another_order_of_the_rows_is_told(resume, capsys):
    resume(translations_per_batch=2)
    shown = capsys.readouterr().out
    told = (
        "resuming with rows in another order: translations_per_batch: the checkpoint was trained with None, now it is 2"
    )
    assert told in " ".join(shown.split())


def told(capsys):
    """What differs, as it was said, without line breaks."""
    return " ".join(capsys.readouterr().out.split())


def test_another_number_of_rows_per_step_is_told(resume, capsys):
    resume(per_device_train_batch_size=2, seed=7)
    shown = told(capsys)
    for name, old, new in (("rows_per_step", 4, 2), ("seed", 42, 7)):
        text = f"resuming with rows in another order: {name}: the checkpoint was trained with {old}, now it is {new}"
        assert text in shown


def test_the_same_rows_per_step_in_other_parts(resume, capsys):
    resume(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert "resuming with" not in told(capsys)


@pytest.mark.parametrize("bucket", [False, True])
def test_another_number_of_processes_is_told(tmp_path, monkeypatch, bucket):
    """Rows of similar length are grouped within a process, all others come in the same order."""

    def options(batch, processes):
        training = SftArguments(use_cpu=True, per_device_train_batch_size=batch, bucket_by_length=bucket)
        monkeypatch.setattr(SftArguments, "world_size", processes)
        return options_of(ModelArguments(), DataArguments(), CollatorArguments(), training)

    save_options(tmp_path, options(4, 1))
    words = "{}: the checkpoint was trained with {}, now it is {}".format
    noise = f"other noise: {words('processes', 1, 2)}"
    grouped = [f"rows in another order: {words('rows_per_process', 16, 8)}"] if bucket else []
    assert other_rows(tmp_path, options(4, 1)) == []
    assert other_rows(tmp_path, options(2, 2)) == [*grouped, noise]
    assert f"rows in another order: {words('rows_per_step', 16, 32)}" in other_rows(tmp_path, options(4, 2))


def test_a_complete_checkpoint_has_its_options(root, tmp_path, monkeypatch):
    """Also where the run ends while older checkpoints are removed, after the file that says it is complete."""
    written = TrainerState.save_to_json

    def killed(state, path):
        written(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainerState, "save_to_json", killed)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(root, tmp_path / "out"))
    monkeypatch.undo()
    assert last_complete_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-1")
    with pytest.raises(
        SystemExit, match=r"max_length: the checkpoint .*checkpoint-1 was trained with 64, now it is 48"
    ):
        main(arguments(root, tmp_path / "out", max_length=48, resume_from_checkpoint="true"))


def test_how_fast_a_step_is_may_change(resume, capsys):
    resume(share_pivots=False, loss_only=False)
    shown = capsys.readouterr().out
    assert "resuming from" in shown
    assert "resuming with" not in shown


def test_a_checkpoint_that_was_moved_knows_its_options(root, tmp_path):
    """Away from its folder, and beside options of another run."""
    shutil.copytree(root / "cc" / "checkpoint-1", tmp_path / "moved")
    wrong = {"method": "cc", "resume_from_checkpoint": tmp_path / "moved", "max_length": 48}
    with pytest.raises(SystemExit, match=r"max_length: the checkpoint .*moved was trained with 64, now it is 48"):
        main(arguments(root, tmp_path / "out", **wrong))
    main(arguments(root, tmp_path / "out", **{**wrong, "max_length": 64}))


@pytest.mark.parametrize("method", ["cc", "vanilla"])
def test_checkpoints_of_an_earlier_version(root, resume, tmp_path, method):
    """They have no options of their own, and those beside them do not name the model."""
    out = shutil.copytree(root / method, tmp_path / method)
    for file in out.glob("checkpoint-*/sft_options.json"):
        file.unlink()
    kept = json.loads((out / "sft_options.json").read_text())
    del kept["model"]
    (out / "sft_options.json").write_text(json.dumps(kept))
    other = "vanilla" if method == "cc" else "cc"
    for changed, message in (
        ({"method": other}, f"method: .* with {method}, now it is {other}"),
        ({"max_length": 48}, "max_length: .* with 64, now it is 48"),
        ({"scratch": json.dumps({**SHAPE, "num_hidden_layers": 3})}, "scratch: .*num_hidden_layers=2, now"),
        *([({"inject_layer": 1}, "inject_layer: .* with 0, now it is 1")] if method == "cc" else []),
    ):
        with pytest.raises(SystemExit, match=message):
            resume(method, **changed)
    resume(method)
