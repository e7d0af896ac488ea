"""Progress bars with time left: one over all steps, one for each step that is running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from lingualift.errors import plain
from lingualift.pipeline.executors import Event, Watch
from lingualift.terminal import Beat, Pulse, Terminal, duration


class _Label(ProgressColumn):
    """What a bar is of, as it stands there."""

    def render(self, task: Task) -> Text:
        return Text(plain(task.description))


def _bars(console: Terminal) -> Progress:
    return Progress(
        _Label(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


@contextlib.contextmanager
def watching(console: Terminal) -> Iterator[Watch]:
    """Bars for a run; where the console is no terminal, lines instead: of each step its start, pulse and end."""
    with _bars(console) as bars:
        whole = bars.add_task("planning", total=None)
        running: dict[str, TaskID] = {}
        count, done, began = 0, 0, time.monotonic()

        def say(line: str) -> None:
            if not console.is_terminal:
                console.print(line)

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
                console.print(f"{event.step.label()}: warning: {event.text}")
            elif event.what == "end":
                bars.remove_task(running.pop(key))
                done += 1
                bars.update(whole, description=f"{done} of {count} steps", advance=event.step.cost)
                say(f"{done}/{count} {event.step.label()}")

        yield watch
    if done:
        console.print(f"{done} steps in {duration(time.monotonic() - began)}")


@contextlib.contextmanager
def counting(console: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar, or lines where the console is no terminal; what it yields takes units done and units in all."""

    def tell(name: str, beat: Beat) -> None:
        if not console.is_terminal:
            console.print(f"{name}: {beat}")

    with _bars(console) as bars, Pulse(tell) as pulse:
        task = bars.add_task(what, total=None)
        pulse.start(what)

        def count(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            pulse.progress(what, done, total)

        yield count


@contextlib.contextmanager
def saying(console: Terminal) -> Iterator[Callable[[str], None]]:
    """One line that changes; what it yields takes what goes on now. A line each where the console is no terminal."""
    if not console.is_terminal:
        yield lambda what: console.print(what)
        return
    with console.status("", spinner="line") as status:  # whose signs every encoding has
        yield lambda what: status.update(Text(plain(what)))
