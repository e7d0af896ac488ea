"""One registry for everything that can be extended: tasks, merge methods, fusion functions, executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lingualift.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind; a duplicate raises, an unknown name says what was probably meant.

    Args:
        kind: What the entries are, for messages ("task", "merge method").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters what it decorates under `name`.

        Raises:
            ValueError: `name` is taken.
        """

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: {self._entries[name]!r}, {entry!r}"
                )
            self._entries[name] = entry
            return entry

        return enter

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        """The entry of that name.

        Raises:
            UserError: no such entry.
        """
        if name not in self._entries:
            raise UserError(f"{self.kind} {name!r}", "is not known", mend=did_you_mean(name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """Names and entries, in the order of registration."""
        return list(self._entries.items())
