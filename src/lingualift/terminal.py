"""What is shown: every word of somebody else's as plain text, into any terminal, pipe or file; how far work is."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lingualift.errors import plain

if TYPE_CHECKING:
    from rich.progress import Progress

STDOUT = "standard output"
"""What an error of it has for its file."""
PERIOD = 30.0
"""Seconds between two beats."""


class Terminal(Console):
    """A console that takes every string for text: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """What rich draws for a string; what is spelt is spelt before it is laid out, so that columns stay in line."""
        shown = plain(text).encode(self.encoding, "spelt").decode(self.encoding)
        return super().render_str(shown, **how)

    def on_broken_pipe(self) -> None:
        """Let the command line end as others do, where rich's own way ends with 1."""
        raise  # called while rich handles the error


def say(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print text, on standard output or on standard error."""
    stream = sys.stderr if err else sys.stdout
    stream.write(plain(text) + end)
    stream.flush()


def readable(size: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """A length of time, in the two units that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


@dataclass
class Beat:
    """How far a piece of work is.

    Attributes:
        done: Units done so far; of no meaning while `total` is 0.
        total: Units in all; 0 while it has not said.
        began: When it began, by the clock that only goes forward.
        measured: When it first said how far it is, and how far; None before. Loading comes before that, and what a
            killed run had done already counts for nothing.
    """

    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    measured: tuple[float, int] | None = None

    def left(self) -> float | None:
        """Seconds that are left at its own pace; None while that is not known."""
        if self.measured is None or self.done <= self.measured[1]:
            return None
        since, before = self.measured
        return (time.monotonic() - since) / (self.done - before) * (self.total - self.done)

    def __str__(self) -> str:
        """For people: `37 of 95, about 2 min 10 s left`."""
        left = self.left()
        far = f"{self.done} of {self.total}" if self.total else "at work"
        rest = (
            f"for {duration(time.monotonic() - self.began)}"
            if left is None
            else f"about {duration(left)} left"
        )
        return f"{far}, {rest}" if self.total else f"{far} {rest}"


class Pulse:
    """Tells of all work that goes on, every `PERIOD` seconds, from a thread of its own, while its context lasts.

    Args:
        tell: Called with the key of a piece of work and how far it is.
    """

    def __init__(self, tell: Callable[[Any, Beat], None]) -> None:
        self._tell = tell
        self._work: dict[Hashable, Beat] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def start(self, key: Hashable) -> None:
        """A piece of work begins."""
        self._work[key] = Beat()

    def progress(self, key: Hashable, done: int, total: int) -> None:
        """It has come so far."""
        beat = self._work[key]
        beat.done, beat.total = done, total
        beat.measured = beat.measured or (time.monotonic(), done)

    def end(self, key: Hashable) -> None:
        """It is over."""
        self._work.pop(key, None)

    def _beat(self) -> None:
        while not self._over.wait(PERIOD):
            for key, beat in list(self._work.items()):
                self._tell(key, beat)


class _Out(io.TextIOWrapper):
    """Standard output, whose errors name it."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            error.filename = STDOUT
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            error.filename = STDOUT
            raise


class _Err(io.TextIOWrapper):
    """Standard error: where nobody can read it, work goes on all the same."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


def open_streams() -> None:
    """Make standard output and error, and what is logged and warned of, fit for any text.

    What an encoding lacks is spelt as in JSON, so that JSON stays JSON.
    """
    sys.stdout, sys.stderr = _opened(sys.stdout, _Out), _opened(sys.stderr, _Err)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())
    shown = warnings.formatwarning
    warnings.formatwarning = lambda *about, **more: plain(shown(*about, **more))


def close_stdout() -> None:
    """Let go of standard output, which could not be written: nor can what is left of it, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _opened(stream: Any, kind: type[io.TextIOWrapper]) -> Any:
    if stream is None:  # closed by the shell
        return Path(os.devnull).open("w", encoding="utf-8")
    if type(stream) is not io.TextIOWrapper:
        return stream
    stream.flush()
    opened: Any = kind(
        stream.buffer,
        encoding=stream.encoding,
        errors="spelt",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    opened.instead_of = stream  # which would close what they share, were it let go of
    return opened


def _spelt(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("spelt", _spelt)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def bars(console: Terminal) -> Progress:
    """Bars with time left, which go when they are done; what they are of is to be `plain`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
    )


@contextlib.contextmanager
def counting(console: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar, or lines where the console is no terminal; what it yields takes units done and units in all."""

    def tell(name: str, beat: Beat) -> None:
        if not console.is_terminal:
            console.print(f"{name}: {beat}")

    with bars(console) as shown, Pulse(tell) as pulse:
        task = shown.add_task(plain(what), total=None)
        pulse.start(what)

        def count(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)
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
