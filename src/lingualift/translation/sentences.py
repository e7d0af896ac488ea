"""Where a text may be cut for a model that translates sentence by sentence."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import regex

_END = regex.compile(r"(?P<mark>[\p{SB=STerm}\p{SB=ATerm}…]+)(?:\[\d{1,3}\]|\p{SB=Close})*|\s*\n\s*")
_WIDE = "。！？｡"  # after which no space follows
_LETTER = regex.compile(r"(?<![\p{L}\p{M}])\p{L}$")
_TITLES = regex.compile(r"(?<!\w)(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Sra|No|vs|Gen|Col|Capt|Lt|Sgt|Rev)$")
_LOWER = regex.compile(r"\s*\p{Ll}")
UNSPACED = ("Hans", "Hant", "Jpan")
"""Scripts whose sentences follow each other without a space."""


@dataclass(frozen=True)
class Piece:
    """A part of a text that is translated by itself.

    Attributes:
        text: Without white space at its ends.
        gap: White space that stands between it and the next piece.
        cut: Whether it is a part of a sentence that was too long.
        marked: Whether it belongs to the sentence, or sentences, with the marked part.
    """

    text: str
    gap: str
    cut: bool = False
    marked: bool = False


def sentences(text: str) -> list[tuple[int, int]]:
    """Begin and end of each sentence of a text, without the white space between them.

    By the terminators of all scripts (Unicode's property Sentence_Break, https://unicode.org/reports/tr29): after
    them, their closing quotation marks or footnotes (`.[5]`) and a space, or at once after `。！？`; at every line
    break. No cut where what follows begins in lower case, nor after a full stop that ends a single letter
    (`J. Smith`, `U.S.`) or a title (`Dr.`). In doubt sentences stay together: Thai, which has no terminators, is cut
    at line breaks alone.
    """
    cuts = [0, *(place.end() for place in _END.finditer(text) if _ends(text, place)), len(text)]
    found = []
    for begin, end in itertools.pairwise(cuts):
        inner = text[begin:end].strip()
        if inner:
            first = text.index(inner, begin)
            found.append((first, first + len(inner)))
    return found


def _ends(text: str, place: regex.Match[str]) -> bool:
    mark, rest = place["mark"], text[place.end() :]
    if mark is None or not rest:
        return True
    if mark[-1] in _WIDE:
        return True
    if not rest[0].isspace() or _LOWER.match(rest):
        return False
    before = text[max(0, place.start() - 12) : place.start()]
    return mark != "." or not (_LETTER.search(before) or _TITLES.search(before))


def pieces(
    text: str,
    fits: Callable[[str], bool],
    whole: tuple[int, int] | None = None,
    marks: tuple[str, str] = ("", ""),
) -> list[Piece]:
    """Cut a text into sentences, and a sentence that does not fit at white space, or between letters as a last resort.

    Args:
        text: Stripped.
        fits: Whether the model reads a text whole.
        whole: Begin and end of a part that no sentence ends in.
        marks: What is put before and after that part.
    """
    spans = sentences(text)
    if whole is not None:
        inside = [span for span in spans if span[0] < whole[1] and whole[0] < span[1]]
        merged = (inside[0][0], inside[-1][1])
        spans = sorted({merged if span in inside else span for span in spans})
    found = []
    for number, (begin, end) in enumerate(spans):
        part = text[begin:end]
        marked = whole is not None and begin <= whole[0] < end
        if whole is not None and marked:
            first, last = whole[0] - begin, whole[1] - begin
            part = f"{part[:first]}{marks[0]}{part[first:last]}{marks[1]}{part[last:]}"
        gap = text[end : spans[number + 1][0]] if number + 1 < len(spans) else ""
        parts = [part] if fits(part) else _cut(part, fits)
        cut = len(parts) > 1
        found += [Piece(words, " ", cut, marked) for words in parts[:-1]]
        found.append(Piece(parts[-1], gap, cut, marked))
    return found


def _cut(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The longest beginnings that fit, one after the other, of words if there are some."""
    found, words = [], text.split()
    glue = " " if len(words) > 1 else ""
    units = words if len(words) > 1 else list(text)
    while units:
        count = _most(units, glue, fits)
        if count:
            found.append(glue.join(units[:count]))
        elif len(units[0]) > 1:
            count = 1
            found += _cut(units[0], fits)
        else:
            raise ValueError(f"{units[0]!r} alone does not fit")
        units = units[count:]
    return found


def _most(units: list[str], glue: str, fits: Callable[[str], bool]) -> int:
    """How many units fit together, by halving: a longer text takes no fewer tokens."""
    low, high = 0, len(units)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(glue.join(units[:middle])) else (low, middle - 1)
    return low


def joined(parts: list[Piece], translations: list[str], script: str) -> str:
    """Translations of some pieces as one text: line breaks stay, else a space, or none in scripts without.

    What stands between the last piece and the next stands at the end.
    """
    text = ""
    between = "" if script in UNSPACED else " "
    for part, words in zip(parts, translations, strict=True):
        text += words + (part.gap if "\n" in part.gap else between if words else "")
    return text
