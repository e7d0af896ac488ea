"""What every step of an experiment is: a pure function of its inputs, whose key says all that determines it."""

from __future__ import annotations

import contextlib
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lingualift.data.datasets import Dataset
from lingualift.errors import UserError
from lingualift.provenance import fingerprint, library_versions, sha256_file, sha256_folder
from lingualift.tasks import Example, Task
from lingualift.training.trainer import TRAINING_LOG_FILE

if TYPE_CHECKING:
    from lingualift.pipeline.steps.training import InitialiseFused

Progress = Callable[[int, int], None]
TRAINED = 16  # bytes per trained number: weight, gradient and AdamW's two moments, in float32
READS = {  # what people see of the source side that stands with rows
    "beside": " with its translation",
    "instead": " in translation",
    "joined": " joined with its translation",
}
READING = (  # the code that reads rows and puts adapters on backbones
    "fusion",
    "encoding",
    "attachment.py",
    "adapters",
    "backbone",
    "tasks/base.py",
    "tasks/prompts.py",
    "languages.py",
    "languages.tsv",
)
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy")


class Part(NamedTuple):
    """A split of a task in a language, and how many tokens of each row are read."""

    dataset: Dataset
    language: str
    split: str
    max_length: int

    def about(self) -> list[Any]:
        """What splits of a task have in common in all languages."""
        dataset = self.dataset
        use = dataset.beside.use if dataset.beside else None
        return [dataset.task, dataset.data.model_dump(mode="json"), use, str(dataset.base), self.split]


@dataclass(frozen=True)
class Step(ABC):
    """One step. Equal keys mean equal output.

    Attributes:
        kind: Folder of the store.
        code: Files and folders of the package whose change makes old output stale.
        loads: Whether it loads the backbone.
    """

    kind: ClassVar[str]
    code: ClassVar[tuple[str, ...]]
    loads: ClassVar[bool] = True

    @property
    def inputs(self) -> dict[str, Step]:
        """The steps whose output this one reads, by role."""
        return {}

    @property
    def shown(self) -> tuple[Step, ...]:
        """Steps that decide nothing, whose output the report shows beside its own."""
        return ()

    @property
    def cost(self) -> int:
        """Rough size for the progress bar, in training steps."""
        return 1

    @property
    def reads(self) -> tuple[Part, ...]:
        """The rows that it learns or scores; those of a head for words are its references'."""
        return ()

    @property
    def headed(self) -> tuple[Task, list[Example]] | None:
        """Task and rows that the head on the backbone must answer; None where it is the checkpoint's own."""
        return None

    @property
    def fused(self) -> InitialiseFused | None:
        """The draw of what it draws, trains or scores, if that fuses source and target."""
        return None

    def workload(self) -> list[Any]:
        """What steps have in common that take the same time per unit."""
        return [self.kind]

    def units(self, rows: int) -> int:
        """Optimiser steps, answers, draws or merges that it makes, of so many rows."""
        return 1

    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        """Bytes that it holds beside the backbone, and that stay in the store.

        Args:
            numbers: Those of an adapter.
            row: Bytes that each row of a batch adds.
            rows: How many rows it reads.
        """
        return 0, 4 * numbers

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything but the inputs that determines the output, as JSON."""

    @abstractmethod
    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""

    @abstractmethod
    def label(self) -> str:
        """What people see of this step."""

    @abstractmethod
    def facts(self, folder: Path) -> dict[str, Any]:
        """What a report tells of the finished step, read from its output."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Fill the empty folder `output`, reading the folders `inputs`; `work` outlives a killed run."""

    def description(self) -> dict[str, Any]:
        """The recipe with the keys of the inputs and the versions of code and libraries."""
        return {
            "kind": self.kind,
            "label": self.label(),
            "recipe": self.recipe(),
            "inputs": {role: step.key for role, step in self.inputs.items()},
            "code": code_fingerprint(self.code),
            "libraries": library_versions(*_LIBRARIES),
        }

    @functools.cached_property
    def key(self) -> str:
        """Fingerprint of the description; the label does not count."""
        return fingerprint({name: value for name, value in self.description().items() if name != "label"})

    @classmethod
    def made(cls, recipe: Mapping[str, Any]) -> bool:
        """Whether a finished step of this kind was made by the code and the libraries of now."""
        same_libraries = recipe.get("libraries") == library_versions(*_LIBRARIES)
        return recipe.get("code") == code_fingerprint(cls.code) and same_libraries

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.key == other.key


@functools.cache
def code_fingerprint(parts: tuple[str, ...]) -> str:
    """What files and folders of the package are known by."""
    package = Path(__file__).parents[2]
    paths = [package / part for part in parts]
    return fingerprint(
        [sha256_folder(path, suffixes=(".py",)) if path.is_dir() else sha256_file(path) for path in paths]
    )


def makers(dataset: Dataset) -> dict[str, Step]:
    """The step that makes rows, by its role among the inputs of those that read them."""
    return {"translations": dataset.maker} if isinstance(dataset.maker, Step) else {}


@contextlib.contextmanager
def telling(dataset: Dataset) -> Iterator[None]:
    """Say of an example that cannot be read that this run has translated it: it stands in no file of the user's."""
    try:
        yield
    except UserError as error:
        if dataset.maker is None or not error.where.startswith(("example ", "source of example ")):
            raise
        mend = (
            "it was translated in this run: lower `translated.max_length`, which bounds a sentence, or raise the "
            "`max_length` of training and scoring"
        )
        raise UserError(error.where, error.found, error.expected, mend) from None


def losses(folder: Path) -> list[list[float]]:
    """Step and loss, along the training that filled a folder."""
    log = map(json.loads, (folder / TRAINING_LOG_FILE).read_text(encoding="utf-8").splitlines())
    return [[entry["step"], entry["loss"]] for entry in log if "loss" in entry]
