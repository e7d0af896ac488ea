"""How a tokenizer spells a language: tokens, unknown tokens, pieces of characters, letters that get lost. Pure."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lingualift.languages import language as find_language

UNSPACED = frozenset({"Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"})
"""ISO 15924 codes of scripts that put no space between words."""
LOST_NOTED, LOST_REFUSED = 0.01, 0.10
"""Share of letters that the tokenizer loses: above 1% names and rare letters suffer; above 10% most sentences are hurt,
and neither text nor labels can teach what is not read."""


def is_spaced(language: str) -> bool:
    """Whether spaces part words in the script of a language."""
    return find_language(language).script not in UNSPACED


@dataclass(frozen=True)
class Spelling:
    """Counts over some texts.

    Attributes:
        texts: How many texts.
        tokens: Tokens, special ones not counted.
        words: Parts between white space.
        characters: Characters that are no white space.
        bytes: Bytes of the texts in UTF-8.
        unknown: Unknown tokens.
        pieces: Tokens that are less than a character: single bytes, of byte fallback and of byte-level merges.
        letters: Letters, marks and digits.
        lost: Of those, the ones that decoding does not give back; letter case and compatibility forms do not count.
    """

    texts: int
    tokens: int
    words: int
    characters: int
    bytes: int
    unknown: int
    pieces: int
    letters: int
    lost: int

    @property
    def per_word(self) -> float:
        """Tokens per word."""
        return self.tokens / max(1, self.words)

    @property
    def per_character(self) -> float:
        """Tokens per character."""
        return self.tokens / max(1, self.characters)

    @property
    def unknown_share(self) -> float:
        """Unknown tokens per token."""
        return self.unknown / max(1, self.tokens)

    @property
    def piece_share(self) -> float:
        """Pieces of characters per token."""
        return self.pieces / max(1, self.tokens)

    @property
    def lost_share(self) -> float:
        """Lost letters per letter."""
        return self.lost / max(1, self.letters)


def spell(tokenizer: Any, texts: Sequence[str]) -> Spelling:
    """Spell texts and read them back.

    Args:
        tokenizer: A transformers tokenizer.
        texts: At least one.
    """
    every: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    tokens = Counter(token for ids in every for token in ids)
    alone = zip(tokens, tokenizer.batch_decode([[token] for token in tokens]), strict=True)
    letters = [_letters(text) for text in texts]
    back = [_letters(text) for text in tokenizer.batch_decode(every, skip_special_tokens=True)]
    return Spelling(
        texts=len(texts),
        tokens=sum(tokens.values()),
        words=sum(len(text.split()) for text in texts),
        characters=sum(len("".join(text.split())) for text in texts),
        bytes=sum(len(text.encode()) for text in texts),
        unknown=0 if tokenizer.unk_token_id is None else tokens[tokenizer.unk_token_id],
        pieces=sum(tokens[token] for token, text in alone if "\N{REPLACEMENT CHARACTER}" in text),
        letters=sum(sum(counts.values()) for counts in letters),
        lost=sum(sum((before - after).values()) for before, after in zip(letters, back, strict=True)),
    )


def _letters(text: str) -> Counter[str]:
    """How often each letter, mark and digit occurs."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return Counter(mark for mark in folded if unicodedata.category(mark)[0] in "LMN")
