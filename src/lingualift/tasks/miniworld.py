"""The two tasks of the bundled mini-world: sentiment of reviews, and questions about one-fact stories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingualift.miniworld import LABEL_WORDS, QA_PROMPT, SENTIMENT_PROMPT
from lingualift.tasks.base import TASKS, Example, Task, text_of


class MiniSentiment(Task):
    """Is the review positive or negative? Label words are English in every language."""

    columns = ("text",)
    gold_column = "label"
    metrics = ("accuracy", "macro_f1")
    source = "lingualift.miniworld"

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """The review and the tag that asks for its sentiment."""
        prompt = SENTIMENT_PROMPT.format(text=text_of(row, "text"))
        return Example(text_of(row, "id"), prompt, choices=LABEL_WORDS)


class MiniQA(Task):
    """Where or who: one word in the language of the story."""

    columns = ("context", "question")
    gold_column = "answer"
    written_columns = ("answer",)
    metrics = ("exact_match",)
    encoder_head = None
    source = "lingualift.miniworld"
    max_new_tokens = 6

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """The story, then the question."""
        prompt = QA_PROMPT.format(context=text_of(row, "context"), question=text_of(row, "question"))
        return Example(text_of(row, "id"), prompt)


TASKS.register("mini-sentiment")(MiniSentiment())
TASKS.register("mini-qa")(MiniQA())
