"""A finished run, read back from its folder: nothing else is needed to report on it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lingualift.config import Experiment, grid_name, load_experiment
from lingualift.errors import UserError, one_line
from lingualift.metrics.comparisons import Comparison
from lingualift.provenance import PROVENANCE_FILE, is_inside, read_json, reading, sha256_file
from lingualift.runs.claims import EXPERIMENT_FILE, LOG_FILE, RESULTS_FILE, STEPS_FILE, read_log
from lingualift.runs.records import Answer, Facts, Provenance, Results, Step, Steps, Sweep, Training

Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class RunFolder:
    """A finished run.

    Attributes:
        folder: Where it is.
        experiment: What was asked.
        rows: Rows of `results.json`.
        comparisons: Every method against `source-ft`.
        activations: For each evaluation of a FLARE adapter its `layers`, as `Evaluation.activations` has them.
        empty: The cells that lack rows, with the `reason`.
        steps: The steps; None if the folder does not tell.
        log: Entries of `log.jsonl`; None if there is none.
        garbled: Lines of the log that are not JSON.
        adapters: Name -> provenance of the adapters that the folder leads to.
        fingerprints: File of the run folder -> sha256.
    """

    folder: Path
    experiment: Experiment
    rows: list[dict[str, Any]]
    comparisons: list[Comparison]
    activations: list[dict[str, Any]]
    empty: list[dict[str, Any]]
    steps: tuple[Step, ...] | None
    log: tuple[Mapping[str, Any], ...] | None
    garbled: int
    adapters: Mapping[str, Mapping[str, Any]]
    fingerprints: Mapping[str, str]

    def answers(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Id, gold and prediction of each test item of a row; None where the folder does not hold them.

        Raises:
            UserError: they cannot be read, or are not as many as were scored.
        """
        name = row["predictions"]
        if name is None or not is_inside(name) or not (self.folder / name).is_file():
            return None
        path = self.folder / name
        with reading(path):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        found = []
        for number, line in enumerate(filter(None, lines), 1):
            try:
                found.append(Answer.model_validate(json.loads(line)).model_dump())
            except (ValueError, RecursionError):
                raise _unlike(path, f"holds no answer in line {number}") from None
        if len(found) != row["n"]:
            raise _unlike(path, f"holds {len(found)} answers, of {row['n']} that were scored")
        return found


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, the run is not finished, or a file of it cannot be read.
    """
    if not (folder / EXPERIMENT_FILE).is_file():
        raise UserError(
            folder,
            f"holds no {EXPERIMENT_FILE}",
            "the folder that `lingualift run` wrote",
            "name the --output of the run; that of the demo is its `run` folder",
        )
    experiment = load_experiment(folder / EXPERIMENT_FILE)
    log, garbled = read_log(folder / LOG_FILE)
    if not (folder / RESULTS_FILE).is_file():
        failed = [entry for entry in log or () if entry.get("event") == "failed"]
        reason = f" ({failed[-1].get('step')}: {failed[-1].get('text')})" if failed else ""
        raise UserError(
            folder,
            f"holds no {RESULTS_FILE}: the run was stopped or has failed" + " ".join(reason.splitlines()),
            "a finished run",
            "run the same `lingualift run` again, with this folder as --output: finished steps are kept",
        )
    results = _read(folder / RESULTS_FILE, Results).model_dump()
    rows = at_points(results["rows"])
    known = {task_at(Path(point.task.task).stem, point.grid) for point in experiment.points()}
    strange = [row["task"] for row in rows if row["task"] not in known]
    if strange:
        found = one_line(f"has rows of task {strange[0]!r}, which {EXPERIMENT_FILE} beside it does not name")
        raise _unlike(folder / RESULTS_FILE, found)
    steps = folder / STEPS_FILE
    kept = {name: folder / name for name in (EXPERIMENT_FILE, RESULTS_FILE, STEPS_FILE)}
    return RunFolder(
        folder,
        experiment,
        rows=rows,
        comparisons=[Comparison(**one) for one in at_points(results["comparisons"])],
        activations=at_points(results["activations"]),
        empty=at_points(results["empty"]),
        steps=_steps(steps) if steps.is_file() else None,
        log=log,
        garbled=garbled,
        adapters={
            path.parent.name: _read(path, Provenance).model_dump(exclude_none=True)
            for path in sorted((folder / "adapters").glob(f"*/{PROVENANCE_FILE}"))
        },
        fingerprints={name: sha256_file(path) for name, path in kept.items() if path.is_file()},
    )


def task_at(task: str, grid: Mapping[str, str]) -> str:
    """What people see of a task at a point of the grid."""
    return f"{task} ({grid_name(grid)})" if grid else task


def at_points(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `results.json` whose task is named with its point of the grid."""
    return [{**row, "task": task_at(row["task"], row.get("grid") or {})} for row in rows]


def _read(path: Path, kind: type[Kind]) -> Kind:
    """A file of the folder, as a record.

    Raises:
        UserError: it cannot be read, or is none.
    """
    found = read_json(path)
    version = found.get("schema", 1) if isinstance(found, dict) else 1
    try:
        if type(version) is not int or version == 1:
            return kind.model_validate(found)
    except ValidationError as error:
        raise _lacking(path, error) from None
    raise _unlike(path, f"has schema {version}")


def _lacking(path: Path, error: ValidationError) -> UserError:
    """The error of a file that is no record, by the first of what pydantic found."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join([error.title, *map(str, first["loc"])])
    return _unlike(path, one_line(f"lacks what a report needs ({where}: {first['msg']})"))


def _unlike(path: Path, found: str) -> UserError:
    mend = "run the same `lingualift run` again: finished steps are kept"
    return UserError(path, found, "a file of this version (schema 1)", mend)


def _steps(path: Path) -> tuple[Step, ...]:
    found = _read(path, Steps)
    try:
        return tuple(step.model_copy(update={"facts": _facts(step)}) for step in found.steps)
    except ValidationError as error:
        raise _lacking(path, error) from None


def _facts(step: Step) -> dict[str, Any]:
    kinds: dict[str, type[BaseModel]] = {"sweep": Sweep, "adapter": Training}
    return kinds.get(step.kind, Facts).model_validate(step.facts).model_dump(exclude_unset=True)
