"""A row that cannot be read ends a command before its work, with its number and column; texts stay as they are."""

import json

import pytest
from datasets import Dataset

from cc_model.data.collator import ParallelCollator
from train.common.arguments import DataArguments
from train.common.models import new_tokenizer
from train.common.rows import check_rows
from train.data.sources import load_rows
from train.fit_transform import main as fit
from train.generate import main as generate
from train.sft import main as sft

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
GOOD = [{"instruction": f"Frage {n}?", "instruction_en": f"Question {n}?", "output": f"Antwort {n}"} for n in range(40)]
CHAT = [{"role": "user", "content": "Frage"}, {"role": "assistant", "content": "Antwort"}]


@pytest.fixture(scope="module")
def collator():
    return ParallelCollator(new_tokenizer(GOOD, 400), max_length=64)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def arguments(dataset, out):
    shape = [
        "--scratch",
        json.dumps({**SHAPE, **HEADS}),
        "--scratch_vocab_size",
        "400",
        "--max_length",
        "64",
        "--use_cpu",
    ]
    steps = ["--max_steps", "6", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    return [*shape, *steps, "--dataset", str(dataset), "--output_dir", str(out), "--logging_steps", "1"]


def with_row_37(change):
    return [*GOOD[:37], {**GOOD[37], **change}, *GOOD[38:]]


BAD = {
    "no answer": ({"output": None}, "column 'output' must be text, got NoneType"),
    "no question": ({"instruction": None}, "column 'instruction' must be text, got NoneType"),
    "a number as answer": ({"output": 4}, "column 'output' must be text, got int 4"),
    "a list as English question": ({"instruction_en": ["a"]}, "column 'instruction_en' must be text, got list"),
    "half a character in the answer": ({"output": "x\ud800"}, "column 'output' must be valid Unicode text"),
    "half a character in the English question": ({"instruction_en": "\udfff"}, "column 'instruction_en' must be valid"),
    "a chat that is none": ({"messages": "Hallo"}, "column 'messages' must be a list of messages"),
    "a chat without the answer": ({"messages": CHAT[:1]}, "column 'messages' must end with an assistant turn"),
    "a chat with an empty turn": (
        {"messages": [{"role": "user", "content": None}, CHAT[1]]},
        "column 'messages' must be",
    ),
    "a chat with half a character": (
        {"messages": [CHAT[0], {"role": "assistant", "content": "\ud800"}]},
        "column 'messages' must be valid Unicode text",
    ),
    "an English chat without roles": (
        {"messages": CHAT, "messages_en": [{"content": "a"}]},
        "column 'messages_en' must",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_sft_names_row_and_column_before_the_first_step(tmp_path, name, capsys):
    change, message = BAD[name]
    path = written(tmp_path / "rows.jsonl", with_row_37(change))
    with pytest.raises(SystemExit, match=rf"train.sft: dataset: row 37 \(counted from 0.*\): {message}"):
        sft(arguments(path, tmp_path / "out"))
    assert "step 1/" not in capsys.readouterr().out


def test_a_file_of_another_kind_names_the_same_row(tmp_path):
    table = Dataset.from_list(with_row_37({"output": None}))
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.json").write_text(json.dumps(with_row_37({"output": None})))
    for name in ("rows.parquet", "saved", "rows.json"):
        with pytest.raises(
            SystemExit, match=r"dataset: row 37 \(counted from 0\): column 'output' must be text, got None"
        ):
            sft(arguments(tmp_path / name, tmp_path / "out"))
    Dataset.from_list([{**row, "output": n} for n, row in enumerate(GOOD)]).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(SystemExit, match=r"dataset: row 0 \(counted from 0\): column 'output' must be text, got int"):
        sft(arguments(tmp_path / "numbers.parquet", tmp_path / "out"))


def test_rows_that_are_not_used_are_not_asked(tmp_path):
    path = written(tmp_path / "rows.jsonl", with_row_37({"output": 4}))
    sft([*arguments(path, tmp_path / "out"), "--max_samples", "37", "--max_steps", "1"])


def test_rows_of_the_evaluation_are_checked_too(tmp_path):
    written(tmp_path / "train.jsonl", GOOD)
    written(tmp_path / "test.jsonl", with_row_37({"output": None}))
    with pytest.raises(SystemExit, match=r"train.sft: eval_split: row 37 \(counted from 0\): column 'output'"):
        sft([*arguments(tmp_path, tmp_path / "out"), "--eval_split", "test", "--eval_strategy", "epoch"])


def test_a_template_that_refuses_a_row(collator):
    rows = [{"messages": CHAT}] * 70 + [{"messages": [{"role": "tool", "content": "x"}, CHAT[1]]}]
    with pytest.raises(
        ValueError, match=r"dataset: row 70 \(counted from 0\): the tokenizer's chat template refused it"
    ):
        check_rows(rows, collator, progress=False)
    check_rows(rows, collator, numbers=range(70), progress=False)


def test_checking_leaves_the_collator_as_it_was(collator):
    rows = [{**GOOD[0], "output": "lang " * 200}] * 3
    check_rows(rows, collator, progress=False)
    assert collator.truncated == 0
    packed = ParallelCollator(collator.tokenizer, max_length=64, packed=True)
    check_rows(rows, packed, progress=False)
    assert packed.packed


@pytest.mark.parametrize("answer", ["NA", "null", "NaN", "007", "1.50", "true", "2021-01-01", "2021-01-01 00:00:00"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_answers_stay_texts(tmp_path, answer, suffix):
    """Where every answer could be read as something else."""
    path = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        path.write_text("instruction,instruction_en,output\n" + f"Frage,Question,{answer}\n" * 3)
    else:
        rows = [{**GOOD[0], "output": answer}] * 3
        path.write_text(json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    for dataset in (path, tmp_path):
        assert load_rows(DataArguments(dataset=str(dataset)))["output"][:] == [answer] * 3


def test_empty_cells_of_a_csv_are_rows_without_a_pivot(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction,instruction_en,output\na,,b\nc,d,e\n")
    rows = load_rows(DataArguments(dataset=str(path)))
    assert rows["instruction_en"][:] == ["", "d"]


def test_swapped_columns(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"instruction": "an answer", "output": "a question"}])
    options = DataArguments(dataset=path, instruction_column="output", output_column="instruction")
    assert load_rows(options)[0] == {"instruction": "a question", "output": "an answer"}
    with pytest.raises(ValueError, match="instruction_column: expected a column of its own for each text"):
        load_rows(DataArguments(dataset=path, instruction_column="output"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"q": "a", "en": "b", "a": "c"},
            r"instruction_column: expected a column 'instruction' .*, got \['q', 'en', 'a'\]",
        ),
        ({"instruction": "a", "answer": "b"}, r"output_column: .* 'output' .*, got \['instruction', 'answer'\]"),
    ],
)
def test_all_columns_are_named_where_one_is_missing(tmp_path, row, message):
    options = DataArguments(dataset=written(tmp_path / "rows.jsonl", [row]))
    with pytest.raises(ValueError, match=message):
        load_rows(options)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"dataset: expected rows in .*, got none"):
        load_rows(options)


def test_turns_keep_their_further_entries(tmp_path):
    path = written(
        tmp_path / "rows.jsonl", [{"messages": [CHAT[0], {**CHAT[1], "thinking": "hm"}], "id": n} for n in "ab"]
    )
    assert load_rows(DataArguments(dataset=path))[1]["messages"][1]["thinking"] == "hm"
    rows = [{"messages": [CHAT[0], {**CHAT[1], "thinking": thinking}]} for thinking in ("hm", 3)]
    with pytest.raises(ValueError, match=r"dataset: column 'messages' of .*rows\.jsonl: "):
        load_rows(DataArguments(dataset=written(tmp_path / "rows.jsonl", rows)))


def test_broken_files_are_no_tracebacks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD[0]) + '\n{"instruction": "a\n')
    with pytest.raises(
        SystemExit, match=r"train.sft: dataset: expected one JSON object per line, line 2 of .*rows.jsonl"
    ):
        sft(arguments(path, tmp_path / "out"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    written(root / "rows.jsonl", GOOD)
    sft([*arguments(root / "rows.jsonl", root / "cc"), "--max_steps", "1"])
    return root / "cc"


def test_fit_names_the_row_of_the_data_set(model, tmp_path):
    path = written(tmp_path / "rows.jsonl", with_row_37({"instruction": None}))
    with pytest.raises(
        SystemExit, match=r"train.fit_transform: dataset: row 37 \(counted from 0\): column 'instruction' m"
    ):
        fit(["--model", str(model), "--dataset", path, "--device", "cpu"])


def test_fit_reads_no_answers(model, tmp_path):
    """The questions of train.generate's file are pairs, too, whatever stands for an answer."""
    rows = [{"instruction": row["instruction"], "instruction_en": row["instruction_en"]} for row in GOOD]
    for name, change in (("none", {}), ("numbers", {"output": 4}), ("null", {"output": None})):
        path = written(tmp_path / f"{name}.jsonl", [{**row, **change} for row in rows])
        fit(["--model", str(model), "--dataset", path, "--output_dir", str(tmp_path / name), "--device", "cpu"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD[0], {"instruction": 4}], r"file: row 1 \(counted from 0\): column 'instruction' must be text, got int"),
        ([GOOD[0], {"output": "x"}], r"file: row 1 .*: column 'instruction' or messages is missing"),
        ([GOOD[0], {"instruction": "\ud800"}], r"file: row 1 .*: column 'instruction' must be valid Unicode text"),
        ([GOOD[0], {**GOOD[0], "instruction_en": 3}], r"file: row 1 .*: column 'instruction_en' must be text"),
        ([{"messages": [{"role": "user"}]}], r"file: row 0 .*: column 'messages': expected messages with text"),
    ],
)
def test_generate_names_the_row_before_it_answers(model, tmp_path, rows, message):
    path = written(tmp_path / "questions.jsonl", rows)
    with pytest.raises(SystemExit, match=f"train.generate: {message}"):
        generate(["--model", str(model), "--file", path, "--device", "cpu", "--out", str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()
