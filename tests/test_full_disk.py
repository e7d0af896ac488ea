"""A full disk in the words of every library that writes is one message with a mend, not a traceback."""

import errno

import pytest
from safetensors import SafetensorError

from builders.refusals import refused
from lingualift.errors import UserError
from lingualift.provenance import writing


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("basic_ios::clear: iostream error: No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_a_mend(tmp_path, error):
    with refused("/out", "cannot be written") as told, writing(tmp_path / "out"):
        raise error
    assert "free some space" in told.value.mend


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("x"), UserError("a", "b")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as told, writing(tmp_path / "out"):
        raise error
    assert told.value is error
