"""Steps that merge adapters and score them."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from typing_extensions import override

from lingualift.adapters import open_adapter
from lingualift.backbone.reference import BackboneRef
from lingualift.config import AnyMergeMethod, MergeMethod, Scoring
from lingualift.data.datasets import Examples
from lingualift.errors import UserError
from lingualift.merging.plan import depth
from lingualift.pipeline.steps.base import READING, READS, Part, Progress, Step, makers, telling
from lingualift.pipeline.steps.training import Adapted, InitialiseFused, Train
from lingualift.pipeline.steps.translation import Back
from lingualift.provenance import PROVENANCE_FILE, fingerprint, read_json, write_json, write_jsonl
from lingualift.tasks import Example, Task

PREDICTIONS_FILE, SCORES_FILE, SWEEP_FILE = "predictions.jsonl", "scores.json", "sweep.json"
_PREDICTION = 400  # bytes per answered row on disk
_CODE = ("evaluation", "metrics", "tasks/reading.py", *READING)  # that decides a score


@dataclass(frozen=True)
class MergeRecipe:
    """How adapters are merged, but for the weight.

    Attributes:
        method: A merge method (`lingualift.merging.METHODS`).
        settings: Of the row of the table; its weight counts for nothing here.
    """

    method: str
    settings: MergeMethod

    def merge(
        self,
        adapters: Mapping[str, Path],
        weight: float,
        output: Path,
        by_block: Mapping[str, float] | None = None,
    ) -> None:
        """Merge the folders `task`, `target` and, where it is subtracted, `source` with a weight into `output`.

        Args:
            adapters: The folders.
            weight: λ.
            output: The folder to write.
            by_block: Range of blocks -> λ there, where it is not that.

        Raises:
            UserError: as `merge`, whose settings an experiment file has by the names that they have in Python.
        """
        from lingualift.merging import METHODS, merge

        given = self._given()
        if by_block and weight:
            given["layer_weights"] = {place: own / weight for place, own in by_block.items()}
        write = functools.partial(merge, method=self.method, output=output, **given)
        task, target = adapters["task"], adapters["target"]
        source = adapters["source"] if METHODS[self.method].subtracts else None
        try:
            if METHODS[self.method].roles:
                write(task=task, target_reference=target, source_reference=source, weight=weight)
            else:
                write(adapters=[(task, 1.0), (target, weight)])
        except UserError as error:
            raise UserError(error.where, error.found, error.expected, error.mend) from None

    def _given(self) -> dict[str, Any]:
        return self.settings.model_dump(
            include=AnyMergeMethod.model_fields.keys() - {"method", "weight", "thirds"}
        )

    def identity(self) -> dict[str, Any]:
        """What decides the merge; of patterns the first that matches counts, so that their order does too."""
        given = self._given()
        thirds = {"thirds": True} if self.settings.thirds else {}
        return {
            "method": self.method,
            **given,
            **thirds,
            "module_weights": list(given["module_weights"].items()),
        }


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

    def _asked(self) -> dict[str, Any]:
        return {
            "rows": self.dataset.identity(self.language, self.split),
            "scoring": self.scoring.model_dump(mode="json", exclude={"batch_size", "source_language"}),
        }

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
    code = ("merging", *_CODE)
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
            "how": self.how.identity(),
            "grid": list(self.grid),
            **self._asked(),
        }

    @override
    def what(self) -> str:
        verb = "choose the weight" if self.decides else "score the weights"
        verb += " by entropy" * (self.by == "entropy")
        return f"{verb} of {self.how.method} ({self.how.settings.space})"

    @override
    def label(self) -> str:
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
        sign, before, n = (-1.0 if self.by == "entropy" else 1.0), 0, len(examples)

        def score(folder: Path, rows: Sequence[Example]) -> dict[str, Any]:
            def count(done: int, total: int) -> None:
                if done < total:  # the end is told when the score is kept
                    progress(before + len(rows) * done // total, n * len(self.grid))

            if self.by == "entropy":
                return entropy(backbone, folder, task, rows, self.scoring, count)
            return evaluate(backbone, folder, task, rows, self.scoring, count).scores[metric]

        chosen, tried = self._start(inputs["task"]), list[dict[str, Any]]()
        with tempfile.TemporaryDirectory(dir=output) as scratch:
            for number, place in enumerate(chosen):
                rows = examples[number :: len(chosen)]
                for index, weight in enumerate(self.grid, number * len(self.grid)):
                    kept = work / f"{index}.json"
                    entry = _kept(kept)
                    if entry is None:
                        folder = Path(scratch) / str(index)
                        self.how.merge(inputs, *_weights({**chosen, place: weight}, folder))
                        entry = {
                            "weight": weight,
                            **({"blocks": place} if place else {}),
                            **score(folder, rows),
                        }
                        write_json(kept, {"entry": entry, "seal": fingerprint(entry)})
                        shutil.rmtree(folder)
                    tried.append(entry)
                    before += len(rows)
                    progress(before, n * len(self.grid))
                mine = tried[-len(self.grid) :]
                chosen[place] = _choose(
                    [(one["weight"] or 0.0, sign * (one["score"] or 0.0)) for one in mine]
                )
        by_block = {place: weight for place, weight in chosen.items() if place}
        about = {"metric": metric, "language": self.language, "n": n}
        found = {"chosen": fmean(chosen.values()), **({"by_block": by_block} if by_block else {})}
        write_json(output / SWEEP_FILE, {**found, **about, "tried": tried})

    def _start(self, task: Path) -> dict[str, float]:
        """What a weight is chosen for, one after another, and what it is until then: all blocks, or three ranges.

        Rows are shared out among these, so that as many are scored in any case.
        """
        middle = sorted(self.grid)[len(self.grid) // 2]
        if not self.how.settings.thirds:
            return {"": middle}
        blocks = depth(open_adapter(task).modules)
        ends = [round(blocks * part / 3) for part in range(4)]
        return {f"{begin}-{end - 1}": middle for begin, end in pairwise(ends) if begin < end}


def _kept(path: Path) -> dict[str, Any] | None:
    """The score that a killed sweep left, unless it was altered."""
    try:
        kept = read_json(path)
        return dict(kept["entry"]) if fingerprint(kept["entry"]) == kept["seal"] else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _weights(chosen: Mapping[str, float], output: Path) -> tuple[float, Path, dict[str, float]]:
    """The mean weight, which counts outside of blocks too, and those of ranges of blocks; around a folder."""
    return fmean(chosen.values()), output, {place: weight for place, weight in chosen.items() if place}


def _choose(tried: list[tuple[float, float]]) -> float:
    """Of weights and their scores the best; of equally good ones the closest to 1, then the smaller."""
    return min(tried, key=lambda pair: (-pair[1], abs(pair[0] - 1), pair[0]))[0]


@dataclass(frozen=True, eq=False)
class Merge(Adapted):
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
    @override
    def task_training(self) -> Train:
        return dict(self.adapters)["task"]

    @property
    @override
    def shown(self) -> tuple[Step, ...]:
        return self.curves

    def chosen(self, inputs: Mapping[str, Path]) -> tuple[float, dict[str, float]]:
        """The weight, fixed or as the sweep in its folder of `inputs` chose it; and those of ranges of blocks."""
        if isinstance(self.weight, Sweep):
            found = read_json(inputs["sweep"] / SWEEP_FILE)
            return float(found["chosen"]), found.get("by_block", {})
        return self.weight, {}

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return 0, 4 * numbers * (len(self.adapters) if self.how.settings.space != "factors" else 1)

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapters to merge, and the sweep."""
        return {**dict(self.adapters), **({"sweep": self.weight} if isinstance(self.weight, Sweep) else {})}

    def recipe(self) -> dict[str, Any]:
        """Merge and weight."""
        return {"how": self.how.identity(), "weight": None if isinstance(self.weight, Sweep) else self.weight}

    @override
    def what(self) -> str:
        return f"merge by {self.how.method} ({self.how.settings.space})"

    @override
    def label(self) -> str:
        return f"{self.what()} for {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Merge into the output folder."""
        output.rmdir()  # the merge makes its folder by one rename of its own
        weight, by_block = self.chosen(inputs)
        self.how.merge(inputs, weight, output, by_block)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Method, space and the weights of the inputs."""
        recorded = read_json(folder / PROVENANCE_FILE)
        weights = {item["role"]: item["weight"] for item in recorded["inputs"]}
        return {"method": self.how.method, "space": recorded["space"], "weights": weights}


@dataclass(frozen=True, eq=False)
class Evaluate(_Scores):
    """Score the backbone, or an adapter on it, on a task in a language.

    It keeps what every reading reads: another choice of `scoring.reading` asks nothing anew.

    Attributes:
        back: How answers in words that were asked in translation come back into the language.
    """

    kind = "evaluation"
    code = _CODE
    backbone: BackboneRef
    adapter: Adapted | None
    dataset: Examples
    language: str
    split: str
    scoring: Scoring
    back: Back | None = None

    @property
    def answer_language(self) -> str:
        """Code of the language that answers are scored in."""
        return self.language if self.back else self.dataset.answer_language(self.language)

    @property
    def inputs(self) -> dict[str, Step]:
        """The adapter and the translations, if there are any."""
        return {**({"adapter": self.adapter} if self.adapter else {}), **makers(self.dataset)}

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
        return [*super().workload(), *trained, *([self.back.recipe()] if self.back else [])]

    @override
    def units(self, rows: int) -> int:
        return rows

    @override
    def sizes(self, numbers: int, row: int, rows: int) -> tuple[int, int]:
        return 4 * numbers + row * self.scoring.batch_size, _PREDICTION * rows

    def recipe(self) -> dict[str, Any]:
        """Backbone, rows and scoring."""
        asked = self._asked()
        asked["scoring"].pop("reading")
        back = {"back": self.back.recipe()} if self.back else {}
        return {"backbone": self.backbone.identity(), **asked, **back}

    @override
    def what(self) -> str:
        reads = READS[self.dataset.beside.use] if self.dataset.beside else ""
        told = ", answered back" if self.back else ""
        return f"evaluate {Path(self.dataset.task).stem}{reads}{told}"

    @override
    def label(self) -> str:
        return f"{self.what()} in {self.language}"

    def run(self, inputs: Mapping[str, Path], output: Path, work: Path, progress: Progress) -> None:
        """Write predictions and scores."""
        from lingualift.evaluation.runner import answers, evaluate, told_in

        task, rows = self.dataset.within(inputs.get("translations")).labelled(self.language, self.split)
        scoring = self.scoring.model_copy(update={"reading": "strict"})
        with telling(self.dataset):
            found = evaluate(self.backbone, inputs.get("adapter"), task, rows, scoring, progress)
        if self.back:
            told = self.back.told(answers(found), work)
            found = told_in(found, task, self.language, told, scoring)
        write_jsonl(output / PREDICTIONS_FILE, found.rows())
        write_json(output / SCORES_FILE, found.summary())

    def facts(self, folder: Path) -> dict[str, Any]:
        """Task, language and how many answers could not be read."""
        found = read_json(folder / SCORES_FILE)
        about = {"task": Path(self.dataset.task).stem, "language": self.language}
        return {**about, **{name: found[name] for name in ("n", "malformed", "truncated")}}
