"""The rows that a plan reads, raw as their authors wrote them, with file and line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lingualift.checking.overlap import Item
from lingualift.data.datasets import Dataset, Examples
from lingualift.data.rows import data_file, load_rows
from lingualift.errors import UserError
from lingualift.pipeline.plan import Plan
from lingualift.tasks import Example

Row = TypeVar("Row")


@dataclass(frozen=True)
class Part:
    """One split of a task in one language.

    Attributes:
        dataset: The task and its data.
        language: Code as in the experiment.
        split: "train", "validation" or "test".
        max_length: Tokens of a row that are read; None where no step says.
    """

    dataset: Dataset
    language: str
    split: str
    max_length: int | None = None

    def about(self) -> tuple[str, ...]:
        """What rows it is, however long they may be."""
        return self.dataset.task, self.dataset.data.model_dump_json(), self.language, self.split

    def is_labelled(self) -> bool:
        """Whether the rows are a labelled task's, not reference text."""
        return isinstance(self.dataset, Examples)

    def examples(self) -> list[Example]:
        """The rows of a labelled task."""
        assert isinstance(self.dataset, Examples)
        return self.dataset.rows(self.language, self.split)

    def texts(self) -> list[str]:
        """The text of every row, its columns one below the other."""
        return ["\n".join(item.passages) for item in self.items()]

    def items(self) -> list[Item]:
        """The texts of every row: the columns that a question is made of, but the id."""
        task = self.dataset.get_task()
        columns = [column for column in task.columns if column != "id"]
        data = self.dataset.data.of_split(self.split)
        rows = load_rows(self.dataset.data, self.language, self.split, self.dataset.base, tuple(columns))
        names = [data.columns.get(column, column) for column in columns]
        return [
            Item(rows.locate(index), tuple(str(row[name]) for name in names))
            for index in rows.chosen
            for row in (rows.row(index),)
        ]

    def is_there(self) -> bool:
        """Whether there is such data; whether its rows are right is another matter."""
        try:
            if self.dataset.data.of_split(self.split).files is not None:
                data_file(self.dataset.data, self.language, self.split, self.dataset.base)
            else:
                load_rows(self.dataset.data, self.language, self.split, self.dataset.base, ())
        except UserError:
            return False
        return True


def parts_of(plan: Plan) -> list[Part]:
    """Every split that the steps of a plan read, once for each length; not what a step will have made of others."""
    parts: dict[tuple[object, ...], Part] = {}
    for dataset, language, split, length in (part for step in plan.steps for part in step.reads):
        if not dataset.made:
            part = Part(dataset, language, split, length)
            parts.setdefault((*part.about(), length), part)
    return list(parts.values())


def sample(rows: Sequence[Row], count: int) -> list[Row]:
    """At most so many rows, in order; the same places of any two lists of one length."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index] for index in sorted(random.Random(0).sample(range(len(rows)), count))]
