"""Haitian Creole: the article stands last and takes its form (la, a, an, nan) from the sound before it."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

_THINGS = {  # noun, definite article
    "book": ("liv", "la"),
    "cup": ("gode", "a"),
    "hat": ("chapo", "a"),
    "key": ("kle", "a"),
    "ball": ("boul", "la"),
    "bag": ("sak", "la"),
    "knife": ("kouto", "a"),
    "chair": ("chèz", "la"),
    "table": ("tab", "la"),
    "car": ("machin", "nan"),
    "boat": ("bato", "a"),
    "shirt": ("chemiz", "la"),
    "jacket": ("vès", "la"),
    "bicycle": ("bisiklèt", "la"),
    "basket": ("panye", "a"),
    "box": ("bwat", "la"),
}
_COLOURS = {  # colour, definite article of a noun phrase that ends in it
    "red": ("wouj", "la"),
    "green": ("vèt", "la"),
    "blue": ("ble", "a"),
    "black": ("nwa", "a"),
    "white": ("blan", "an"),
    "yellow": ("jòn", "nan"),
}
_PLACES = {
    "market": ("nan mache a", "mache"),
    "kitchen": ("nan kizin nan", "kizin"),
    "garden": ("nan jaden an", "jaden"),
    "library": ("nan bibliyotèk la", "bibliyotèk"),
    "house": ("nan kay la", "kay"),
    "street": ("nan lari a", "lari"),
    "forest": ("nan forè a", "forè"),
    "beach": ("sou plaj la", "plaj"),
    "office": ("nan biwo a", "biwo"),
    "restaurant": ("nan restoran an", "restoran"),
}
_VERBS = {"buy": "achte", "find": "jwenn", "lose": "pèdi", "see": "wè", "sell": "vann", "hide": "kache"}
_QUALITIES = {
    "beautiful": "bèl",
    "sturdy": "solid",
    "clean": "pwòp",
    "modern": "modèn",
    "perfect": "pafè",
    "excellent": "ekselan",
    "ugly": "lèd",
    "dirty": "sal",
    "broken": "kase",
    "expensive": "chè",
    "fragile": "frajil",
    "terrible": "terib",
}
_VERDICTS = {  # affirmed, denied
    "like": ("renmen li", "pa renmen li"),
    "recommend": ("rekòmande li", "pa rekòmande li"),
    "happy": ("kontan", "pa kontan"),
    "satisfied": ("satisfè", "pa satisfè"),
    "hate": ("rayi li", "pa rayi li"),
    "sad": ("tris", "pa tris"),
    "angry": ("fache", "pa fache"),
    "complain": ("ap plenyen", "p ap plenyen"),
}


class Haitian(Grammar):
    """Haitian Creole."""

    code = "ht"
    conjunctions = ("epi", "men")
    now = "kounye a"

    @override
    def verb(self, verb: str) -> str:
        return _VERBS[verb]

    @override
    def some(self, thing: str, colour: str) -> str:
        return f"yon {_THINGS[thing][0]} {_COLOURS[colour][0]}"

    @override
    def the(self, thing: str) -> str:
        noun, article = _THINGS[thing]
        return f"{noun} {article}"

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        if colour is None:
            return self.the(thing)
        word, article = _COLOURS[colour]
        return f"{_THINGS[thing][0]} {word} {article}"

    @override
    def at(self, place: str) -> str:
        return _PLACES[place][0]

    @override
    def is_at(self, thing: str) -> str:
        return ""

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        return f"pa {_QUALITIES[quality]}" if denied else _QUALITIES[quality]

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        return f"{name} {_VERDICTS[verdict][denied]}"

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"kisa {name} {_VERBS[verb]} {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"ki kote {name} {_VERBS[verb]} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"ki koulè {the_subject} ye?"

    @override
    def thing_word(self, thing: str) -> str:
        return _THINGS[thing][0]

    @override
    def place_word(self, place: str) -> str:
        return _PLACES[place][1]

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return _COLOURS[colour][0]
