"""The page's tables of scores, and its chart of gains: a cell for each method in each language and average."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lingualift.metrics.comparisons import Comparison
from lingualift.report.figures import Whisker, whisker
from lingualift.report.tables import (
    BOUNDS,
    Layouts,
    Mean,
    Row,
    Table,
    all_tables,
    caption,
    merge_weights,
    tables,
)

STEPS = (1.0, 3.0, 10.0)  # percent points at which a gain's colour deepens
_SIDE_BY_SIDE = 6  # methods that stand side by side; more are one below the other
ROLES = {
    "vanilla": "untrained",
    "xlt": "another prompt",
    "source-ft": "source labels",
    "reference-only": "text alone",
    "arithmetic": "merged",
    "adamergex": "merged",
    "ties": "merged",
    "dare": "merged",
    "layer-swap": "merged by blocks",
    "target-ft": "target labels: upper bound",
    "translate-test": "reads the translation",
    "translate-train": "translated rows",
    "input-fusion": "reads both in one prompt",
    "x-mixup": "reads both, mixed",
    "flare": "reads both, fused",
    "flare-mt": "a translation model reads too",
}


@dataclass(frozen=True)
class Head:
    """A method at the head of its cells: name, variant, merge weights, and what it is in a word."""

    method: str
    variant: str
    weights: str
    role: str


@dataclass(frozen=True)
class Place:
    """A language or an average: its name, what is said of it, and the languages of an average."""

    name: str
    note: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A method in a place; `comparison` is None for `source-ft` and where there is none.

    Where there is no `score`, `gap` is shown.
    """

    method: str
    variant: str
    where: str
    score: Mean | None
    comparison: Comparison | None
    gap: str

    @property
    def tone(self) -> str:
        """CSS classes: direction and size of the gain, and `level` where its interval holds 0; bounds have none."""
        if self.comparison is None or self.method in BOUNDS:
            return ""
        size = 1 + sum(abs(self.comparison.gain) >= step for step in STEPS)
        side = _side(self.comparison)
        return f"{side}{size if side != 'same' else ''}" + (" level" if _is_level(self.comparison) else "")


def _side(comparison: Comparison) -> str:
    return "up" if comparison.gain > 0 else "down" if comparison.gain < 0 else "same"


def _is_level(comparison: Comparison) -> bool:
    return comparison.verdict == "level with"


@dataclass(frozen=True)
class Scores:
    """A task's table by one metric.

    Attributes:
        table: The numbers.
        caption: What stands above it.
        methods: Its methods.
        places: Languages, then averages.
        cells: A method's cells, in the order of the places.
        turned: Whether methods stand one below the other, as they do where there are many.
    """

    table: Table
    caption: str
    methods: tuple[Head, ...]
    places: tuple[Place, ...]
    cells: tuple[tuple[Cell, ...], ...]

    @property
    def turned(self) -> bool:
        """Whether methods stand one below the other, as they do where there are many."""
        return len(self.methods) > _SIDE_BY_SIDE


def score_tables(
    rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts
) -> list[tuple[Scores, list[Scores]]]:
    """Per task, its first metric's table and the further ones."""
    found = [_scores(comparisons, table) for table in all_tables(rows, layouts)]
    grouped = [list(group) for _, group in itertools.groupby(found, lambda one: one.table.task)]
    return [(group[0], group[1:]) for group in grouped]


def _scores(comparisons: Sequence[Comparison], table: Table) -> Scores:
    names = {line.method: line.names for line in table.lines}
    found = _by_place(comparisons, table)
    heads = tuple(
        Head(*names[line.method], merge_weights(line.weights), ROLES.get(names[line.method][0], ""))
        for line in table.lines
    )
    cells = tuple(
        tuple(
            Cell(
                head.method,
                head.variant,
                where,
                line.cells.get(where),
                found.get((*names[line.method], where)),
                table.gap(line.method, where),
            )
            for where in table.columns
        )
        for head, line in zip(heads, table.lines, strict=True)
    )
    return Scores(table, caption(table), heads, tuple(_place(table, where) for where in table.columns), cells)


def _by_place(comparisons: Sequence[Comparison], table: Table) -> Mapping[tuple[str, str, str], Comparison]:
    mine = [one for one in comparisons if (one.task, one.metric) == table.name]
    return {(one.method, one.variant, one.where): one for one in mine}


def _place(table: Table, where: str) -> Place:
    layout = table.layout
    if where in layout.papers:
        return Place(where, "for papers: in no comparison", layout.papers[where])
    if where in layout.averages:
        return Place(where, "", layout.averages[where])
    return Place(where, {layout.source: "source", layout.tuned_on: "λ chosen here"}.get(where, ""))


@dataclass(frozen=True)
class Gain:
    """A method's gain in a place as a dot between the ends of its interval; `tone` as a cell has it, without size."""

    comparison: Comparison
    tone: str
    drawn: Whisker


@dataclass(frozen=True)
class Gains:
    """A task's chart.

    Attributes:
        task: The task.
        places: The averages that are compared, then the languages, as far as a method is under test there.
        ticks: Percent points at which the scale is marked: its ends, and 0.
        marks: Where they are, in percent of a cell's width.
        lines: Method, variant and gains in the order of the places, or what is shown where there is none; the largest
            gain first, and last the methods that lack the first place.
        notes: The footnotes of empty cells that the lines show.
    """

    task: str
    places: tuple[Place, ...]
    ticks: tuple[float, float, float]
    marks: tuple[float, float, float]
    lines: tuple[tuple[str, str, tuple[Gain | str, ...]], ...]
    notes: tuple[str, ...]


def gain_charts(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts) -> list[Gains]:
    """Each task's gains over `source-ft` by its first metric; none where nothing is compared."""
    charts = [_gains(comparisons, table) for table in tables(rows, layouts)]
    return [chart for chart in charts if chart.lines]


def _gains(comparisons: Sequence[Comparison], table: Table) -> Gains:
    found = _by_place(comparisons, table)
    averages = [where for where in table.columns if where in table.layout.averages]
    languages = [where for where in table.columns if where not in table.layout.means]
    tested = [one for one in found.values() if one.method not in BOUNDS] or list(found.values())
    places = [where for where in (*averages, *languages) if where in {one.where for one in tested}]
    low, high = _scale(tested)
    lines = []
    for method, variant in dict.fromkeys((one.method, one.variant) for one in found.values()):
        gains = [
            Gain(one, _tone(one), whisker(one.gain, one.low, one.high, low, high))
            if (one := found.get((method, variant, where)))
            else table.gap(f"{method} {variant}".strip(), where)
            for where in places
        ]
        lines.append((method, variant, tuple(gains)))
    lines.sort(key=_order)
    ticks = (low, 0.0, high)
    marks = tuple(whisker(tick, tick, tick, low, high).at for tick in ticks)
    heads, shown = tuple(_place(table, where) for where in places), tuple(lines)
    return Gains(table.task, heads, ticks, marks, shown, _notes(table, shown))  # type: ignore[arg-type]


def _notes(table: Table, lines: Sequence[tuple[str, str, tuple[Gain | str, ...]]]) -> tuple[str, ...]:
    """The footnotes whose numbers stand in the lines."""
    shown = {gain for line in lines for gain in line[2] if isinstance(gain, str)}
    return tuple(note for note in table.notes if f"–{note.split()[0]}" in shown)


def _order(line: tuple[str, str, tuple[Gain | str, ...]]) -> tuple[bool, float]:
    """The place of a line in the chart: by the gain in the first place, or else below, by the first that there is."""
    gains = [gain for gain in line[2] if isinstance(gain, Gain)]
    return gains[:1] != list(line[2][:1]), -gains[0].comparison.gain if gains else math.inf


def _tone(comparison: Comparison) -> str:
    return "level" if _is_level(comparison) else _side(comparison)


def _scale(tested: Sequence[Comparison]) -> tuple[float, float]:
    """Percent points that hold 0 and every interval of a method under test; bounds may lie beyond."""
    low = min([-1.0, *(one.low for one in tested)])
    high = max([1.0, *(one.high for one in tested)])
    step = 10 ** math.floor(math.log10(high - low)) / 2
    return step * math.floor(low / step), step * math.ceil(high / step)
