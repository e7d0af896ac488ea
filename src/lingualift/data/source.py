"""A task with its rows: what training and evaluation read, and what determines it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lingualift.config import Data
from lingualift.data.rows import (
    data_fingerprint,
    instead,
    load_examples,
    load_joined,
    load_paired,
    load_questions,
    load_texts,
)
from lingualift.errors import UserError
from lingualift.provenance import fingerprint
from lingualift.tasks import Example, PromptedTask, Task, TextTask, get_task, task_code, with_prompt

Use = Literal["beside", "instead", "joined"]


@dataclass(frozen=True)
class Beside:
    """Where the source side of rows is: the same rows in the source language, paired by `id`.

    Attributes:
        data: Files or hub data set.
        language: Code of the source language, by which the prompt is chosen.
        use: What is read: the source side `beside` the row by an adapter that fuses them, `instead` of the row, whose
            labels are kept, or both texts `joined` in one prompt, the row's first.
        filled_by: Code that fills in `{language}`; that of the rows where None.
        labelled: Whether the source side's own answers are read where they are spans or text, which an adapter needs
            that learns to answer it too (X-Mixup), `beside` the row; of classes and choices, the row's own tells. Not
            for evaluation.
    """

    data: Data
    language: str
    use: Use = "beside"
    filled_by: str | None = None
    labelled: bool = False


@dataclass(frozen=True)
class Source:
    """A task and where its rows are.

    Attributes:
        task: Registered name or path of a Python file.
        data: Files or hub data set.
        base: Folder that relative paths start from.
        prompt: Name of a prompt of the task; None for its first one.
        prompt_language: Code of the prompt's language, or `target`; None for English.
        generated: Whether classes are generated, and not ranked by the likelihood of their words.
        beside: The source side of the rows; None for rows alone.
        unlabelled: Whether no label is looked at.
    """

    task: str
    data: Data
    base: Path
    prompt: str | None = None
    prompt_language: str | None = None
    generated: bool = False
    beside: Beside | None = None
    unlabelled: bool = False

    def get_task(self) -> Task | TextTask:
        """The task itself."""
        task = get_task(self.task, self.base)
        return with_prompt(task, self.task, self.prompt, self.prompt_language, self.generated)

    def identity(self, language: str, split: str) -> dict[str, Any]:
        """What determines the rows and how answers to them are read; `rows` hashes the examples as they are built."""
        return {**self._origin(language, split), "rows": self._read(language, split)[1]}

    def rows(self, language: str, split: str) -> list[Example] | list[str]:
        """Examples of a labelled task, with their `source` where there is a source side; texts of a reference task."""
        return self._read(language, split)[0]

    def _origin(self, language: str, split: str) -> dict[str, Any]:
        task = self.get_task()
        prompt: dict[str, Any] = {}
        if isinstance(task, PromptedTask):
            prompt = {"prompt": asdict(task.prompt_for(language)), "max_new_tokens": task.max_new_tokens}
            prompt |= {"generated": True} if task.generated else {}
        return {
            "task": Path(self.task).stem,
            "code": task_code(self.task, self.base),
            "language": language,
            "split": split,
            "data": data_fingerprint(self.data, language, split, self.base),
            **prompt,
            **self._origin_beside(language, split),
            **({"unlabelled": True} if self.unlabelled else {}),
        }

    def _origin_beside(self, language: str, split: str) -> dict[str, Any]:
        if self.beside is None:
            return {}
        beside = self.beside
        where = data_fingerprint(beside.data, beside.filled_by or language, split, self.base)
        labelled = {"labelled": True} if beside.labelled else {}
        return {"beside": {"language": beside.language, "use": beside.use, "data": where, **labelled}}

    def _read(self, language: str, split: str) -> tuple[list[Example] | list[str], str]:
        """The rows and their hash, read once in this process."""
        read = [
            str(self.base / self.task),
            self.data.files,
        ]  # of which one format reads bytes as another does not
        key = fingerprint({**self._origin(language, split), "read": read})
        if key not in _rows:
            task = self.get_task()
            if isinstance(task, TextTask):
                if self.beside is not None:
                    raise UserError(
                        f"task {self.task!r}",
                        "has no source side: it is unlabelled text",
                        "a labelled task",
                        "leave `beside` out",
                    )
                texts = load_texts(task, self.data, language, split, self.base)
                _rows[key] = texts, fingerprint(texts)
            else:
                examples = self._examples(task, language, split)
                _rows[key] = examples, fingerprint([asdict(row) for row in examples])
        return _rows[key]

    def _examples(self, task: Task, language: str, split: str) -> list[Example]:
        beside = self.beside
        if self.unlabelled:
            return load_questions(task, self.data, language, split, self.base)
        if beside is None:
            return load_examples(task, self.data, language, split, self.base)
        filled_by = beside.filled_by or language
        if beside.use == "joined":
            return load_joined(task, self.data, beside.data, language, split, self.base, filled_by)
        read = (language, split, self.base, beside.language, filled_by, beside.labelled)
        pairs = load_paired(task, self.data, beside.data, *read)
        return [instead(row) for row in pairs] if beside.use == "instead" else pairs

    def answer_language(self, language: str) -> str:
        """Code of the language that rows of a language are asked, answered and scored in."""
        return self.beside.language if self.beside and self.beside.use == "instead" else language

    def labelled(self, language: str, split: str) -> tuple[Task, list[Example]]:
        """The task and its examples; raises as `check_labelled`."""
        return self.check_labelled(), self.rows(language, split)  # type: ignore[return-value]

    def check_labelled(self) -> Task:
        """The task, if it has labels; raises as `labelled_task`."""
        return labelled_task(self.task, self.base, self.prompt, self.prompt_language, self.generated)


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
    task = with_prompt(get_task(name, base), name, prompt, prompt_language, generated)
    if isinstance(task, TextTask):
        raise UserError(f"task {name!r}", "has no labels to score", "a labelled task", "name another task")
    return task


# Of this process: what many steps of a run read again and again.
_rows: dict[str, tuple[list[Example] | list[str], str]] = {}
