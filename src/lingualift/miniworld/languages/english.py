"""English."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

_VERBS = {  # past, infinitive
    "buy": ("bought", "buy"),
    "find": ("found", "find"),
    "lose": ("lost", "lose"),
    "see": ("saw", "see"),
    "sell": ("sold", "sell"),
    "hide": ("hid", "hide"),
}
_PLACES = {
    "market": "at the market",
    "kitchen": "in the kitchen",
    "garden": "in the garden",
    "library": "in the library",
    "house": "in the house",
    "street": "on the street",
    "forest": "in the forest",
    "beach": "on the beach",
    "office": "in the office",
    "restaurant": "in the restaurant",
}
_VERDICTS = {  # affirmed, denied
    "like": ("likes it", "does not like it"),
    "recommend": ("recommends it", "does not recommend it"),
    "happy": ("is happy", "is not happy"),
    "satisfied": ("is satisfied", "is not satisfied"),
    "hate": ("hates it", "does not hate it"),
    "sad": ("is sad", "is not sad"),
    "angry": ("is angry", "is not angry"),
    "complain": ("complains", "does not complain"),
}


class English(Grammar):
    """English: the concepts' own names are its words."""

    code = "en"
    conjunctions = ("and", "but")
    now = "now"

    @override
    def verb(self, verb: str) -> str:
        return _VERBS[verb][0]

    @override
    def some(self, thing: str, colour: str) -> str:
        return f"a {colour} {thing}"

    @override
    def the(self, thing: str) -> str:
        return f"the {thing}"

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        return f"the {colour} {thing}" if colour else f"the {thing}"

    @override
    def at(self, place: str) -> str:
        return _PLACES[place]

    @override
    def is_at(self, thing: str) -> str:
        return "is"

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        return f"is not {quality}" if denied else f"is {quality}"

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        return f"{name} {_VERDICTS[verdict][denied]}"

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"what did {name} {_VERBS[verb][1]} {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"where did {name} {_VERBS[verb][1]} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"what color is {the_subject}?"

    @override
    def thing_word(self, thing: str) -> str:
        return thing

    @override
    def place_word(self, place: str) -> str:
        return place

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return colour
