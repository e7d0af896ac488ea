"""The steps of an experiment. Each is a pure function of its inputs, and its key says all that determines it."""

from __future__ import annotations

import functools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lingualift.backbone import BackboneRef
from lingualift.config import Adapter, GivenAdapter, Scoring, Training
from lingualift.provenance import (
    fingerprint,
    library_versions,
    read_json,
    sha256_file,
    sha256_folder,
    write_json,
    write_jsonl,
)
from lingualift.source import Source
from lingualift.tasks import TextTask

Progress = Callable[[int, int], None]
PREDICTIONS_FILE, SCORES_FILE, SWEEP_FILE = "predictions.jsonl", "scores.json", "sweep.json"
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy")


@dataclass(frozen=True)
class Step(ABC):
    """One step. Equal keys mean equal output.

    Attributes:
        kind: Folder of the store.
        code: Files and folders of the package whose change makes old output stale.
        cost: Rough size for the progress bar, in training steps.
    """

    kind: ClassVar[str]
    code: ClassVar[tuple[str, ...]]

    @property
    def inputs(self) -> dict[str, Step]:
        """The steps whose output this one reads, by role."""
        return {}

    @property
    def cost(self) -> int:
        """Rough size for the progress bar, in training steps."""
        return 1

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Everything but the inputs that determines the output, as JSON."""

    @abstractmethod
    def label(self) -> str:
        """What people see."""

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
    code = ("training", "backbone.py")
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

    def label(self) -> str:
        """What people see."""
        return f"initialise {self.adapter.type}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write the untrained adapter."""
        from lingualift.training.trainer import initialise

        initialise(self.backbone, self.adapter, self.adapter.init_seed + self.seed, output)


@dataclass(frozen=True, eq=False)
class Train(Step):
    """Train an adapter on a task in a language; what is reported to trackers is no part of what it makes."""

    kind = "adapter"
    split: ClassVar[str] = "train"
    code = ("training", "backbone.py", "tasks/base.py")
    start: Initialise
    source: Source
    language: str
    settings: Training
    seed: int
    segment_tokens: int
    report_to: tuple[str, ...] = ()
    logs: Path | None = None

    @property
    def inputs(self) -> dict[str, Step]:
        """The shared initialisation."""
        return {"start": self.start}

    @property
    def cost(self) -> int:
        """Training steps, guessed where epochs are given."""
        return self.settings.steps or 500

    def recipe(self) -> dict[str, Any]:
        """Rows, settings and seed."""
        settings = self.settings.model_dump(mode="json", exclude={"checkpoint_steps"})
        segment = self.segment_tokens if isinstance(self.source.get_task(), TextTask) else None
        rows = self.source.identity(self.language, self.split)
        return {"rows": rows, "settings": settings, "seed": self.seed, "segment_tokens": segment}

    def label(self) -> str:
        """What people see."""
        return f"train {Path(self.source.task).stem} in {self.language}, seed {self.seed}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Train from the shared initialisation."""
        from lingualift.training.tracking import Tracking
        from lingualift.training.trainer import train

        name = f"{Path(self.source.task).stem}.{self.language}.seed{self.seed}"
        train(
            self.start.backbone,
            self.source.rows(self.language, self.split),
            self.settings,
            start=inputs["start"],
            seed=self.seed,
            output=output,
            work=work,
            segment_tokens=self.segment_tokens,
            about={
                "task": Path(self.source.task).stem,
                "language": self.language,
                "data": self.source.identity(self.language, self.split)["data"],
            },
            progress=progress,
            tracking=Tracking(self.report_to, name, self.logs / name if self.logs else None),
        )


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
        """Merge the folders `task`, `target` and (`adamergex`) `source` with a weight into `output`."""
        from lingualift.merging import merge

        write = functools.partial(
            merge, method=self.method, space=self.space, modules=self.modules, output=output
        )
        if self.method == "adamergex":
            target, source = adapters["target"], adapters["source"]
            write(task=adapters["task"], target_reference=target, source_reference=source, weight=weight)
            return
        write(adapters=[(adapters["task"], 1.0), (adapters["target"], weight)], mean=self.combine == "mean")


@dataclass(frozen=True, eq=False)
class Sweep(Step):
    """Score every weight of the grid on the validation split of one language, and choose."""

    kind = "sweep"
    split: ClassVar[str] = "validation"
    code = ("merging", "adapters", "evaluation", "training/encoding.py", "backbone.py", "tasks/base.py")
    how: MergeRecipe
    adapters: tuple[tuple[str, Train], ...]
    grid: tuple[float, ...]
    source: Source
    language: str
    scoring: Scoring

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapters to merge."""
        return dict(self.adapters)

    @property
    def cost(self) -> int:
        """About ten training steps a weight."""
        return 10 * len(self.grid)

    def recipe(self) -> dict[str, Any]:
        """Merge, grid, rows and scoring."""
        return {
            "how": vars(self.how),
            "grid": list(self.grid),
            "rows": self.source.identity(self.language, self.split),
            "scoring": self.scoring.model_dump(mode="json", exclude={"batch_size"}),
        }

    def label(self) -> str:
        """What people see."""
        return f"choose the weight of {self.how.method} ({self.how.space}) on {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Merge and score at each weight; only the scores are kept."""
        from lingualift.evaluation.runner import evaluate

        task, examples = self.source.labelled(self.language, self.split)
        backbone = self.adapters[0][1].start.backbone
        metric = task.metrics[0]
        tried = []
        with tempfile.TemporaryDirectory(dir=output) as scratch:
            for done, weight in enumerate(self.grid):
                folder = Path(scratch) / f"{weight:g}"
                self.how.merge(inputs, weight, folder)
                found = evaluate(backbone, folder, task, examples, self.scoring)
                tried.append({"weight": weight, **found.scores[metric]})
                progress(done + 1, len(self.grid))
        chosen = choose_weight([(entry["weight"] or 0.0, entry["score"] or 0.0) for entry in tried])
        write_json(
            output / SWEEP_FILE,
            {
                "chosen": chosen,
                "metric": metric,
                "language": self.language,
                "n": len(examples),
                "tried": tried,
            },
        )


def choose_weight(tried: list[tuple[float, float]]) -> float:
    """The weight with the best score; of equally good ones the closest to 1, then the smaller.

    Args:
        tried: (weight, score), at least one.
    """
    weight, _ = min(tried, key=lambda pair: (-pair[1], abs(pair[0] - 1), pair[0]))
    return weight


@dataclass(frozen=True, eq=False)
class Merge(Step):
    """Merge adapters with a fixed weight, or with the one that a sweep chose."""

    kind = "merged"
    code = ("merging", "adapters")
    how: MergeRecipe
    adapters: tuple[tuple[str, Train], ...]
    weight: float | Sweep
    language: str

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapters to merge, and the sweep."""
        return {**dict(self.adapters), **({"sweep": self.weight} if isinstance(self.weight, Sweep) else {})}

    def recipe(self) -> dict[str, Any]:
        """Merge and weight."""
        return {"how": vars(self.how), "weight": None if isinstance(self.weight, Sweep) else self.weight}

    def label(self) -> str:
        """What people see."""
        return f"merge by {self.how.method} ({self.how.space}) for {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Merge into the output folder."""
        output.rmdir()  # the merge makes its folder by one rename of its own
        self.how.merge(inputs, merge_weight(self.weight, inputs.get("sweep")), output)


def merge_weight(weight: float | Sweep, sweep_folder: Path | None) -> float:
    """The fixed weight, or the one that the sweep in `sweep_folder` chose."""
    if sweep_folder is None:
        assert not isinstance(weight, Sweep)
        return weight
    return float(read_json(sweep_folder / SWEEP_FILE)["chosen"])


@dataclass(frozen=True, eq=False)
class Evaluate(Step):
    """Score the backbone, or an adapter on it, on a task in a language."""

    kind = "evaluation"
    code = ("evaluation", "training/encoding.py", "backbone.py", "tasks/base.py")
    backbone: BackboneRef
    adapter: Train | Merge | None
    source: Source
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

    def recipe(self) -> dict[str, Any]:
        """Backbone, rows and scoring."""
        return {
            "backbone": self.backbone.identity(),
            "rows": self.source.identity(self.language, self.split),
            "scoring": self.scoring.model_dump(mode="json", exclude={"batch_size"}),
        }

    def label(self) -> str:
        """What people see."""
        return f"evaluate {Path(self.source.task).stem} in {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write predictions and scores."""
        from lingualift.evaluation.runner import evaluate

        task, examples = self.source.labelled(self.language, self.split)
        found = evaluate(self.backbone, inputs.get("adapter"), task, examples, self.scoring)
        write_jsonl(output / PREDICTIONS_FILE, found.rows())
        write_json(output / SCORES_FILE, found.summary())
