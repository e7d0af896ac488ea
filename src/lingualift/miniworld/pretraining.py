"""The text that the backbone is pretrained on.

As in web text, most of it is English, some documents switch between languages or give a sentence with its
translation, and every language has questions with answers and reviews with ratings. Only meanings of the split
"pretraining" occur.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, NamedTuple

from lingualift.miniworld.data import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import PLACES, QUESTIONS
from lingualift.miniworld.world import (
    Review,
    Story,
    Voice,
    mixed,
    only,
    reviews,
    say_answer,
    say_question,
    say_review,
    say_state,
    say_story,
    stories,
)

LANGUAGE_SHARES: Final = {
    "en": 0.47,
    "de": 0.13,
    "es": 0.13,
    "fr": 0.13,
    "sw": 0.045,
    "id": 0.045,
    "ht": 0.050,
}
WEAK: Final = ("sw", "id", "ht")
"""The languages with little pretraining text."""
PAIR_SHARE: Final = 0.10
"""Share of documents that are a sentence with its translation."""
KIND_SHARES: Final = {"questions": 0.46, "rating": 0.24, "tale": 0.17, "opinion": 0.13}
"""Shares of the other documents."""
WEAK_KIND_SHARES: Final = {"questions": 0.35, "rating": 0.08, "tale": 0.33, "opinion": 0.24}
"""The same where a weak language is the main one: less of its text is questions with answers or rated reviews."""
SWITCHED_SHARE: Final = 0.25
"""Share of documents, pairs aside, that are code-switched."""


class Document(NamedTuple):
    """A text and the meaning that it says."""

    text: str
    meaning: Story | Review


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; the same seed gives the same documents."""
    rng = random.Random(f"pretraining {seed}")
    tales, opinions = stories("pretraining", rng), reviews("pretraining", rng)
    codes, weights = list(LANGUAGE_SHARES), list(LANGUAGE_SHARES.values())
    while True:
        main, other = (GRAMMARS[code] for code in rng.choices(codes, weights, k=2))
        voice = mixed(main, other, rng) if rng.random() < SWITCHED_SHARE else only(main)
        kinds = WEAK_KIND_SHARES if main.code in WEAK else KIND_SHARES
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        meaning = next(opinions) if kind in ("rating", "opinion") else next(tales)
        pair = rng.random() < PAIR_SHARE
        yield Document(_pair(meaning, rng) if pair else _say(kind, meaning, voice, rng), meaning)


def shares() -> dict[str, object]:
    """The numbers that make the text what it is, for the record."""
    return {
        "languages": LANGUAGE_SHARES,
        "pairs": PAIR_SHARE,
        "switched": SWITCHED_SHARE,
        "kinds": KIND_SHARES,
        "kinds in weak languages": WEAK_KIND_SHARES,
    }


def _say(kind: str, meaning: Story | Review, voice: Voice, rng: random.Random) -> str:
    if isinstance(meaning, Review):
        return _rating(meaning, voice) if kind == "rating" else say_review(meaning, voice)
    if kind == "questions":
        return _questions(meaning, voice, rng)
    return f"{say_story(meaning, voice)} {say_state(meaning, rng.choice(PLACES), voice)}"


def _questions(story: Story, voice: Voice, rng: random.Random) -> str:
    """A story and one to three questions about it."""
    context, *rest = QA_PROMPT.partition(" Q:")
    text = context.format(context=say_story(story, voice))
    for kind in rng.sample(QUESTIONS, rng.choice((1, 1, 2, 3))):
        asked = "".join(rest).format(question=say_question(story, kind, voice))
        text += f"{asked} {say_answer(story, kind, voice)}"
    return text


def _rating(review: Review, voice: Voice) -> str:
    label = LABEL_WORDS["positive" if review.positive else "negative"]
    return f"{SENTIMENT_PROMPT.format(text=say_review(review, voice))} {label}"


def _pair(meaning: Story | Review, rng: random.Random) -> str:
    """A review, a story or a question in English and in another language, in either order."""
    codes, weights = list(LANGUAGE_SHARES)[1:], list(LANGUAGE_SHARES.values())[1:]
    voices = [only(GRAMMARS["en"]), only(GRAMMARS[rng.choices(codes, weights)[0]])]
    rng.shuffle(voices)
    if isinstance(meaning, Review):
        translations = [say_review(meaning, voice) for voice in voices]
    elif rng.random() < 0.5:
        translations = [say_story(meaning, voice) for voice in voices]
    else:
        asked = rng.choice(QUESTIONS)
        translations = [say_question(meaning, asked, voice) for voice in voices]
    return " = ".join(translations)
