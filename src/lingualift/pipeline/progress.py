"""Progress bars with time left: one over all steps, one for each step that is running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lingualift.pipeline.executors import Event, Watch
from lingualift.pipeline.words import duration


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


@contextlib.contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Bars for a run; where the console is no terminal, a line for each finished step instead."""
    with _bars(console) as bars:
        whole = bars.add_task("planning", total=None)
        running: dict[str, TaskID] = {}
        count, done, began = 0, 0, time.monotonic()

        def watch(event: Event) -> None:
            nonlocal count, done
            key = event.step.key
            if event.what == "plan":
                count = event.done
                bars.update(whole, description=f"0 of {count} steps", total=event.total, completed=0)
            elif event.what == "start":
                running[key] = bars.add_task(f"  {event.step.label()}", total=None)
            elif event.what == "progress":
                bars.update(running[key], total=event.total, completed=event.done)
            elif event.what == "warning":
                console.print(f"{event.step.label()}: warning: {event.text}", markup=False, highlight=False)
            elif event.what == "end":
                bars.remove_task(running.pop(key))
                done += 1
                bars.update(whole, description=f"{done} of {count} steps", advance=event.step.cost)
                if not console.is_terminal:
                    line = f"{done}/{count} {event.step.label()}"
                    console.print(line, markup=False, highlight=False)

        yield watch
    if done:
        console.print(f"{done} steps in {duration(time.monotonic() - began)}", highlight=False)


@contextlib.contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; what it yields takes units done and units in all."""
    with _bars(console) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
