"""Spanish: two genders with agreement, ser and estar, clitic pronouns, opening question marks."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.languages.romance import Romance
from lingualift.miniworld.lexicon import NAMES

_THINGS = {
    "book": ("m", "libro"),
    "cup": ("f", "taza"),
    "hat": ("m", "sombrero"),
    "key": ("f", "llave"),
    "ball": ("f", "pelota"),
    "bag": ("f", "bolsa"),
    "knife": ("m", "cuchillo"),
    "chair": ("f", "silla"),
    "table": ("f", "mesa"),
    "car": ("m", "coche"),
    "boat": ("m", "barco"),
    "shirt": ("f", "camisa"),
    "jacket": ("f", "chaqueta"),
    "bicycle": ("f", "bicicleta"),
    "basket": ("f", "cesta"),
    "box": ("f", "caja"),
}
_THE = {"m": "el", "f": "la"}
_SOME = {"m": "un", "f": "una"}
_IT = {"m": "lo", "f": "la"}
_COLOURS = {
    "red": {"m": "rojo", "f": "roja"},
    "green": {"m": "verde", "f": "verde"},
    "blue": {"m": "azul", "f": "azul"},
    "black": {"m": "negro", "f": "negra"},
    "white": {"m": "blanco", "f": "blanca"},
    "yellow": {"m": "amarillo", "f": "amarilla"},
}
_PLACES = {
    "market": ("en el mercado", "mercado"),
    "kitchen": ("en la cocina", "cocina"),
    "garden": ("en el jardín", "jardín"),
    "library": ("en la biblioteca", "biblioteca"),
    "house": ("en la casa", "casa"),
    "street": ("en la calle", "calle"),
    "forest": ("en el bosque", "bosque"),
    "beach": ("en la playa", "playa"),
    "office": ("en la oficina", "oficina"),
    "restaurant": ("en el restaurante", "restaurante"),
}
_VERBS = {
    "buy": "compró",
    "find": "encontró",
    "lose": "perdió",
    "see": "vio",
    "sell": "vendió",
    "hide": "escondió",
}
_QUALITIES = {  # with the copula: what a thing is by nature takes "es", the state it is in takes "está"
    "beautiful": {"m": "es bonito", "f": "es bonita"},
    "sturdy": {"m": "es resistente", "f": "es resistente"},
    "clean": {"m": "está limpio", "f": "está limpia"},
    "modern": {"m": "es moderno", "f": "es moderna"},
    "perfect": {"m": "es perfecto", "f": "es perfecta"},
    "excellent": {"m": "es excelente", "f": "es excelente"},
    "ugly": {"m": "es feo", "f": "es fea"},
    "dirty": {"m": "está sucio", "f": "está sucia"},
    "broken": {"m": "está roto", "f": "está rota"},
    "expensive": {"m": "es caro", "f": "es cara"},
    "fragile": {"m": "es frágil", "f": "es frágil"},
    "terrible": {"m": "es terrible", "f": "es terrible"},
}
_VERDICTS = {  # what follows the name and "no"; {it}: the thing's pronoun; by the person's gender
    "recommend": {"m": "{it} recomienda", "f": "{it} recomienda"},
    "happy": {"m": "está feliz", "f": "está feliz"},
    "satisfied": {"m": "está satisfecho", "f": "está satisfecha"},
    "hate": {"m": "{it} odia", "f": "{it} odia"},
    "sad": {"m": "está triste", "f": "está triste"},
    "angry": {"m": "está enojado", "f": "está enojada"},
    "complain": {"m": "se queja", "f": "se queja"},
}


class Spanish(Romance):
    """Spanish."""

    code = "es"
    conjunctions = ("y", "pero")
    now = "ahora"
    definite, indefinite = _THE, _SOME
    things, colours, places, verbs = _THINGS, _COLOURS, _PLACES, _VERBS

    @override
    def is_at(self, thing: str) -> str:
        return "está"

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        predicate = _QUALITIES[quality][_THINGS[thing][0]]
        return f"no {predicate}" if denied else predicate

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        no = "no " if denied else ""
        if verdict == "like":
            return f"a {name} {no}le gusta"
        return f"{name} {no}{_VERDICTS[verdict][NAMES[name]]}".format(it=_IT[_THINGS[thing][0]])

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"¿qué {_VERBS[verb]} {name} {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"¿dónde {_VERBS[verb]} {name} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"¿de qué color es {the_subject}?"
