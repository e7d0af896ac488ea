"""French: two genders with agreement, two-part negation, perfect with "avoir"; no noun here needs elision."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.languages.romance import Romance
from lingualift.miniworld.lexicon import NAMES

_THINGS = {
    "book": ("m", "livre"),
    "cup": ("f", "tasse"),
    "hat": ("m", "chapeau"),
    "key": ("f", "clé"),
    "ball": ("m", "ballon"),
    "bag": ("m", "sac"),
    "knife": ("m", "couteau"),
    "chair": ("f", "chaise"),
    "table": ("f", "table"),
    "car": ("f", "voiture"),
    "boat": ("m", "bateau"),
    "shirt": ("f", "chemise"),
    "jacket": ("f", "veste"),
    "bicycle": ("m", "vélo"),
    "basket": ("m", "panier"),
    "box": ("f", "boîte"),
}
_THE = {"m": "le", "f": "la"}
_SOME = {"m": "un", "f": "une"}
_COLOURS = {
    "red": {"m": "rouge", "f": "rouge"},
    "green": {"m": "vert", "f": "verte"},
    "blue": {"m": "bleu", "f": "bleue"},
    "black": {"m": "noir", "f": "noire"},
    "white": {"m": "blanc", "f": "blanche"},
    "yellow": {"m": "jaune", "f": "jaune"},
}
_PLACES = {
    "market": ("au marché", "marché"),
    "kitchen": ("dans la cuisine", "cuisine"),
    "garden": ("dans le jardin", "jardin"),
    "library": ("à la bibliothèque", "bibliothèque"),
    "house": ("dans la maison", "maison"),
    "street": ("dans la rue", "rue"),
    "forest": ("dans la forêt", "forêt"),
    "beach": ("sur la plage", "plage"),
    "office": ("au bureau", "bureau"),
    "restaurant": ("au restaurant", "restaurant"),
}
_VERBS = {
    "buy": "a acheté",
    "find": "a trouvé",
    "lose": "a perdu",
    "see": "a vu",
    "sell": "a vendu",
    "hide": "a caché",
}
_QUALITIES = {
    "beautiful": {"m": "beau", "f": "belle"},
    "sturdy": {"m": "solide", "f": "solide"},
    "clean": {"m": "propre", "f": "propre"},
    "modern": {"m": "moderne", "f": "moderne"},
    "perfect": {"m": "parfait", "f": "parfaite"},
    "excellent": {"m": "excellent", "f": "excellente"},
    "ugly": {"m": "laid", "f": "laide"},
    "dirty": {"m": "sale", "f": "sale"},
    "broken": {"m": "cassé", "f": "cassée"},
    "expensive": {"m": "cher", "f": "chère"},
    "fragile": {"m": "fragile", "f": "fragile"},
    "terrible": {"m": "terrible", "f": "terrible"},
}
_FEELINGS = {  # by the person's gender
    "happy": {"m": "heureux", "f": "heureuse"},
    "satisfied": {"m": "satisfait", "f": "satisfaite"},
    "sad": {"m": "triste", "f": "triste"},
    "angry": {"m": "fâché", "f": "fâchée"},
}
_VERDICTS = {  # affirmed, denied; {it} is the pronoun of the thing
    "like": ("l'aime", "ne l'aime pas"),
    "recommend": ("{it} recommande", "ne {it} recommande pas"),
    "hate": ("{it} déteste", "ne {it} déteste pas"),
    "complain": ("se plaint", "ne se plaint pas"),
}


class French(Romance):
    """French."""

    code = "fr"
    conjunctions = ("et", "mais")
    now = "maintenant"
    definite, indefinite = _THE, _SOME
    things, colours, places, verbs = _THINGS, _COLOURS, _PLACES, _VERBS

    @override
    def is_at(self, thing: str) -> str:
        return "est"

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        word = _QUALITIES[quality][_THINGS[thing][0]]
        return f"n'est pas {word}" if denied else f"est {word}"

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        if verdict in _FEELINGS:
            word = _FEELINGS[verdict][NAMES[name]]
            return f"{name} n'est pas {word}" if denied else f"{name} est {word}"
        return f"{name} {_VERDICTS[verdict][denied]}".format(it=_THE[_THINGS[thing][0]])

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"qu'est-ce que {name} {_VERBS[verb]} {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"où est-ce que {name} {_VERBS[verb]} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"de quelle couleur est {the_subject}?"
