"""Holds a refusal by what it says: the place, what was found there and that a mend is named, not by our sentence."""

import contextlib

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
    error = told.value
    assert where in error.where, f"at {error.where!r}, not {where!r}: {error}"
    for fact in found:
        assert fact in f"{error.found}; {error.expected}", f"not {fact!r}: {error}"
    assert mend is None or (error.mend and mend in error.mend), f"no mend {mend!r}: {error}"
