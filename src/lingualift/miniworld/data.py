"""Task data, reference text and prompts of the mini-world."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from lingualift.miniworld.grammar import Grammar
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import PLACES
from lingualift.miniworld.noise import noisy
from lingualift.miniworld.world import (
    Review,
    Story,
    meaning_id,
    only,
    question_kind,
    reviews,
    say_answer,
    say_question,
    say_review,
    say_state,
    say_story,
    stories,
)
from lingualift.provenance import atomic_folder

SENTIMENT_PROMPT: Final = "{text} Rating:"
QA_PROMPT: Final = "{context} Q: {question} A:"
LABEL_WORDS: Final = {"positive": "good", "negative": "bad"}

SIZES: Final = {"train": 2000, "validation": 200, "test": 300}
"""Rows per language and task."""
REFERENCE_ROWS: Final = 2000
WRONG: Final = 0.2
"""Share of the words of the bundled translations that are missing or others."""

Row: TypeAlias = dict[str, Any]
Meaning = TypeVar("Meaning")


def sentiment_rows(language: str, split: str, count: int, seed: int = 0) -> list[Row]:
    """Reviews with labels, half of them positive; columns id, text, label.

    Rows of the same split, count and seed have the same ids and order in every language.
    """
    drawn = _draw_reviews(split, f"sentiment {split} {seed}", count)
    return [_sentiment_row(review, GRAMMARS[language]) for review in drawn]


def qa_rows(language: str, split: str, count: int, seed: int = 0) -> list[Row]:
    """Stories with a question each, the kinds of questions in turn; columns id, context, question, answer.

    Rows of the same split, count and seed have the same ids and order in every language.
    """
    drawn = _draw_stories(split, f"qa {split} {seed}", count)
    return [_qa_row(story, question_kind(index), GRAMMARS[language]) for index, story in enumerate(drawn)]


def reference_rows(language: str, count: int, seed: int = 0) -> list[Row]:
    """Unlabelled text: stories and opinions in turn, without questions, answers or label words; columns id, text."""
    tales = _draw_stories("reference", f"tales {seed}", (count + 1) // 2)
    opinions = _draw_reviews("reference", f"opinions {seed}", count // 2)
    rng = random.Random(f"places {seed}")
    voice = only(GRAMMARS[language])
    rows: list[Row] = [{} for _ in range(count)]
    rows[::2] = [
        {
            "id": meaning_id(tale),
            "text": f"{say_story(tale, voice)} {say_state(tale, rng.choice(PLACES), voice)}",
        }
        for tale in tales
    ]
    rows[1::2] = [{"id": meaning_id(opinion), "text": say_review(opinion, voice)} for opinion in opinions]
    return rows


def translated_rows(count: int, seed: int = 0) -> list[Row]:
    """The sentiment rows of the test split as a poor translation into English says them; columns id, text.

    `WRONG` of the words are missing or are other English words.
    """
    known = sentiment_rows("en", "train", SIZES["train"], seed)
    words = sorted({word for row in known for word in row["text"].split()})
    return [
        {"id": row["id"], "text": noisy(row["text"], WRONG, f"{seed} {row['id']}", words)}
        for row in sentiment_rows("en", "test", count, seed)
    ]


def write_data(folder: Path, seed: int = 0) -> None:
    """Write the task data and the reference text of every language, and poor translations into English.

    `sentiment/<language>/{train,validation,test}.jsonl`, `qa/<language>/{train,validation,test}.jsonl`,
    `reference/<language>/train.jsonl` and `into-english/sentiment/<language>/test.jsonl`. The same seed gives the same
    bytes; rows are aligned over languages by id and by position; no meaning is in two splits, whatever the seeds.

    Args:
        folder: Appears by one rename, whole.
        seed: Which meanings of each split are drawn.

    Raises:
        UserError: `folder` exists already or cannot be written.
    """
    tasks: dict[str, Callable[[str, str, int, int], list[Row]]] = {
        "sentiment": sentiment_rows,
        "qa": qa_rows,
    }
    with atomic_folder(Path(folder)) as scratch:
        for language in GRAMMARS:
            for task, make in tasks.items():
                for split, count in SIZES.items():
                    rows = make(language, split, count, seed)
                    _write_rows(scratch / task / language / f"{split}.jsonl", rows)
            rows = reference_rows(language, REFERENCE_ROWS, seed)
            _write_rows(scratch / "reference" / language / "train.jsonl", rows)
        poor = translated_rows(SIZES["test"], seed)  # one for all: the rows of all languages say the same
        for language in [code for code in GRAMMARS if code != "en"]:
            _write_rows(scratch / "into-english" / "sentiment" / language / "test.jsonl", poor)


def _sentiment_row(review: Review, grammar: Grammar) -> Row:
    label = "positive" if review.positive else "negative"
    return {"id": meaning_id(review), "text": say_review(review, only(grammar)), "label": label}


def _qa_row(story: Story, kind: str, grammar: Grammar) -> Row:
    voice = only(grammar)
    return {
        "id": meaning_id(story, kind),
        "context": say_story(story, voice),
        "question": say_question(story, kind, voice),
        "answer": say_answer(story, kind, voice),
    }


@functools.lru_cache(maxsize=32)
def _draw_reviews(split: str, key: str, count: int) -> list[Review]:
    """Distinct reviews of a split, positive and negative in turn; drawn once for all languages."""
    stream = reviews(split, random.Random(key))
    halves = [
        _distinct((review for review in stream if review.positive == wanted), size)
        for wanted, size in ((True, (count + 1) // 2), (False, count // 2))
    ]
    return [halves[index % 2][index // 2] for index in range(count)]


@functools.lru_cache(maxsize=32)
def _draw_stories(split: str, key: str, count: int) -> list[Story]:
    """Distinct stories of a split; drawn once for all languages."""
    return _distinct(stories(split, random.Random(key)), count)


def _distinct(meanings: Iterator[Meaning], count: int) -> list[Meaning]:
    """The first `count` meanings, without repeats."""
    found: dict[Meaning, None] = {}
    while len(found) < count:
        found[next(meanings)] = None
    return list(found)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Plain writing: the folder around it appears at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n"
    )
