"""NusaX: sentiment of short texts in English, Indonesian and ten local languages, row-aligned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingualift.tasks.base import TASKS, Example, Task, text_of

LABELS = {"negative": "negative", "neutral": "neutral", "positive": "positive"}


class NusaX(Task):
    """Three-class sentiment; the prompt is FLARE's (section 4)."""

    columns = ("id", "text")
    gold_column = "label"
    metrics = ("macro_f1", "accuracy")
    source = "https://aclanthology.org/2023.eacl-main.57"

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """`{text}`, a new line, `Sentiment:`."""
        prompt = f"{text_of(row, 'text').strip()}\nSentiment:"
        return Example(text_of(row, "id"), prompt, choices=LABELS)


TASKS.register("nusax")(NusaX())
