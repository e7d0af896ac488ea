"""Tables and plain words from the rows of `results.json`, which is all they need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """What the table shows beside the rows.

    Attributes:
        source: The source language.
        targets: Target languages, in order.
        tuned_on: The language that weights were tuned on, left out of every average.
        groups: Name -> target languages with an average of their own.
    """

    source: str
    targets: tuple[str, ...]
    tuned_on: str | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def averages(self) -> dict[str, tuple[str, ...]]:
        """Name of an average -> the languages in it, never the one that weights were tuned on."""
        sets = {"average": self.targets, **self.groups}
        kept = {
            name: tuple(code for code in members if code != self.tuned_on) for name, members in sets.items()
        }
        return {name: members for name, members in kept.items() if members}


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
        weights: The merge weights of the seeds.
        malformed: Malformed answers over all languages and seeds.
    """

    method: str
    cells: dict[str, Mean]
    weights: tuple[float, ...]
    malformed: int


@dataclass(frozen=True)
class Table:
    """One task's scores.

    Attributes:
        task: Its name.
        metric: Its first metric.
        chance: What guessing scores, in percent, averaged over languages.
        n: Test items per language, as a range if languages differ.
        columns: Languages, then averages.
        lines: One per method and variant.
    """

    task: str
    metric: str
    chance: float
    n: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


def tables(rows: Sequence[Row], layout: Layout) -> list[Table]:
    """One table per task, by the task's first metric, methods in the order of the rows."""
    return [_table(task, rows, layout) for task in dict.fromkeys(row["task"] for row in rows)]


def first_metric(rows: Iterable[Row], task: str) -> list[Row]:
    """The rows of a task's first metric."""
    mine = [row for row in rows if row["task"] == task]
    return [row for row in mine if row["metric"] == mine[0]["metric"]]


def method_name(row: Row) -> str:
    """Method and variant, as shown."""
    return f"{row['method']} {row['variant']}".strip()


def _table(task: str, rows: Sequence[Row], layout: Layout) -> Table:
    mine = first_metric(rows, task)
    lines = tuple(
        _line(name, [row for row in mine if method_name(row) == name], layout)
        for name in dict.fromkeys(map(method_name, mine))
    )
    shown = {column for line in lines for column in line.cells}
    columns = tuple(name for name in (layout.source, *layout.targets, *layout.averages()) if name in shown)
    sizes = sorted({row["n"] for row in mine})
    return Table(
        task,
        mine[0]["metric"],
        statistics.fmean(row["chance"] for row in mine),
        str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}",
        columns,
        lines,
    )


def _line(name: str, rows: Sequence[Row], layout: Layout) -> Line:
    cells: dict[str, Mean] = {}
    for language in (layout.source, *layout.targets):
        scores = [row["score"] for row in rows if row["language"] == language]
        if scores:
            cells[language] = Mean.of(scores)
    for average, members in layout.averages().items():
        scores = list(seed_averages(rows, members).values())
        if scores:
            cells[average] = Mean.of(scores)
    weights = tuple(sorted({row["weight"] for row in rows if row["weight"] is not None}))
    return Line(name, cells, weights, sum(row["malformed"] for row in rows))


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
class Comparison:
    """A method against `source-ft` on an average of languages, seed by seed.

    Attributes:
        task: Task.
        method: Method and variant.
        average: Name of the average.
        gain: Mean difference over seeds, in percent points.
        stderr: Standard error of that mean; NaN for a single seed.
        seeds: How many.
    """

    task: str
    method: str
    average: str
    gain: float
    stderr: float
    seeds: int

    @property
    def verdict(self) -> str:
        """Above, below or level with, by two standard errors."""
        if math.isnan(self.stderr):
            return "not told from one seed"
        if abs(self.gain) <= 2 * self.stderr:
            return "level with"
        return "above" if self.gain > 0 else "below"


def compare(rows: Sequence[Row], layout: Layout, baseline: str = "source-ft") -> list[Comparison]:
    """Every other method against the baseline, per task and average, paired by seed."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = first_metric(rows, task)
        for average, members in layout.averages().items():
            base = seed_averages([row for row in mine if method_name(row) == baseline], members)
            for name in dict.fromkeys(map(method_name, mine)):
                theirs = seed_averages([row for row in mine if method_name(row) == name], members)
                gains = [theirs[seed] - base[seed] for seed in base if seed in theirs]
                if name != baseline and gains:
                    stderr = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
                    found.append(Comparison(task, name, average, statistics.fmean(gains), stderr, len(gains)))
    return found


def in_words(rows: Sequence[Row], layout: Layout) -> str:
    """One paragraph that says what the tables mean, from the numbers alone."""
    comparisons = compare(rows, layout)
    if not comparisons:
        methods = {row["method"] for row in rows}
        if "source-ft" not in methods:
            return "Nothing to compare: `source-ft` is not among the methods."
        if not layout.averages():
            return "Nothing to compare: no language is left but the one that weights were tuned on."
        return "Nothing to compare: no other method has the seeds and languages of `source-ft`."
    average = next(reversed(layout.averages()))  # the last named group, where there is one
    where = "the target languages" if average == "average" else f"the {average} languages"
    members = ", ".join(layout.averages()[average])
    sentences = []
    for table in tables(rows, layout):
        mine = [found for found in comparisons if (found.task, found.average) == (table.task, average)]
        base = next(line for line in table.lines if line.method == "source-ft").cells[average]
        sentences.append(f"{table.task}: over {where} ({members}), source-ft scores {base}.")
        sentences += _verdicts([found for found in mine if found.method.split()[0] not in _BOUNDS])
        sentences += [
            f"Labels in the target language would give {found.gain:+.1f}."
            for found in mine
            if found.method == "target-ft"
        ]
    seeds = max(found.seeds for found in comparisons)
    sentences.append(
        f"Numbers are points and means over {seeds} seed{'s' * (seeds > 1)} of adapters on one backbone, ± is the "
        "standard error of the difference; within two of them, methods count as level."
    )
    return " ".join(sentences)


_BOUNDS = ("vanilla", "target-ft")  # what no method is meant to beat


def _verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each verdict that some method got."""
    told = []
    for verdict, opening in _OPENINGS.items():
        names = [
            f"{found.method} ({found.gain:+.1f}"
            + ("" if math.isnan(found.stderr) else f" ± {found.stderr:.1f}")
            + ")"
            for found in comparisons
            if found.verdict == verdict
        ]
        if names or (verdict == "above" and not any(math.isnan(found.stderr) for found in comparisons)):
            told.append(f"{opening}: {', '.join(names) or 'no method'}.")
    return told


_OPENINGS = {
    "above": "Above it",
    "level with": "Level with it",
    "below": "Below it",
    "not told from one seed": "Too few seeds to tell",
}


def to_markdown(rows: Sequence[Row], layout: Layout) -> str:
    """The tables and the paragraph as Markdown."""
    parts = []
    for table in tables(rows, layout):
        head = ["method", *table.columns, "weight", "malformed"]
        body = [
            [
                line.method,
                *(str(line.cells.get(column, "–")) for column in table.columns),
                _weights(line),
                str(line.malformed),
            ]
            for line in table.lines
        ]
        widths = [max(len(row[index]) for row in [head, *body]) for index in range(len(head))]
        parts.append(caption(table, layout))
        parts.append(
            "\n".join(_cells(row, widths) for row in [head, ["-" * width for width in widths], *body])
        )
    return "\n\n".join([*parts, in_words(rows, layout)]) + "\n"


def caption(table: Table, layout: Layout) -> str:
    """One line above a table: task, metric, n, chance level, and what the averages leave out."""
    text = (
        f"**{table.task}**: {table.metric} in percent, n = {table.n} per language, chance {table.chance:.1f}"
    )
    return text + (
        f"; weights tuned on {layout.tuned_on}, which no average contains" if layout.tuned_on else ""
    )


def _weights(line: Line) -> str:
    return " ".join(f"{weight:g}" for weight in line.weights) or "–"


def _cells(row: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
