"""The one error that a user is meant to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the command line prints it without a traceback and exits with 2.

    Args:
        where: The file, key or option at fault, as the user wrote it.
        found: What was found there.
        expected: What would have been right.
        mend: What to do about it, in the imperative.

    Every part is one line of plain text; `str(error)` is the whole message.
    """

    def __init__(self, where: object, found: str, expected: str = "", mend: str = "") -> None:
        self.where, self.found, self.expected, self.mend = str(where), found, expected, mend
        parts = [f"{where}: {found}"]
        if expected:
            parts.append(f"expected {expected}")
        message = "; ".join(parts)
        super().__init__(f"{message}\n  mend: {mend}" if mend else message)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        """Survive the way back from a worker process."""
        return type(self), (self.where, self.found, self.expected, self.mend)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A mend for a name that is not known: the closest known ones, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}" if names else "none is registered"
