"""The CLDR questions: facts, names in 22 languages, and the split."""

import json
import re
import unicodedata

import pytest
from babel.core import get_global

from train.data import LANGUAGES, RELATIONS, build_rows
from train.data.questions import QUESTIONS

MIRROR = {
    "currency": "territory_of_currency",
    "territory_of_currency": "currency",
    "official_language": "territory_of_language",
    "territory_of_language": "official_language",
}
# (language, fact_id, name in the question, answer), checked by hand against the locale files of CLDR.
KNOWN = [
    ("ar", "currency/JP", "اليابان", "ين ياباني"),
    ("bn", "currency/JP", "জাপান", "জাপানি ইয়েন"),
    ("de", "official_language/AT", "Österreich", "Deutsch"),
    ("el", "official_language/FR", "Γαλλία", "Γαλλικά"),
    ("en", "currency/CH", "Switzerland", "Swiss Franc"),
    ("es", "territory_of_currency/JPY", "yen japonés", "Japón"),
    ("eu", "official_language/FR", "Frantzia", "frantsesa"),
    ("fr", "currency/JP", "Japon", "yen japonais"),
    ("hi", "official_language/JP", "जापान", "जापानी"),
    ("id", "currency/KR", "Korea Selatan", "Won Korea Selatan"),
    ("ja", "territory_of_currency/JPY", "日本円", "日本"),
    ("ko", "territory_of_language/ja", "일본어", "일본"),
    ("pt", "currency/BR", "Brasil", "Real brasileiro"),
    ("ru", "official_language/JP", "Япония", "японский"),
    ("sw", "official_language/TH", "Tailandi", "Kithai"),
    ("te", "currency/IN", "భారతదేశం", "భారతదేశ రూపాయి"),
    ("th", "currency/JP", "ญี่ปุ่น", "เยนญี่ปุ่น"),
    ("tr", "territory_of_language/is", "İzlandaca", "İzlanda"),
    ("ur", "currency/JP", "جاپان", "جاپانی ین"),
    ("vi", "territory_of_language/vi", "Tiếng Việt", "Việt Nam"),
    ("yo", "currency/NG", "Nàìjíríà", "Náírà Nàìjíríà"),
    ("zh", "currency/JP", "日本", "日元"),
]
PAPER = {language for language, *_ in KNOWN}
SCRIPTS = {
    "ar": {"ARABIC"},
    "bn": {"BENGALI"},
    "el": {"GREEK"},
    "hi": {"DEVANAGARI"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA"},
    "ko": {"HANGUL"},
    "ru": {"CYRILLIC"},
    "te": {"TELUGU"},
    "th": {"THAI"},
    "ur": {"ARABIC"},
    "zh": {"CJK"},
}


@pytest.fixture(scope="module")
def splits():
    return build_rows()


@pytest.fixture(scope="module")
def rows(splits):
    return splits["train"] + splits["held_out"]


@pytest.fixture(scope="module")
def by_key(rows):
    return {(row["language"], row["fact_id"]): row for row in rows}


# Facts and names.


def test_every_language_of_the_paper_has_every_relation(rows):
    assert set(LANGUAGES) == PAPER == {row["language"] for row in rows}
    assert set(RELATIONS) == set(MIRROR)
    counts = {}
    for row in rows:
        pair = (row["language"], row["relation"])
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 22 * 4
    smallest = {"currency": 230, "official_language": 150, "territory_of_currency": 120, "territory_of_language": 55}
    assert all(counts[pair] >= smallest[pair[1]] for pair in counts), counts


@pytest.mark.parametrize(("language", "fact_id", "name", "answer"), KNOWN, ids=[known[0] for known in KNOWN])
def test_known_fact(by_key, language, fact_id, name, answer):
    row = by_key[language, fact_id]
    question, asked = row["instruction"].split("\n")
    assert (asked, row["output"]) == (name, answer)
    assert question == QUESTIONS[language][row["relation"]]
    assert row["fact_id"] == f"{row['relation']}/{row['subject']}"


@pytest.mark.parametrize("language", SCRIPTS)
def test_questions_are_written_in_the_script_of_the_language(language):
    letters = {c for sentence in QUESTIONS[language].values() for c in sentence if c.isalpha()}
    assert {unicodedata.name(letter).split()[0].split("-")[0] for letter in letters} <= SCRIPTS[language]


def test_questions_differ_between_languages_and_relations():
    sentences = [sentence for by_relation in QUESTIONS.values() for sentence in by_relation.values()]
    assert len(set(sentences)) == len(sentences) == 22 * 4
    assert all(unicodedata.is_normalized("NFC", sentence) for sentence in sentences)


def test_pivot_is_the_english_question_of_the_same_fact(rows, by_key):
    for row in rows:
        if row["language"] == "en":
            assert row["instruction_en"] == ""
        else:
            english = by_key["en", row["fact_id"]]
            assert row["instruction_en"] == english["instruction"]
            assert row["object"] == english["object"]


def test_names_are_names_and_not_codes(rows):
    for row in rows:
        for code, text in ((row["subject"], row["instruction"].split("\n")[1]), (row["object"], row["output"])):
            assert text == text.strip() != ""
            assert not re.search(rf"\b{code}\b", text), row
            assert not re.fullmatch(r"[A-Z]{2,3}|[a-z]{2,3}|\d+", text) or text == "lao", row


def test_a_question_has_one_answer(rows):
    answers = {}
    for row in rows:
        answers.setdefault((row["language"], row["instruction"]), set()).add((row["output"], row["object"]))
    assert len(answers) == len(rows)
    assert all(len(found) == 1 for found in answers.values())


def test_currencies_are_current_and_unambiguous(rows):
    current = {
        territory: {code for code, _, end, tender in entries if tender and end is None}
        for territory, entries in get_global("territory_currencies").items()
    }
    for row in rows:
        if row["relation"] == "currency":
            assert current[row["subject"]] == {row["object"]}
        if row["relation"] == "territory_of_currency":
            assert [t for t, codes in current.items() if row["subject"] in codes] == [row["object"]]


@pytest.mark.parametrize(
    "fact_id",
    [
        "currency/PA",  # two currencies
        "currency/EU",  # no territory
        "currency/AQ",  # none
        "territory_of_currency/EUR",
        "territory_of_currency/FRF",  # historic
        "territory_of_currency/CHE",  # no tender
        "official_language/CH",  # four languages
        "official_language/ME",  # CLDR has no code for Montenegrin
        "official_language/ZA",  # twelve languages
        "official_language/ML",  # French until 2023
        "official_language/IC",  # a part of Spain
        "territory_of_language/ca",  # regional in Spain
        "territory_of_language/ay",  # Peru too, which CLDR does not say
        "territory_of_language/nb",
        "territory_of_language/zh",
        "territory_of_language/en",
    ],
)
def test_ambiguous_facts_are_not_asked(rows, fact_id):
    assert not [row for row in rows if row["fact_id"] == fact_id]


@pytest.mark.parametrize(
    ("territory", "code", "answer"),
    [("NO", "no", "Norwegian"), ("TW", "zh", "Chinese"), ("RS", "sr", "Serbian"), ("UZ", "uz", "Uzbek")],
)
def test_scripts_and_macrolanguages_are_folded(by_key, territory, code, answer):
    row = by_key["en", f"official_language/{territory}"]
    assert (row["object"], row["output"]) == (code, answer)


def test_a_name_that_is_missing_or_shows_the_code_is_left_out(by_key):
    assert ("en", "territory_of_currency/BAM") in by_key
    assert ("ja", "territory_of_currency/BAM") not in by_key  # CLDR's Japanese name ends in "(BAM)"
    assert ("en", "territory_of_language/ho") in by_key
    assert ("sw", "territory_of_language/ho") not in by_key  # CLDR has no Swahili name for Hiri Motu


# The split.


def test_held_out_facts_are_seen_in_english_and_in_neither_direction_in_the_language(splits):
    seen = {(row["language"], row["relation"], row["subject"], row["object"]) for row in splits["train"]}
    for row in splits["held_out"]:
        language, relation, subject, target = (row[key] for key in ("language", "relation", "subject", "object"))
        assert ("en", relation, subject, target) in seen
        assert (language, relation, subject, target) not in seen
        assert (language, MIRROR[relation], target, subject) not in seen


def test_english_is_all_in_train_and_the_share_is_held_out_elsewhere(splits, rows):
    assert {row["language"] for row in splits["held_out"]} == PAPER - {"en"}
    assert {row["relation"] for row in splits["held_out"]} == set(RELATIONS)
    assert len(splits["held_out"]) / sum(row["language"] != "en" for row in rows) == pytest.approx(0.1, abs=0.01)
    chosen = {}
    for row in splits["held_out"]:
        chosen.setdefault(row["language"], set()).add(row["fact_id"])
    assert len({frozenset(facts) for facts in chosen.values()}) == 21, "every language draws for itself"


def test_about_half_of_the_held_out_answers_occur_in_train_in_the_language(splits):
    said = {(row["language"], row["output"]) for row in splits["train"]}
    known = [row for row in splits["held_out"] if (row["language"], row["output"]) in said]
    assert 0.4 < len(known) / len(splits["held_out"]) < 0.6


def test_no_pair_is_lost_or_moved_by_a_subset(splits):
    subset = build_rows(languages=["ja", "en"], relations=["territory_of_currency"])
    for split, rows in subset.items():
        expected = [
            row
            for language in ("ja", "en")
            for row in splits[split]
            if (row["language"], row["relation"]) == (language, "territory_of_currency")
        ]
        assert rows == expected


def test_held_out_zero_and_larger_shares(splits):
    everything = build_rows(held_out=0)
    assert everything["held_out"] == []
    assert len(everything["train"]) == len(splits["train"]) + len(splits["held_out"])
    small, large = ({str(row) for row in build_rows(held_out=share)["held_out"]} for share in (0.1, 0.3))
    assert small < large


def test_deterministic_and_seeded(splits):
    assert json.dumps(build_rows()) == json.dumps(splits)
    other = build_rows(seed=1)
    assert other["held_out"] != splits["held_out"]
    assert len(other["train"]) + len(other["held_out"]) == len(splits["train"]) + len(splits["held_out"])


def test_rows_belong_to_the_caller():
    build_rows(["en"], held_out=0)["train"][0]["output"] = "changed"
    assert build_rows(["en"], held_out=0)["train"][0]["output"] != "changed"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"languages": ["en", "xx"]}, ValueError, r"languages: expected one or more of ar, .*got \['xx'\]"),
        ({"languages": []}, ValueError, "languages: .*got none"),
        ({"languages": "fr"}, TypeError, r"languages: expected a sequence.*use \['fr'\]"),
        ({"languages": ["fr"]}, ValueError, "languages: expected 'en' among them"),
        ({"relations": ["capital"]}, ValueError, r"relations: .*got \['capital'\]"),
        ({"held_out": 1.0}, ValueError, r"held_out: expected a number in \[0, 1\), got 1.0"),
        ({"held_out": -0.1}, ValueError, "held_out"),
        ({"held_out": float("nan")}, ValueError, "held_out"),
        ({"held_out": "0.1"}, ValueError, "held_out: .*got '0.1'"),
        ({"held_out": True}, ValueError, "held_out"),
    ],
)
def test_errors_name_argument_expected_and_got(arguments, error, message):
    with pytest.raises(error, match=message):
        build_rows(**arguments)
