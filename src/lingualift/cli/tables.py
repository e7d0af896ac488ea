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
from lingualift.pipeline.steps import Step, Translate
from lingualift.pipeline.store import Entry
from lingualift.report.tables import Layouts, Mean, Row, Table, caption, in_words, merge_weights, tables
from lingualift.terminal import Terminal, duration, readable

_ANY = 10_000  # columns: wider than any table


def show(rows: Sequence[Row], comparisons: Sequence[Comparison], layouts: Layouts, console: Terminal) -> None:
    """Print a table per task and the paragraph that says what they mean.

    Where the console is wide enough, averages come with their deviation over seeds and merge weights have a column.
    """
    for table in tables(rows, layouts):
        drawn = _rich(table, wide=True)
        if Measurement.get(console, console.options.update(width=_ANY), drawn).maximum > console.width:
            drawn = _rich(table, wide=False)
        console.print()
        console.print(f"{table.task}: {caption(table)}")
        console.print(drawn)
    console.print()
    console.print(in_words(rows, comparisons, layouts))


def show_plan(steps: Sequence[Step], found: Estimate, console: Terminal) -> None:
    """Print the steps of a plan, how many of them are done, and what the others will cost."""
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


def _rich(table: Table, *, wide: bool) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.add_column("method", no_wrap=True)
    for column in table.columns:
        drawn.add_column(
            f"{column}*" if column == table.layout.tuned_on else column, justify="right", no_wrap=True
        )
    if wide:
        drawn.add_column("λ", no_wrap=True)
    for line in table.lines:
        cells = [
            _cell(line.cells.get(column), column in table.layout.averages, wide) for column in table.columns
        ]
        drawn.add_row(line.method, *cells, *([merge_weights(line.weights)] if wide else []))
    return drawn


def _cell(mean: Mean | None, average: bool, wide: bool) -> str:
    """A score; narrow tables show languages without decimals and averages without deviation."""
    if mean is None:
        return "–"
    if average and wide:
        return str(mean)
    return f"{mean.mean:.1f}" if average or wide else f"{mean.mean:.0f}"
