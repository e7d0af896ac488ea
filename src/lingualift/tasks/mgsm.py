"""MGSM: 250 grade-school problems of arithmetic in English and ten translations, row-aligned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lingualift.metrics.numbers import find_number, parse_number
from lingualift.tasks.base import TASKS, Example, RowError, text_of
from lingualift.tasks.prompts import PromptedTask, prompts_of
from lingualift.tasks.reading import read_number

_ENGLISH = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?")


class MGSM(PromptedTask):
    """A number at the end of a chain of thought, which training learns where the row has it in `answer`."""

    name = "mgsm"
    columns = ("question",)
    gold_column = "answer_number"
    written_columns = ("answer",)
    encoder_head = None
    metrics = ("number_match",)
    source = "https://arxiv.org/abs/2210.03057"
    max_new_tokens = 512

    def values(self, row: Mapping[str, Any], language: str) -> dict[str, str]:
        """The question, without the word for it that the exemplars of the train split begin with."""
        return {"question": _without_heading(super().values(row, language)["question"])}

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        """The number in digits alone, which every language reads alike.

        MGSM's own files write it as in English in all languages (`60,000`); what is not written so is read as the row's
        language writes numbers.
        """
        number = text_of(row, self.gold_column)
        local = parse_number(number, example.language)
        english = parse_number(number, "en") if _ENGLISH.fullmatch(number.strip()) else None
        value = local if english is None else english
        if value is None:
            raise RowError(f"{self.gold_column} is {number!r}, which is no number")
        pointed = isinstance(row[self.gold_column], str) and "." in number
        if pointed and local is not None and local != value:
            raise RowError(
                f"{self.gold_column} is {number!r}, which is {_digits(value)} or, in this language, "
                f"{_digits(local)}: write it in digits alone"
            )
        return (_digits(value),)

    def completion(self, row: Mapping[str, Any], example: Example) -> str:
        """The worked answer without its heading, then the format of the template, if it asks for one."""
        final = super().completion(row, example)
        worked = row.get("answer")
        steps = _without_heading(worked.strip()) if isinstance(worked, str) else ""
        return "\n".join(filter(None, (steps, final)))

    def parse(self, text: str, example: Example) -> str | None:
        """The last number of the text, or of the line that the template's format puts the answer on, as it stands."""
        line = super().parse(text, example) if self.prompt_for(example.language).answer else text
        number = find_number(line or "")
        return number if number and parse_number(number, example.language) is not None else None

    def parse_lenient(self, text: str, example: Example) -> str | None:
        """The number that the text says its answer is, or else its last one, whichever format was asked for."""
        return read_number(text, example.language, self.prompt_for(example.language).nouns)


def _digits(value: Decimal) -> str:
    return f"{value.normalize():f}"


def _without_heading(text: str) -> str:
    """A question or an answer without the word for it that the exemplars begin with, in any language."""
    prompts = prompts_of(MGSM.name)["native"].languages.values()
    words = "|".join(
        re.escape(line.split("{")[0].strip(" :：")) for one in prompts for line in one.template.split("\n")
    )
    return re.sub(rf"^(?:{words})\s*[:：]\s*", "", text)


TASKS.register("mgsm")(MGSM())
