"""Which facts of CLDR have exactly one answer, and what CLDR calls the things they are about.

The terms, exactly:

- *Current* currency: legal tender without an end date. Whether the date has passed does not matter, so the result does
  not depend on the day. The euro is not asked about in reverse, nor is Panama, which has two currencies, forwards.
- *National* status: CLDR's `official` or `de_facto_official`. An `official_regional` language (Catalan in Spain) does
  not take part in `official_language`, but it does make `territory_of_language` ambiguous, and then it is not asked.
- A language is taken without its script (`sr_Latn` is `sr`), and the members of Norwegian and of Chinese count as one
  language each: CLDR gives Norway `no`, `nb` and `nn`, and Hong Kong `zh` but not Cantonese.
- A territory is what ISO 3166-1 lists, plus Kosovo. Others (the European Union, the Canary Islands, ...) are not asked
  about, although they count when a currency or a language is checked for being unique.
- A name is CLDR's display name. CLDR keeps these unique within one language, so no question stands for two facts.

The facts are those of the installed Babel's CLDR (2.18 has CLDR 47): good for training and measuring, no authority. The
few corrections that are known are below.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from babel.core import Locale, get_global

RELATIONS: tuple[str, ...] = ("currency", "official_language", "territory_of_currency", "territory_of_language")

# Groups, parts of other territories, pseudo locales: no country codes of ISO 3166-1.
_NOT_ISO = frozenset(["AC", "CP", "CQ", "DG", "EA", "EU", "EZ", "IC", "QO", "TA", "UN", "XA", "XB", "ZZ"])
# Where CLDR gives one language and the law another answer: Montenegrin has no code, French has lost its status in
# Burkina Faso, Mali and Niger, and the others have more official languages than CLDR lists or calls national.
_NO_SINGLE_LANGUAGE = frozenset({"BF", "CK", "IQ", "ME", "ML", "MP", "NE", "ZA"})
# Official there too, though not in CLDR: Aymara in Peru, Chamorro in the Northern Mariana Islands.
_UNLISTED_LANGUAGES = frozenset({("PE", "ay"), ("MP", "ch")})
_MACROLANGUAGE = {"nb": "no", "nn": "no", "yue": "zh", "nan": "zh", "hak": "zh"}


def _currency_links() -> set[tuple[str, str]]:
    """Every (territory, currency) where the currency is legal tender and has no end date."""
    return {
        (territory, code)
        for territory, entries in get_global("territory_currencies").items()
        for code, _start, end, tender in entries
        if tender and end is None
    }


def _language_links(statuses: Sequence[str]) -> set[tuple[str, str]]:
    """Every (territory, language) with one of the statuses, scripts and macrolanguage members folded."""
    return {
        (territory, _MACROLANGUAGE.get(base, base))
        for territory, languages in get_global("territory_languages").items()
        for code, entry in languages.items()
        if entry["official_status"] in statuses
        for base in [code.split("_")[0]]
    }


@cache
def facts(relation: str) -> tuple[tuple[str, str], ...]:
    """Sorted (subject, object) codes of the questions of one relation that have exactly one answer.

    >>> dict(facts("currency"))["JP"], dict(facts("territory_of_currency"))["JPY"]
    ('JPY', 'JP')
    >>> "PA" in dict(facts("currency")), "EUR" in dict(facts("territory_of_currency"))
    (False, False)
    """
    reverse, national = relation.startswith("territory_of_"), ("official", "de_facto_official")
    if relation.endswith("currency"):
        links = rivals = _currency_links()
    else:
        links = {link for link in _language_links(national) if link[0] not in _NO_SINGLE_LANGUAGE}
        rivals = _language_links((*national, "official_regional")) | _UNLISTED_LANGUAGES if reverse else links
    answers = Counter(link[1] if reverse else link[0] for link in rivals)
    asked = [link for link in links if link[0] not in _NOT_ISO and answers[link[1] if reverse else link[0]] == 1]
    return tuple(sorted((link[1], link[0]) if reverse else link for link in asked))


@cache
def display_name(language: str, table: str, code: str) -> str | None:
    """CLDR's display name, NFC, with plain spaces; None where there is none or where it shows the code.

    >>> display_name("sw", "territories", "JP"), display_name("sw", "currencies", "VED")
    ('Japani', None)
    """
    name = getattr(Locale.parse(language), table).get(code)
    if name is None or re.search(rf"\b{code}\b", name):
        return None
    return " ".join(unicodedata.normalize("NFC", name).split())


def tables(relation: str) -> tuple[str, str]:
    """CLDR's name tables for the subject and for the object of a relation.

    >>> tables("territory_of_currency")
    ('currencies', 'territories')
    """
    values = "currencies" if relation.endswith("currency") else "languages"
    return (values, "territories") if relation.startswith("territory_of_") else ("territories", values)


__all__ = ["RELATIONS", "display_name", "facts", "tables"]
