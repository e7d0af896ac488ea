"""Steps that draw and train adapters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lingualift.backbone.reference import BackboneRef
from lingualift.config import Adapter, GivenAdapter, Training, method_defaults
from lingualift.data.datasets import Dataset, Examples, Texts
from lingualift.pipeline.steps.base import (
    READING,
    READS,
    TRAINED,
    Part,
    Progress,
    Step,
    losses,
    makers,
    telling,
)
from lingualift.pipeline.steps.words import WordsHead
from lingualift.provenance import PROVENANCE_FILE, read_json
from lingualift.tasks import Example, Task


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

    @override
    def what(self) -> str:
        return f"initialise {self.adapter.type}"

    @override
    def label(self) -> str:
        return f"{self.what()}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write the untrained adapter."""
        from lingualift.training.trainer import initialise

        initialise(self.backbone, self.adapter, self.adapter.init_seed + self.seed, output)

    def facts(self, folder: Path) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}


class Adapted(Step):
    """A step whose output is an adapter that rows are answered with."""

    @property
    @abstractmethod
    def task_training(self) -> Train:
        """The training of the task adapter."""


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
    first: Adapted
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

    @override
    def what(self) -> str:
        return f"initialise {self.name}"

    @property
    def name(self) -> str:
        """What people see of the adapter: kind, fusion, and what the method's entry chooses beside."""
        kind = "flare-mt" if self.source_encoder else self.settings["kind"]
        chosen = [
            f"{name}={self.settings[name]}"
            for name, default in method_defaults().items()
            if name != "fusion" and name in self.settings and self.settings[name] != default
        ]
        return " ".join(filter(None, (kind, self.settings.get("fusion"), *chosen)))

    @override
    def label(self) -> str:
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
class Train(Adapted):
    """Train an adapter on a task in a language; what is reported to trackers is no part of what it makes.

    Attributes:
        start: What it begins from; with a `Train`, it goes on from that adapter.
        cache_sources: Whether the source states of its rows are kept while it trains.
        words: The head for words that it learns text by, where the backbone's checkpoint has none.
    """

    kind = "adapter"
    split: ClassVar[str] = "train"
    code = ("training", *READING)
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
        return TRAINED * numbers + row * self.settings.batch_size, 4 * numbers

    @property
    def inputs(self) -> dict[str, Step]:
        """What it begins from, the head for words that it reads by, and the translations that it learns from."""
        return {
            "start": self.start,
            **({"words": self.words} if self.words else {}),
            **makers(self.dataset),
        }

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

    @override
    def what(self) -> str:
        if self.fused:
            return f"train {Path(self.dataset.task).stem} by {self.fused.name}"
        reads = READS[self.dataset.beside.use] if self.dataset.beside else ""
        goes_on = " on translations" if isinstance(self.start, Train) else ""
        return f"train {Path(self.dataset.task).stem}{reads or goes_on}"

    @property
    def _name(self) -> str:
        """What people see of its adapters that differ in language and seed alone."""
        return self.what().removeprefix("train ")

    @override
    def label(self) -> str:
        return f"{self.what()} in {self.language}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Train from the shared initialisation."""
        from lingualift.training.trainer import Tracking, train

        name = f"{self._name.replace(' ', '-')}.{self.language}.seed{self.seed}"
        dataset = self.dataset.within(inputs.get("translations"))
        with telling(self.dataset):
            train(
                self.backbone.with_words(inputs.get("words")),
                dataset.get_task(),
                dataset.rows(self.language, self.split),
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
                    "data": dataset.identity(self.language, self.split)["data"],
                },
                progress=progress,
                tracking=Tracking(self.report_to, name, self.logs / name if self.logs else None),
                cache_sources=self.cache_sources,
            )

    def facts(self, folder: Path) -> dict[str, Any]:
        """Task, what the adapter is, rows, settings, and the loss along the way."""
        recorded = read_json(folder / PROVENANCE_FILE)
        names = ("task", "language", "seed", "rows", "segments", "truncated_prompts", "steps", "settings")
        return {**{name: recorded[name] for name in names}, "name": self._name, "loss": losses(folder)}
