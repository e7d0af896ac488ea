"""One registry for everything that can be extended: tasks, merge methods, fusion functions, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lingualift.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, T]):
    """Named entries of one kind; a duplicate raises, an unknown name says what was probably meant.

    Args:
        kind: What the entries are, for messages ("task", "merge method").
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters what it decorates under `name`.

        Raises:
            ValueError: `name` is taken.
        """

        def enter(entry: T) -> T:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self[name]!r}, {entry!r}")
            self[name] = entry
            return entry

        return enter

    def __missing__(self, name: str) -> T:
        raise UserError(f"{self.kind} {name!r}", "is not known", mend=did_you_mean(name, self))
