"""Tables and plain words from the rows of `results.json`, which is all they need."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingualift.config import Experiment
from lingualift.metrics.comparisons import BASELINE, Comparison, with_rows
from lingualift.runs.folder import task_at

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What a task's table shows beside the rows.

    Attributes:
        source: The source language.
        targets: Target languages, in order.
        tuned_on: The language that weights were tuned on, left out of every average that is compared.
        averages: Name -> the target languages in it.
        papers: Name -> the target languages in an average that contains `tuned_on`, as those of papers do.
        empty: Method (as shown) and language of the cells that lack rows -> which rows are not there.
    """

    source: str
    targets: tuple[str, ...]
    tuned_on: str | None = None
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    papers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    empty: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, empty: Iterable[Row] = ()) -> dict[str, Layout]:
        """Task, with its point of the grid -> columns and averages of its tables.

        Args:
            experiment: What was asked.
            empty: The cells that lack rows, their task with its point of the grid.
        """
        lacking = list(empty)
        found = {}
        for point in experiment.points():
            asked = point.experiment
            name = task_at(Path(point.task.task).stem, point.grid)
            languages, tuned = asked.languages, asked.weights.tune_on
            averages, sets = asked.averages(), {"average": languages.targets, **languages.groups}
            papers = {
                f"{each} with {tuned}*": members
                for each, members in sets.items()
                if tuned in members and each in averages
            }
            gaps = {
                (method_name(one), one["language"]): one["reason"] for one in lacking if one["task"] == name
            }
            found[name] = cls(languages.source, languages.targets, tuned, averages, papers, gaps)
        return found

    @property
    def means(self) -> dict[str, tuple[str, ...]]:
        """Every average of a table: those that are compared, and after them those that contain the tuning language."""
        return {**self.averages, **self.papers}

    def over(self, rows: Sequence[Row]) -> Layout:
        """The layout whose averages are over those of their languages that a row is in.

        An average for papers stays as long as it has the tuning language and another one.
        """
        papers = {
            name: members
            for name, members in with_rows(self.papers, rows).items()
            if self.tuned_on in members and len(members) > 1
        }
        return replace(self, averages=with_rows(self.averages, rows), papers=papers)


Layouts = Mapping[str, Layout]


@dataclass(frozen=True)
class Mean:
    """Scores over seeds.

    Attributes:
        mean: Their mean, in percent.
        deviation: Their standard deviation; None for a single seed.
        seeds: How many.
    """

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


@dataclass(frozen=True)
class Line:
    """A method's line in the table of one task.

    Attributes:
        method: Method and variant.
        cells: Column (language or average) -> mean over seeds.
        weights: The merge weights of the seeds, each as one or as those of the thirds of the blocks.
        malformed: Malformed answers over all languages and seeds.
        others: Reading that was not chosen -> what its score is on average over the line's languages, and how many
            answers are malformed by it; empty where no answer is read off a generated text.
    """

    method: str
    cells: dict[str, Mean]
    weights: tuple[tuple[float, ...], ...]
    malformed: int
    others: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        """Method and variant, apart."""
        method, _, variant = self.method.partition(" ")
        return method, variant

    @property
    def unread(self) -> str:
        """Malformed answers as shown: `12 (lenient 3)` where another reading can read more or fewer; `–` of none."""
        if not self.cells:
            return "–"
        further = [f"{name} {count}" for name, (_, count) in self.others.items() if count != self.malformed]
        return f"{self.malformed} ({', '.join(further)})" if further else str(self.malformed)


@dataclass(frozen=True)
class Table:
    """One task's scores.

    Attributes:
        task: Its name.
        metric: Its first metric.
        chance: What guessing scores, in percent, averaged over languages.
        n: Test items per language, as a range if languages differ.
        columns: Languages, then averages.
        lines: One per method and variant; of those whose cells are all empty, after the others.
        layout: What it shows beside the rows.
    """

    task: str
    metric: str
    chance: float
    n: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    layout: Layout

    @property
    def name(self) -> tuple[str, str]:
        """Task and metric."""
        return self.task, self.metric

    def without_papers(self) -> Table:
        """The table without the averages that contain the tuning language."""
        columns = tuple(name for name in self.columns if name not in self.layout.papers)
        return replace(self, columns=columns, layout=replace(self.layout, papers={}))

    @property
    def notes(self) -> tuple[str, ...]:
        """The footnotes of empty cells: the number that `gap` shows, and which rows are not there."""
        return footnotes(self.layout.empty.values())

    def gap(self, method: str, column: str) -> str:
        """What stands in a cell without a score, with the number of its footnote where it lacks rows."""
        return gap(self.layout.empty.get((method, column)), self.layout.empty.values())


def footnotes(reasons: Iterable[str]) -> tuple[str, ...]:
    """Reasons, each once, behind the numbers that `gap` shows."""
    return tuple(f"{_raised(number)} {reason}" for number, reason in enumerate(dict.fromkeys(reasons), 1))


def gap(reason: str | None, reasons: Iterable[str]) -> str:
    """What stands for a number that is not there, with the number of its reason among the reasons."""
    return "–" if reason is None else f"–{_raised(list(dict.fromkeys(reasons)).index(reason) + 1)}"


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def tables(rows: Sequence[Row], layouts: Layouts) -> list[Table]:
    """One table per task, by the task's first metric, methods in the order of the rows."""
    first = {row["task"]: row["metric"] for row in reversed(rows)}
    return [found for found in all_tables(rows, layouts) if found.metric == first[found.task]]


def all_tables(rows: Sequence[Row], layouts: Layouts) -> list[Table]:
    """One table per task and metric, a task's first metric first."""
    names = dict.fromkeys((row["task"], row["metric"]) for row in rows)
    return [_table(*name, rows, layouts[name[0]]) for name in names]


def method_name(row: Row) -> str:
    """Method and variant, as shown."""
    return f"{row['method']} {row['variant']}".strip()


def _table(task: str, metric: str, rows: Sequence[Row], layout: Layout) -> Table:
    mine = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    layout = layout.over(mine)
    lines = tuple(
        _line(name, [row for row in mine if method_name(row) == name], layout)
        for name in dict.fromkeys([*map(method_name, mine), *(method for method, _ in layout.empty)])
    )
    shown = {column for line in lines for column in line.cells} | {code for _, code in layout.empty}
    columns = tuple(name for name in (layout.source, *layout.targets, *layout.means) if name in shown)
    sizes = sorted({row["n"] for row in mine})
    return Table(
        task,
        metric,
        statistics.fmean(row["chance"] for row in mine),
        str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}",
        columns,
        lines,
        layout,
    )


def _line(name: str, rows: Sequence[Row], layout: Layout) -> Line:
    cells: dict[str, Mean] = {}
    for language in (layout.source, *layout.targets):
        scores = [row["score"] for row in rows if row["language"] == language]
        if scores:
            cells[language] = Mean.of(scores)
    for average, members in layout.means.items():
        scores = list(seed_averages(rows, members).values())
        if scores:
            cells[average] = Mean.of(scores)
    weights = tuple(sorted({merge_weight(row) for row in rows if row["weight"] is not None}))
    return Line(name, cells, weights, sum(row["malformed"] for row in rows), dict(_others(rows)))


def _others(rows: Sequence[Row]) -> Iterator[tuple[str, tuple[float, int]]]:
    """As `Line.others`, of the rows of a line."""
    for reading in (rows[0].get("readings") if rows else None) or ():
        if reading != rows[0]["reading"]:
            read = [row["readings"][reading] for row in rows]
            score = statistics.fmean(one["score"] for one in read)
            yield reading, (score, sum(one["malformed"] for one in read))


def other_readings(table: Table) -> list[str]:
    """What another reading of the generated answers scores, a sentence each; none where it reads the same."""
    found: dict[str, list[str]] = {}
    for line in table.lines:
        for reading, (score, count) in line.others.items():
            if count != line.malformed:
                found.setdefault(reading, []).append(f"{line.method} {score:.1f} ({count} malformed)")
    return [
        f"By the {reading} reading, on average over all languages of a line: {', '.join(told)}."
        for reading, told in found.items()
    ]


def seed_averages(rows: Iterable[Row], languages: Sequence[str]) -> dict[Any, float]:
    """Seed -> mean score over the languages, for seeds that have all of them."""
    by_seed: dict[Any, dict[str, float]] = {}
    for row in rows:
        if row["language"] in languages:
            by_seed.setdefault(row["seed"], {})[row["language"]] = row["score"]
    return {
        seed: statistics.fmean(found.values())
        for seed, found in by_seed.items()
        if len(found) == len(languages)
    }


@dataclass(frozen=True)
class Finding:
    """What the comparisons say about one task.

    Attributes:
        task: The task.
        headline: One sentence: what is clearly above `source-ft`.
        rest: The other sentences: what does not differ clearly or is below, and what labels would give.
    """

    task: str
    headline: str
    rest: str


def findings(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts) -> list[Finding]:
    """What each task's first metric says over the last named group of languages; empty without comparisons there."""
    found = []
    for table in tables(rows, layouts):
        averages = table.layout.averages
        if not averages:
            continue
        average = list(averages)[-1]  # the last named group, where there is one
        where = "the target languages" if average == "average" else f"the {average} languages"
        members = ", ".join(averages[average])
        mine = [one for one in comparisons if (one.task, one.metric, one.where) == (*table.name, average)]
        base = next((line.cells.get(average) for line in table.lines if line.method == BASELINE), None)
        if not mine or base is None:
            continue
        told = {
            verdict: ", ".join(
                f"{method_name(vars(one))} ({interval(one)})"
                for one in mine
                if one.verdict == verdict and one.method not in BOUNDS
            )
            for verdict in ("above", "level with", "below")
        }
        who = "" if told["above"] else "no method is "
        names = f": {told['above']}" if told["above"] else ""
        headline = f"{who}clearly above {BASELINE} ({base.mean:.1f}) over {where} ({members}){names}."
        openings = {"level with": "No clear difference", "below": "Clearly below"}
        rest = [f"{opening}: {told[verdict]}." for verdict, opening in openings.items() if told[verdict]]
        parted = [line.method for line in table.lines if average not in line.cells]
        rest += [f"Not compared, for want of rows: {', '.join(parted)}."] if parted else []
        rest += [
            f"Labels in the target language: {signed(one.gain)} (upper bound)."
            for one in mine
            if one.method == "target-ft"
        ]
        found.append(Finding(table.task, headline, " ".join(rest)))
    return found


BOUNDS = ("vanilla", "target-ft")  # what no method is meant to beat


def interval(comparison: Comparison) -> str:
    """Gain and interval, as shown: `+1.2 [-0.3, +2.7]`."""
    return f"{signed(comparison.gain)} [{signed(comparison.low)}, {signed(comparison.high)}]"


def signed(value: float) -> str:
    """A difference in points with its sign, to a tenth; nought has none."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def how_compared(comparisons: Sequence[Comparison]) -> str:
    """What the numbers of the findings mean."""
    seeds = max(one.seeds for one in comparisons)
    drawn = "test items and seeds" if seeds > 1 else "test items"
    caveat = (
        ""
        if seeds > 1
        else "; one seed cannot tell how much training varies, so the intervals leave that out"
    )
    return (
        f"Numbers are points and means over {seeds} seed{'s' * (seeds > 1)} of adapters on one backbone; brackets hold "
        f"the 95% interval of the difference, by paired bootstrap over {drawn}; where it holds 0, the difference "
        f"is not clear{caveat}."
    )


def in_words(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts) -> str:
    """What the tables mean, from the numbers alone: a paragraph per task, and one on how they were compared."""
    found = findings(rows, comparisons, layouts)
    if found:
        told = [f"{one.task}: {one.headline} {one.rest}".strip() for one in found]
        return "\n\n".join([*told, how_compared(comparisons)])
    if all(row["method"] != BASELINE for row in rows):
        return f"Nothing to compare: `{BASELINE}` is not among the methods."
    if not any(layout.averages for layout in layouts.values()):
        return "Nothing to compare: no language is left but the one that λ was chosen on."
    return f"Nothing to compare: no other method has the seeds and languages of `{BASELINE}`."


def caption(table: Table) -> str:
    """What stands above a task's table: metric, n, chance level, and what the averages leave out."""
    text = f"{table.metric} in percent, n = {table.n} per language, chance {table.chance:.1f}"
    tuned = table.layout.tuned_on
    if not tuned:
        return text
    but = f" but those “with {tuned}*”, for papers" if table.layout.papers else ""
    return f"{text}; λ chosen on {tuned} (*), which no average contains{but}"


def merge_weight(row: Row, key: str = "weight", by_block: str = "weight_by_block") -> tuple[float, ...]:
    """The merge weight of a row, or those of its thirds of the blocks."""
    return tuple(row.get(by_block, {}).values()) or (row[key],)


def merge_weights(weights: Sequence[tuple[float, ...]]) -> str:
    """The distinct merge weights of the seeds, or their ends where there are many; those of thirds with slashes."""
    shown = ["/".join(f"{part:g}" for part in weight) for weight in sorted(set(weights))]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]} to {shown[-1]}"
