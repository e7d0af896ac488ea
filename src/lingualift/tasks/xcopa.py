"""XCOPA: which of two sentences is the cause, or the effect, of a third? Eleven languages, row-aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lingualift.tasks.base import TASKS, Example, RowError
from lingualift.tasks.prompts import PromptedTask


class XCOPA(PromptedTask):
    """The more plausible of two choices; `label` is 0 or 1."""

    name = "xcopa"
    labels = ("choice1", "choice2")
    columns = ("premise", "question", "choice1", "choice2")
    text_columns = ("premise", "choice1", "choice2")
    gold_column = "label"
    encoder_head = "choices"
    metrics = ("accuracy",)
    source = "https://arxiv.org/abs/2005.00333"

    def values(self, row: Mapping[str, Any], language: str) -> dict[str, str]:
        """The columns; `question` is `cause` or `effect` in every language."""
        values = super().values(row, language)
        if values["question"] not in ("cause", "effect"):
            raise RowError(f"question is {values['question']!r}, which is neither cause nor effect")
        return values

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """The prompt; an encoder reads premise and question, then one of the choices."""
        values = self.values(row, language)
        asked = f"{values['premise']} {_QUESTIONS[values['question']]}"
        options = {label: values[label] for label in self.labels}
        return replace(super().example(row, language), parts=(asked,), options=options)


_QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}

TASKS.register("xcopa")(XCOPA())
