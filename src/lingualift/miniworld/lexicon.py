"""The concepts of the mini-world, apart from any language.

Concepts are named by English lemmas. Each language file gives its words for every concept listed here.
Names of people are the same in all languages and begin with a consonant, so that no language has to elide before
them.
"""

from __future__ import annotations

from typing import Final

NAMES: Final[dict[str, str]] = {
    "Ben": "m",
    "Carla": "f",
    "David": "m",
    "Felix": "m",
    "Julia": "f",
    "Lena": "f",
    "Maria": "f",
    "Nina": "f",
    "Paul": "m",
    "Peter": "m",
    "Rosa": "f",
    "Sara": "f",
    "Simon": "m",
    "Tom": "m",
    "Vera": "f",
    "Victor": "m",
}
"""Name to grammatical gender of the person."""

VERBS: Final = ("buy", "find", "lose", "see", "sell", "hide")
THINGS: Final = (
    "book",
    "cup",
    "hat",
    "key",
    "ball",
    "bag",
    "knife",
    "chair",
    "table",
    "car",
    "boat",
    "shirt",
    "jacket",
    "bicycle",
    "basket",
    "box",
)
COLOURS: Final = ("red", "green", "blue", "black", "white", "yellow")
PLACES: Final = (
    "market",
    "kitchen",
    "garden",
    "library",
    "house",
    "street",
    "forest",
    "beach",
    "office",
    "restaurant",
)

QUALITIES: Final[dict[str, bool]] = {
    "beautiful": True,
    "sturdy": True,
    "clean": True,
    "modern": True,
    "perfect": True,
    "excellent": True,
    "ugly": False,
    "dirty": False,
    "broken": False,
    "expensive": False,
    "fragile": False,
    "terrible": False,
}
"""What a thing can be said to be, and whether that speaks for it."""

VERDICTS: Final[dict[str, bool]] = {
    "like": True,
    "recommend": True,
    "happy": True,
    "satisfied": True,
    "hate": False,
    "sad": False,
    "angry": False,
    "complain": False,
}
"""What a person makes of a thing, and whether that speaks for it."""

QUESTIONS: Final = ("what", "where", "colour")
"""What can be asked about a story: the thing, the place, the colour of the thing."""
