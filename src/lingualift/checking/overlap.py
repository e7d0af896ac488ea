"""Test items that stand in text that adapters learn from. Pure, and linear in the text.

An item counts as found if it equals a row, or if at least 80% of its 8-grams of words occur in the texts: PaLM's rule
(https://arxiv.org/abs/2204.02311, section 8), which asks for 70%; but an item of eleven words has four 8-grams, three
of which it can share with a neighbour that says something else. GPT-3's rule, one n-gram that collides
(https://arxiv.org/abs/2005.14165, appendix C), takes any common phrase of a short item for a leak. Letter case,
punctuation and white space do not count, as there.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

NGRAM_WORDS: Final = 8
"""Words per n-gram."""
NGRAM_CHARACTERS: Final = 20
"""Characters per n-gram in scripts without spaces, where a word has two or three (Chinese, Japanese) or four (Thai)."""
SHORTEST: Final = 0.5
"""A passage shorter than an n-gram is one n-gram by itself, down to this part of the length; below it, what is found
again is likely to be a common phrase, and only whole items are compared."""
FOUND: Final = 0.8
"""Share of an item's n-grams that must occur."""


@dataclass(frozen=True)
class Item:
    """A row as a reader sees it.

    Attributes:
        where: File and line.
        passages: Its texts, one per column.
    """

    where: str
    passages: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A test item that was found.

    Attributes:
        item: File and line of the test item.
        other: File and line of the text that holds it, or of the first that holds a part.
        share: Part of its n-grams that was found; 1 for an item that equals a text.
        equal: Whether it equals a whole text.
        text: What the item says, shortened.
    """

    item: str
    other: str
    share: float
    equal: bool
    text: str


def find_overlap(items: Sequence[Item], others: Iterable[Item], *, spaced: bool = True) -> list[Match]:
    """The items that stand in other rows, in the order of the items.

    Args:
        items: Test items.
        others: Rows that adapters learn from.
        spaced: Whether spaces part words; characters are compared where they do not.
    """
    size = NGRAM_WORDS if spaced else NGRAM_CHARACTERS
    whole: dict[int, list[int]] = defaultdict(list)  # hash of a row -> its items
    holders: dict[int, list[int]] = defaultdict(list)  # hash of an n-gram -> its items
    lengths: set[int] = set()
    grams: list[int] = []
    for index, item in enumerate(items):
        passages = [_units(text, spaced) for text in item.passages]
        if any(passages):
            whole[_whole(passages)].append(index)
        mine: set[int] = set()
        for units in passages:
            length = min(size, len(units))
            if length >= SHORTEST * size:
                lengths.add(length)
                mine.update(_ngrams(units, length))
        for gram in mine:
            holders[gram].append(index)
        grams.append(len(mine))
    equal: dict[int, str] = {}
    first: dict[int, str] = {}
    seen: set[int] = set()
    for other in others:
        passages = [_units(text, spaced) for text in other.passages]
        for index in whole.get(_whole(passages), ()):
            equal.setdefault(index, other.where)
        for gram in (gram for units in passages for length in lengths for gram in _ngrams(units, length)):
            if gram in holders and gram not in seen:
                seen.add(gram)
                for index in holders[gram]:
                    first.setdefault(index, other.where)
    hits = [0] * len(items)
    for gram in seen:
        for index in holders[gram]:
            hits[index] += 1
    return [
        Match(
            item.where,
            equal.get(index) or first[index],
            1.0 if index in equal else hits[index] / grams[index],
            index in equal,
            _short(item),
        )
        for index, item in enumerate(items)
        if index in equal or (grams[index] and hits[index] / grams[index] >= FOUND)
    ]


def _whole(passages: Sequence[Sequence[str]]) -> int:
    """Hash of a row as a whole; passages without a word do not count."""
    return hash(tuple(tuple(units) for units in passages if units))


def _ngrams(units: Sequence[str], length: int) -> Iterator[int]:
    """Hashes of the n-grams; of 64 bits, they collide about never."""
    return (hash(tuple(units[start : start + length])) for start in range(len(units) - length + 1))


class _Folding(dict[int, str]):
    """Characters as they are compared: letters, marks and numbers as they are, all else as space."""

    def __missing__(self, code: int) -> str:
        mark = chr(code)
        self[code] = mark if unicodedata.category(mark)[0] in "LMN" else " "
        return self[code]


_folding = _Folding(dict.fromkeys(map(ord, "'’ʼ"), ""))  # n'est and ng'ombe are one word each


def _units(text: str, spaced: bool) -> list[str]:
    """The words of a text, or its characters, as they are compared."""
    words = unicodedata.normalize("NFKC", text).casefold().translate(_folding).split()
    return words if spaced else list("".join(words))


def _short(item: Item) -> str:
    text = " ".join(" ".join(item.passages).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
