"""One reader for the files of all commands: line breaks inside texts, byte order marks, arrays, and what is refused."""

import json

import pytest

from train.common.files import json_lines, output_file, output_folder, read_records

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
ROWS = [{"instruction": SEPARATORS, "output": "NA"}, {"instruction": "日本 😀", "output": "007"}]


def rows_of(path, **options):
    return [record.row for record in read_records(path, "file", **options)]


def spelled(name, rows=ROWS):
    """The same rows as the content of a file."""
    raw = [json.dumps(row, ensure_ascii=False) for row in rows]
    return {
        "lines": "\n".join(raw) + "\n",
        "no last line break": "\n".join(raw),
        "carriage returns": "\r\n".join(raw) + "\r\n",
        "blank lines": "\n\n" + "\n \n".join(raw) + "\n\n",
        "escapes": "\n".join(map(json.dumps, rows)),
        "byte order mark": "\ufeff" + "\n".join(raw),
        "array": json.dumps(rows, ensure_ascii=False),
        "array over lines, byte order mark": "\ufeff\n" + json.dumps(rows, ensure_ascii=False, indent=2) + "\n",
    }[name]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".JSONL"])
@pytest.mark.parametrize(
    "name",
    [
        *("lines", "no last line break", "carriage returns", "blank lines", "escapes", "byte order mark", "array"),
        "array over lines, byte order mark",
    ],
)
def test_json(tmp_path, name, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(spelled(name).encode())
    assert rows_of(path) == ROWS


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_lines(tmp_path, start, end):
    path = tmp_path / "prompts.txt"
    path.write_bytes((start + end.join([SEPARATORS, "", "zwei ", "  "])).encode())
    assert rows_of(path, text_column="instruction") == [{"instruction": SEPARATORS}, {"instruction": "zwei "}]


def test_csv_cells_stay_texts(tmp_path):
    cells = [
        "NA",
        "null",
        "None",
        "nan",
        "007",
        "1e3",
        "true",
        "2021-01-01",
        "",
        " x ",
        "a,b",
        'say "hi"',
        "two\nlines",
        "three\r\nlines",
    ]
    cells.append(SEPARATORS)
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    path = tmp_path / "rows.csv"
    path.write_bytes(("\ufeffinstruction,output\r\n" + "".join(f"q{n},{c}\r\n" for n, c in enumerate(quoted))).encode())
    assert [row["output"] for row in rows_of(path)] == cells
    plain = [cell for cell in cells if not set(cell) & set(',"\n\r')]
    path.write_text("output,instruction\n" + "".join(f"{cell},q\n" for cell in plain), encoding="utf-8")
    assert [row["output"] for row in rows_of(path)] == plain


def test_long_csv_cells(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("instruction,output\n" + "x" * 200_000 + ",y\n")
    assert len(rows_of(path)[0]["instruction"]) == 200_000


def test_parquet(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet") == ROWS
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"file: .*broken\.parquet is no Parquet file"):
        rows_of(tmp_path / "broken.parquet")


def test_what_is_written_is_read_back(tmp_path):
    rows = [*ROWS, {"note": "\ud800", "n": 1, "messages": [{"role": "user", "content": "\u2028"}]}, {}]
    (tmp_path / "out.jsonl").write_text(json_lines(rows), encoding="utf-8")
    assert rows_of(tmp_path / "out.jsonl") == rows
    assert "日本" in json_lines(rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"a": 1}\n\n{"a": \n',
            r"expected one JSON object per line, line 3 of .*a\.jsonl is not: .*Expecting",
        ),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"line 2 of .* is '\[1\]'"),
        ("a.jsonl", b'{"a": 1}\n"x"\n', "line 2 of .* is '\"x\"'"),
        ("a.jsonl", b'[{"a": 1}]\n{"a": 1}\n', r"line 1 of .* is '\[\{"),
        ("a.json", b'{\n"a": 1\n}', "line 1 of .* is not: '{'"),
        ("a.json", b'[{"a": 1}, 3]', "expected a JSON array of objects, entry 2 of .* is 3"),
        ("a.json", b'[{"a": 1},', "expected a JSON array of objects in .*: Expecting value"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"expected UTF-8 text, line 2 of .* is not: .*0xff"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "expected UTF-8 text, line 1 of"),
        ("a.jsonl", b"[" * 100_000, "expected a JSON array of objects in"),
        ("a.csv", b"a,b\n1,2\n\n3\n", r"expected 2 cells \(a, b\) in line 4 of .*a\.csv, got 1"),
        ("a.csv", b"a,b\n1,2,3\n", r"expected 2 cells \(a, b\) in line 2 of .*, got 3"),
        ("a.csv", b'a,b\n1,"2\n', r"line \d of .*a\.csv is no CSV: unexpected end of data"),
        ("a.csv", b"a,a\n1,2\n", r"expected different names in the first line of .*, got \['a', 'a'\]"),
        ("a.txt", b"x", r"expected a file of type .json, .jsonl, .parquet, .csv, got 'a\.txt'"),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"dataset: .*{message}"):
        read_records(tmp_path / name, "dataset")


def test_missing_files(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(ValueError, match="data: found no file"):
            read_records(path, "data")


def test_output_folders_are_tried_before_the_work(tmp_path):
    assert output_folder(tmp_path / "a" / "b", "out").is_dir()
    assert output_file(tmp_path / "c" / "d.jsonl", "out").parent.is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match="out: cannot write into the folder"):
            output_folder(folder, "out")
    with pytest.raises(ValueError, match=r"out: expected a file, .* is a folder"):
        output_file(tmp_path, "out")
