"""Patterns of users and of files, matched against names of modules within a bounded time.

A regular expression can search for ever. Those that cannot are matched by Python's own engine; the others by `regex`,
which takes a limit. What peft itself would match (by Python's) is named module by module before:
`lingualift.adapters.targets`.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from typing import Any

import regex

from lingualift.errors import UserError

SECONDS = 3.0
"""What all patterns of one place may take together."""
LENGTH = 200_000
"""Letters of one pattern, and of a thousand layers' names."""

_LITERAL = r"(?:\\\W|[\w.-])*"
_GROUP = rf"\(\?:{_LITERAL}(?:\|{_LITERAL})*\)"
_SIMPLE = regex.compile(rf"(?:{_LITERAL}|{_GROUP})(?:\|(?:{_LITERAL}|{_GROUP}))*+")
_COUNT = re.compile(r"\{\d*(?:,\d*)?\}")
_ENDLESS = int(re._constants.MAXREPEAT)  # type: ignore[attr-defined]
_SHORT = 2_000  # letters that are matched by Python's engine in microseconds
_WIDE = 10_000  # letters of a pattern that repeats something
_PARTS = 30_000  # of such a pattern, with its counts (`x{100}`) written out


def is_simple(pattern: str) -> bool:
    """Whether a pattern only names things, one or several: no search through them can take long."""
    return len(pattern) <= _SHORT and _SIMPLE.fullmatch(pattern) is not None


class Patterns:
    """The patterns of one place, which share a bound on time.

    Args:
        where: The file, key or option that they stand in, for messages.
        seconds: The bound; `SECONDS` if None.
    """

    def __init__(self, where: object, seconds: float | None = None) -> None:
        self._where, self._all = where, SECONDS if seconds is None else seconds
        self._left = self._all

    def whole(self, pattern: str) -> Pattern:
        """A pattern that must match a whole name.

        Raises:
            UserError: it is no regular expression, or too long.
        """
        return Pattern(self, pattern, pattern)

    def end(self, pattern: str) -> Pattern:
        """A pattern as peft understands its keys: it must match a whole path of a module, or its end after a dot.

        Raises:
            UserError: it is no regular expression, or too long.
        """
        return Pattern(self, pattern, rf"(?:.*\.)?(?:{pattern})")

    def compiled(self, pattern: str, whole: str) -> tuple[re.Pattern[str] | regex.Pattern[str], bool]:
        """The pattern within what it stands in, and whether it has to be watched; raises as `whole`."""
        simple = _SIMPLE.fullmatch(pattern) is not None
        if len(pattern) > (LENGTH if simple else _WIDE):
            raise self._error(pattern, f"has {len(pattern)} letters", "a shorter pattern")
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sets that may mean something else one day
                re.compile(pattern)
                found = re.compile(whole)
                if simple:
                    return found, False
                self._check_counts(pattern)
                return regex.compile(whole), True
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise self._error(pattern, f"is no regular expression ({error})") from None
        finally:
            self.spend(pattern, time.perf_counter() - began)

    def _check_counts(self, pattern: str) -> None:
        """Check that braces count, and not far: `regex` reads others as more, and takes memory for each repetition."""
        bare = re.sub(r"(?s)\\.", "", pattern)
        if "{" in _COUNT.sub("", bare):
            raise self._error(pattern, "has a brace that counts nothing", r"\{ for the letter itself")
        if _size(re._parser.parse(pattern)) > _PARTS:  # type: ignore[attr-defined]  # no public way to it
            raise self._error(pattern, "repeats too often", "fewer repetitions")

    def spend(self, pattern: str, seconds: float) -> None:
        """Take time off what is left; raises a `UserError` where nothing is."""
        self._left -= seconds
        if self._left <= 0:
            raise self.late(pattern)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self._left, 1e-3)

    def late(self, pattern: str) -> UserError:
        """Of a pattern that takes too long."""
        found = f"takes too long to match (over {self._all:g} s)"
        return self._error(pattern, found, "a pattern that needs no long search")

    def _error(self, pattern: str, found: str, expected: str = "") -> UserError:
        shown = pattern if len(pattern) <= 200 else f"{pattern[:200]}…"
        return UserError(self._where, f"{shown!r} {found}", expected, "mend the pattern")


class Pattern:
    """One pattern; made by `Patterns`."""

    def __init__(self, patterns: Patterns, text: str, whole: str) -> None:
        self.text, self._patterns = text, patterns
        self._compiled, self._watched = patterns.compiled(text, whole)

    def matches(self, name: str) -> bool:
        """Whether the pattern matches a name.

        Raises:
            UserError: all patterns of the place have taken too long.
        """
        began = time.perf_counter()
        more: dict[str, Any] = {"timeout": self._patterns.left} if self._watched else {}
        try:
            found = self._compiled.fullmatch(name, **more) is not None
        except (TimeoutError, MemoryError):
            raise self._patterns.late(self.text) from None
        self._patterns.spend(self.text, time.perf_counter() - began)
        return found

    def among(self, names: Iterable[str]) -> list[str]:
        """The names that the pattern matches; raises as `matches`."""
        return [name for name in names if self.matches(name)]


def _size(parsed: Any) -> int:
    """Parts of a parsed pattern, with its counts written out."""
    if isinstance(parsed, tuple) and len(parsed) == 3 and all(isinstance(part, int) for part in parsed[:2]):
        least, most, inner = parsed  # of a repetition
        times = int(least if most >= _ENDLESS else most)
        return times * max(1, _size(inner)) + _size(inner)
    if isinstance(parsed, list | tuple) or hasattr(parsed, "data"):
        return sum(1 + _size(part) for part in parsed)
    return 0
