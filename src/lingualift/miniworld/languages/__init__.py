"""One file per language: hand-written forms, and the rules that put them together."""

from __future__ import annotations

from typing import Final

from lingualift.miniworld.grammar import Grammar
from lingualift.miniworld.languages.english import English
from lingualift.miniworld.languages.french import French
from lingualift.miniworld.languages.german import German
from lingualift.miniworld.languages.haitian import Haitian
from lingualift.miniworld.languages.indonesian import Indonesian
from lingualift.miniworld.languages.spanish import Spanish
from lingualift.miniworld.languages.swahili import Swahili

GRAMMARS: Final[dict[str, Grammar]] = {
    grammar.code: grammar
    for grammar in (English(), German(), Spanish(), French(), Swahili(), Indonesian(), Haitian())
}
"""Code to grammar, dominant language first."""
