"""train.sft into a folder that holds a model: refused without --overwrite, whole with it, and intact where it fails."""

import json
import shutil
from types import SimpleNamespace

import pytest

from train.common.models import (
    CC_CONFIG_FILE,
    OPTIONS_FILE,
    REPORT_FILE,
    TEMPLATE_FILE,
    load_options,
    load_trained,
    remove_stale,
)
from train.fit_transform import main as fit
from train.sft import main as sft

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2}
ROWS = [{"instruction": f"Zahl {n}?", "instruction_en": f"Number {n}?", "output": str(n)} for n in range(80)]


@pytest.fixture
def command(tmp_path):
    """The command line of a training of one step into `out`, without checkpoints."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = ["--scratch", json.dumps(SHAPE), "--scratch_vocab_size", "400", "--dataset", str(rows), "--use_cpu"]
    common += ["--max_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path / "out")]
    return lambda method, *more: [*common, "--method", method, *more]


def test_a_model_is_not_overwritten_without_a_word(command, tmp_path):
    sft(command("vanilla"))
    with pytest.raises(SystemExit, match=r"train\.sft: output_dir: .*out holds a model already; train anew over it wi"):
        sft(command("vanilla"))
    assert not (tmp_path / "out" / CC_CONFIG_FILE).exists()


def test_overwriting_removes_what_is_stale(command, tmp_path):
    out = tmp_path / "out"
    sft(command("cc"))
    fit(["--model", str(out), "--device", "cpu"])
    assert (out / REPORT_FILE).is_file()
    sft(command("cc", "--overwrite"))
    assert (out / CC_CONFIG_FILE).is_file()
    assert not (out / REPORT_FILE).exists()  # the new model has no matrix
    (out / REPORT_FILE).write_text("{}")
    sft(command("vanilla", "--overwrite"))
    assert not (out / CC_CONFIG_FILE).exists()
    assert not (out / REPORT_FILE).exists()
    assert not hasattr(load_trained(str(out), device="cpu")[0], "cc")
    assert load_options(out)["model"]["method"] == "vanilla"


@pytest.mark.parametrize("template", [None, "of the new model"])
def test_a_template_of_the_earlier_model_is_removed(tmp_path, template):
    (tmp_path / TEMPLATE_FILE).write_text("as it was saved")
    remove_stale(tmp_path, "cc", SimpleNamespace(chat_template=template))
    assert (tmp_path / TEMPLATE_FILE).exists() == (template is not None)


def test_a_run_that_fails_leaves_the_model_as_it_is(command, tmp_path):
    out = tmp_path / "out"
    sft(command("cc"))
    before = {name: (out / name).read_bytes() for name in (OPTIONS_FILE, CC_CONFIG_FILE, "model.safetensors")}
    with pytest.raises(SystemExit, match="learning rate"):
        sft(command("vanilla", "--overwrite", "--max_length", "32", "--learning_rate", "-1"))
    assert before == {name: (out / name).read_bytes() for name in before}


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_checkpoints_of_the_run_that_is_overwritten_are_not_resumed_from(command, tmp_path):
    out, saving = tmp_path / "out", ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
    sft(command("cc", *saving, "--max_steps", "5"))
    assert checkpoints(out) == ["checkpoint-4", "checkpoint-5"]
    elsewhere = shutil.move(out / "checkpoint-5", tmp_path / "kept elsewhere")
    (out / "checkpoint-5").symlink_to(elsewhere)
    (out / "checkpoint-9").write_text("a file")
    sft(command("cc", *saving, "--max_steps", "3", "--overwrite"))
    assert checkpoints(out) == ["checkpoint-2", "checkpoint-3", "checkpoint-9"]
    assert (elsewhere / "trainer_state.json").is_file()
    (out / "checkpoint-9").unlink()
    sft(command("cc", *saving, "--max_steps", "4", "--resume_from_checkpoint", "true", "--overwrite"))
    assert checkpoints(out) == ["checkpoint-3", "checkpoint-4"]  # a run that goes on replaces nothing
    sft(command("cc", "--overwrite"))  # one that saves no checkpoint
    assert checkpoints(out) == []


def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_earlier_ones(command, tmp_path, monkeypatch):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    sft(command("cc", *saving, "--max_steps", "2"))

    def fail(*args, **kwargs):
        raise ValueError("killed")

    monkeypatch.setattr("cc_model.integrations.trainer.CCTrainer.training_step", fail)
    with pytest.raises(SystemExit, match="killed"):
        sft(command("cc", *saving, "--overwrite"))
    assert checkpoints(tmp_path / "out") == ["checkpoint-1", "checkpoint-2"]


def test_a_checkpoint_has_its_options_before_the_model_is_saved(command, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("killed")

    monkeypatch.setattr("train.sft.remove_stale", fail)
    with pytest.raises(SystemExit, match="killed"):
        sft(command("cc", "--max_length", "48", "--save_strategy", "steps", "--save_steps", "1"))
    monkeypatch.undo()
    assert not (tmp_path / "out" / OPTIONS_FILE).exists()
    assert load_options(tmp_path / "out" / "checkpoint-1")["collator"]["max_length"] == 48
