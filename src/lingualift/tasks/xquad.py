"""XQuAD: questions answered by a span of a passage; English and eleven translations, row-aligned, a test set only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingualift.tasks.base import TASKS, Example, text_of
from lingualift.tasks.prompts import PromptedTask, answers_of, starts_of


class XQuAD(PromptedTask):
    """The answer is generated; each of `answers` is accepted."""

    name = "xquad"
    columns = ("context", "question")
    texts = ("question", "context")
    passage_column = "context"
    gold_column = "answers"
    encoder_head = "span"
    metrics = ("squad_em", "squad_f1")
    source = "https://arxiv.org/abs/1910.11856"
    max_new_tokens = 16

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        """Every accepted answer."""
        return answers_of(row, self.gold_column)

    def starts(self, row: Mapping[str, Any], example: Example) -> tuple[int, ...]:
        """Where the answers stand in the context, whose ends `example` has stripped."""
        return starts_of(row, self.gold_column, example.gold, text_of(row, "context"))


TASKS.register("xquad")(XQuAD())
