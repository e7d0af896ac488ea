"""The rows that a plan reads, raw as their authors wrote them, with file and line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lingualift.checking.overlap import Item
from lingualift.data.rows import data_file, load_rows
from lingualift.data.source import Source
from lingualift.errors import UserError
from lingualift.pipeline.plan import Plan
from lingualift.pipeline.steps import Evaluate, Sweep, Train
from lingualift.tasks import Example, Task

Row = TypeVar("Row")


@dataclass(frozen=True)
class Part:
    """One split of a task in one language.

    Attributes:
        source: The task and its data.
        language: Code as in the experiment.
        split: "train", "validation" or "test".
    """

    source: Source
    language: str
    split: str

    def is_labelled(self) -> bool:
        """Whether the rows are a labelled task's, not reference text."""
        return isinstance(self.source.get_task(), Task)

    def examples(self) -> list[Example]:
        """The rows of a labelled task."""
        return self.source.labelled(self.language, self.split)[1]

    def texts(self) -> list[str]:
        """The text of every row, its columns one below the other."""
        return ["\n".join(item.passages) for item in self.items()]

    def items(self) -> list[Item]:
        """The texts of every row: the columns that a question is made of, but the id."""
        task = self.source.get_task()
        columns = [column for column in task.columns if column != "id"]
        data = self.source.data
        rows = load_rows(data, self.language, self.split, self.source.base, tuple(columns))
        names = [data.columns.get(column, column) for column in columns]
        return [
            Item(rows.locate(index), tuple(str(row[name]) for name in names))
            for index in rows.chosen
            for row in (rows.row(index),)
        ]

    def is_there(self) -> bool:
        """Whether there is such data; whether its rows are right is another matter."""
        try:
            if self.source.data.files is not None:
                data_file(self.source.data, self.language, self.split, self.source.base)
            else:
                load_rows(self.source.data, self.language, self.split, self.source.base, ())
        except UserError:
            return False
        return True


def parts_of(plan: Plan) -> list[Part]:
    """Every split that the steps of a plan read, once."""
    parts: dict[tuple[str, str, str], Part] = {}
    for step in plan.steps:
        if isinstance(step, Train | Sweep | Evaluate):
            key = step.source.task, step.language, step.split
            parts.setdefault(key, Part(step.source, step.language, step.split))
    return list(parts.values())


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """At most so many rows, in order; the same places of any two lists of one length."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(0).sample(range(len(rows)), count))]
