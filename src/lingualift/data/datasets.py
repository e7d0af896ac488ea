"""A task with its rows: what training and evaluation read, and what determines it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

from typing_extensions import override

from lingualift.config import Data
from lingualift.data.rows import (
    NoRows,
    data_fingerprint,
    instead,
    load_examples,
    load_joined,
    load_paired,
    load_questions,
    load_texts,
)
from lingualift.errors import UserError
from lingualift.languages import own_facts
from lingualift.provenance import fingerprint
from lingualift.tasks import Example, PromptedTask, Task, TextTask, get_task, task_code

Use = Literal["beside", "instead", "joined"]
Row = TypeVar("Row", Example, str)
_MOST = 512  # sets of rows that a process keeps, which many steps of a run read again and again
_kept: OrderedDict[str, tuple[Any, str]] = OrderedDict()


class Maker(Protocol):
    """A step of a run, as far as rows know it."""

    @property
    def key(self) -> str:
        """What determines what it makes."""


@dataclass(frozen=True)
class Made:
    """Rows that a step of a run makes of others: their translations.

    Attributes:
        step: The step.
        language: Code of the language of the others, which fills in their data.
        file: What the file of a split is called in the step's folder, with `{split}`.
        folder: The step's folder; None until it is finished, and the others stand for them meanwhile.
    """

    step: Maker
    language: str
    file: str
    folder: Path | None = None

    def place(self, others: Data, language: str, split: str) -> tuple[Data, str]:
        """Where rows of a language are read, and the code that fills in `{language}` there."""
        if self.folder is None:
            return others, self.language
        within = str(self.folder.absolute()).replace("{", "{{").replace("}", "}}")
        return Data(files=f"{within}/{self.file}", columns=others.of_split(split).columns), language


@dataclass(frozen=True)
class Beside:
    """Where the source side of rows is: the same rows in the source language, paired by `id`.

    Attributes:
        data: Files or hub data set; of rows that a step makes, those that it makes them of.
        language: Code of the source language, by which the prompt is chosen.
        use: What is read: the source side `beside` the row by an adapter that fuses them, `instead` of the row, whose
            labels are kept, or both texts `joined` in one prompt, the row's first.
        filled_by: Code that fills in `{language}`; that of the rows where None.
        labelled: Whether the source side's own answers are read where they are spans or text, which an adapter needs
            that learns to answer it too (X-Mixup), `beside` the row; of classes and choices, the row's own tells. Not
            for evaluation.
        made: The step that makes them, if they are no data of the user's.
    """

    data: Data
    language: str
    use: Use = "beside"
    filled_by: str | None = None
    labelled: bool = False
    made: Made | None = None

    def place(self, language: str, split: str) -> tuple[Data, str]:
        """Where the source side of rows of a language is read, and the code that fills in `{language}` there."""
        if self.made:
            return self.made.place(self.data, language, split)
        return self.data, self.filled_by or language


@dataclass(frozen=True)
class _Rows(ABC, Generic[Row]):
    """What labelled rows and texts have in common.

    Attributes:
        task: Registered name or path of a Python file.
        data: Files or hub data set.
        base: Folder that relative paths start from.
    """

    task: str
    data: Data
    base: Path

    def rows(self, language: str, split: str) -> list[Row]:
        """The texts, or the examples, with their `source` where there is a source side."""
        return self._read_once(language, split)[0]

    def identity(self, language: str, split: str) -> dict[str, Any]:
        """What determines the rows and how answers to them are read; `rows` hashes them as they are built."""
        return {**self._origin(language, split), "rows": self._read_once(language, split)[1]}

    def has_file(self, language: str, split: str) -> bool:
        """Whether there are rows, as far as can be told without reading them or asking the hub."""
        try:
            data_fingerprint(self.data, language, split, self.base)
        except NoRows:
            return False
        return True

    @property
    def maker(self) -> Maker | None:
        """The step that makes them, or their source side; until it is finished, others stand for what it makes."""
        return None

    def within(self, folder: Path | None) -> Self:
        """The same rows, what a step makes of them read from its folder, or still to come (None)."""
        return self

    @abstractmethod
    def _load(self, language: str, split: str) -> list[Row]:
        """Read the rows."""

    def _read_once(self, language: str, split: str) -> tuple[list[Row], str]:
        """The rows and their hash, read once in this process."""
        read = [str(self.base / self.task), *self._files(language, split)]
        key = fingerprint({**self._origin(language, split), "read": read})
        if key not in _kept:
            rows = self._load(language, split)
            _kept[key] = rows, fingerprint([row if isinstance(row, str) else asdict(row) for row in rows])
            if len(_kept) > _MOST:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]

    def _files(self, language: str, split: str) -> list[str | None]:
        """What is opened: one format reads bytes as another does not."""
        return [self.data.of_split(split).files]

    def _origin(self, language: str, split: str) -> dict[str, Any]:
        """What determines the rows, but for the rows themselves."""
        return {
            "task": Path(self.task).stem,
            "code": task_code(self.task, self.base),
            "language": language,
            "split": split,
            "data": self._data(language, split),
            **own_facts(language),
        }

    def _data(self, language: str, split: str) -> dict[str, Any]:
        """What determines the rows where they lie."""
        return data_fingerprint(self.data, language, split, self.base)


@dataclass(frozen=True)
class Texts(_Rows[str]):
    """The task of a reference, and where its texts are."""

    beside: ClassVar[None] = None
    made: ClassVar[None] = None

    def get_task(self) -> TextTask:
        """The task itself."""
        task = get_task(self.task, self.base)
        assert isinstance(task, TextTask)
        return task

    @override
    def _load(self, language: str, split: str) -> list[str]:
        return load_texts(self.get_task(), self.data, language, split, self.base)


@dataclass(frozen=True)
class Examples(_Rows[Example]):
    """A labelled task, and where its rows are.

    Attributes:
        prompt: Name of a prompt of the task; None for its first one.
        prompt_language: Code of the prompt's language, or `target`; None for English.
        generated: Whether classes are generated, and not ranked by the likelihood of their words.
        beside: The source side of the rows; None for rows alone.
        unlabelled: Whether no label is looked at.
        made: The step that makes the rows of those in `data`; None where they are read as they are.
    """

    prompt: str | None = None
    prompt_language: str | None = None
    generated: bool = False
    beside: Beside | None = None
    unlabelled: bool = False
    made: Made | None = None

    def get_task(self) -> Task:
        """The task itself; raises as `labelled_task`."""
        return labelled_task(self.task, self.base, self.prompt, self.prompt_language, self.generated)

    def labelled(self, language: str, split: str) -> tuple[Task, list[Example]]:
        """The task and its examples."""
        return self.get_task(), self.rows(language, split)

    def answer_language(self, language: str) -> str:
        """Code of the language that rows of a language are asked, answered and scored in."""
        return self.beside.language if self.beside and self.beside.use == "instead" else language

    @property
    @override
    def maker(self) -> Maker | None:
        made = self.made or (self.beside.made if self.beside else None)
        return made.step if made else None

    @override
    def within(self, folder: Path | None) -> Examples:
        if self.made:
            return replace(self, made=replace(self.made, folder=folder))
        if self.beside and self.beside.made:
            return replace(self, beside=replace(self.beside, made=replace(self.beside.made, folder=folder)))
        return self

    @override
    def identity(self, language: str, split: str) -> dict[str, Any]:
        """As of all rows; what a step makes is told by the step, and by the rows that stand for it."""
        rows = self.within(None)._read_once(language, split)[1]
        return {**self._origin(language, split), "rows": rows}

    @override
    def _origin(self, language: str, split: str) -> dict[str, Any]:
        task, beside = self.get_task(), self.beside
        origin = super()._origin(language, split)
        if isinstance(task, PromptedTask):
            origin |= {"prompt": asdict(task.prompt_for(language)), "max_new_tokens": task.max_new_tokens}
            origin |= {"generated": True} if task.generated else {}
        if beside is not None:
            made = {"made": beside.made.step.key} if beside.made else None
            where = made or data_fingerprint(beside.data, beside.filled_by or language, split, self.base)
            labelled = {"labelled": True} if beside.labelled else {}
            origin["beside"] = {"language": beside.language, "use": beside.use, "data": where, **labelled}
            origin["beside"] |= own_facts(beside.language)
        return {**origin, **({"unlabelled": True} if self.unlabelled else {})}

    @override
    def _data(self, language: str, split: str) -> dict[str, Any]:
        return {"made": self.made.step.key} if self.made else super()._data(language, split)

    @override
    def _files(self, language: str, split: str) -> list[str | None]:
        read = [self._place(language, split)]
        read += [self.beside.place(language, split)] if self.beside else []
        return [data.of_split(split).files for data, _ in read]

    def _place(self, language: str, split: str) -> tuple[Data, str]:
        """Where rows of a language are read, and the code that fills in `{language}` there."""
        return self.made.place(self.data, language, split) if self.made else (self.data, language)

    @override
    def _load(self, language: str, split: str) -> list[Example]:
        task, beside = self.get_task(), self.beside
        data, code = self._place(language, split)
        if self.unlabelled:
            return load_questions(task, data, code, split, self.base)
        if beside is None:
            return load_examples(task, data, code, split, self.base)
        theirs, filled_by = beside.place(language, split)
        if beside.use == "joined":
            return load_joined(task, data, theirs, code, split, self.base, filled_by)
        read = (code, split, self.base, beside.language, filled_by, beside.labelled)
        pairs = load_paired(task, data, theirs, *read)
        return [instead(row) for row in pairs] if beside.use == "instead" else pairs


Dataset: TypeAlias = Examples | Texts


def dataset_of(
    task: str,
    data: Data,
    base: Path,
    prompt: str | None = None,
    prompt_language: str | None = None,
    generated: bool = False,
) -> Dataset:
    """The texts of a reference task, the examples of any other; raises as `labelled_task`, but for labels."""
    found = _with_prompt(get_task(task, base), task, prompt, prompt_language, generated)
    if isinstance(found, TextTask):
        return Texts(task, data, base)
    return Examples(task, data, base, prompt, prompt_language, generated)


def labelled_task(
    name: str,
    base: Path = Path(),
    prompt: str | None = None,
    prompt_language: str | None = None,
    generated: bool = False,
) -> Task:
    """A task by its name or file, if it has labels, with the prompt that is chosen for it.

    Raises:
        UserError: it is a reference task, which has none; it has no such prompt; or as `get_task`.
    """
    task = _with_prompt(get_task(name, base), name, prompt, prompt_language, generated)
    if isinstance(task, TextTask):
        raise UserError(f"task {name!r}", "has no labels to score", "a labelled task", "name another task")
    return task


def _with_prompt(
    task: Task | TextTask, name: str, prompt: str | None, prompt_language: str | None, generated: bool = False
) -> Task | TextTask:
    """The task by the prompt that an experiment chooses, or as it is where none is chosen.

    Args:
        task: The task.
        name: What the user calls it, for messages.
        prompt: Name of a template.
        prompt_language: Code, or `target`.
        generated: Whether classes are generated, and not ranked.

    Raises:
        UserError: the task has one prompt only, or not this one; classes are to be generated, and it has none.
    """
    if prompt is None and prompt_language is None and not generated:
        return task
    if not isinstance(task, PromptedTask):
        raise UserError(
            f"task {name!r}",
            "has no prompts to choose from",
            mend="leave `prompt`, `prompt_language` and `answers` out",
        )
    if generated and not task.labels:
        raise UserError(
            f"task {name!r}", "has no classes", mend="leave `answers` out: its answers are generated"
        )
    return task.asked(prompt, prompt_language, generated)
