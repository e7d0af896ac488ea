"""Indonesian: no gender, case or tense; adjectives behind the noun, "itu" behind both."""

from __future__ import annotations

from typing_extensions import override

from lingualift.miniworld.grammar import Grammar

_THINGS = {
    "book": "buku",
    "cup": "cangkir",
    "hat": "topi",
    "key": "kunci",
    "ball": "bola",
    "bag": "tas",
    "knife": "pisau",
    "chair": "kursi",
    "table": "meja",
    "car": "mobil",
    "boat": "perahu",
    "shirt": "kemeja",
    "jacket": "jaket",
    "bicycle": "sepeda",
    "basket": "keranjang",
    "box": "kotak",
}
_COLOURS = {
    "red": "merah",
    "green": "hijau",
    "blue": "biru",
    "black": "hitam",
    "white": "putih",
    "yellow": "kuning",
}
_PLACES = {
    "market": "pasar",
    "kitchen": "dapur",
    "garden": "kebun",
    "library": "perpustakaan",
    "house": "rumah",
    "street": "jalan",
    "forest": "hutan",
    "beach": "pantai",
    "office": "kantor",
    "restaurant": "restoran",
}
_VERBS = {
    "buy": "membeli",
    "find": "menemukan",
    "lose": "kehilangan",
    "see": "melihat",
    "sell": "menjual",
    "hide": "menyembunyikan",
}
_QUALITIES = {
    "beautiful": "indah",
    "sturdy": "kuat",
    "clean": "bersih",
    "modern": "modern",
    "perfect": "sempurna",
    "excellent": "istimewa",
    "ugly": "jelek",
    "dirty": "kotor",
    "broken": "rusak",
    "expensive": "mahal",
    "fragile": "rapuh",
    "terrible": "mengerikan",
}
_VERDICTS = {
    "like": "menyukainya",
    "recommend": "merekomendasikannya",
    "happy": "senang",
    "satisfied": "puas",
    "hate": "membencinya",
    "sad": "sedih",
    "angry": "marah",
    "complain": "mengeluh",
}


class Indonesian(Grammar):
    """Indonesian."""

    code = "id"
    conjunctions = ("dan", "tetapi")
    now = "sekarang"

    @override
    def verb(self, verb: str) -> str:
        return _VERBS[verb]

    @override
    def some(self, thing: str, colour: str) -> str:
        return f"sebuah {_THINGS[thing]} {_COLOURS[colour]}"

    @override
    def the(self, thing: str) -> str:
        return f"{_THINGS[thing]} itu"

    @override
    def subject(self, thing: str, colour: str | None = None) -> str:
        return f"{_THINGS[thing]} {_COLOURS[colour]} itu" if colour else self.the(thing)

    @override
    def at(self, place: str) -> str:
        return f"di {_PLACES[place]}"

    @override
    def is_at(self, thing: str) -> str:
        return "ada"

    @override
    def quality(self, thing: str, quality: str, denied: bool) -> str:
        return f"tidak {_QUALITIES[quality]}" if denied else _QUALITIES[quality]

    @override
    def verdict(self, name: str, thing: str, verdict: str, denied: bool) -> str:
        return f"{name} {'tidak ' if denied else ''}{_VERDICTS[verdict]}"

    @override
    def ask_what(self, name: str, verb: str, place: str) -> str:
        return f"{name} {_VERBS[verb]} apa {place}?"

    @override
    def ask_where(self, name: str, verb: str, the_thing: str) -> str:
        return f"di mana {name} {_VERBS[verb]} {the_thing}?"

    @override
    def ask_colour(self, thing: str, the_subject: str) -> str:
        return f"apa warna {the_subject}?"

    @override
    def thing_word(self, thing: str) -> str:
        return _THINGS[thing]

    @override
    def place_word(self, place: str) -> str:
        return _PLACES[place]

    @override
    def colour_word(self, thing: str, colour: str) -> str:
        return _COLOURS[colour]
