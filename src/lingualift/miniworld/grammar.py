"""What every language of the mini-world can say.

A sentence is put together from segments, one per role (who, verb, thing, place, ...). The segments of a role mean the
same in every language, so a sentence whose segments come from several languages is code-switched text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class Grammar(ABC):
    """The grammar and lexicon of one language; all arguments are concepts from `lexicon`.

    Attributes:
        code: BCP-47 code of the language.
        conjunctions: "and", "but".
        now: The adverb.
        story_order: Roles of a story, the plain order.
        fronted_order: Roles of a story that begins with its place.
        state_order: Roles of a state ("now the red book is in the kitchen").
    """

    code: ClassVar[str]
    conjunctions: ClassVar[tuple[str, str]]
    now: ClassVar[str]
    story_order: ClassVar[tuple[str, ...]] = ("who", "verb", "thing", "place")
    fronted_order: ClassVar[tuple[str, ...]] = ("place", "who", "verb", "thing")
    state_order: ClassVar[tuple[str, ...]] = ("now", "subject", "is", "place")

    @abstractmethod
    def verb(self, verb: str) -> str:
        """Third person singular, past: "bought"."""

    @abstractmethod
    def some(self, thing: str, colour: str) -> str:
        """An indefinite coloured object: "a red book", in the case a direct object has."""

    @abstractmethod
    def the(self, thing: str) -> str:
        """A definite direct object: "the book"."""

    @abstractmethod
    def subject(self, thing: str, colour: str | None = None) -> str:
        """A definite subject: "the (red) book"."""

    @abstractmethod
    def at(self, place: str) -> str:
        """Where something is or happens: "in the kitchen"."""

    @abstractmethod
    def is_at(self, thing: str) -> str:
        """The copula of place, in agreement with the thing; empty where the language has none."""

    @abstractmethod
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        """A predicate of a thing: "is (not) beautiful"."""

    @abstractmethod
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        """A clause: "Ben likes it", "Ben does not like it"."""

    @abstractmethod
    def ask_what(self, name: str, verb: str, place: str) -> str:
        """A question after the thing; `place` is a ready segment: "what did Ben buy at the market?"."""

    @abstractmethod
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        """A question after the place; `the_thing` is a ready segment: "where did Ben buy the book?"."""

    @abstractmethod
    def ask_colour(self, thing: str, the_subject: str) -> str:
        """A question after the colour; `the_subject` is a ready segment: "what color is the book?"."""

    @abstractmethod
    def thing_word(self, thing: str) -> str:
        """The bare noun, as an answer."""

    @abstractmethod
    def place_word(self, place: str) -> str:
        """The one word that names the place, as an answer."""

    @abstractmethod
    def colour_word(self, thing: str, colour: str) -> str:
        """The colour as a predicate of the thing, as an answer."""
