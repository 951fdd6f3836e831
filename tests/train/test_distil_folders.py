"""train.distil and its folders: what is refused before the answers, and what a run that fails leaves behind."""

import json

import pytest

from cc_model import patch_model
from cc_model.testing import tiny_model
from train import distil
from train.common.models import new_tokenizer, save_options
from train.distil import main
from train.distillation.store import AnswerFile
from train.distillation.teacher import Answer

PROMPTS = [{"instruction": "Land?", "instruction_en": "Country?"}, {"instruction": "Geld?", "instruction_en": "Money?"}]
SHAPE = '{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}'


@pytest.fixture
def command(tmp_path):
    """The command line with a teacher that `train.sft` might have written."""
    teacher = tmp_path / "teacher"
    patch_model(tiny_model("llama", vocab_size=300)).save_pretrained(teacher)
    new_tokenizer(PROMPTS, 300).save_pretrained(teacher)
    save_options(teacher, {})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    common = ["--teacher", str(teacher), "--prompts", str(tmp_path / "prompts.jsonl"), "--device", "cpu", "--use_cpu"]
    common += ["--max_new_tokens", "3", "--output_dir", str(tmp_path / "out")]
    return lambda *more: [*common, *more]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_teachers_folder_is_not_the_students(command, tmp_path, monkeypatch):
    before = contents(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("teacher")
    for name in ("teacher", "link", "./teacher/", str(tmp_path / "teacher")):
        with pytest.raises(SystemExit, match=r"train\.distil: output_dir: expected another folder than that of --teac"):
            main(command("--output_dir", name, "--answers_only"))
    assert contents(tmp_path / "teacher") == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "cldr"], "model: expected either --model or --scratch, got neither"),
        (["--dataset", "cldr", "--model", "{tmp}/nowhere"], "tokenizer: could not load one from '.*nowhere'"),
        (["--dataset", "nowhere.jsonl", "--scratch", SHAPE], "dataset: found no file 'nowhere.jsonl'"),
        (["--dataset", "cldr", "--scratch", SHAPE, "--output_dir", "{tmp}/kept"], "output_dir: .* holds checkpoints"),
    ],
)
def test_what_is_wrong_with_the_student_is_said_before_the_answers(command, tmp_path, monkeypatch, more, message):
    (tmp_path / "kept" / "checkpoint-2").mkdir(parents=True)
    monkeypatch.setattr(distil, "load_trained", lambda *args: pytest.fail("the teacher was loaded"))
    with pytest.raises(SystemExit, match=f"train.distil: {message}"):
        main(command(*(text.replace("{tmp}", str(tmp_path)) for text in more)))


def test_a_wrong_teacher_does_not_block_the_right_one(command, tmp_path):
    with pytest.raises(SystemExit, match=r"found no config\.json in 'typo'"):
        main(command("--answers_only", "--teacher", "typo"))
    assert list((tmp_path / "out").iterdir()) == []
    main(command("--answers_only"))
    before = contents(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"found no config\.json in 'typo'"):
        main(command("--answers_only", "--teacher", "typo", "--overwrite"))
    assert contents(tmp_path / "out") == before


def test_options_of_an_empty_file_are_not_held_against_others(tmp_path):
    """As an earlier version, or a run that was killed in its first line, left them."""
    (tmp_path / "answers_options.json").write_text('{"teacher": "typo"}')
    for text in ("", '{"row": 0, "outp'):
        (tmp_path / "answers.jsonl").write_text(text)
        kept = AnswerFile(tmp_path, PROMPTS, {"teacher": "runs/cc"})
        assert kept.missing == [0, 1]
    kept.add({1: Answer("Yen", -0.5)})
    kept.add({0: Answer("Japan", -0.5)})
    assert sorted(AnswerFile(tmp_path, PROMPTS, {"teacher": "runs/cc"}).answers) == [0, 1]
    with pytest.raises(ValueError, match=r"teacher: the answers in .* were written with 'runs/cc', now it is 'typo'"):
        AnswerFile(tmp_path, PROMPTS, {"teacher": "typo"})
