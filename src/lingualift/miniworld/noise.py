"""Words dropped and replaced: what a worse translation does to a text."""

from __future__ import annotations

import random
from collections.abc import Sequence


def noisy(text: str, share: float, seed: str, vocabulary: Sequence[str]) -> str:
    """A text of which some words are missing and others are wrong.

    Of the words (between white space) `share` are hit, in expectation exactly: half of them are dropped, half replaced
    by another word of the vocabulary. Where only one word is hit, a coin decides. The last word of a text is replaced,
    never dropped.

    Args:
        text: With one word at least; white space between its words becomes one space where any is hit.
        share: 0 (the text as it is) to 1 (every word is hit).
        seed: Decides everything; give each row its own, such as f"{seed} {row['id']}".
        vocabulary: Words, two or more, each once.

    Raises:
        ValueError: no words, a share outside 0 to 1, fewer than two words to draw from.
    """
    words: list[str | None] = [*text.split()]
    if not words or not 0 <= share <= 1 or len(vocabulary) < 2:
        raise ValueError(f"{len(words)} words, share {share}, {len(vocabulary)} words to draw from")
    rng = random.Random(seed)
    hits = rng.sample(range(len(words)), min(int(share * len(words) + rng.random()), len(words)))
    drops = min((len(hits) + rng.randrange(2)) // 2, len(words) - 1)
    for number, place in enumerate(hits):
        drawn = rng.sample(vocabulary, 2)
        words[place] = None if number < drops else drawn[drawn[0] == words[place]]
    return " ".join(word for word in words if word is not None) if hits else text
