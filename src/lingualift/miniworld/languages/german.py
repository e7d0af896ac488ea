"""German: three genders, nominative and accusative, strong and weak adjectives, verb in second place."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

_THINGS = {
    "book": ("n", "Buch"),
    "cup": ("f", "Tasse"),
    "hat": ("m", "Hut"),
    "key": ("m", "Schlüssel"),
    "ball": ("m", "Ball"),
    "bag": ("f", "Tasche"),
    "knife": ("n", "Messer"),
    "chair": ("m", "Stuhl"),
    "table": ("m", "Tisch"),
    "car": ("n", "Auto"),
    "boat": ("n", "Boot"),
    "shirt": ("n", "Hemd"),
    "jacket": ("f", "Jacke"),
    "bicycle": ("n", "Fahrrad"),
    "basket": ("m", "Korb"),
    "box": ("f", "Kiste"),
}
_NOMINATIVE = {"m": "der", "f": "die", "n": "das"}
_ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
_SOME = {"m": "einen", "f": "eine", "n": "ein"}
_PRONOUN = {"m": "ihn", "f": "sie", "n": "es"}
_COLOURS = {  # predicate; after "der/die/das" (nominative); after "einen", "eine", "ein" (accusative)
    "red": {"": "rot", "the": "rote", "m": "roten", "f": "rote", "n": "rotes"},
    "green": {"": "grün", "the": "grüne", "m": "grünen", "f": "grüne", "n": "grünes"},
    "blue": {"": "blau", "the": "blaue", "m": "blauen", "f": "blaue", "n": "blaues"},
    "black": {"": "schwarz", "the": "schwarze", "m": "schwarzen", "f": "schwarze", "n": "schwarzes"},
    "white": {"": "weiß", "the": "weiße", "m": "weißen", "f": "weiße", "n": "weißes"},
    "yellow": {"": "gelb", "the": "gelbe", "m": "gelben", "f": "gelbe", "n": "gelbes"},
}
_PLACES = {
    "market": ("auf dem Markt", "Markt"),
    "kitchen": ("in der Küche", "Küche"),
    "garden": ("im Garten", "Garten"),
    "library": ("in der Bibliothek", "Bibliothek"),
    "house": ("im Haus", "Haus"),
    "street": ("auf der Straße", "Straße"),
    "forest": ("im Wald", "Wald"),
    "beach": ("am Strand", "Strand"),
    "office": ("im Büro", "Büro"),
    "restaurant": ("im Restaurant", "Restaurant"),
}
_VERBS = {
    "buy": "kaufte",
    "find": "fand",
    "lose": "verlor",
    "see": "sah",
    "sell": "verkaufte",
    "hide": "versteckte",
}
_QUALITIES = {
    "beautiful": "schön",
    "sturdy": "robust",
    "clean": "sauber",
    "modern": "modern",
    "perfect": "perfekt",
    "excellent": "ausgezeichnet",
    "ugly": "hässlich",
    "dirty": "schmutzig",
    "broken": "kaputt",
    "expensive": "teuer",
    "fragile": "zerbrechlich",
    "terrible": "schrecklich",
}
_VERDICTS = {  # affirmed, denied; {it} is the pronoun of the thing
    "like": ("mag {it}", "mag {it} nicht"),
    "recommend": ("empfiehlt {it}", "empfiehlt {it} nicht"),
    "happy": ("ist glücklich", "ist nicht glücklich"),
    "satisfied": ("ist zufrieden", "ist nicht zufrieden"),
    "hate": ("hasst {it}", "hasst {it} nicht"),
    "sad": ("ist traurig", "ist nicht traurig"),
    "angry": ("ist wütend", "ist nicht wütend"),
    "complain": ("beschwert sich", "beschwert sich nicht"),
}


class German(Grammar):
    """German."""

    code = "de"
    conjunctions = ("und", "aber")
    now = "jetzt"
    fronted_order = ("place", "verb", "who", "thing")
    state_order = ("now", "is", "subject", "place")

    @override
    def verb(self, verb: str) -> str:
        return _VERBS[verb]

    @override
    def some(self, thing: str, colour: str) -> str:
        gender, noun = _THINGS[thing]
        return f"{_SOME[gender]} {_COLOURS[colour][gender]} {noun}"

    @override
    def the(self, thing: str) -> str:
        gender, noun = _THINGS[thing]
        return f"{_ACCUSATIVE[gender]} {noun}"

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        gender, noun = _THINGS[thing]
        article = _NOMINATIVE[gender]
        return f"{article} {_COLOURS[colour]['the']} {noun}" if colour else f"{article} {noun}"

    @override
    def at(self, place: str) -> str:
        return _PLACES[place][0]

    @override
    def is_at(self, thing: str) -> str:
        return "ist"

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        return f"ist nicht {_QUALITIES[quality]}" if denied else f"ist {_QUALITIES[quality]}"

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        return f"{name} {_VERDICTS[verdict][denied]}".format(it=_PRONOUN[_THINGS[thing][0]])

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"was {_VERBS[verb]} {name} {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"wo {_VERBS[verb]} {name} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"welche Farbe hat {the_subject}?"

    @override
    def thing_word(self, thing: str) -> str:
        return _THINGS[thing][1]

    @override
    def place_word(self, place: str) -> str:
        return _PLACES[place][1]

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return _COLOURS[colour][""]
