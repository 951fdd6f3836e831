"""A plain model that reads the English question before the question: rows, batches, and every command that reads it."""

import json

import pytest
import torch

from cc_model.data.collator import ParallelCollator
from train.common.answers import generate_answers
from train.common.english_in_prompt import EnglishInPrompt, make_collator, with_english
from train.common.models import load_options, load_trained, new_tokenizer
from train.common.rows import check_rows
from train.distil import main as distil
from train.evaluate import EvaluateArguments, run_evaluate
from train.generate import main as generate
from train.sft import main as sft

SCRATCH = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SCRATCH |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
COUNTRIES = ("Japan", "Schweiz", "Brasilien", "Indien", "Kanada", "Ghana")
ROWS = [
    {"instruction": f"Währung?\n{name}", "instruction_en": f"Which currency?\n{name}", "output": f"Geld {number}"}
    for number, name in enumerate(COUNTRIES)
] + [{"instruction": "Which currency?\nPeru", "instruction_en": "", "output": "Sol"}]


def joined(row):
    """What is read of a row of `ROWS`, spelled out."""
    english = row["instruction_en"]
    return {"instruction": f"{english}\n\n{row['instruction']}" if english else row["instruction"]}


def turn(content, role="user"):
    return {"role": role, "content": content}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_chat_reads_each_turn_with_its_own():
    chat = [turn("Kurz.", "system"), turn("Land?"), turn("Japan", "assistant"), turn("Geld?"), turn("Yen", "assistant")]
    english = [turn("Country?"), turn("Japan", "assistant"), turn("Money?")]  # its answer and its system turn may lack
    row = {"messages": chat, "messages_en": english, "id": 7}
    [read] = with_english([row])
    texts = ["Kurz.", "Country?\n\nLand?", "Japan", "Money?\n\nGeld?", "Yen"]
    assert [each["content"] for each in read["messages"]] == texts
    assert [each["role"] for each in read["messages"]] == [each["role"] for each in chat]
    assert (read["messages_en"], read["id"]) == (None, 7)
    assert row["messages"] == chat  # rows are left as they are
    assert chat[1] == turn("Land?")
    one = {"messages": [turn("Land?")], "instruction_en": "Country?"}
    assert with_english([one]) == [{"messages": [turn("Country?\n\nLand?")], "instruction_en": ""}]
    other = {"instruction": "Land?", "messages_en": [turn("Country?")]}
    assert with_english([other]) == [{"instruction": "Country?\n\nLand?", "messages_en": None}]
    half = {
        "messages": [turn("Land?"), turn("Ja", "assistant"), turn("Ok")],
        "messages_en": [turn("Country?"), turn(" ")],
    }
    assert [each["content"] for each in with_english([half])[0]["messages"]] == ["Country?\n\nLand?", "Ja", "Ok"]


@pytest.mark.parametrize("english", ["", "  \n", None])
def test_a_row_without_english_stays(english):
    row = {"instruction": "Land?", "instruction_en": english, "output": "Japan"}
    assert with_english([row]) == [row]
    chat = {"messages": [turn("Land?"), turn("Japan", "assistant")], "messages_en": [] if english else None}
    assert with_english([chat]) == [chat]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"instruction_en": "Country?", "output": "x"}, "column 'instruction' or messages is missing"),
        ({"instruction": 3, "instruction_en": "Country?", "output": "x"}, "column 'instruction' must be text, got int"),
        ({"instruction": "Land?", "instruction_en": 3, "output": "x"}, "column 'instruction_en' must be text, got int"),
        ({"messages": "Land?", "messages_en": [turn("Country?")]}, "'messages' must be a list of messages, got str"),
        (
            {"messages": [turn("a"), turn("b", "assistant")], "messages_en": ["Country?"]},
            "'messages_en': expected mess",
        ),
        (
            {"messages": [turn("a"), turn("b", "assistant")], "messages_en": [turn("A"), turn("B")]},
            "the same number of user turns, because each is read with its own, got 1 and 2",
        ),
        ({"messages": [turn("a"), turn("b", "assistant")], "messages_en": [turn("A", "assistant")]}, "got 1 and 0"),
    ],
)
def test_rows_that_cannot_be_read_are_named(row, error):
    collator = EnglishInPrompt(new_tokenizer(ROWS, 300))
    with pytest.raises(ValueError, match=rf"prompts: row 7 \(counted from 0\): .*{error}"):
        check_rows([*ROWS, row], collator, argument="prompts", progress=False)


@pytest.mark.parametrize(
    "options", [{}, {"max_length": 20}, {"packed": True}, {"loss_only": True}, {"system": "Kurz."}]
)
def test_batches_are_those_of_the_joined_rows(options):
    tokenizer = new_tokenizer(ROWS, 300)
    collator = make_collator(tokenizer, english_in_prompt=True, share_pivots=True, **options)
    plain = ParallelCollator(tokenizer, share_pivots=True, **options)
    read = [{**joined(row), "output": row["output"]} for row in ROWS]
    for one, other in ((collator(ROWS), plain(read)), (collator.prompts(ROWS), plain.prompts(read))):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    assert collator.prompts(ROWS, pivot=False).keys() == plain.prompts(read, pivot=False).keys()
    assert [collator.lengths(row) for row in ROWS] == [plain.lengths(row) for row in read]
    assert collator.truncated == plain.truncated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that reads English in its prompt; in `joined` one that was trained on rows in which both stand."""
    root = tmp_path_factory.mktemp("runs")
    common = ["--use_cpu", "--max_steps", "3", "--per_device_train_batch_size", "3", "--logging_steps", "1"]
    common += ["--gradient_accumulation_steps", "1", "--scratch", json.dumps(SCRATCH), "--scratch_vocab_size", "300"]
    common += ["--method", "vanilla", "--learning_rate", "1e-2", "--save_strategy", "steps", "--save_steps", "2"]
    rows = write(root / "rows.jsonl", ROWS)
    sft([*common, "--dataset", rows, "--output_dir", str(root / "both"), "--english_in_prompt", "true"])
    read = write(root / "joined.jsonl", [{**joined(row), "output": row["output"]} for row in ROWS])
    same = ["--tokenizer", str(root / "both")]
    sft([*common, *same, "--dataset", read, "--output_dir", str(root / "joined")])
    (root / "common").write_text(json.dumps([*common, "--dataset", rows]))
    return root


def again(folder, *more):
    sft([*json.loads((folder / "common").read_text()), *more])


def test_sft_trains_on_both_and_keeps_that(folder):
    both, read = (json.loads((folder / name / "history.json").read_text()) for name in ("both", "joined"))
    assert [entry["loss"] for entry in both if "loss" in entry] == [entry["loss"] for entry in read if "loss" in entry]
    assert load_options(folder / "both")["collator"]["english_in_prompt"] is True
    assert load_options(folder / "both" / "checkpoint-2")["collator"]["english_in_prompt"] is True
    model, collator = load_trained(str(folder / "both"), device="cpu")
    assert isinstance(collator, EnglishInPrompt)
    assert not hasattr(model, "cc")
    assert not isinstance(load_trained(str(folder / "joined"), device="cpu")[1], EnglishInPrompt)


def test_generate_reads_both(folder, tmp_path, capsys):
    model, collator = load_trained(str(folder / "joined"), device="cpu")
    expected = generate_answers(model, collator, list(map(joined, ROWS)), 4, progress=False, max_new_tokens=4)
    alone = generate_answers(model, collator, [{"instruction": r["instruction"]} for r in ROWS], 4, max_new_tokens=4)
    assert expected != alone
    questions = write(tmp_path / "questions.jsonl", ROWS)
    command = ["--model", str(folder / "both"), "--file", questions, "--max_new_tokens", "4", "--device", "cpu"]
    generate([*command, "--out", str(tmp_path / "answers.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["vanilla"] for line in lines] == expected
    assert [line["instruction"] for line in lines] == [row["instruction"] for row in ROWS]
    assert (
        "It reads the English version in the prompt (--english_in_prompt): 6 prompts have one."
        in capsys.readouterr().out
    )
    generate(["--model", str(folder / "joined"), "--prompt", "Währung?", "--max_new_tokens", "2", "--device", "cpu"])
    assert "english_in_prompt" not in capsys.readouterr().out


def test_it_teaches(folder, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", ROWS)
    command = ["--prompts", prompts, "--answers_only", "--max_new_tokens", "4", "--device", "cpu"]
    distil([*command, "--teacher", str(folder / "both"), "--output_dir", str(tmp_path / "both")])
    lines = [json.loads(line) for line in (tmp_path / "both" / "answers.jsonl").read_text("utf-8").splitlines()]
    model, collator = load_trained(str(folder / "joined"), device="cpu")
    expected = generate_answers(model, collator, list(map(joined, ROWS[:6])), 4, progress=False, max_new_tokens=4)
    assert [line["output"] for line in sorted(lines, key=lambda line: line["row"])] == expected
    assert [line["instruction"] for line in lines] == [ROWS[line["row"]]["instruction"] for line in lines]
    with pytest.raises(
        SystemExit, match=r"teacher: expected a model that reads English .*joined reads the question al"
    ):
        distil([*command, "--teacher", str(folder / "joined"), "--output_dir", str(tmp_path / "joined")])


def test_what_cannot_be_is_refused(folder, tmp_path):
    out = ["--output_dir", str(tmp_path / "out"), "--english_in_prompt", "true"]
    with pytest.raises(
        SystemExit, match=r"train\.sft: english_in_prompt: expected false with --method cc, .* got true"
    ):
        again(folder, *out, "--method", "cc")
    english = write(tmp_path / "english.jsonl", [{**row, "instruction_en": " "} for row in ROWS])
    with pytest.raises(SystemExit, match=r"instruction_en: --english_in_prompt true expects rows with .* got none in"):
        again(folder, *out, "--dataset", english)
    assert not (tmp_path / "out" / "config.json").exists()
    with pytest.raises(
        SystemExit, match=r"english_in_prompt: the checkpoint .* was trained with True, now it is False"
    ):
        again(folder, "--output_dir", str(folder / "both"), "--resume_from_checkpoint", "true")
    for kept in (folder / "joined").glob("checkpoint-*/sft_options.json"):
        options = json.loads(kept.read_text(encoding="utf-8"))
        del options["collator"]["english_in_prompt"]  # written before it was an option
        kept.write_text(json.dumps(options), encoding="utf-8")
    with pytest.raises(
        SystemExit, match=r"english_in_prompt: the checkpoint .* was trained with False, now it is True"
    ):
        again(folder, *out[2:], "--output_dir", str(folder / "joined"), "--resume_from_checkpoint", "true")
    for name, other in (("model", "baseline"), ("baseline", "model")):
        options = EvaluateArguments(**{name: str(folder / "both"), other: str(folder / "joined")})
        with pytest.raises(
            ValueError, match=f"{name}: expected a model that reads the question alone, .*both was trai"
        ):
            run_evaluate(options)
