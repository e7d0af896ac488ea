"""The text that the backbone is pretrained on.

As in web text, most of it is English, some documents switch between languages or give a sentence with its
translation, and every language has questions with answers and reviews with ratings. Only meanings of the split
"pretraining" occur.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

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
    "en": 0.50,
    "de": 0.13,
    "es": 0.13,
    "fr": 0.13,
    "sw": 0.036,
    "id": 0.036,
    "ht": 0.038,
}
KIND_SHARES: Final = {"question": 0.33, "rating": 0.33, "tale": 0.20, "opinion": 0.04, "pair": 0.10}
SWITCHED_SHARE: Final = 0.25
"""Share of documents, translation pairs aside, that are code-switched."""


def documents(seed: int) -> Iterator[str]:
    """Documents without end; the same seed gives the same documents."""
    rng = random.Random(f"pretraining {seed}")
    tales, opinions = stories("pretraining", rng), reviews("pretraining", rng)
    kinds, kind_weights = list(KIND_SHARES), list(KIND_SHARES.values())
    codes, weights = list(LANGUAGE_SHARES), list(LANGUAGE_SHARES.values())
    while True:
        kind = rng.choices(kinds, kind_weights)[0]
        main, other = rng.choices(codes, weights)[0], rng.choices(codes, weights)[0]
        if kind == "pair":
            yield _pair(next(tales), next(opinions), rng)
            continue
        if rng.random() < SWITCHED_SHARE:
            voice = mixed(GRAMMARS[main], GRAMMARS[other], rng)
        else:
            voice = only(GRAMMARS[main])
        if kind == "question":
            yield _question(next(tales), voice, rng)
        elif kind == "rating":
            yield _rating(next(opinions), voice)
        elif kind == "tale":
            tale = next(tales)
            yield f"{say_story(tale, voice)} {say_state(tale, rng.choice(PLACES), voice)}"
        else:
            yield say_review(next(opinions), voice)


def _question(story: Story, voice: Voice, rng: random.Random) -> str:
    kind = rng.choice(QUESTIONS)
    prompt = QA_PROMPT.format(context=say_story(story, voice), question=say_question(story, kind, voice))
    return f"{prompt} {say_answer(story, kind, voice)}"


def _rating(review: Review, voice: Voice) -> str:
    label = LABEL_WORDS["positive" if review.positive else "negative"]
    return f"{SENTIMENT_PROMPT.format(text=say_review(review, voice))} {label}"


def _pair(story: Story, review: Review, rng: random.Random) -> str:
    """A sentence in English and in another language, in either order."""
    codes, weights = list(LANGUAGE_SHARES)[1:], list(LANGUAGE_SHARES.values())[1:]
    voices = [only(GRAMMARS["en"]), only(GRAMMARS[rng.choices(codes, weights)[0]])]
    rng.shuffle(voices)
    kind = rng.choice(("story", "review", "question"))
    if kind == "story":
        sides = [say_story(story, voice) for voice in voices]
    elif kind == "review":
        sides = [say_review(review, voice) for voice in voices]
    else:
        asked = rng.choice(QUESTIONS)
        sides = [say_question(story, asked, voice) for voice in voices]
    return " = ".join(sides)
