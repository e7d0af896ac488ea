"""Answers that are spans of a passage, carried into its translation.

The answer is marked before its sentence is translated and found again by its marks (EasyProject, arXiv 2211.15613). If
the marks get lost, the next pair is tried, and in the end the answer is translated by itself and looked up in the
translation of its unmarked sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lingualift.translation.cache import Desk
from lingualift.translation.sentences import Piece, joined, pieces

MARKS = (("[", "]"), ("<b>", "</b>"), ('"', '"'))
"""Put around an answer, the first pair first. What a model makes of them counts too (`_ALIKE`)."""
_ALIKE = {
    "[": r"[\[［【]",
    "]": r"[\]］】]",
    '"': '["“”„«»「」『』]',
    "<b>": r"<\s*b\s*>",
    "</b>": r"<\s*/\s*b\s*>",
}
UNMARKED = "by itself"


@dataclass(frozen=True)
class Span:
    """An answer in its passage.

    Attributes:
        passage: The text, stripped.
        begin: Of the answer, in characters.
        end: Of the answer, in characters.
    """

    passage: str
    begin: int
    end: int


@dataclass(frozen=True)
class Projected:
    """A translated passage with its answer.

    Attributes:
        passage: The translation, without marks.
        answer: The part of it that is the answer.
        start: Where the answer begins in it, in characters.
        how: The marks that it was found by, or `by itself`.
        read: The pieces that were translated.
    """

    passage: str
    answer: str
    start: int
    how: str
    read: Sequence[Piece]


class Projection:
    """Carries answers into translations, one try after the other.

    Args:
        desk: Translates.
        spans: The answers, by what they are called.
    """

    def __init__(self, desk: Desk, spans: dict[tuple[str, int], Span]) -> None:
        self._desk, self._spans = desk, spans
        self.found: dict[tuple[str, int], Projected] = {}
        self._tries: list[tuple[str, str] | None] = [
            *(pair for pair in MARKS if all(map(desk.translator.knows, pair))),
            None,
        ]

    def first(self) -> list[str]:
        """What the first try will have translated, so that it can be translated together with other texts."""
        return [piece.text for span in self._spans.values() for piece in self._pieces(span, self._tries[0])]

    def run(self) -> None:
        """Try until each answer is in `found`, or nothing is left to try."""
        for pair in self._tries:
            waiting = {name: span for name, span in self._spans.items() if name not in self.found}
            cut = {name: self._pieces(span, pair) for name, span in waiting.items()}
            alone = {} if pair else {name: self._alone(span) for name, span in waiting.items()}
            self._desk.translate([piece.text for read in (*cut.values(), *alone.values()) for piece in read])
            for name, read in cut.items():
                place = self._place(read, pair, alone.get(name, []))
                if place:
                    self.found[name] = Projected(*place, " ".join(pair) if pair else UNMARKED, read)

    def _place(
        self, read: list[Piece], pair: tuple[str, str] | None, alone: list[Piece]
    ) -> tuple[str, str, int] | None:
        """The translated passage, the answer in it, and where it begins, if it is found."""
        needed = [*(piece for piece in read if piece.marked), *alone]
        if not needed or not all(self._desk.found[piece.text].text for piece in needed):
            return None
        before, marked, after = (self._joined(part) for part in _around(read))
        inner = marked.rstrip()
        place = locate(inner, pair) if pair else look_up(inner, self._joined(alone).strip())
        if place is None:
            return None
        sentence, answer, start = place
        passage = before + sentence + marked[len(inner) :] + after
        return passage.rstrip(), answer, len(before) + start

    def _pieces(self, span: Span, pair: tuple[str, str] | None) -> list[Piece]:
        """The passage with the answer between marks; nothing where its sentence has such marks already."""
        fits = self._desk.translator.fits
        whole = span.begin, span.end
        if pair is None:
            return pieces(span.passage, fits, whole)
        plain = " ".join(piece.text for piece in pieces(span.passage, fits, whole) if piece.marked)
        if any(regex.search(_ALIKE[mark], plain) for mark in pair):
            return []
        return pieces(span.passage, fits, whole, pair)

    def _alone(self, span: Span) -> list[Piece]:
        return pieces(span.passage[span.begin : span.end].strip(), self._desk.translator.fits)

    def _joined(self, read: list[Piece]) -> str:
        words = [self._desk.found[piece.text].text or piece.text for piece in read]
        return joined(read, words, self._desk.translator.script)


def _around(read: list[Piece]) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """The pieces before, in and after the sentence with the answer."""
    first = next(number for number, piece in enumerate(read) if piece.marked)
    last = max(number for number, piece in enumerate(read) if piece.marked)
    return read[:first], read[first : last + 1], read[last + 1 :]


def locate(text: str, pair: tuple[str, str]) -> tuple[str, str, int] | None:
    """Find an answer by the marks around it.

    Returns:
        The text without marks, the answer, and where it begins; None unless each mark stands there once, in the right
        order, with something between them.
    """
    marks = [
        match.span() for match in regex.finditer("|".join(dict.fromkeys(_ALIKE[mark] for mark in pair)), text)
    ]
    if len(marks) != 2:
        return None
    (begin, inner), (outer, end) = marks
    if not regex.fullmatch(_ALIKE[pair[0]], text[begin:inner]) or not regex.fullmatch(
        _ALIKE[pair[1]], text[outer:end]
    ):
        return None
    before, answer, after = text[:begin], text[inner:outer], text[end:]
    core = answer.strip()
    if not core:
        return None
    lead = " " if answer[0].isspace() and before and not before[-1].isspace() else ""
    trail = " " if answer[-1].isspace() and after and not after[0].isspace() else ""
    before = (before + lead).lstrip()
    return (before + core + trail + after).rstrip(), core, len(before)


def look_up(text: str, answer: str) -> tuple[str, str, int] | None:
    """Find an answer that was translated by itself; None unless it stands in the text exactly once, as whole words."""
    core = regex.sub(r"^[\p{P}\s]+|[\p{P}\s]+$", "", answer)
    if not core:
        return None
    alone = rf"(?<![\p{{L}}\p{{M}}\p{{N}}]){regex.escape(core)}(?![\p{{L}}\p{{M}}\p{{N}}])"
    places = [match.start() for match in regex.finditer(alone, text, overlapped=True)]
    return (text, core, places[0]) if len(places) == 1 else None
