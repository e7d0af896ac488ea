"""Numbers of papers beside those of a run: what was published, what was measured, and what differs in the set-up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.config import Experiment, Published, grid_name, value_at
from lingualift.errors import UserError, did_you_mean
from lingualift.metrics.comparisons import intervals
from lingualift.report.markdown import grid_of, in_markdown
from lingualift.report.tables import footnotes, gap, method_name, seed_averages, signed
from lingualift.runs.folder import RunFolder, task_at

Row = Mapping[str, Any]
_NUMBER = "{:.1f}".format


@dataclass(frozen=True)
class Beside:
    """A published number and the run's own.

    Attributes:
        task: The task.
        method: Method and variant, as tables show them.
        where: A language, or the name of an average.
        average: Whether it is an average.
        published: In percent.
        measured: The run's mean over seeds, in percent; None where it has none.
        interval: The ends of its 95% interval; None where the run folder holds no predictions.
        lacks: Which rows are not there, where that is why there is no measured number.
    """

    task: str
    method: str
    where: str
    average: bool
    published: float
    measured: float | None
    interval: tuple[float, float] | None
    lacks: str | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percent points."""
        return None if self.measured is None else self.measured - self.published

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval of the difference; the published number has none of its own."""
        return self.interval and (self.interval[0] - self.published, self.interval[1] - self.published)


@dataclass(frozen=True)
class Differing:
    """Something of the set-up, in the paper and here."""

    what: str
    paper: str
    here: str


@dataclass(frozen=True)
class Compared:
    """The numbers of a paper's table at a point of the grid.

    Attributes:
        title: Paper and table, and the point of the grid.
        lines: The numbers, averages first within a method.
        differs: What differs in the set-up, as far as the file tells what the paper's was.
        note: What else differs.
    """

    title: str
    lines: tuple[Beside, ...]
    differs: tuple[Differing, ...]
    note: str

    @property
    def gaps(self) -> tuple[str, ...]:
        """The footnotes of what was not measured for want of rows."""
        return footnotes(self._lacking)

    def gap(self, line: Beside) -> str:
        """What stands for a number that was not measured."""
        return gap(line.lacks, self._lacking)

    @property
    def _lacking(self) -> list[str]:
        return [line.lacks for line in self.lines if line.lacks]


def beside_papers(run: RunFolder) -> list[Compared]:
    """Every entry of `published` in the run's experiment, with what the run has measured.

    Raises:
        UserError: an entry names a method of which there are several; predictions cannot be read.
    """
    if not run.experiment.published:
        return []
    points = {task_at(Path(one.task.task).stem, one.grid): one.experiment for one in run.experiment.points()}
    return [_compared(run, points, entry, index) for index, entry in enumerate(run.experiment.published)]


def find_method(name: str, known: Iterable[tuple[str, str]], where: str) -> tuple[str, str] | None:
    """The method and variant that a name means: `adamergex delta`, or `adamergex` where there is but one of it.

    Raises:
        UserError: there are several.
    """
    there = list(dict.fromkeys(known))
    for method, variant in there:
        if f"{method} {variant}".strip() == name:
            return method, variant
    found = [pair for pair in there if pair[0] == name]
    if len(found) > 1:
        names = ", ".join(" ".join(pair) for pair in found)
        raise UserError(where, f"{name} is several rows of the table", names, "name one of them")
    return found[0] if found else None


def check_published(experiment: Experiment, cells: Sequence[tuple[str, str, str]]) -> None:
    """Check that every published number has a method in the run.

    Args:
        experiment: The settings.
        cells: Task (named with its point of the grid), method and variant of every cell.

    Raises:
        UserError: names the key.
    """
    for index, entry in enumerate(experiment.published):
        for task, of_task in entry.scores.items():
            there = [cell[1:] for cell in cells if cell[0] == task_at(task, entry.grid)]
            for name in of_task:
                where = f"published.{index}.scores.{task}.{name}"
                if find_method(name, there, where) is None:
                    known = {" ".join(pair).strip() for pair in there}
                    raise UserError(where, "is no row of the table", mend=did_you_mean(name, known))


def _compared(run: RunFolder, points: Mapping[str, Experiment], entry: Published, index: int) -> Compared:
    lines: list[Beside] = []
    differs = _settings(run.experiment, entry)
    for task, of_task in entry.scores.items():
        shown = task_at(task, entry.grid)
        mine = [row for row in run.rows if row["task"] == shown]
        metric = entry.metric or (mine[0]["metric"] if mine else "")
        mine = [row for row in mine if row["metric"] == metric]
        for name, scores in of_task.items():
            where = f"published.{index}.scores.{task}.{name}"
            names = find_method(name, ((row["method"], row["variant"]) for row in mine), where)
            rows = [row for row in mine if (row["method"], row["variant"]) == names]
            columns = _columns(entry, points[shown], scores)
            lines += _lines(run, rows, task, " ".join(names).strip() if names else name, columns)
        differs += _differing(entry, points[shown], mine, task)
    point = f" ({grid_name(entry.grid)})" if entry.grid else ""
    return Compared(f"{entry.paper}, table {entry.table}{point}", tuple(lines), tuple(differs), entry.note)


@dataclass(frozen=True)
class _Column:
    """A column of a paper's table: what it is called here, the languages of ours that it means, and its number."""

    shown: str
    languages: tuple[str, ...]
    average: bool
    published: float


def _columns(entry: Published, asked: Experiment, scores: Mapping[str, float]) -> list[_Column]:
    """Averages first; those that contain the tuning language say so."""
    targets, tuned = asked.languages.targets, asked.weights.tune_on
    average = entry.averaged if entry.averaged and set(entry.averaged) <= set(targets) else targets
    sets = {"average": average, **asked.languages.groups}
    return [
        _Column(f"{name} with {tuned}*" if tuned in sets[name] else name, sets[name], True, scores[name])
        for name in sets
        if name in scores
    ] + [_Column(code, (code,), False, score) for code, score in scores.items() if code not in sets]


def _lines(
    run: RunFolder, rows: Sequence[Row], task: str, method: str, columns: Sequence[_Column]
) -> Iterator[Beside]:
    answers = {row["predictions"]: run.answers(row) for row in rows}
    spoken = [{**row, "answer_language": row["answer_language"] or row["language"]} for row in rows]
    places = {one.shown: one.languages for one in columns}
    told = rows and all(answers.values())
    spread = intervals(spoken, lambda row: answers[row["predictions"]] or [], places) if told else {}
    lacking = _lacking(run, rows)
    for one in columns:
        means = list(seed_averages(rows, one.languages).values())
        measured = statistics.fmean(means) if means else None
        ends = spread[one.shown][1:] if one.shown in spread else None
        reasons = dict.fromkeys(lacking[code] for code in one.languages if code in lacking)
        lacks = "; ".join(reasons) or None
        yield Beside(task, method, one.shown, one.average, one.published, measured, ends, lacks)


def _lacking(run: RunFolder, rows: Sequence[Row]) -> dict[str, str]:
    """Language -> which rows are not there, of the empty cells of the rows' method."""
    names = {(row["task"], method_name(row)) for row in rows}
    return {one["language"]: one["reason"] for one in run.empty if (one["task"], method_name(one)) in names}


def _settings(experiment: Experiment, entry: Published) -> list[Differing]:
    """Keys of the file whose value in the paper is another."""
    asked = experiment.at(entry.grid)
    found = {key: (_plain(paper), _plain(value_at(asked, key))) for key, paper in entry.setup.items()}
    return [
        Differing(key, _shown(paper), _shown(here)) for key, (paper, here) in found.items() if paper != here
    ]


def _differing(entry: Published, asked: Experiment, rows: Sequence[Row], task: str) -> list[Differing]:
    """What differs in a task beside the settings: the languages of the average, and the number of test rows."""
    found = []
    averages = any("average" in scores for scores in entry.scores[task].values())
    if averages and entry.averaged and not set(entry.averaged) <= set(asked.languages.targets):
        here = ", ".join(asked.languages.targets)
        found.append(Differing(f"{task}: languages of the average", ", ".join(entry.averaged), here))
    sizes = sorted({row["n"] for row in rows})
    if entry.rows and sizes and sizes != [entry.rows]:
        here = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
        found.append(Differing(f"{task}: test rows per language", f"{entry.rows:,}", here))
    return found


def _plain(value: Any) -> Any:
    """A value as far as it matters whether two are the same."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown_beside(found: Iterable[Compared]) -> list[str]:
    """The same as Markdown: for each table of a paper a title, the numbers, and what differs."""
    parts = []
    for one in found:
        parts.append(f"**{in_markdown(one.title)}**: percent as published and as measured here")
        body = [
            [
                in_markdown(line.task),
                in_markdown(line.method),
                in_markdown(line.where),
                _NUMBER(line.published),
                one.gap(line) if line.measured is None else _NUMBER(line.measured),
                _with_interval(line),
            ]
            for line in one.lines
        ]
        parts.append(grid_of(["task", "method", "language", "published", "measured", "difference"], body))
        parts += [in_markdown(text) for text in (*one.gaps, *in_sentences(one))]
    return parts


def in_sentences(one: Compared) -> list[str]:
    """What differs in the set-up, and what is not told."""
    told = [f"{each.what}: {each.paper} in the paper and {each.here} here" for each in one.differs]
    found = [f"What differs in the set-up: {'; '.join(told)}."] if told else []
    return [*found, one.note] if one.note else found


def _with_interval(line: Beside) -> str:
    if line.difference is None:
        return "–"
    ends = f" [{signed(line.ends[0])}, {signed(line.ends[1])}]" if line.ends else ""
    return f"{signed(line.difference)}{ends}"
