"""What a task is: rows become examples, answers become predictions. One task is one small file."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from lingualift.provenance import reading, sha256_file
from lingualift.registry import Registry
from lingualift.tasks.reading import Names, read_label


class RowError(Exception):
    """What is wrong with a row; the loader adds file and line."""


@dataclass(frozen=True)
class Example:
    """One question to a model, with its gold answer where there is one.

    Attributes:
        id: Unique in its split.
        prompt: What the model reads; the answer follows after one space.
        gold: Accepted answers, the first of which is trained on. For a ranked task: the label. The loader fills it in
            by `Task.gold`; empty for a row without a label.
        choices: Label -> the words that stand for it (verbalizer); empty where the answer is generated.
        language: Code of its language, which some metrics and answers need. The loader fills it in.
        completion: What training puts loss on where it is more than the answer, e.g. the steps that lead to it. The
            loader fills it in by `Task.completion`.
        parts: What an encoder reads: one text, or two; for a span the question and the passage. The prompt if empty.
        options: Label -> the text that stands for it, each of which an encoder reads after `parts`; empty where the
            labels are the same for all rows.
        starts: Where the answers of `gold` begin in the passage, in characters; the loader fills it in by
            `Task.starts`.
        source: The same question in the source language, for adapters that read both (FLARE, X-Mixup), without gold
            unless it is asked for; None for a row that has no source side. The loader fills it in.
    """

    id: str
    prompt: str
    gold: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    language: str = ""
    completion: str = ""
    parts: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    starts: tuple[int, ...] = ()
    source: Example | None = None

    @property
    def answer(self) -> str:
        """The text that training puts loss on."""
        if self.completion:
            return self.completion
        return self.choices[self.gold[0]] if self.choices else self.gold[0]


class Task:
    """A labelled task. Subclass it, set the attributes, write `example`, register an instance.

    A row without a label makes an example too, which is how `lingualift predict` asks: `example` reads `columns` only,
    and `gold` reads the label.

    Attributes:
        columns: The columns that a question is made of, each a non-empty string (or a number) in every row. Without
            `id` among them, a row that has no `id` is called by its line, or by its place (the first is 1).
        gold_column: The column that holds the answer, in labelled rows.
        metrics: Names of metrics; the first one is reported and tuned on.
        source: Paper or URL of the task.
        labels: Classes, if prompts may ask for them in generated text too; else empty, and `choices` say them.
        encoder_head: How an encoder answers: `classes` (the labels), `choices` (the best of `Example.options`) or
            `span` (a part of the passage); None for a task that it cannot answer.
        max_new_tokens: Longest generated answer, in tokens; of no use to a ranked task.
        text_columns: The columns that `lingualift translate` translates; all of `columns` but `id` if None.
        written_columns: Columns of labelled rows whose text a model learns to write: they are translated too, in
            training and validation data, where a row has them.
        passage_column: The column that answers are marked in, for a task that is answered by a span.
    """

    columns: ClassVar[tuple[str, ...]]
    gold_column: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()
    encoder_head: ClassVar[Literal["classes", "choices", "span"] | None] = "classes"
    max_new_tokens: int = 16
    text_columns: ClassVar[tuple[str, ...] | None] = None
    written_columns: ClassVar[tuple[str, ...]] = ()
    passage_column: ClassVar[str | None] = None

    def example(self, row: Mapping[str, Any], language: str) -> Example:
        """Make the example of a row, without its gold answer: the row may have no label.

        Raises:
            RowError: the row cannot be one; the message says why.
        """
        raise RowError(f"{type(self).__name__} does not say how a row becomes an example")

    @property
    def writes(self) -> bool:
        """Whether answers are text of a language: spans, or text that a model learns to write; no class or number."""
        return self.encoder_head == "span" or self.gold_column in self.written_columns

    def gold(self, row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
        """The accepted answers of a labelled row; by default the gold column, which holds one of the choices, or text.

        Args:
            row: Has `columns` and `gold_column`.
            example: What `example` made of it.

        Raises:
            RowError: the label is none; the message says why.
        """
        if example.choices:
            return (label_of(row, self.gold_column, example.choices),)
        return (text_of(row, self.gold_column),)

    def completion(self, row: Mapping[str, Any], example: Example) -> str:
        """What training puts loss on, where it is more than the first accepted answer; by default nothing more.

        Args:
            row: As for `gold`.
            example: What `example` made of it, with its gold.
        """
        return ""

    def starts(self, row: Mapping[str, Any], example: Example) -> tuple[int, ...]:
        """Where the accepted answers begin in the passage, in characters, for a task that is answered by a span.

        Args:
            row: As for `gold`.
            example: What `example` made of it, with its gold.
        """
        return ()

    def parse(self, text: str, example: Example) -> str | None:
        """The answer in a generated text (the prompt is not in it), or None where there is none: the strict reading.

        By default the first line, or None if it is empty.

        Args:
            text: What the model generated.
            example: The question, which may say how its answer is to be read.
        """
        lines = text.strip().splitlines()
        return lines[0].strip() if lines else None

    def parse_lenient(self, text: str, example: Example) -> str | None:
        """The answer in a generated text in which `parse` finds none, by the lenient reading (docs/tasks.md).

        By default one of `labels`, if it is given without a doubt; None for a task without them.

        Args:
            text: What the model generated.
            example: As for `parse`.
        """
        return read_label(text, Names.of({label: (label,) for label in self.labels}, example.options))


class TextTask:
    """A reference task over unlabelled text: every row has one text.

    Attributes:
        columns: The one column that holds the text.
        objective: What is learnt from it; None for that of the backbone's family.
        source: Paper or URL of the objective.
    """

    columns: ClassVar[tuple[str, ...]] = ("text",)
    objective: ClassVar[Literal["causal", "masked", "span-corruption", "prefix"] | None] = None
    source: ClassVar[str]


TASKS: Registry[Task | TextTask] = Registry("task")


def labels_of(task: Task, example: Example) -> tuple[str, ...]:
    """The classes of a task, in the order of an encoder's outputs; those of the example where they differ by row."""
    return tuple(example.options) or task.labels or tuple(example.choices)


def label_of(row: Mapping[str, Any], column: str, labels: Mapping[str, str]) -> str:
    """A row's label, checked.

    Raises:
        RowError: not one of the labels.
    """
    label = row[column]
    if not isinstance(label, str) or label not in labels:
        raise RowError(f"{column} is {label!r}, which is none of {', '.join(labels)}")
    return label


def class_of(row: Mapping[str, Any], column: str, names: Sequence[str]) -> str:
    """A row's class, which stands there by its name or by its number among `names`, as in hub data sets.

    Raises:
        RowError: neither.
    """
    value = row[column]
    if value in names:
        return str(value)
    numbers = {str(number): name for number, name in enumerate(names)}
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value) in numbers:
        return numbers[str(value)]
    numbered = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
    raise RowError(f"{column} is {value!r}, which is none of {numbered}")


def text_of(row: Mapping[str, Any], column: str) -> str:
    """A row's text or number, as text.

    Raises:
        RowError: something else stands there.
    """
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"column {column!r} holds a {type(value).__name__}, not text")
    check_number(column, value)
    return str(value)


def check_number(column: str, value: Any) -> None:
    """Refuse NaN and infinity, which stand for nothing and would be read as the words for them.

    Raises:
        RowError: a value is one of them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"column {column!r} is {value}, which is no value")


def get_task(name: str, base: Path = Path()) -> Task | TextTask:
    """A registered task, or the one that a Python file registers.

    Args:
        name: Registered name, or a path that ends in `.py`.
        base: Folder that a relative path starts from.

    Raises:
        UserError: unknown name; a file that cannot be run or does not register exactly one task; a task of a user's
            with an attribute that is not as `Task` says. Its methods raise `TaskError` from then on, whatever they do
            that is not as `Task` says.
    """
    if not name.endswith(".py") and type(TASKS[name]).__module__.startswith("lingualift."):
        return TASKS[name]
    from lingualift.tasks.files import checked_task

    return checked_task(name, base)


def task_code(name: str, base: Path = Path()) -> str:
    """Hex sha256 of the file a task is defined in, so that a changed task is trained anew.

    Raises:
        UserError: as `get_task`; the file cannot be read.
    """
    task = get_task(name, base)
    source = str(base / name) if name.endswith(".py") else source_file(task)
    if not source:
        return ""
    with reading(Path(source)):
        return sha256_file(Path(source))


def source_file(task: object) -> str | None:
    """The file of a task's class; None for one that was typed in."""
    with contextlib.suppress(TypeError):
        return inspect.getsourcefile(type(task))
    return None
