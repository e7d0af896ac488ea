"""Tables and words as Markdown, with somebody else's names in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lingualift.errors import one_line
from lingualift.metrics.comparisons import Comparison
from lingualift.report.tables import (
    Layout,
    Layouts,
    Row,
    caption,
    in_words,
    merge_weights,
    other_readings,
    tables,
)

_MARKS = re.compile(r"[\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_NAMES = ("task", "metric", "method", "variant", "where")


def in_markdown(text: str) -> str:
    """Somebody else's words within a line or a cell of Markdown: as they are, neither marks nor HTML."""
    marked = _MARKS.sub(r"\\\g<0>", one_line(text))
    return re.sub("[&<>]", lambda match: _ENTITIES[match[0]], marked)


def to_markdown(
    rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts, further: Sequence[str] = ()
) -> str:
    """The tables and what they mean, as Markdown, with further parts of Markdown at the end."""
    words = markdown_words(rows, comparisons, layouts)
    return "\n\n".join([*markdown_tables(rows, layouts), words, *further]) + "\n"


def markdown_tables(rows: Sequence[Row], layouts: Layouts) -> list[str]:
    """Captions and tables with their notes, one after the other."""
    parts = []
    for table in tables([_marked(row) for row in rows], _marked_layouts(layouts)):
        columns = (f"{column}*" if column == table.layout.tuned_on else column for column in table.columns)
        body = [
            [
                line.method,
                *(str(line.cells.get(column, table.gap(line.method, column))) for column in table.columns),
                merge_weights(line.weights) or "–",
                line.unread,
            ]
            for line in table.lines
        ]
        parts.append(f"**{table.task}**: {caption(table)}")
        parts.append(grid_of(["method", *columns, "λ", "malformed"], body))
        parts += [*table.notes, *other_readings(table)]
    return parts


def markdown_words(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts) -> str:
    """What the tables mean, as `in_words` has it."""
    compared = [Comparison(**_marked(vars(one))) for one in comparisons]
    return in_words([_marked(row) for row in rows], compared, _marked_layouts(layouts))


def grid_of(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already, its columns one below the other."""
    lines = [head, *body]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    return "\n".join(
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in [lines[0], ["-" * width for width in widths], *lines[1:]]
    )


def _marked(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, **{name: in_markdown(found[name]) for name in _NAMES if name in found}}


def _marked_layouts(layouts: Layouts) -> dict[str, Layout]:
    def named(sets: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {in_markdown(name): members for name, members in sets.items()}

    def told(empty: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        return {(in_markdown(method), code): in_markdown(reason) for (method, code), reason in empty.items()}

    return {
        in_markdown(task): replace(
            layout,
            averages=named(layout.averages),
            papers=named(layout.papers),
            empty=told(layout.empty),
        )
        for task, layout in layouts.items()
    }
