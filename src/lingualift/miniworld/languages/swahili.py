"""Swahili: noun classes with concord on adjectives, genitives, copula and object markers; no articles."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

_THINGS = {  # class, noun; class 11 takes the concord of class 3
    "book": ("7", "kitabu"),
    "cup": ("7", "kikombe"),
    "hat": ("9", "kofia"),
    "key": ("3", "ufunguo"),
    "ball": ("3", "mpira"),
    "bag": ("3", "mfuko"),
    "knife": ("7", "kisu"),
    "chair": ("7", "kiti"),
    "table": ("9", "meza"),
    "car": ("5", "gari"),
    "boat": ("9", "mashua"),
    "shirt": ("5", "shati"),
    "jacket": ("5", "koti"),
    "bicycle": ("9", "baiskeli"),
    "basket": ("7", "kikapu"),
    "box": ("5", "sanduku"),
}
_OF = {"3": "wa", "5": "la", "7": "cha", "9": "ya"}
_IS_AT = {"3": "uko", "5": "liko", "7": "kiko", "9": "iko"}
_COLOURS = {  # three inflect; three are nouns behind the genitive
    "red": {"3": "mwekundu", "5": "jekundu", "7": "chekundu", "9": "nyekundu"},
    "black": {"3": "mweusi", "5": "jeusi", "7": "cheusi", "9": "nyeusi"},
    "white": {"3": "mweupe", "5": "jeupe", "7": "cheupe", "9": "nyeupe"},
    "green": dict.fromkeys(_OF, "kijani"),
    "blue": dict.fromkeys(_OF, "buluu"),
    "yellow": dict.fromkeys(_OF, "manjano"),
}
_GENITIVE_COLOURS = ("green", "blue", "yellow")
_PLACES = {
    "market": "sokoni",
    "kitchen": "jikoni",
    "garden": "bustanini",
    "library": "maktabani",
    "house": "nyumbani",
    "street": "barabarani",
    "forest": "msituni",
    "beach": "ufukweni",
    "office": "ofisini",
    "restaurant": "mkahawani",
}
_VERBS = {
    "buy": "alinunua",
    "find": "alipata",
    "lose": "alipoteza",
    "see": "aliona",
    "sell": "aliuza",
    "hide": "alificha",
}
_QUALITIES = {  # the six that inflect or take a genitive are written out, the others are invariable
    "beautiful": {"3": "mzuri", "5": "zuri", "7": "kizuri", "9": "nzuri"},
    "sturdy": dict.fromkeys(_OF, "imara"),
    "clean": dict.fromkeys(_OF, "safi"),
    "modern": {"3": "wa kisasa", "5": "la kisasa", "7": "cha kisasa", "9": "ya kisasa"},
    "perfect": dict.fromkeys(_OF, "kamili"),
    "excellent": dict.fromkeys(_OF, "bora"),
    "ugly": {"3": "mbaya", "5": "baya", "7": "kibaya", "9": "mbaya"},
    "dirty": {"3": "mchafu", "5": "chafu", "7": "kichafu", "9": "chafu"},
    "broken": {"3": "mbovu", "5": "bovu", "7": "kibovu", "9": "mbovu"},
    "expensive": dict.fromkeys(_OF, "ghali"),
    "fragile": dict.fromkeys(_OF, "dhaifu"),
    "terrible": {"3": "wa kutisha", "5": "la kutisha", "7": "cha kutisha", "9": "ya kutisha"},
}
_OBJECT_VERDICTS = {  # affirmed, denied, with the object marker of the thing's class
    "like": {
        "3": ("anaupenda", "haupendi"),
        "5": ("analipenda", "halipendi"),
        "7": ("anakipenda", "hakipendi"),
        "9": ("anaipenda", "haipendi"),
    },
    "recommend": {
        "3": ("anaupendekeza", "haupendekezi"),
        "5": ("analipendekeza", "halipendekezi"),
        "7": ("anakipendekeza", "hakipendekezi"),
        "9": ("anaipendekeza", "haipendekezi"),
    },
    "hate": {
        "3": ("anauchukia", "hauchukii"),
        "5": ("analichukia", "halichukii"),
        "7": ("anakichukia", "hakichukii"),
        "9": ("anaichukia", "haichukii"),
    },
}
_VERDICTS = {
    "happy": ("anafurahi", "hafurahi"),
    "satisfied": ("ameridhika", "hajaridhika"),
    "sad": ("anahuzunika", "hahuzuniki"),
    "angry": ("amekasirika", "hajakasirika"),
    "complain": ("analalamika", "halalamiki"),
}


class Swahili(Grammar):
    """Swahili."""

    code = "sw"
    conjunctions = ("na", "lakini")
    now = "sasa"

    @override
    def verb(self, verb: str) -> str:
        return _VERBS[verb]

    @override
    def some(self, thing: str, colour: str) -> str:
        noun_class, noun = _THINGS[thing]
        of = f"{_OF[noun_class]} " if colour in _GENITIVE_COLOURS else ""
        return f"{noun} {of}{_COLOURS[colour][noun_class]}"

    @override
    def the(self, thing: str) -> str:
        return _THINGS[thing][1]

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        return self.some(thing, colour) if colour else self.the(thing)

    @override
    def at(self, place: str) -> str:
        return _PLACES[place]

    @override
    def is_at(self, thing: str) -> str:
        return _IS_AT[_THINGS[thing][0]]

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        return f"{'si' if denied else 'ni'} {_QUALITIES[quality][_THINGS[thing][0]]}"

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        if verdict in _OBJECT_VERDICTS:
            return f"{name} {_OBJECT_VERDICTS[verdict][_THINGS[thing][0]][denied]}"
        return f"{name} {_VERDICTS[verdict][denied]}"

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"{name} {_VERBS[verb]} nini {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"{name} {_VERBS[verb]} {the_thing} wapi?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"{the_subject} ni {_OF[_THINGS[thing][0]]} rangi gani?"

    @override
    def thing_word(self, thing: str) -> str:
        return _THINGS[thing][1]

    @override
    def place_word(self, place: str) -> str:
        return _PLACES[place]

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return _COLOURS[colour][_THINGS[thing][0]]
