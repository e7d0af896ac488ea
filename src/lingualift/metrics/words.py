"""Words of a text, in scripts with spaces and without. Pure."""

from __future__ import annotations

import functools

import regex

from lingualift.languages import language as find_language

_UNSPACED = {
    "Hans": r"\p{Han}",
    "Hant": r"\p{Han}",
    "Jpan": r"\p{Han}\p{Hiragana}\p{Katakana}",
    "Thai": r"\p{Thai}",
    "Laoo": r"\p{Lao}",
    "Khmr": r"\p{Khmer}",
    "Mymr": r"\p{Myanmar}",
    "Tibt": r"\p{Tibetan}",
}


def words(text: str, language: str) -> list[str]:
    """The words of a text.

    They stand between spaces. In a language whose script has no spaces between words (Chinese, Japanese, Thai, Lao,
    Khmer, Burmese, Shan, Tibetan, Dzongkha), each letter of that script is a word, together with the marks above and
    below it; numbers and words of other scripts stay whole.

    Args:
        text: Any text; letter case and punctuation are kept.
        language: BCP-47, ISO 639-3 or NLLB code.

    Raises:
        UserError: unknown language.
    """
    letters = _UNSPACED.get(find_language(language).script)
    return _pattern(letters).findall(text) if letters else text.split()


@functools.cache
def _pattern(letters: str) -> regex.Pattern[str]:
    single = rf"[[{letters}]--\p{{Nd}}]"
    return regex.compile(rf"(?V1){single}\p{{M}}*|[[^\s]--{single}]+")
