"""Several runs on one page: a table for each task, whose methods are named with their run where several have it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lingualift.errors import UserError
from lingualift.metrics.comparisons import Comparison
from lingualift.provenance import fingerprint
from lingualift.report.markdown import grid_of, in_markdown, markdown_tables
from lingualift.report.published import Compared, beside_papers, markdown_beside
from lingualift.report.recipe import leaves, shown_value
from lingualift.report.tables import Finding, Layout, findings, how_compared, in_words
from lingualift.runs.claims import RESULTS_FILE
from lingualift.runs.folder import RunFolder

Row = dict[str, Any]
_APART = {"published", "workers", "report_to", "methods"}
"""What changes no result, and what the tables show."""


@dataclass(frozen=True)
class Told:
    """Rows and comparisons of runs, by the names of their tasks and methods in common tables."""

    rows: list[Row]
    comparisons: list[Comparison]
    layouts: dict[str, Layout]


@dataclass(frozen=True)
class Joined:
    """Runs that are shown together.

    Attributes:
        runs: Name -> run.
        groups: Task -> the runs that have it in the same languages, each group of which has a table.
    """

    runs: Mapping[str, RunFolder]
    groups: Mapping[str, Sequence[Sequence[str]]]

    @cached_property
    def told(self) -> Told:
        """Everything, for tables: a table of several runs has the run's name with each method."""
        whole = Told([], [], {})
        for name, run in self.runs.items():
            for task, layout in Layout.of(run.experiment, run.empty).items():
                if task in self.groups:
                    key = self._called(task, name)
                    others = whole.layouts[key].empty if key in whole.layouts else {}
                    mine = self._renamed_cells(layout.empty, task, name)
                    whole.layouts[key] = replace(layout, empty={**others, **mine})
            whole.rows.extend({**row, **self._renamed(row, name)} for row in run.rows)
            for one in run.comparisons:
                called = self._renamed(vars(one), name)
                whole.comparisons.append(replace(one, task=called["task"], variant=called["variant"]))
        return whole

    def _called(self, task: str, name: str) -> str:
        (mine,) = (group for group in self.groups[task] if name in group)
        return task if len(self.groups[task]) == 1 else f"{task} ({', '.join(mine)})"

    def _renamed(self, row: Mapping[str, Any], name: str) -> dict[str, str]:
        task = row["task"]
        variant = f"{row['variant']} {self._mark(task, name)}".strip()
        return {"task": self._called(task, name), "variant": variant}

    def _renamed_cells(
        self, empty: Mapping[tuple[str, str], str], task: str, name: str
    ) -> dict[tuple[str, str], str]:
        mark = self._mark(task, name)
        return {(f"{method} {mark}".strip(), code): reason for (method, code), reason in empty.items()}

    def _mark(self, task: str, name: str) -> str:
        """What is said of a method of a run, where its table has other runs too."""
        (mine,) = (group for group in self.groups[task] if name in group)
        return f"({name})" if len(mine) > 1 else ""

    @cached_property
    def findings(self) -> list[Finding]:
        """What each run says of each task; the run is named where several have the task."""
        found = [
            (one.task, replace(one, task=self._of_run(one.task, name)))
            for name, run in self.runs.items()
            for one in findings(run.rows, run.comparisons, Layout.of(run.experiment))
        ]
        tasks = list(self.groups)
        return [one for _, one in sorted(found, key=lambda pair: tasks.index(pair[0]))]

    def _of_run(self, task: str, name: str) -> str:
        return f"{task}, {name}" if sum(map(len, self.groups[task])) > 1 else task

    @property
    def how(self) -> str:
        """What the numbers mean, and which runs cannot be compared."""
        texts = {name: how_compared(run.comparisons) for name, run in self.runs.items() if run.comparisons}
        same = len(set(texts.values())) == 1
        told = [next(iter(texts.values()))] if same else [f"{name}: {text}" for name, text in texts.items()]
        for name, run in self.runs.items():
            layouts = Layout.of(run.experiment)
            if not findings(run.rows, run.comparisons, layouts):
                told.append(f"{name}: {in_words(run.rows, run.comparisons, layouts)}")
        return " ".join(told)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader of the tables has to know: who is compared with whom, and whether all read the same rows."""
        found = []
        for task, groups in self.groups.items():
            if len(groups) > 1:
                runs = "; ".join(map(", ".join, groups))
                found.append(
                    f"{task} has a table for each of these, whose languages or averages differ: {runs}."
                )
            for group in groups:
                found += (
                    _other_rows(task, {name: self.runs[name] for name in group}) if len(group) > 1 else []
                )
        if any(len(group) > 1 for groups in self.groups.values() for group in groups):
            found.append("Each method is compared with the source-ft of its own run.")
        return found

    @cached_property
    def differs(self) -> list[tuple[str, list[str]]]:
        """Keys of the experiments that differ, with their value in each run."""
        keys = {name: dict(_keys(run, self.groups)) for name, run in self.runs.items()}
        every = dict.fromkeys(key for of_run in keys.values() for key in of_run)
        table = [(key, [of_run.get(key, "–") for of_run in keys.values()]) for key in every]
        return [(key, values) for key, values in table if len(set(values)) > 1]

    @cached_property
    def papers(self) -> list[Compared]:
        """Published numbers of all runs beside what that run has measured."""
        return [
            replace(one, title=f"{one.title}; {name}")
            for name, run in self.runs.items()
            for one in beside_papers(run)
        ]

    def to_markdown(self) -> str:
        """The page's tables, as Markdown."""
        told = self.told
        words = [f"{one.task}: {one.headline} {one.rest}".strip() for one in self.findings]
        differs = [[in_markdown(key), *map(in_markdown, values)] for key, values in self.differs]
        table = [grid_of(["the runs differ in", *map(in_markdown, self.runs)], differs)] if differs else []
        plain = [in_markdown(text) for text in (*self.notes, *words, self.how) if text]
        parts = [*markdown_tables(told.rows, told.layouts), *plain, *table, *markdown_beside(self.papers)]
        return "\n\n".join(parts) + "\n"


def join(runs: Sequence[RunFolder]) -> Joined:
    """Put finished runs together.

    Raises:
        UserError: one is there twice, or two score one task by different metrics.
    """
    named = dict(zip(_names([run.folder for run in runs]), runs, strict=True))
    for (one, first), (other, second) in itertools.combinations(named.items(), 2):
        if first.fingerprints[RESULTS_FILE] == second.fingerprints[RESULTS_FILE]:
            found = f"holds the same results as {one}"
            raise UserError(second.folder, found, "runs of their own", f"leave {other} out")
    groups: dict[str, list[list[str]]] = {}
    for name, run in named.items():
        layouts = _measured(run)
        for task in dict.fromkeys(row["task"] for row in run.rows):
            of_task = groups.setdefault(task, [])
            _check_metrics(task, run, [named[other] for group in of_task for other in group])
            alike = [group for group in of_task if _measured(named[group[0]])[task] == layouts[task]]
            if alike:
                alike[0].append(name)
            else:
                of_task.append([name])
    return Joined(named, groups)


def _measured(run: RunFolder) -> dict[str, Layout]:
    """Task -> its layout, with averages over the languages that it has rows in."""
    found = Layout.of(run.experiment).items()
    return {task: layout.over([row for row in run.rows if row["task"] == task]) for task, layout in found}


def _names(folders: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells them apart."""
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(path, "is named twice", "each run once", "leave one out")
    ends = (["/".join(path.parts[-length:]) for path in paths] for length in itertools.count(1))
    return next(names for names in ends if len(set(names)) == len(names))


def _metrics(run: RunFolder, task: str) -> list[str]:
    return list(dict.fromkeys(row["metric"] for row in run.rows if row["task"] == task))


def _check_metrics(task: str, run: RunFolder, others: Iterable[RunFolder]) -> None:
    mine = _metrics(run, task)
    for other in others:
        if _metrics(other, task) != mine:
            raise UserError(
                run.folder / RESULTS_FILE,
                f"scores {task} by {', '.join(mine)}, and {other.folder} by {', '.join(_metrics(other, task))}",
                "one task by that name, with the same metrics",
                "make a page for each of them, or name one of the tasks otherwise",
            )


def _other_rows(task: str, runs: Mapping[str, RunFolder]) -> Iterator[str]:
    """Say in which languages runs did not read the same test rows, as far as their folders tell."""
    read = {name: _rows_read(run, task) for name, run in runs.items()}
    languages = dict.fromkeys(code for of_run in read.values() for code in of_run)
    other, unknown = [], []
    for code in languages:
        found = [of_run[code] for of_run in read.values() if code in of_run]
        if len({n for n, _ in found}) > 1 or len({key for _, key in found if key}) > 1:
            other.append(code)
        elif len(found) > 1 and not all(key for _, key in found):
            unknown.append(code)
    if other:
        sizes = "; ".join(
            f"{name}: n = {', '.join(map(str, sorted({of_run[code][0] for code in other if code in of_run})))}"
            for name, of_run in read.items()
        )
        yield (
            f"{task}: the runs did not read the same test rows in {', '.join(other)} ({sizes}). "
            "Their scores there differ by the rows too."
        )
    if unknown:
        yield (
            f"{task}: whether the runs read the same test rows in {', '.join(unknown)} cannot be told, since a folder "
            "holds no predictions."
        )


def _rows_read(run: RunFolder, task: str) -> dict[str, tuple[int, str]]:
    """Language -> how many test rows, and a fingerprint of their ids and answers, empty without predictions."""
    found: dict[str, tuple[int, str]] = {}
    for row in run.rows:
        if row["task"] == task and row["language"] not in found:
            answers = run.answers(row)
            items = [(one["id"], one["gold"]) for one in answers or ()]
            found[row["language"]] = row["n"], fingerprint(items) if items else ""
    return found


def _keys(run: RunFolder, groups: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every key of an experiment with its value; tasks by their names, those alone that several runs have."""
    asked = run.experiment.model_dump(mode="json", exclude=_APART)
    tasks = {Path(task["task"]).stem: task for task in asked.pop("tasks")}
    shared = {name: task for name, task in tasks.items() if sum(map(len, groups.get(name, ()))) > 1}
    for path, value in leaves({**asked, "tasks": shared}):
        yield ".".join(path), shown_value(value)
