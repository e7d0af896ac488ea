"""The steps of an experiment. Each is a pure function of its inputs, and its key says all that determines it."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from typing_extensions import override

from lingualift.adapters.card import shown
from lingualift.backbone.loading import skeleton
from lingualift.backbone.reference import BackboneRef
from lingualift.backbone.words import own_weights
from lingualift.config import Adapter, GivenAdapter, Method, Scoring, Training
from lingualift.data.datasets import Dataset, Examples, Texts
from lingualift.errors import UserError
from lingualift.provenance import (
    PROVENANCE_FILE,
    fingerprint,
    library_versions,
    read_json,
    sha256_file,
    sha256_folder,
    write_json,
    write_jsonl,
)
from lingualift.tasks import Example, Task
from lingualift.training.trainer import TRAINING_LOG_FILE

_LOG = logging.getLogger("lingualift.pipeline")
Progress = Callable[[int, int], None]
PREDICTIONS_FILE, SCORES_FILE, SWEEP_FILE = "predictions.jsonl", "scores.json", "sweep.json"
_SCORES = (  # the code that decides a score
    "evaluation",
    "metrics",
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


_TRAINED = 16  # bytes per trained number: weight, gradient and AdamW's two moments, in float32
_PREDICTION = 400  # bytes per answered row on disk


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
            "code": _code_fingerprint(self.code),
            "libraries": library_versions(*_LIBRARIES),
        }

    @functools.cached_property
    def key(self) -> str:
        """Fingerprint of the description; the label does not count."""
        return fingerprint({name: value for name, value in self.description().items() if name != "label"})

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.key == other.key


def step_kinds() -> dict[str, type[Step]]:
    """Every kind of step, by its name."""
    every = (*Step.__subclasses__(), *_Scores.__subclasses__())
    return {kind.kind: kind for kind in every if kind is not _Scores}


def is_current(recipe: Mapping[str, Any]) -> bool:
    """Whether a finished step was made by the code and the libraries of now, and so may be read again."""
    kind = step_kinds().get(str(recipe.get("kind")))
    same_libraries = recipe.get("libraries") == library_versions(*_LIBRARIES)
    return kind is not None and recipe.get("code") == _code_fingerprint(kind.code) and same_libraries


@functools.cache
def _code_fingerprint(parts: tuple[str, ...]) -> str:
    package = Path(__file__).parents[1]
    paths = [package / part for part in parts]
    return fingerprint(
        [sha256_folder(path, suffixes=(".py",)) if path.is_dir() else sha256_file(path) for path in paths]
    )


@dataclass(frozen=True, eq=False)
class Initialise(Step):
    """Draw the initialisation that all adapters of a seed share."""

    kind = "initialisation"
    code = ("training", "attachment.py", "backbone")
    backbone: BackboneRef
    adapter: Adapter | GivenAdapter
    seed: int

    def recipe(self) -> dict[str, Any]:
        """Backbone, adapter and the seed of the draw."""
        adapter = self.adapter.model_dump(mode="json", exclude={"init_seed"})
        return {
            "backbone": self.backbone.identity(),
            "adapter": adapter,
            "seed": self.adapter.init_seed + self.seed,
        }

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        return f"initialise {self.adapter.type}"

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write the untrained adapter."""
        from lingualift.training.trainer import initialise

        initialise(self.backbone, self.adapter, self.adapter.init_seed + self.seed, output)

    def facts(self, folder: Path) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}


@dataclass(frozen=True, eq=False)
class InitialiseFused(Step):
    """Draw an adapter that fuses source and target (stage 2), beside the task adapter of the source language (stage 1).

    Attributes:
        first: Stage 1, or a merge of it.
        settings: Its `kind` (`flare`, `x-mixup`) and what the experiment chooses of that kind's configuration; of a
            source encoder, its fingerprint counts.
    """

    kind = "fused-initialisation"
    split: ClassVar[str] = "train"
    code = ("training", "fusion", "attachment.py", "adapters", "backbone")
    first: Train | Merge
    adapter: Adapter
    settings: Mapping[str, Any]

    @property
    def task(self) -> Train:
        """The training of stage 1."""
        return self.first.task_training

    @property
    def backbone(self) -> BackboneRef:
        """The backbone."""
        return self.task.backbone

    @property
    @override
    def headed(self) -> tuple[Task, list[Example]]:
        return self.task.labelled()

    @property
    @override
    def fused(self) -> InitialiseFused:
        return self

    @property
    def source_encoder(self) -> str | None:
        """The translation model that reads the source side; None for the backbone."""
        return self.settings.get("source_encoder")

    @property
    def inputs(self) -> dict[str, Step]:
        """The first stage."""
        return {"first": self.first}

    def recipe(self) -> dict[str, Any]:
        """Adapter, how it fuses and the seed of the draw."""
        adapter = self.adapter.model_dump(mode="json", exclude={"init_seed"})
        settings = {name: value for name, value in self.settings.items() if name != "source_encoder"}
        return {"adapter": adapter, "settings": settings, "seed": self._seed}

    @property
    def _seed(self) -> int:
        return self.adapter.init_seed + self.task.seed

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        return f"initialise {self.name}"

    @property
    def name(self) -> str:
        """What people see of the adapter: kind, fusion, and what the method's entry chooses beside."""
        kind = "flare-mt" if self.source_encoder else self.settings["kind"]
        chosen = [
            f"{name}={self.settings[name]}"
            for name, field in Method.model_fields.items()
            if name != "fusion" and name in self.settings and self.settings[name] != field.default
        ]
        return " ".join(filter(None, (kind, self.settings.get("fusion"), *chosen)))

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()}, seed {self.task.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write the untrained adapter with its first stage."""
        self.draw(inputs["first"], output)

    def draw(self, first: Path, output: Path) -> None:
        """Write the untrained adapter beside the first stage in folder `first`."""
        from lingualift.attachment import answering
        from lingualift.backbone.loading import load_backbone
        from lingualift.fusion.config import fusion_config
        from lingualift.training.trainer import initialise_fused

        ref = answering(self.backbone, *self.headed)
        config = fusion_config(load_backbone(ref)[0], self.adapter, self.settings)
        initialise_fused(ref, config, first, self._seed, output)

    def facts(self, folder: Path) -> dict[str, Any]:
        """How it fuses, and seed."""
        return {"seed": self.task.seed, **self.settings}


@dataclass(frozen=True, eq=False)
class WordsHead(Step):
    """Train the head for words of an encoder whose checkpoint has none, for all references of a seed.

    Attributes:
        dataset: The reference task and its text.
        languages: Those whose text the references read.
        settings: The head's own.
    """

    kind = "words-head"
    split: ClassVar[str] = "train"
    code = ("training", "encoding", "backbone", "tasks/base.py")
    backbone: BackboneRef
    dataset: Texts
    languages: tuple[str, ...]
    settings: Training
    seed: int
    segment_tokens: int

    @property
    def cost(self) -> int:
        """Training steps, guessed where epochs are given, each about half of a reference's."""
        return max(1, (self.settings.steps or 500 * len(self.languages)) // 2)

    @override
    def units(self, rows: int) -> int:
        return self.settings.optimiser_steps(rows)

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        own = _words_numbers(self.backbone)
        return _TRAINED * own + row * self.settings.batch_size, 4 * own

    def recipe(self) -> dict[str, Any]:
        """Backbone, text, settings and seed."""
        return {
            "backbone": self.backbone.identity(),
            "rows": [self.dataset.identity(code, self.split) for code in self.languages],
            "settings": self.settings.model_dump(mode="json", exclude={"checkpoint_steps"}),
            "seed": self.seed,
            "segment_tokens": self.segment_tokens,
        }

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        return f"train the head for words that {shown(self.backbone.name)} lacks"

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()} on {', '.join(self.languages)}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Train the head, and say so."""
        from lingualift.training.words import train_words

        texts = {code: self.dataset.rows(code, self.split) for code in self.languages}
        about = {"data": {code: self.dataset.identity(code, self.split)["data"] for code in self.languages}}
        _LOG.warning(
            "the checkpoint of %s has no head for words: one is trained on %s, for the references alone",
            shown(self.backbone.name),
            ", ".join(self.languages),
        )
        train_words(
            self.backbone,
            texts,
            self.settings,
            seed=self.seed,
            output=output,
            work=work,
            segment_tokens=self.segment_tokens,
            about=about,
            progress=progress,
        )

    def facts(self, folder: Path) -> dict[str, Any]:
        """Languages, settings, and the loss along the way."""
        recorded = read_json(folder / PROVENANCE_FILE)
        names = ("languages", "seed", "rows", "segments", "steps", "settings")
        return {**{name: recorded[name] for name in names}, "loss": _losses(folder)}


def words_head(
    backbone: BackboneRef,
    dataset: Dataset,
    languages: tuple[str, ...],
    settings: Training,
    seed: int,
    segment_tokens: int,
) -> WordsHead | None:
    """The step that trains a head for words; None where text is not learnt, or the backbone has one.

    Arguments are those of `WordsHead`, but for the settings, which are the references'.
    """
    from lingualift.training.words import settings_of

    if not isinstance(dataset, Texts) or not backbone.lacks_words:
        return None
    own = settings_of(settings, len(languages))
    return WordsHead(backbone, dataset, languages, own, seed, segment_tokens)


@functools.cache
def _words_numbers(backbone: BackboneRef) -> int:
    """Numbers in a head for words that are its own."""
    return sum(weight.numel() for weight in own_weights(skeleton(backbone)).values())


_READS = {
    "beside": " with its translation",
    "instead": " in translation",
    "joined": " joined with its translation",
}


@dataclass(frozen=True, eq=False)
class Train(Step):
    """Train an adapter on a task in a language; what is reported to trackers is no part of what it makes.

    Attributes:
        start: What it begins from; with a `Train`, it goes on from that adapter.
        cache_sources: Whether the source states of its rows are kept while it trains.
        words: The head for words that it learns text by, where the backbone's checkpoint has none.
    """

    kind = "adapter"
    split: ClassVar[str] = "train"
    code = (
        "training",
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
    start: Initialise | InitialiseFused | Train
    dataset: Dataset
    language: str
    settings: Training
    seed: int
    segment_tokens: int
    report_to: tuple[str, ...] = ()
    logs: Path | None = None
    cache_sources: bool = False
    words: WordsHead | None = None
    weight: ClassVar[None] = None
    curves: ClassVar[tuple[Sweep, ...]] = ()

    @property
    def task_training(self) -> Train:
        """Itself."""
        return self

    @property
    def backbone(self) -> BackboneRef:
        """The backbone."""
        return self.start.backbone

    @property
    def languages(self) -> tuple[str, ...]:
        """The one language that it reads."""
        return (self.language,)

    def labelled(self) -> tuple[Task, list[Example]]:
        """The task and its rows, which have labels."""
        assert isinstance(self.dataset, Examples)
        return self.dataset.labelled(self.language, self.split)

    @property
    def drawn(self) -> Initialise | InitialiseFused:
        """The draw that the first training of its line began from."""
        return self.start.drawn if isinstance(self.start, Train) else self.start

    @property
    @override
    def reads(self) -> tuple[Part, ...]:
        return (Part(self.dataset, self.language, self.split, self.settings.max_length),)

    @property
    @override
    def headed(self) -> tuple[Task, list[Example]] | None:
        return self.drawn.headed

    @property
    @override
    def fused(self) -> InitialiseFused | None:
        return self.drawn.fused

    @override
    def workload(self) -> list[Any]:
        settings = self.settings.model_dump(mode="json")
        return [*self.reads[0].about(), self.segment_tokens, settings, *self.alike()]

    def alike(self) -> list[Any]:
        """What adapter it is, whatever its seed."""
        return [self.drawn.kind, {**self.drawn.recipe(), "seed": None}]

    @override
    def units(self, rows: int) -> int:
        return self.settings.optimiser_steps(rows)

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return _TRAINED * numbers + row * self.settings.batch_size, 4 * numbers

    @property
    def inputs(self) -> dict[str, Step]:
        """What it begins from, and the head for words that it reads by."""
        return {"start": self.start, **({"words": self.words} if self.words else {})}

    @property
    def cost(self) -> int:
        """Training steps, guessed where epochs are given."""
        return self.settings.steps or 500

    def recipe(self) -> dict[str, Any]:
        """Rows, settings and seed."""
        settings = self.settings.model_dump(mode="json", exclude={"checkpoint_steps"})
        segment = self.segment_tokens if isinstance(self.dataset, Texts) else None
        rows = self.dataset.identity(self.language, self.split)
        rounded = {"cache_sources": True} if self.cache_sources else {}
        return {"rows": rows, "settings": settings, "seed": self.seed, "segment_tokens": segment, **rounded}

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        if self.fused:
            return f"train {Path(self.dataset.task).stem} by {self.fused.name}"
        reads = _READS[self.dataset.beside.use] if self.dataset.beside else ""
        goes_on = " on translations" if isinstance(self.start, Train) else ""
        return f"train {Path(self.dataset.task).stem}{reads or goes_on}"

    @property
    def _name(self) -> str:
        """What people see of its adapters that differ in language and seed alone."""
        return self.what().removeprefix("train ")

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()} in {self.language}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Train from the shared initialisation."""
        from lingualift.training.trainer import Tracking, train

        name = f"{self._name.replace(' ', '-')}.{self.language}.seed{self.seed}"
        train(
            self.backbone.with_words(inputs.get("words")),
            self.dataset.get_task(),
            self.dataset.rows(self.language, self.split),
            self.settings,
            start=inputs["start"],
            seed=self.seed,
            output=output,
            work=work,
            language=self.language,
            segment_tokens=self.segment_tokens,
            about={
                "task": Path(self.dataset.task).stem,
                "language": self.language,
                "data": self.dataset.identity(self.language, self.split)["data"],
            },
            progress=progress,
            tracking=Tracking(self.report_to, name, self.logs / name if self.logs else None),
            cache_sources=self.cache_sources,
        )

    def facts(self, folder: Path) -> dict[str, Any]:
        """Task, what the adapter is, rows, settings, and the loss along the way."""
        recorded = read_json(folder / PROVENANCE_FILE)
        names = ("task", "language", "seed", "rows", "segments", "truncated_prompts", "steps", "settings")
        return {**{name: recorded[name] for name in names}, "name": self._name, "loss": _losses(folder)}


def _losses(folder: Path) -> list[list[float]]:
    """Step and loss, along a training."""
    log = map(json.loads, (folder / TRAINING_LOG_FILE).read_text(encoding="utf-8").splitlines())
    return [[entry["step"], entry["loss"]] for entry in log if "loss" in entry]


@dataclass(frozen=True)
class MergeRecipe:
    """How adapters are merged, but for the weight.

    Attributes:
        method: "adamergex" or "arithmetic".
        space: "factors" or "delta".
        combine: "sum" or "mean" (`arithmetic` only).
        modules: Regular expression of the modules to merge, None for all.
    """

    method: str
    space: Literal["factors", "delta"]
    combine: Literal["sum", "mean"]
    modules: str | None

    def merge(self, adapters: Mapping[str, Path], weight: float, output: Path) -> None:
        """Merge the folders `task`, `target` and (`adamergex`) `source` with a weight into `output`.

        Raises:
            UserError: as `merge`, whose settings an experiment file has by the names that they have in Python.
        """
        from lingualift.merging import merge

        write = functools.partial(
            merge, method=self.method, space=self.space, modules=self.modules, output=output
        )
        task, target = adapters["task"], adapters["target"]
        try:
            if self.method == "adamergex":
                source = adapters["source"]
                write(task=task, target_reference=target, source_reference=source, weight=weight)
            else:
                write(adapters=[(task, 1.0), (target, weight)], mean=self.combine == "mean")
        except UserError as error:
            raise UserError(error.where, error.found, error.expected, error.mend) from None


class _Scores(Step):
    """A step that scores the rows of a labelled task."""

    dataset: Examples
    language: str
    split: str
    scoring: Scoring

    @property
    @override
    def reads(self) -> tuple[Part, ...]:
        return (Part(self.dataset, self.language, self.split, self.scoring.max_length),)

    @property
    @override
    def headed(self) -> tuple[Task, list[Example]]:
        return self.dataset.labelled(self.language, self.split)

    @override
    def workload(self) -> list[Any]:
        return [*self.reads[0].about(), self.scoring.model_dump(mode="json")]


@dataclass(frozen=True, eq=False)
class Sweep(_Scores):
    """Score every weight of the grid on the validation split of one language, and choose.

    Attributes:
        variant: What results call the merge.
        decides: Whether merges take the weight that is chosen here; else it is a curve of the report.
        by: What is measured: the task's first metric, the more the better, or the entropy of the answers, which needs
            no label, the less the better.
    """

    kind = "sweep"
    code = ("merging", *_SCORES)
    how: MergeRecipe
    adapters: tuple[tuple[str, Train], ...]
    grid: tuple[float, ...]
    dataset: Examples
    language: str
    scoring: Scoring
    variant: str
    decides: bool
    by: Literal["score", "entropy"] = "score"
    split: str = "validation"

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapters to merge."""
        return dict(self.adapters)

    @property
    def cost(self) -> int:
        """About ten training steps a weight."""
        return 10 * len(self.grid)

    @override
    def units(self, rows: int) -> int:
        return rows * len(self.grid)

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return 3 * 4 * numbers + row * self.scoring.batch_size, 0

    def recipe(self) -> dict[str, Any]:
        """Merge, grid, rows and scoring."""
        return {
            **({} if self.by == "score" else {"by": self.by}),
            "how": vars(self.how),
            "grid": list(self.grid),
            "rows": self.dataset.identity(self.language, self.split),
            "scoring": self.scoring.model_dump(mode="json", exclude={"batch_size"}),
        }

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        verb = "choose the weight" if self.decides else "score the weights"
        verb += " by entropy" * (self.by == "entropy")
        return f"{verb} of {self.how.method} ({self.how.space})"

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()} on {self.language}"

    def facts(self, folder: Path) -> dict[str, Any]:
        """The scores of all weights."""
        about = {
            "task": Path(self.dataset.task).stem,
            "method": self.how.method,
            "variant": self.variant,
            "seed": self.adapters[0][1].seed,
            "decides": self.decides,
        }
        return {**about, **read_json(folder / SWEEP_FILE)}

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Merge and score at each weight; only the scores are kept, in `work` until all of them are there."""
        from lingualift.evaluation.runner import entropy, evaluate

        task, examples = self.headed
        backbone = self.adapters[0][1].backbone
        metric = "entropy" if self.by == "entropy" else task.metrics[0]
        tried, n = [], len(examples)

        def score(folder: Path, before: int) -> dict[str, Any]:
            def count(done: int, total: int) -> None:
                if done < total:  # the end is told when the score is kept
                    progress(before + n * done // total, n * len(self.grid))

            if self.by == "entropy":
                return entropy(backbone, folder, task, examples, self.scoring, count)
            return evaluate(backbone, folder, task, examples, self.scoring, count).scores[metric]

        with tempfile.TemporaryDirectory(dir=output) as scratch:
            for index, weight in enumerate(self.grid):
                kept = work / f"{index}.json"
                entry = _kept(kept)
                if entry is None:
                    folder = Path(scratch) / str(index)
                    self.how.merge(inputs, weight, folder)
                    entry = {"weight": weight, **score(folder, n * index)}
                    write_json(kept, {"entry": entry, "seal": fingerprint(entry)})
                    shutil.rmtree(folder)
                tried.append(entry)
                progress(n * (index + 1), n * len(self.grid))
        sign = -1.0 if self.by == "entropy" else 1.0
        chosen = choose_weight([(entry["weight"] or 0.0, sign * (entry["score"] or 0.0)) for entry in tried])
        write_json(
            output / SWEEP_FILE,
            {
                "chosen": chosen,
                "metric": metric,
                "language": self.language,
                "n": n,
                "tried": tried,
            },
        )


def _kept(path: Path) -> dict[str, Any] | None:
    """The score that a killed sweep left, unless it was altered."""
    try:
        kept = read_json(path)
        return dict(kept["entry"]) if fingerprint(kept["entry"]) == kept["seal"] else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def choose_weight(tried: list[tuple[float, float]]) -> float:
    """The weight with the best score; of equally good ones the closest to 1, then the smaller.

    Args:
        tried: (weight, score), at least one.
    """
    weight, _ = min(tried, key=lambda pair: (-pair[1], abs(pair[0] - 1), pair[0]))
    return weight


@dataclass(frozen=True, eq=False)
class Merge(Step):
    """Merge adapters with a fixed weight, or with the one that a sweep chose.

    Attributes:
        curves: Sweeps over further languages that decide nothing; for the report.
    """

    kind = "merged"
    code = ("merging", "adapters")
    loads = False
    how: MergeRecipe
    adapters: tuple[tuple[str, Train], ...]
    weight: float | Sweep
    language: str
    curves: tuple[Sweep, ...] = ()

    @property
    def task_training(self) -> Train:
        """The training of the task adapter."""
        return dict(self.adapters)["task"]

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return 0, 4 * numbers * (len(self.adapters) if self.how.space == "delta" else 1)

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapters to merge, and the sweep."""
        return {**dict(self.adapters), **({"sweep": self.weight} if isinstance(self.weight, Sweep) else {})}

    def recipe(self) -> dict[str, Any]:
        """Merge and weight."""
        return {"how": vars(self.how), "weight": None if isinstance(self.weight, Sweep) else self.weight}

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        return f"merge by {self.how.method} ({self.how.space})"

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()} for {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Merge into the output folder."""
        output.rmdir()  # the merge makes its folder by one rename of its own
        self.how.merge(inputs, merge_weight(self.weight, inputs.get("sweep")), output)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Method, space and the weights of the inputs."""
        recorded = read_json(folder / PROVENANCE_FILE)
        weights = {item["role"]: item["weight"] for item in recorded["inputs"]}
        return {"method": self.how.method, "space": recorded["space"], "weights": weights}


def merge_weight(weight: float | Sweep, sweep_folder: Path | None) -> float:
    """The fixed weight, or the one that the sweep in `sweep_folder` chose."""
    if sweep_folder is None:
        assert not isinstance(weight, Sweep)
        return weight
    return float(read_json(sweep_folder / SWEEP_FILE)["chosen"])


@dataclass(frozen=True, eq=False)
class Evaluate(_Scores):
    """Score the backbone, or an adapter on it, on a task in a language."""

    kind = "evaluation"
    code = _SCORES
    backbone: BackboneRef
    adapter: Train | Merge | None
    dataset: Examples
    language: str
    split: str
    scoring: Scoring

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapter, if there is one."""
        return {"adapter": self.adapter} if self.adapter else {}

    @property
    def cost(self) -> int:
        """About ten training steps."""
        return 10

    @property
    @override
    def fused(self) -> InitialiseFused | None:
        return self.adapter.fused if self.adapter else None

    @override
    def workload(self) -> list[Any]:
        trained = self.adapter.task_training.alike() if self.adapter and self.fused else []
        return [*super().workload(), *trained]

    @override
    def units(self, rows: int) -> int:
        return rows

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return 4 * numbers + row * self.scoring.batch_size, _PREDICTION * rows

    def recipe(self) -> dict[str, Any]:
        """Backbone, rows and scoring."""
        return {
            "backbone": self.backbone.identity(),
            "rows": self.dataset.identity(self.language, self.split),
            "scoring": self.scoring.model_dump(mode="json", exclude={"batch_size"}),
        }

    def what(self) -> str:
        """What people see of all steps that differ in language and seed alone."""
        reads = _READS[self.dataset.beside.use] if self.dataset.beside else ""
        return f"evaluate {Path(self.dataset.task).stem}{reads}"

    def label(self) -> str:
        """What people see of this step."""
        return f"{self.what()} in {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write predictions and scores."""
        from lingualift.evaluation.runner import evaluate

        found = evaluate(self.backbone, inputs.get("adapter"), *self.headed, self.scoring, progress)
        write_jsonl(output / PREDICTIONS_FILE, found.rows())
        write_json(output / SCORES_FILE, found.summary())

    def facts(self, folder: Path) -> dict[str, Any]:
        """Task, language and how many answers could not be read."""
        found = read_json(folder / SCORES_FILE)
        about = {"task": Path(self.dataset.task).stem, "language": self.language}
        return {**about, **{name: found[name] for name in ("n", "malformed", "truncated")}}
