"""Meanings, which part of the data each belongs to, and how a meaning is said.

A meaning is a plain record of concepts. Its split is decided by a hash of the meaning alone, so what is held out is
held out in every language, and what one seed draws for training no other seed draws for testing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Final, TypeAlias

from lingualift.miniworld.grammar import Grammar
from lingualift.miniworld.lexicon import (
    COLOURS,
    NAMES,
    PLACES,
    QUALITIES,
    QUESTIONS,
    THINGS,
    VERBS,
    VERDICTS,
)

SPLITS: Final = {
    "pretraining": 60,
    "reference": 10,
    "train": 15,
    "validation": 5,
    "test": 5,
    "probe": 5,
}
"""Percent of all meanings in each split."""

Voice: TypeAlias = Callable[[str], Grammar]
"""Role to the grammar that says it: one grammar for plain text, several for code-switched text."""


@dataclass(frozen=True)
class Story:
    """One fact: who did what to a coloured thing, and where; `fronted` puts the place first."""

    name: str
    verb: str
    thing: str
    colour: str
    place: str
    fronted: bool


@dataclass(frozen=True)
class Review:
    """What a thing is (or is not), and what somebody makes of it in the end (or does not)."""

    thing: str
    quality: str
    quality_denied: bool
    name: str
    verdict: str
    verdict_denied: bool

    @property
    def positive(self) -> bool:
        """The verdict decides; what the thing is like may speak against it ("but") or for it ("and")."""
        return VERDICTS[self.verdict] != self.verdict_denied

    @property
    def agrees(self) -> bool:
        """Whether both clauses point the same way."""
        return (QUALITIES[self.quality] != self.quality_denied) == self.positive


def meaning_id(meaning: Story | Review, detail: str = "") -> str:
    """A stable name of a meaning, the same in every language.

    Args:
        meaning: The meaning.
        detail: What else tells rows of the same meaning apart, such as the kind of question.
    """
    kind = type(meaning).__name__.lower()
    return f"{kind}-{_digest(meaning)[:12]}{'-' if detail else ''}{detail}"


def split_of(meaning: Story | Review) -> str:
    """The split a meaning belongs to, in every language and for every seed."""
    percent = int(_digest(meaning)[-8:], 16) % 100
    for split, share in SPLITS.items():
        if percent < share:
            return split
        percent -= share
    raise AssertionError("the shares of the splits do not add up to 100")


def stories(split: str, rng: random.Random) -> Iterator[Story]:
    """Random stories of a split, without end; repeats are possible."""
    names = tuple(NAMES)
    while True:
        story = Story(
            rng.choice(names),
            rng.choice(VERBS),
            rng.choice(THINGS),
            rng.choice(COLOURS),
            rng.choice(PLACES),
            rng.random() < 0.5,
        )
        if split_of(story) == split:
            yield story


def reviews(split: str, rng: random.Random) -> Iterator[Review]:
    """Random reviews of a split, without end, positive and negative in turn; repeats are possible."""
    names, qualities, verdicts = tuple(NAMES), tuple(QUALITIES), tuple(VERDICTS)
    wanted = True
    while True:
        review = Review(
            rng.choice(THINGS),
            rng.choice(qualities),
            rng.random() < 0.3,
            rng.choice(names),
            rng.choice(verdicts),
            rng.random() < 0.3,
        )
        if review.positive == wanted and split_of(review) == split:
            wanted = not wanted
            yield review


def only(grammar: Grammar) -> Voice:
    """The voice of plain text in one language."""
    return lambda role: grammar


def mixed(main: Grammar, other: Grammar, rng: random.Random, rate: float = 0.5) -> Voice:
    """The voice of code-switched text: each role is said in `other` with probability `rate`, the rest in `main`."""
    chosen: dict[str, Grammar] = {}

    def voice(role: str) -> Grammar:
        if role not in chosen:
            chosen[role] = other if rng.random() < rate else main
        return chosen[role]

    return voice


def say_story(story: Story, voice: Voice) -> str:
    """A story as one sentence."""
    frame = voice("frame")
    said = {
        "who": story.name,
        "verb": voice("verb").verb(story.verb),
        "thing": voice("thing").some(story.thing, story.colour),
        "place": voice("place").at(story.place),
    }
    order = frame.fronted_order if story.fronted else frame.story_order
    return _sentence(said[role] for role in order)


def say_state(story: Story, place: str, voice: Voice) -> str:
    """Where the thing of a story is now, as one sentence."""
    frame = voice("frame")
    said = {
        "now": frame.now,
        "subject": voice("thing").subject(story.thing, story.colour),
        "is": frame.is_at(story.thing),
        "place": voice("place now").at(place),
    }
    return _sentence(said[role] for role in frame.state_order)


def say_question(story: Story, kind: str, voice: Voice) -> str:
    """A question about a story, one of `QUESTIONS`."""
    frame = voice("question")
    if kind == "what":
        return frame.ask_what(story.name, story.verb, voice("asked place").at(story.place))
    if kind == "where":
        return frame.ask_where(story.name, story.verb, voice("asked thing").the(story.thing))
    return frame.ask_colour(story.thing, voice("asked thing").subject(story.thing))


def say_answer(story: Story, kind: str, voice: Voice) -> str:
    """The answer to a question, in the language in which the story says it."""
    if kind == "what":
        return voice("thing").thing_word(story.thing)
    if kind == "where":
        return voice("place").place_word(story.place)
    return voice("thing").colour_word(story.thing, story.colour)


def say_review(review: Review, voice: Voice) -> str:
    """A review as one sentence of two clauses."""
    subject = voice("thing").subject(review.thing)
    quality = voice("quality").quality(review.thing, review.quality, review.quality_denied)
    verdict = voice("verdict").verdict(review.name, review.thing, review.verdict, review.verdict_denied)
    both, against = voice("frame").conjunctions
    link = f" {both} " if review.agrees else f", {against} "
    return f"{subject} {quality}{link}{verdict}."


def question_kind(index: int) -> str:
    """The kinds of questions in turn."""
    return QUESTIONS[index % len(QUESTIONS)]


def _sentence(parts: Iterator[str]) -> str:
    return " ".join(part for part in parts if part) + "."


def _digest(meaning: Story | Review) -> str:
    text = "|".join(map(str, (type(meaning).__name__, *astuple(meaning))))
    return hashlib.sha256(text.encode()).hexdigest()
