"""MGSM: 250 grade-school problems of arithmetic in English and ten translations, row-aligned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lingualift.tasks.base import TASKS, Example
from lingualift.tasks.prompts import PromptedTask, prompts_of

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class MGSM(PromptedTask):
    """A number at the end of a chain of thought, which training learns where the row has it in `answer`."""

    name = "mgsm"
    columns = ("question",)
    gold_column = "answer_number"
    metrics = ("exact_match",)
    source = "https://arxiv.org/abs/2210.03057"
    max_new_tokens = 512

    def values(self, row: Mapping[str, Any], language: str) -> dict[str, str]:
        """The question, without the word for it that the exemplars of the train split begin with."""
        return {"question": _without_heading(super().values(row, language)["question"])}

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        """The number in digits."""
        (number,) = super().gold(row, example)
        return (_last_number(number) or number,)

    def completion(self, row: Mapping[str, Any], example: Example) -> str:
        """The worked answer without its heading, then the format of the template, if it asks for one."""
        final = super().completion(row, example)
        worked = row.get("answer")
        steps = _without_heading(worked.strip()) if isinstance(worked, str) else ""
        return "\n".join(filter(None, (steps, final)))

    def parse(self, text: str, example: Example) -> str | None:
        """The last number of the text, or of the line that the template's format puts the answer on."""
        line = super().parse(text, example) if self.prompt_for(example.language).answer else text
        return None if line is None else _last_number(line)


def _without_heading(text: str) -> str:
    """A question or an answer without the word for it that the exemplars begin with, in any language."""
    prompts = prompts_of(MGSM.name)["native"].languages.values()
    words = "|".join(
        re.escape(line.split("{")[0].strip(" :：")) for one in prompts for line in one.template.split("\n")
    )
    return re.sub(rf"^(?:{words})\s*[:：]\s*", "", text)


def _last_number(text: str) -> str | None:
    """The last number, without separators of thousands and a fraction of zeros."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = float(found[-1].replace(",", ""))
    return str(int(number)) if number.is_integer() else str(number)


TASKS.register("mgsm")(MGSM())
