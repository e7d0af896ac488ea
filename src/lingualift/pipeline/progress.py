"""Progress bars with time left: one over all steps, one for each step that is running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lingualift.pipeline.executors import Event, Watch
from lingualift.pipeline.pulse import Beat, Pulse
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
    """Bars for a run; where the console is no terminal, lines instead: of each step its start, pulse and end."""
    with _bars(console) as bars:
        whole = bars.add_task("planning", total=None)
        running: dict[str, TaskID] = {}
        count, done, began = 0, 0, time.monotonic()

        def say(line: str) -> None:
            if not console.is_terminal:
                console.print(line, markup=False, highlight=False)

        def watch(event: Event) -> None:
            nonlocal count, done
            key = event.step.key
            if event.what == "plan":
                count = event.done
                bars.update(whole, description=f"0 of {count} steps", total=event.total, completed=0)
            elif event.what == "start":
                running[key] = bars.add_task(f"  {event.step.label()}", total=None)
                say(f"{event.step.label()}: started")
            elif event.what == "pulse":
                say(f"{event.step.label()}: {event.text}")
            elif event.what == "progress":
                bars.update(running[key], total=event.total, completed=event.done)
            elif event.what == "warning":
                console.print(f"{event.step.label()}: warning: {event.text}", markup=False, highlight=False)
            elif event.what == "end":
                bars.remove_task(running.pop(key))
                done += 1
                bars.update(whole, description=f"{done} of {count} steps", advance=event.step.cost)
                say(f"{done}/{count} {event.step.label()}")

        yield watch
    if done:
        console.print(f"{done} steps in {duration(time.monotonic() - began)}", highlight=False)


@contextlib.contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar, or lines where the console is no terminal; what it yields takes units done and units in all."""

    def tell(name: str, beat: Beat) -> None:
        if not console.is_terminal:
            console.print(f"{name}: {beat}", markup=False, highlight=False)

    with _bars(console) as bars, Pulse(tell) as pulse:
        task = bars.add_task(what, total=None)
        pulse.start(what)

        def count(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            pulse.progress(what, done, total)

        yield count


@contextlib.contextmanager
def saying(console: Console) -> Iterator[Callable[[str], None]]:
    """One line that changes; what it yields takes what goes on now. A line each where the console is no terminal."""
    if not console.is_terminal:
        yield lambda what: console.print(what, markup=False, highlight=False)
        return
    with console.status("") as status:
        yield status.update
