"""Small line plots as geometry: what the page's template draws as SVG, in the colours of the reader's theme."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Point = tuple[float, float]
WIDTH, HEIGHT = 210, 132  # of a plot, in CSS pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 20


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A measured point: where it is drawn, what was measured, and whether it was chosen."""

    x: float
    y: float
    value: Point
    chosen: bool


@dataclass(frozen=True)
class Plot:
    """A plot in pixels, the origin in the upper left corner.

    Attributes:
        label: What a screen reader says.
        lines: SVG paths, one per series.
        mean: Path of the mean over series, "" for a single one.
        band: Closed path around the mean, "" without errors.
        dots: Every measured point.
        x_ticks: Ticks of the horizontal axis.
        y_ticks: Ticks of the vertical axis.
        names: What the series are, one word each, where they are drawn in styles of their own; else empty.
        marks: Which points are drawn as dots: the style of each, and where it is.
    """

    label: str
    lines: tuple[str, ...]
    mean: str
    band: str
    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    names: tuple[str, ...] = ()
    marks: tuple[tuple[str, Dot], ...] = ()
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def line_plot(
    series: Sequence[Sequence[Point]],
    label: str,
    *,
    within: tuple[float, float],
    errors: Sequence[float] | None = None,
    chosen: Sequence[float | None] = (),
    names: Sequence[str] = (),
) -> Plot:
    """Draw series over a common horizontal axis.

    Args:
        series: One per seed, or per name, each with at least one point.
        label: What a screen reader says.
        within: Lowest and highest value that the vertical axis must hold.
        errors: Half the height of a band around the mean, at each point of the first series.
        chosen: The x of each series that was chosen, None for none.
        names: What the series are where they are not seeds of one: they have no mean then, and whole numbers for x.
    """
    xs = [x for points in series for x, _ in points]
    x_low, x_high = min(xs), max(xs)
    ticks = nice_ticks(*within)
    low, high = ticks[0], ticks[-1]

    def place(point: Point) -> Point:
        across = (point[0] - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (min(max(point[1], low), high) - low) / (high - low)
        return (
            round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _BOTTOM - _TOP), 1),
        )

    mean = _mean(series)
    band = ""
    if errors and len(errors) == len(mean):
        upper = [(x, y + error) for (x, y), error in zip(mean, errors, strict=True)]
        lower = [(x, y - error) for (x, y), error in zip(mean, errors, strict=True)]
        band = _path([place(point) for point in [*upper, *reversed(lower)]]) + " Z"
    picks = [*chosen, *[None] * (len(series) - len(chosen))]
    return Plot(
        label,
        tuple(_path([place(point) for point in points]) for points in series),
        _path([place(point) for point in mean]) if len(series) > 1 and mean and not names else "",
        band,
        tuple(
            Dot(*place(point), point, point[0] == pick)
            for points, pick in zip(series, picks, strict=True)
            for point in points
        ),
        tuple(
            Tick(place((x, low))[0], f"{x:g}")
            for x in dict.fromkeys((x_low, (x_low + x_high) / 2, x_high))
            if not names or x == int(x)
        ),
        tuple(Tick(place((x_low, y))[1], f"{y:g}") for y in ticks),
        tuple(names),
    )


@dataclass(frozen=True)
class Whisker:
    """A dot between the ends of its interval, in percent of a width; beyond says on which side the dot lies outside."""

    at: float
    low: float
    high: float
    beyond: Literal["", "below", "above"]


def whisker(value: float, low: float, high: float, first: float, last: float) -> Whisker:
    """Place a value and its interval on a scale from `first` to `last`; what lies outside stands at its end."""

    def place(one: float) -> float:
        return round(100 * (min(max(one, first), last) - first) / (last - first), 2)

    beyond: Literal["", "below", "above"] = "below" if value < first else "above" if value > last else ""
    return Whisker(place(value), place(low), place(high), beyond)


def size_plot(points: Sequence[tuple[int, float]], label: str, *, within: tuple[float, float]) -> Plot:
    """Draw a score against the size of a model, on a logarithmic scale.

    Args:
        points: Numbers in the model's weights, and the score; by size, at least one.
        label: What a screen reader says.
        within: Lowest and highest value that the vertical axis must hold.
    """
    plot = line_plot([[(math.log10(size), score) for size, score in points]], label, within=within)
    ticks = tuple(Tick(dot.x, millions(size)) for dot, (size, _) in zip(plot.dots, points, strict=True))
    return replace(plot, x_ticks=ticks, marks=tuple(("target", dot) for dot in plot.dots))


def dot_plot(values: Mapping[str, Sequence[float]], label: str) -> Plot:
    """Draw the values of things that are in no order, numbered from 1: dots without lines.

    Args:
        values: Name of a series -> its values, as many in each, at least one.
        label: What a screen reader says.
    """
    series = [[(float(number), value) for number, value in enumerate(one, 1)] for one in values.values()]
    top = max(value for one in values.values() for value in one) or 1.0
    plot = line_plot(series, label, within=(0.0, top), names=list(values))
    styles = [name for name, one in values.items() for _ in one]
    return replace(plot, lines=(), marks=tuple(zip(styles, plot.dots, strict=True)))


def millions(size: int) -> str:
    """The size of a model for people: 600M, 3.3B."""
    return f"{size / 1e9:.2g}B" if size >= 1e9 else f"{size / 1e6:.3g}M"


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to five round numbers that enclose a range.

    Args:
        low: Its lower end.
        high: Its upper end, above `low`.
    """
    power = 10 ** math.floor(math.log10((high - low) / 4))
    for step in (factor * power for factor in (1, 2, 2.5, 5, 10, 20)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 4:
            break
    return [round(step * index, 10) for index in range(first, last + 1)]


def _mean(series: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over series that share their x; empty if they do not."""
    if len({tuple(x for x, _ in points) for points in series}) > 1:
        return []
    return [(points[0][0], statistics.fmean(y for _, y in points)) for points in zip(*series, strict=True)]


def _path(points: Sequence[Point]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
