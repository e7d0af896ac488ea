"""How far long work is, told every half minute whatever its own pace, so that logs show that it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from lingualift.terminal import duration

PERIOD = 30.0
"""Seconds between two beats."""


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
