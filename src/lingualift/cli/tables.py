"""Tables on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from rich import box
from rich.measure import Measurement
from rich.table import Table as RichTable

from lingualift.metrics.comparisons import Comparison
from lingualift.pipeline.cost import Estimate
from lingualift.pipeline.machines import LAUNCH, UTILISATION, Machine
from lingualift.pipeline.plan import Empty
from lingualift.pipeline.steps import Step, Translate
from lingualift.pipeline.store import Entry
from lingualift.report.tables import (
    Layouts,
    Mean,
    Row,
    Table,
    caption,
    in_words,
    merge_weights,
    method_name,
    other_readings,
    tables,
)
from lingualift.runs.folder import task_at
from lingualift.terminal import Terminal, duration, readable

_ANY = 10_000  # columns: wider than any table
_WEIGHTS = "λ"


def show(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts, console: Terminal) -> None:
    """Print a table per task and the paragraph that says what they mean.

    Where the console is wide enough, averages come with their deviation over seeds and merge weights have a column.
    Where it is not, the averages for papers are left out, or decimals, and in the end the table is cut into several.
    """
    for table in tables(rows, layouts):
        shown, parts = _fitting(table, console)
        console.print()
        console.print(f"{table.task}: {caption(shown)}")
        for number, drawn in enumerate(parts):
            if number:
                console.print()
            console.print(drawn)
        for note in (*table.notes, *other_readings(table)):
            console.print(note)
    console.print()
    console.print(in_words(rows, comparisons, layouts))


def _fitting(table: Table, console: Terminal) -> tuple[Table, list[RichTable]]:
    """What of a table fits into the console, drawn as one; else all of it, cut between its columns."""
    bare = table.without_papers()
    for wide in (True, False):
        for shown in (table, bare):
            drawn = _rich(shown, (*shown.columns, _WEIGHTS) if wide else shown.columns, wide=wide)
            if _width(drawn, console) <= console.width:
                return shown, [drawn]
    parts: list[tuple[str, ...]] = [()]
    for column in (*table.columns, _WEIGHTS):
        longer = (*parts[-1], column)
        drawn = _rich(table, longer, wide=True, within=console.width)
        if parts[-1] and _width(drawn, console) > console.width:
            parts.append((column,))
        else:
            parts[-1] = longer
    return table, [_rich(table, part, wide=True, within=console.width) for part in parts]


def _width(drawn: RichTable, console: Terminal) -> int:
    return Measurement.get(console, console.options.update(width=_ANY), drawn).maximum


def show_plan(steps: Sequence[Step], found: Estimate, console: Terminal, empty: Sequence[Empty] = ()) -> None:
    """Print the steps of a plan, how many of them are done, what the others will cost, and cells that stay empty."""
    timed, counted = found.seconds is not None, found.machine is not None
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("steps", overflow="fold")
    here, there = (
        ("done", "to do", "time", "memory", "disk"),
        ("to do", "optimiser steps", "tokens", "time", "memory"),
    )
    for name in there if counted else here:
        if timed or name != "time":
            table.add_column(name, justify="right", no_wrap=True)
    for what in dict.fromkeys(step.what() for step in steps):
        mine = [step for step in steps if step.what() == what]
        costs = [found.costs[step] for step in mine if step in found.costs]
        cells = [str(len(costs) or "")] if counted else [str(len(mine) - len(costs)), str(len(costs) or "")]
        if costs:
            if counted:
                cells += [
                    _count(sum(cost.steps for cost in costs)),
                    _count(sum(cost.tokens for cost in costs)),
                ]
            cells += [duration(sum(cost.seconds or 0.0 for cost in costs))] if timed else []
            cells.append(readable(max(cost.memory for cost in costs)))
            cells += [] if counted else [readable(sum(cost.disk for cost in costs))]
        table.add_row(what, *cells)
    console.print(table)
    translated = [step for step in found.costs if isinstance(step, Translate)]
    if translated:
        rows, sentences = (
            sum(step.count for step in translated),
            sum(len(step.sentences) for step in translated),
        )
        console.print(f"{rows:,} rows to translate, {sentences:,} different sentences.")
    for one in empty:
        task = task_at(one.task, one.grid)
        console.print(f"Stays empty: {task}, {method_name(vars(one))} in {one.language}: {one.reason}")
    count, done = len(found.costs), len(steps) - len(found.costs)
    if not count:
        console.print(f"All {done} steps are done.")
        return
    if found.machine is not None:
        console.print(_elsewhere(found, found.machine, count, done))
        return
    time = f"about {duration(found.seconds or 0.0)} with {found.workers} at once," if timed else "at least"
    console.print(
        f"{count} steps to do, {done} done: {time} {readable(found.memory)} of memory ({readable(found.memory_free)} "
        f"free, {found.device}), {readable(found.disk)} on disk ({readable(found.disk_free)} free)."
    )


def _count(number: int) -> str:
    """A number for people, empty for none."""
    return f"{number:,}" if number else ""


def _elsewhere(found: Estimate, machine: Machine, count: int, done: int) -> str:
    """What a plan takes on a machine that is not here."""
    steps, tokens = (
        sum(getattr(cost, name) for cost in found.costs.values()) for name in ("steps", "tokens")
    )
    seconds = sum(cost.seconds or 0.0 for cost in found.costs.values())
    return (
        f"{count} steps to do, {done} done, on one {machine.what}: about {duration(seconds)} ({seconds / 3600:.2g} "
        f"GPU-hours) for {steps:,} optimiser steps and {tokens:,} tokens, {readable(found.memory)} of its "
        f"{readable(machine.memory)}. An estimate from configuration and data alone, at {UTILISATION:.0%} of the data "
        f"sheet's peak and {1000 * LAUNCH:.0f} ms at least for a layer in each pass; nothing was measured, and "
        "loading, merging and padding are not in it."
    )


def show_store(entries: Sequence[Entry], console: Terminal) -> None:
    """Print the entries of a store."""
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("key", no_wrap=True)
    table.add_column("step")
    for name in ("state", "size", "last used"):
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=True)
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.key[:12], entry.label, entry.state, readable(entry.size), used)
    console.print(table)
    counts = Counter(entry.state for entry in entries)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{len(entries)} entries ({told}), {readable(sum(entry.size for entry in entries))}.")


def _rich(table: Table, columns: Sequence[str], *, wide: bool, within: int | None = None) -> RichTable:
    """Some columns of a table; names of methods that take more than half of `within` are folded."""
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    longest = max(len(line.method) for line in table.lines)
    folded = {"overflow": "fold", "width": within // 2} if within and longest > within // 2 else {}
    drawn.add_column("method", no_wrap=not folded, **folded)  # type: ignore[arg-type]
    for column in columns:
        marked = f"{column}*" if column == table.layout.tuned_on else column
        head = column.replace(" with ", "\nwith ") if column in table.layout.papers else marked
        drawn.add_column(head, justify="left" if column == _WEIGHTS else "right", no_wrap=True)
    for line in table.lines:
        drawn.add_row(
            line.method,
            *(
                merge_weights(line.weights)
                if column == _WEIGHTS
                else _cell(line.cells.get(column), column in table.layout.means, wide)
                or table.gap(line.method, column)
                for column in columns
            ),
        )
    return drawn


def _cell(mean: Mean | None, average: bool, wide: bool) -> str:
    """A score, "" for none; narrow tables show languages without decimals and averages without deviation."""
    if mean is None:
        return ""
    if average and wide:
        return str(mean)
    return f"{mean.mean:.1f}" if average or wide else f"{mean.mean:.0f}"
