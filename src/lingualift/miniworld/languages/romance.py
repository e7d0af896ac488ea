"""What French and Spanish share: two genders, with which articles and adjectives agree; adjectives behind the noun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

Agreeing = Mapping[str, str]
"""A word by the gender, m or f, of what it agrees with."""


class Romance(Grammar):
    """A Romance language.

    Attributes:
        definite: The article "the".
        indefinite: The article "a".
        things: Thing -> gender and noun.
        colours: Colour -> adjective.
        places: Place -> where something is, and the noun.
        verbs: Verb -> third person singular, past.
    """

    definite: ClassVar[Agreeing]
    indefinite: ClassVar[Agreeing]
    things: ClassVar[Mapping[str, tuple[str, str]]]
    colours: ClassVar[Mapping[str, Agreeing]]
    places: ClassVar[Mapping[str, tuple[str, str]]]
    verbs: ClassVar[Mapping[str, str]]

    @override
    def verb(self, verb: str) -> str:
        return self.verbs[verb]

    @override
    def some(self, thing: str, colour: str) -> str:
        gender, noun = self.things[thing]
        return f"{self.indefinite[gender]} {noun} {self.colours[colour][gender]}"

    @override
    def the(self, thing: str) -> str:
        gender, noun = self.things[thing]
        return f"{self.definite[gender]} {noun}"

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        return f"{self.the(thing)} {self.colour_word(thing, colour)}" if colour else self.the(thing)

    @override
    def at(self, place: str) -> str:
        return self.places[place][0]

    @override
    def thing_word(self, thing: str) -> str:
        return self.things[thing][1]

    @override
    def place_word(self, place: str) -> str:
        return self.places[place][1]

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return self.colours[colour][self.things[thing][0]]
