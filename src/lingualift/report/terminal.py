"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from lingualift.evaluation.comparisons import Comparison
from lingualift.report.tables import Layout, Mean, Row, Table, caption, in_words, tables

_ANY = 10_000  # columns: wider than any table


def show(rows: Sequence[Row], comparisons: Sequence[Comparison], layout: Layout, console: Console) -> None:
    """Print a table per task and the paragraph that says what they mean.

    Where the console is wide enough, averages come with their deviation over seeds and merge weights have a column.
    """
    for table in tables(rows, layout):
        drawn = _rich(table, layout, wide=True)
        if Measurement.get(console, console.options.update(width=_ANY), drawn).maximum > console.width:
            drawn = _rich(table, layout, wide=False)
        console.print()
        console.print(caption(table, layout).replace("**", ""), markup=False, highlight=False)
        console.print(drawn)
    console.print()
    console.print(in_words(rows, comparisons, layout), markup=False, highlight=False)


def _rich(table: Table, layout: Layout, *, wide: bool) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("method", no_wrap=True)
    for column in table.columns:
        drawn.add_column(f"{column}*" if column == layout.tuned_on else column, justify="right", no_wrap=True)
    if wide:
        drawn.add_column("weight", no_wrap=True)
    for line in table.lines:
        cells = [_cell(line.cells.get(column), column in layout.averages(), wide) for column in table.columns]
        drawn.add_row(line.method, *cells, *([_span(line.weights)] if wide else []))
    return drawn


def _span(weights: Sequence[float]) -> str:
    """The merge weights of the seeds: one, or the smallest and the largest."""
    ends = dict.fromkeys([*weights[:1], *weights[-1:]])
    return "–".join(f"{weight:g}" for weight in ends)


def _cell(mean: Mean | None, average: bool, wide: bool) -> str:
    """A score; narrow tables show languages without decimals and averages without deviation."""
    if mean is None:
        return "–"
    if average and wide:
        return str(mean)
    return f"{mean.mean:.1f}" if average or wide else f"{mean.mean:.0f}"
