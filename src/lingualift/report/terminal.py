"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from lingualift.report.tables import Layout, Mean, Row, Table, caption, in_words, tables


def show(rows: Sequence[Row], layout: Layout, console: Console) -> None:
    """Print a table per task and the paragraph that says what they mean; deviations stand with the averages."""
    for table in tables(rows, layout):
        console.print()
        console.print(caption(table, layout).replace("**", ""), markup=False)
        console.print(_rich(table, layout))
    console.print()
    console.print(in_words(rows, layout), markup=False, highlight=False)


def _rich(table: Table, layout: Layout) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    drawn.add_column("method", no_wrap=True)
    for column in table.columns:
        drawn.add_column(f"{column}*" if column == layout.tuned_on else column, justify="right", no_wrap=True)
    drawn.add_column("weight", no_wrap=True)
    for line in table.lines:
        weights = f"{line.weights[0]:g}" if line.weights else ""
        weights += f"–{line.weights[-1]:g}" if len(line.weights) > 1 else ""
        cells = (_cell(line.cells.get(column), column in layout.averages()) for column in table.columns)
        drawn.add_row(line.method, *cells, weights)
    return drawn


def _cell(mean: Mean | None, with_deviation: bool) -> str:
    if mean is None:
        return "–"
    return str(mean) if with_deviation else f"{mean.mean:.1f}"
