"""The four questions of `train.data.cldr` in 22 languages.

A question is a full sentence followed by a name on a line of its own:

    In welchem Land oder Gebiet ist diese Sprache Amtssprache?
    Japanisch

The sentence says "this country", "this currency", "this language", so the name stays in its citation form, which is
the form CLDR gives. No article, case ending, vowel harmony or word order has to be adapted to it.
"""

_ORDER = ("currency", "official_language", "territory_of_currency", "territory_of_language")

_SENTENCES: dict[str, tuple[str, str, str, str]] = {
    "ar": (
        "ما العملة الرسمية لهذا البلد أو الإقليم؟",
        "ما اللغة الرسمية لهذا البلد أو الإقليم؟",
        "في أي بلد أو إقليم تُعدّ هذه العملة رسمية؟",
        "في أي بلد أو إقليم تُعدّ هذه اللغة رسمية؟",
    ),
    "bn": (
        "এই দেশ বা অঞ্চলের সরকারি মুদ্রা কী?",
        "এই দেশ বা অঞ্চলের সরকারি ভাষা কী?",
        "এটি কোন দেশ বা অঞ্চলের সরকারি মুদ্রা?",
        "এটি কোন দেশ বা অঞ্চলের সরকারি ভাষা?",
    ),
    "de": (
        "Was ist die offizielle Währung dieses Landes oder Gebiets?",
        "Was ist die Amtssprache dieses Landes oder Gebiets?",
        "In welchem Land oder Gebiet ist dies die offizielle Währung?",
        "In welchem Land oder Gebiet ist diese Sprache Amtssprache?",
    ),
    "el": (
        "Ποιο είναι το επίσημο νόμισμα αυτής της χώρας ή περιοχής;",
        "Ποια είναι η επίσημη γλώσσα αυτής της χώρας ή περιοχής;",
        "Σε ποια χώρα ή περιοχή είναι επίσημο αυτό το νόμισμα;",
        "Σε ποια χώρα ή περιοχή είναι επίσημη αυτή η γλώσσα;",
    ),
    "en": (
        "What is the official currency of this country or territory?",
        "What is the official language of this country or territory?",
        "In which country or territory is this currency official?",
        "In which country or territory is this language official?",
    ),
    "es": (
        "¿Cuál es la moneda oficial de este país o territorio?",
        "¿Cuál es el idioma oficial de este país o territorio?",
        "¿En qué país o territorio es oficial esta moneda?",
        "¿En qué país o territorio es oficial este idioma?",
    ),
    "eu": (
        "Zein da herrialde edo lurralde honen moneta ofiziala?",
        "Zein da herrialde edo lurralde honen hizkuntza ofiziala?",
        "Zein herrialde edo lurraldetan da ofiziala moneta hau?",
        "Zein herrialde edo lurraldetan da ofiziala hizkuntza hau?",
    ),
    "fr": (
        "Quelle est la monnaie officielle de ce pays ou territoire ?",
        "Quelle est la langue officielle de ce pays ou territoire ?",
        "Dans quel pays ou territoire cette monnaie est-elle officielle ?",
        "Dans quel pays ou territoire cette langue est-elle officielle ?",
    ),
    "hi": (
        "इस देश या क्षेत्र की आधिकारिक मुद्रा क्या है?",
        "इस देश या क्षेत्र की आधिकारिक भाषा क्या है?",
        "यह किस देश या क्षेत्र की आधिकारिक मुद्रा है?",
        "यह किस देश या क्षेत्र की आधिकारिक भाषा है?",
    ),
    "id": (
        "Apa mata uang resmi negara atau wilayah ini?",
        "Apa bahasa resmi negara atau wilayah ini?",
        "Di negara atau wilayah mana mata uang ini menjadi mata uang resmi?",
        "Di negara atau wilayah mana bahasa ini menjadi bahasa resmi?",
    ),
    "ja": (
        "この国または地域の公式通貨は何ですか？",
        "この国または地域の公用語は何ですか？",
        "この通貨を公式通貨とする国または地域はどこですか？",
        "この言語を公用語とする国または地域はどこですか？",
    ),
    "ko": (
        "이 국가 또는 지역의 공식 통화는 무엇입니까?",
        "이 국가 또는 지역의 공용어는 무엇입니까?",
        "이 통화를 공식 통화로 사용하는 국가 또는 지역은 어디입니까?",
        "이 언어를 공용어로 사용하는 국가 또는 지역은 어디입니까?",
    ),
    "pt": (
        "Qual é a moeda oficial deste país ou território?",
        "Qual é o idioma oficial deste país ou território?",
        "Em que país ou território esta moeda é oficial?",
        "Em que país ou território este idioma é oficial?",
    ),
    "ru": (
        "Какая валюта является официальной в этой стране или на этой территории?",
        "Какой язык является официальным в этой стране или на этой территории?",
        "В какой стране или на какой территории эта валюта является официальной?",
        "В какой стране или на какой территории этот язык является официальным?",
    ),
    "sw": (
        "Sarafu rasmi ya nchi hii au eneo hili ni ipi?",
        "Lugha rasmi ya nchi hii au eneo hili ni ipi?",
        "Sarafu hii ni sarafu rasmi katika nchi au eneo gani?",
        "Lugha hii ni lugha rasmi katika nchi au eneo gani?",
    ),
    "te": (
        "ఈ దేశం లేదా ప్రాంతం యొక్క అధికారిక కరెన్సీ ఏది?",
        "ఈ దేశం లేదా ప్రాంతం యొక్క అధికారిక భాష ఏది?",
        "ఇది ఏ దేశం లేదా ప్రాంతం యొక్క అధికారిక కరెన్సీ?",
        "ఇది ఏ దేశం లేదా ప్రాంతం యొక్క అధికారిక భాష?",
    ),
    "th": (
        "สกุลเงินทางการของประเทศหรือดินแดนนี้คืออะไร",
        "ภาษาราชการของประเทศหรือดินแดนนี้คืออะไร",
        "สกุลเงินนี้เป็นสกุลเงินทางการของประเทศหรือดินแดนใด",
        "ภาษานี้เป็นภาษาราชการของประเทศหรือดินแดนใด",
    ),
    "tr": (
        "Bu ülkenin veya bölgenin resmî para birimi nedir?",
        "Bu ülkenin veya bölgenin resmî dili nedir?",
        "Bu para birimi hangi ülkenin veya bölgenin resmî para birimidir?",
        "Bu dil hangi ülkenin veya bölgenin resmî dilidir?",
    ),
    "ur": (
        "اس ملک یا علاقے کی سرکاری کرنسی کیا ہے؟",
        "اس ملک یا علاقے کی سرکاری زبان کیا ہے؟",
        "یہ کس ملک یا علاقے کی سرکاری کرنسی ہے؟",
        "یہ کس ملک یا علاقے کی سرکاری زبان ہے؟",
    ),
    "vi": (
        "Tiền tệ chính thức của quốc gia hoặc vùng lãnh thổ này là gì?",
        "Ngôn ngữ chính thức của quốc gia hoặc vùng lãnh thổ này là gì?",
        "Đây là tiền tệ chính thức của quốc gia hoặc vùng lãnh thổ nào?",
        "Đây là ngôn ngữ chính thức của quốc gia hoặc vùng lãnh thổ nào?",
    ),
    "yo": (
        "Kí ni owó tí a ń ná ní orílẹ̀-èdè tàbí agbègbè yìí?",
        "Kí ni èdè ìjọba orílẹ̀-èdè tàbí agbègbè yìí?",
        "Ní orílẹ̀-èdè tàbí agbègbè wo ni a ti ń ná owó yìí?",
        "Ní orílẹ̀-èdè tàbí agbègbè wo ni èdè yìí ti jẹ́ èdè ìjọba?",
    ),
    "zh": (
        "这个国家或地区的法定货币是什么？",
        "这个国家或地区的官方语言是什么？",
        "哪个国家或地区以这种货币为法定货币？",
        "哪个国家或地区以这种语言为官方语言？",
    ),
}

QUESTIONS: dict[str, dict[str, str]] = {
    language: dict(zip(_ORDER, sentences, strict=True)) for language, sentences in _SENTENCES.items()
}


def ask(language: str, relation: str, name: str) -> str:
    """The question of one relation about one name, which stays as CLDR spells it.

    >>> print(ask("de", "currency", "Japan"))
    Was ist die offizielle Währung dieses Landes oder Gebiets?
    Japan
    """
    return f"{QUESTIONS[language][relation]}\n{name}"


__all__ = ["QUESTIONS", "ask"]
