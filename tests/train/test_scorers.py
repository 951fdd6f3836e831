"""Scores of generated answers, checked by hand in Arabic, Chinese, Hindi, Thai, Yoruba and others."""

import unicodedata

import pytest

from train.evaluation.scorers import answer_scores, exact_match, f1, normalised, rouge_l, summary_scores, tokens

SAME = {
    "ar": [("١٩٩٩", "1999"), ("مُحَمَّد", "محمد"), ("محـــمد", "محمد"), ("  القاهرة، ", "القاهرة؟"), ("۳٫۰", "3")],
    "zh": [("北京。", "北京"), ("１２３", "123"), ("《红楼梦》", "红楼梦"), ("Tokyo ", "ＴＯＫＹＯ")],
    "hi": [("१९४७", "1947"), ("भारत।", "भारत"), ("\u095eिल्म", "\u092b\u093cिल्म"), ("“गांधी”", "गांधी")],
    "th": [("พ.ศ. ๒๕๖๐", "พศ 2560"), ("น้ำ", "น\u0e4d\u0e49\u0e32"), ("น้ำ", "น\u0e49\u0e4d\u0e32")],
    "yo": [(unicodedata.normalize("NFD", "Ọ̀yọ́"), unicodedata.normalize("NFC", "ọ̀yọ́")), ("Èkó!", "èkó")],
    "en": [("The Beatles", "beatles"), ("a  cat", "Cat"), ("3.0", "3"), ("U.S.", "US")],
    "tr": [("İstanbul", "i\u0307stanbul")],
    "bn": [("২০১০", "2010")],
    "te": [("ఆప్షన్\u200cలలో", "ఆప్షన్లలో")],
}
DIFFERENT = {
    "ar": [("1999", "٢٠٠٠"), ("القاهرة", "قاهرة")],
    "zh": [("北京", "南京")],
    "hi": [("गांधी", "गधी"), ("कि", "की")],  # vowel signs are letters
    "th": [("ขาว", "ข่าว")],  # tone marks are letters
    "yo": [("Ọ̀yọ́", "Oyo"), ("A lọ", "lọ")],  # tones and dots are letters, and "a" is no article here
    "de": [("10.000", "10"), ("schön", "schon"), ("das Haus", "Haus")],
    "es": [("a", "")],
}
F1 = [
    ("ar", "مدينة نيويورك", "نيويورك", 2 / 3),  # 1 of 2 words given, 1 of 1 wanted
    ("zh", "北京市", "北京", 4 / 5),  # 2 of 3 characters, 2 of 2
    ("zh", "1999年", "1999", 2 / 3),  # 1999 and 年
    ("hi", "महात्मा गांधी जी", "महात्मा गांधी।", 4 / 5),
    ("th", "น้ำดี", "น้ำ", 2 / 3),  # น้ำ and ดี: a consonant with its marks is one character
    ("yo", "Ìpínlẹ̀ Ọ̀yọ́", "Ọ̀yọ́", 2 / 3),
    ("ja", "東京タワー", "タワー", 3 / 4),  # 3 of 5, 3 of 3
    ("ko", "서울 특별시", "서울", 2 / 3),
    ("en", "the red red house", "red house red door", 6 / 7),  # red twice, house once; the article is dropped
    ("de", "", "Haus", 0),
    ("de", "!", "?", 1),  # nothing is left of either
]
ROUGE = [
    ("ar", "ذهب الولد إلى المدرسة", "ذهب الولد إلى البيت أمس", 2 * 3 / (4 + 5)),
    ("zh", "天气很好", "今天天气好", 2 * 3 / (4 + 5)),  # 天 气 好
    ("hi", "वह घर गया", "वह कल घर गया था।", 2 * 3 / (3 + 5)),
    ("th", "แมวกินปลา", "แมวกินข้าว", 2 * 6 / (8 + 8)),  # แ ม ว กิ น า
    ("yo", "Ó lọ sí ọjà", "Ó lọ sí ilé ìwé", 2 * 3 / (4 + 5)),
    ("ru", "кот спит дома", "дома спит кот", 2 * 1 / (3 + 3)),  # the order counts
    ("en", "the cat sat", "cat", 2 * 1 / (3 + 1)),  # articles count
    ("vi", "", "Hà Nội", 0),
]


def each(cases):
    return [(language, *case) for language, pairs in cases.items() for case in pairs]


@pytest.mark.parametrize(("language", "answer", "expected"), each(SAME))
def test_exact_match(language, answer, expected):
    assert exact_match(answer, [expected], language) == exact_match(expected, ["-", answer], language) == 1.0


@pytest.mark.parametrize(("language", "answer", "expected"), each(DIFFERENT))
def test_no_exact_match(language, answer, expected):
    assert exact_match(answer, [expected], language) == 0.0


@pytest.mark.parametrize(("language", "answer", "expected", "score"), F1)
def test_f1(language, answer, expected, score):
    assert f1(answer, [expected], language) == pytest.approx(score)
    assert f1(expected, [answer], language) == pytest.approx(score)
    assert f1(answer, ["x y z", expected], language) == pytest.approx(score)


@pytest.mark.parametrize(("language", "answer", "expected", "score"), ROUGE)
def test_rouge_l(language, answer, expected, score):
    assert rouge_l(answer, [expected], language) == pytest.approx(score)


def test_tokens():
    assert tokens("ที่โรงเรียน") == ["ที่", "โ", "ร", "ง", "เ", "รี", "ย", "น"]
    assert tokens("2010年に京都で") == ["2010", "年", "に", "京", "都", "で"]
    assert tokens("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert tokens("Ọ̀yọ́ ni") == [unicodedata.normalize("NFKC", "ọ̀yọ́"), "ni"]
    assert tokens(" ،。! ") == []


def test_normalising_twice_changes_nothing():
    texts = [text for pairs in (*SAME.values(), *DIFFERENT.values()) for pair in pairs for text in pair]
    assert all(normalised(normalised(text)) == normalised(text) for text in texts)


def test_scores_of_a_row():
    doc = {"answers": ["北京", "北京市"], "language": "zh"}
    assert answer_scores(doc, ["北京市。"]) == {"f1": 1.0, "exact_match": 1.0}
    assert answer_scores(doc, ["南京"]) == {"f1": pytest.approx(0.5), "exact_match": 0.0}
    assert summary_scores(doc, ["北京"]) == {"rougeL": 1.0}
