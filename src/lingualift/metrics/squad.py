"""Exact match and F1 of short answers, as SQuAD and MLQA define them. Pure.

The order of the steps is that of SQuAD v1.1 (https://arxiv.org/abs/1606.05250): lower case, no punctuation, no
articles, words. Punctuation, articles and the words of Chinese are those of MLQA (https://arxiv.org/abs/1910.07475,
`mlqa_evaluation_v1.py`), which in English differs from SQuAD in this alone: it drops all of Unicode's punctuation and
not only ASCII's.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

from lingualift.languages import language as find_language
from lingualift.metrics.words import words

_ARTICLES = {  # MLQA's; the other languages keep all words, as no published scorer names articles for them
    "ar": "ال",  # wherever it stands, in the middle of a word too: MLQA's rule, so that scores can be compared
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
}


def answer_words(text: str, language: str) -> list[str]:
    """The words of an answer that count: lower case, without punctuation and articles.

    Raises:
        UserError: unknown language.
    """
    bare = "".join(char for char in text.lower() if not _is_punctuation(char))
    articles = _ARTICLES.get(find_language(language).code)
    return words(re.sub(articles, " ", bare) if articles else bare, language)


def squad_em(prediction: str, gold: tuple[str, ...], language: str) -> float:
    """1 if the answer has the words of an accepted one, in their order; else 0."""
    given = answer_words(prediction, language)
    return float(any(given == answer_words(one, language) for one in gold))


def squad_f1(prediction: str, gold: tuple[str, ...], language: str) -> float:
    """F1 of the answer's words with those of the accepted answer it is closest to, 0 to 1."""
    given = answer_words(prediction, language)
    return max((_f1(given, answer_words(one, language)) for one in gold), default=0.0)


def _f1(given: list[str], true: list[str]) -> float:
    """Words count as often as they occur; 0 if none is shared, for two empty answers too, as in SQuAD v1.1."""
    shared = (Counter(given) & Counter(true)).total()
    return 2 * shared / (len(given) + len(true)) if shared else 0.0


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")
