"""The step that translates the rows of a task."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Backbone, Translated, Translation
from lingualift.data.datasets import Examples, Made
from lingualift.errors import UserError
from lingualift.languages import language as find_language
from lingualift.languages import own_facts
from lingualift.pipeline.steps.base import Progress, Step, code_fingerprint
from lingualift.provenance import PROVENANCE_FILE, fingerprint, read_json
from lingualift.translation import CACHE_FILE, Work, file_of, translate_rows, translate_texts
from lingualift.translation.sentences import sentences

_LOG = logging.getLogger("lingualift.pipeline")


@dataclass(frozen=True, eq=False)
class Translate(Step):
    """Translate the rows of a split, once for all methods, prompts, adapters and seeds that read them.

    Attributes:
        model: The translation model.
        settings: How it writes.
        rows: Task and data; of test rows no label is looked at.
        language: Code of the rows' language.
        into: Code of the language that is written.
    """

    kind = "translation"
    code = ("translation", "encoding", "backbone", "data", "tasks", "languages.py", "languages.tsv")
    loads: ClassVar[bool] = False
    model: BackboneRef
    settings: Translation
    rows: Examples
    language: str
    into: str
    split: str

    @property
    def cost(self) -> int:
        """About a hundred training steps."""
        return 100

    @property
    def count(self) -> int:
        """Rows that it reads."""
        return _read(self)[0]

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it translates, each sentence once: without marks around answers, and however long."""
        return _read(self)[1]

    @override
    def workload(self) -> list[Any]:
        settings = self.settings.model_dump(mode="json")
        return [self.kind, self.model.identity(), self.rows.task, self.split, settings]

    @override
    def units(self, rows: int) -> int:
        return rows

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return row * self.settings.batch_size, sum(len(text.encode()) for text in self.sentences)

    def recipe(self) -> dict[str, Any]:
        """Model, rows, languages, and how it writes; not in what batches, by which rounding alone differs."""
        return {
            "model": self.model.identity(),
            "settings": self.settings.model_dump(mode="json", exclude={"batch_size"}),
            "rows": self.rows.identity(self.language, self.split),
            "into": find_language(self.into).code,
            **own_facts(self.into),
        }

    @override
    def what(self) -> str:
        return f"translate {Path(self.rows.task).stem} ({self.split}) by {Path(self.model.name).name}"

    @override
    def label(self) -> str:
        return f"{self.what()} from {self.language} into {self.into}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write the rows; the sentences that are translated stay in `work` until all of them are."""
        output.rmdir()  # the translation makes its folder by one rename of its own
        asked = (self.rows, self.language, self.into, [self.split], self.model, self.settings)
        try:
            counts = translate_rows(*asked, output, work / CACHE_FILE, progress).splits[self.split]
        except UserError as error:
            raise error.located(f" ({self.label()})") from None
        if counts.dropped or counts.unfinished or counts.empty:
            _LOG.warning("%s: %s", self.label(), counts.told())

    def facts(self, folder: Path) -> dict[str, Any]:
        """Model, languages, and what became of the rows, in numbers."""
        recorded = read_json(folder / PROVENANCE_FILE)
        counts = recorded["splits"][self.split]
        lists = ("dropped", "cut", "unfinished", "empty")
        return {
            "task": Path(self.rows.task).stem,
            "split": self.split,
            "language": self.language,
            "into": self.into,
            "model": recorded["model"]["name"],
            **{name: counts[name] for name in ("rows", "written", "projected", "other_answers")},
            **{name: len(counts[name]) for name in lists},
        }

    def written(self) -> Made:
        """The rows that it writes, for those who read them."""
        return Made(self, self.language, file_of(self.rows.data, self.split, "{split}"))


@dataclass(frozen=True)
class Back:
    """How answers that were given in translation are translated back, into the language of their gold.

    Attributes:
        model: The translation model.
        settings: How it writes.
        language: Code of the language that the answers are in.
        into: Code of the language that is written.
    """

    model: BackboneRef
    settings: Translation
    language: str
    into: str

    def recipe(self) -> dict[str, Any]:
        """What determines the translations."""
        return {
            "model": self.model.identity(),
            "settings": self.settings.model_dump(mode="json", exclude={"batch_size"}),
            "languages": [find_language(code).code for code in (self.language, self.into)],
            "code": code_fingerprint(("translation",)),
            **own_facts(self.language, self.into),
        }

    def told(self, answers: Iterable[str | None], work: Path) -> dict[str, str]:
        """Answer -> its translation; the sentences stay in `work` until the step is finished."""
        texts = list(dict.fromkeys(answer for answer in answers if answer is not None))
        how = (self.language, self.into, self.model, self.settings, work / CACHE_FILE)
        return translate_texts(texts, *how)


def back(how: Translated, language: str, into: str, base: Path) -> Back:
    """How answers are translated back, as an experiment says; arguments and errors as of `translation`."""
    return Back(_found(how, base), how.settings, language, into)


def translation(task: Examples, how: Translated, language: str, into: str, split: str) -> Translate:
    """The step that translates a split of a task, as its experiment says.

    Raises:
        UserError: there is no such model.
    """
    rows = Examples(task.task, task.data, task.base, unlabelled=split == "test")
    return Translate(_found(how, task.base), how.settings, rows, language, into, split)


def _found(how: Translated, base: Path) -> BackboneRef:
    assert how.model is not None
    return _model(Backbone(name=how.model, revision=how.revision, dtype=how.dtype), base)


_known: dict[str, tuple[int, tuple[str, ...]]] = {}  # of a process: the same rows go into many languages


def _read(step: Translate) -> tuple[int, tuple[str, ...]]:
    key = fingerprint(step.rows.identity(step.language, step.split))
    if key not in _known:
        work = Work(step.rows, step.language, step.split)
        texts = [*work.texts.values(), *(span.passage for span in work.spans.values() if span)]
        found = (text[begin:end] for text in texts for begin, end in sentences(text))
        _known[key] = len(work.rows), tuple(dict.fromkeys(found))
    return _known[key]


@functools.cache
def _model(entry: Backbone, base: Path) -> BackboneRef:
    try:
        return find_backbone(entry, base)
    except UserError as error:
        where = f"translation model {entry.name!r}"
        raise UserError(where, error.found, error.expected, error.mend) from None
