"""Holds a refusal by what it says: the place, what was found there and that a mend is named, not by our sentence."""

import contextlib
import re

import pytest

from lingualift.errors import UserError


@contextlib.contextmanager
def refused(where, *found, mend=""):
    """What is done within is refused; yields what `pytest.raises` yields.

    Args:
        where: What the place holds: a file's name, a key, an option.
        found: What is said of it, and of what was expected: values, names, numbers; else the shortest telling word.
        mend: What the mend holds; None where none is named.
    """
    with pytest.raises(UserError) as told:
        yield told
    _hold(told.value, where, found, mend)


def check_refusal(done, where, *found, mend=""):
    """Holds of a command that ended what `refused` holds: exit code 2, no traceback, one message, and what it says.

    Where Typer itself refuses an option, no mend is named.
    """
    said = re.split("^(?:lingualift|Error): ", done.message, flags=re.MULTILINE)
    assert len(said) == 2, done.err
    head, _, advice = said[1].partition("\n  mend: ")
    place, _, rest = head.partition(": ")
    _hold(UserError(place, rest, mend=advice), where, found, mend)


def _hold(error, where, found, mend):
    assert where in error.where, f"at {error.where!r}, not {where!r}: {error}"
    for fact in found:
        assert fact in f"{error.found}; {error.expected}", f"not {fact!r}: {error}"
    assert mend is None or (error.mend and mend in error.mend), f"no mend {mend!r}: {error}"
