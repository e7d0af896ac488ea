"""The lenient reading: what instruction-tuned models write around a label, a number or a text. Pure.

An answer is read where it is announced (`Answer:`, `The answer is`), or where the first or the last line gives it. All
of these must give one and the same, and what could be taken for two answers is none. Labels are searched for in no
sentence. docs/tasks.md says it for users, with examples.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lingualift.metrics.numbers import find_number, find_numbers, parse_number

_ANSWER = {
    "en": ("the", "answer", "is"),
    "de": ("die", "Antwort", "ist"),
    "es": ("la", "respuesta", "es"),
    "fr": ("la", "réponse", "est"),
    "ru": ("", "ответ", "[—–-]"),
    "sw": ("", "jibu", "ni"),
    "th": ("", "คำตอบ", "คือ"),
    "zh": ("", "答案", "是"),
}
"""Language -> article, noun and verb by which MGSM's exemplars announce an answer (https://arxiv.org/abs/2210.03057)."""

_NOUNS = ("answer", "option", "choice", "label")
_BEFORE = r"(?:(?:the|my|correct|right|best|better|final|most|more|likely|plausible)\s+)*"
_START = r"(?:^|(?<=[.!?。！？])\s*)"
_SO = r"(?:(?:so|therefore|thus|hence),?\s+)?(?:i (?:think|believe)(?: that)?\s+)?"
_WHOSE = r"(?:\s+(?:of|in|between|for|to)\s[^.:!?]{1,80}?)?"
_MARKDOWN = re.compile(r"[*`$]|__|\\boxed\b|\\text\b|(?m:^[ \t]*(?:#+|[-•>])[ \t]+)")
_EDGES = " \t\"'“”‘’«»「」()[]{}.,:;!。।"
_OPEN = r"[\s\"'“‘«「(\[{]*"
_CLOSE = r"[\"'”’»」)\]}]*"
_EXPLAINED = re.compile(r"\s*[.!;。।](?:\s|$)|\s+[-–—]\s|,?\s+(?:because|since)\b")
_BECAUSE = re.compile(r"[.,]?\s+(?:because|since)\b")


def announced(text: str, nouns: Collection[str] = (), subjects: Collection[str] = ()) -> list[str]:
    """What stands behind each place of a text that announces an answer: the rest of its line, or the next line.

    Args:
        text: What was generated.
        nouns: Words for the answer beside those that every task has, such as `Relationship`.
        subjects: What an answer is said of, where no colon announces it: `The hypothesis is …`.
    """
    lines = [line.strip() for line in _MARKDOWN.sub("", text).splitlines()]
    found = []
    for number, line in enumerate(lines):
        for match in _announcement(tuple(nouns), tuple(subjects)).finditer(line):
            behind = line[match.end() :].strip(" \t:：")
            found.append(behind or next(filter(None, lines[number + 1 :]), ""))
    return found


@functools.cache
def _announcement(nouns: tuple[str, ...], subjects: tuple[str, ...]) -> re.Pattern[str]:
    named = "|".join(sorted(map(re.escape, (*nouns, *_NOUNS)), key=len, reverse=True))
    said_of = "|".join(map(re.escape, subjects)) or "(?!)"
    ways = [
        rf"{_START}{_SO}{_BEFORE}(?:{named}){_WHOSE}(?:\s+(?:is|would be)\b|\s*[:：=])",
        rf"{_START}{_SO}(?:the\s+)?(?:{said_of})\s+is\b",
    ]
    for code, (article, noun, verb) in _ANSWER.items():
        start = r"(?:^|(?<=\s))" if code == "th" else _START  # Thai sentences end without a mark
        word = r"(?!\w)" if code in ("de", "es", "fr", "sw") else ""
        ways.append(rf"{start}(?:{article}\s+)?{noun}\s*(?:{verb}{word}|[:：=])")
    return re.compile("|".join(ways), re.IGNORECASE)


def read_text(text: str, nouns: Collection[str] = ()) -> str | None:
    """The text that is announced, if all announcements give the same; arguments as for `announced`."""
    found = {said.strip(" \t\"'“”«»") for said in announced(text, nouns)}
    return (found.pop() or None) if len(found) == 1 else None


def read_number(text: str, language: str, nouns: Collection[str] = ()) -> str | None:
    """The number that is announced, if all announcements give the same; the last one of the text where there is none.

    Args:
        text: What was generated.
        language: Code, by which numbers are read.
        nouns: As for `announced`.
    """
    said = [re.split(r"(?<=[.!?。！？])\s", one)[0] for one in announced(text, nouns)]
    numbers = [number for one in said for number in find_numbers(one) or [""]] or [find_number(text) or ""]
    values = {parse_number(number, language) for number in numbers}
    return numbers[0] if len(values) == 1 and None not in values else None


@dataclass(frozen=True)
class Names:
    """What labels are called in an answer.

    Attributes:
        labels: Name, as `_bare` has it -> label.
        options: Those of the names that are the text of an option.
    """

    labels: Mapping[str, str]
    options: Collection[str]

    @classmethod
    def of(cls, named: Mapping[str, Collection[str]], options: Mapping[str, str]) -> Names:
        """Names of labels, and the texts that stand for them in one row; what two labels share is no name of either."""
        texts = {label: _bare(text) for label, text in options.items() if label in named}
        owners: dict[str, set[str]] = {}
        for label, names in named.items():
            bare = map(_bare, names)
            for name in (*bare, *map(_spaced, map(_bare, names)), texts.get(label, "")):
                owners.setdefault(name, set()).add(label)
        labels = {name: owner.pop() for name, owner in owners.items() if name and len(owner) == 1}
        return cls(labels, {name for name in texts.values() if name in labels})

    @functools.cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """How a statement begins with a name, and where one stands in it; a mark such as `a` is no word by itself."""
        longest = sorted(self.labels, key=len, reverse=True)
        words, marks = (
            "|".join(re.escape(name) for name in longest if (len(name) == 1) == single) or "(?!)"
            for single in (False, True)
        )
        ended = rf"(?=\s*(?:[\"'”’»」)\]}}.,:;!。।]|$)|\s+\(|{_BECAUSE.pattern})"
        option = r"(?:option|choice|number)\s+"
        return (
            re.compile(rf"{_OPEN}(?:{option})*{_OPEN}(?:({words})(?!\w)|({marks}){ended})(?![.,]\d){_CLOSE}"),
            re.compile(
                rf"(?<!\w)(?:({words})(?!\w)|{option}\(?({marks})(?!\w)|({marks})(?=\s*(?:[.:)\]]|$)))"
            ),
        )

    def opening(self, statement: str) -> tuple[str, str] | None:
        """Name at the beginning of a statement, and what follows it."""
        match = self._patterns[0].match(statement)
        return (match[match.lastindex or 0], statement[match.end() :]) if match else None

    def named(self, statement: str) -> set[str]:
        """The labels that are named anywhere in a statement."""
        return {self.labels[match[match.lastindex or 0]] for match in self._patterns[1].finditer(statement)}

    def given(self, statement: str, *, announced: bool = False) -> str | None:
        """The label that a statement gives: it begins with a name of it, and ends there or goes on to explain.

        None for a sentence about the label, and for a statement that names another label too.

        Args:
            statement: As `_normal` has it.
            announced: Whether it was announced, so that a sentence may follow a mark such as `a`, too.
        """
        found = self.opening(statement)
        if found is None:
            return None
        name, rest = found
        label = self.labels[name]
        if self.named(statement) - {label}:
            return None
        bare = _bare(rest)
        again = self.given(rest.lstrip(f"{_EDGES}-–—")) == label if bare else True
        cut = any(text.startswith(bare) and self.labels[text] == label for text in self.options)
        explained = (_EXPLAINED if announced or len(name) > 1 else _BECAUSE).match(rest)
        return label if again or cut or explained else None


def read_label(
    text: str, names: Names, nouns: Collection[str] = (), subjects: Collection[str] = ()
) -> str | None:
    """The one label that all announcements, and the first and the last line as far as they give one, give.

    Where lines begin with different labels, they are a list, and what is announced alone counts.

    Args:
        text: What was generated.
        names: What the labels are called.
        nouns: As for `announced`.
        subjects: As for `announced`.
    """
    said = {names.given(_normal(one), announced=True) for one in announced(text, nouns, subjects)}
    lines = [line for line in map(_normal, _MARKDOWN.sub("", text).splitlines()) if line]
    begun = {names.labels[found[0]] for found in map(names.opening, lines) if found}
    ends = {names.given(line) for line in (lines[0], lines[-1])} - {None} if len(begun) == 1 else set()
    found = said | ends
    return found.pop() if len(found) == 1 else None


def repeats(text: str, prompt: str) -> bool:
    """Whether a text of several lines stands as it is in the prompt; a single one may be the text of an option."""
    said, asked = ([" ".join(line.split()) for line in one.strip().splitlines()] for one in (text, prompt))
    return len(said) > 1 and "\n".join(said) in "\n".join(asked)


def _normal(text: str) -> str:
    """Text by which names are compared: case, width, white space and underscores are of no matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").split())


def _bare(text: str) -> str:
    """The same, without brackets, quotation marks and punctuation at its ends."""
    return _normal(text).strip(_EDGES)


def _spaced(name: str) -> str:
    """`choice 1` for `choice1`."""
    return re.sub(r"(?<=[^\W\d])(?=\d)", " ", name)
