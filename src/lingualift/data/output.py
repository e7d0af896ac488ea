"""Outputs: looked at before the work that fills them, and answers on disk as soon as they are there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lingualift.errors import UserError, setting
from lingualift.parsing import jsonable
from lingualift.provenance import taken, writing
from lingualift.terminal import say


def check_output(target: Path, kind: Literal["file", "folder"]) -> None:
    """Check that an output can be written, as it will be; nothing is left behind.

    Raises:
        UserError: it exists already, or cannot be written.
    """
    with writing(target):
        if target.exists() or target.is_symlink():
            raise taken(target, kind)
        with parents(target):
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
            os.close(handle)
            Path(name).unlink()


@contextlib.contextmanager
def growing(target: Path) -> Iterator[Callable[[str], None]]:
    """Keep the answers of a call that may not end, in `<target>.partial`, in the order in which they are found.

    The block writes `target` itself, whole. Then the file goes; where the block raises, it stays, and standard error
    names it.

    Yields:
        Takes a line, of JSON.

    Raises:
        UserError: the target exists already, so does what such a call left, or one of them cannot be written.
    """
    check_output(target, "file")
    partial = target.with_name(f"{target.name}.partial")
    with writing(partial):
        if partial.exists():
            found = "holds the answers of a call that did not end"
            mend = f"move it away, or choose another {setting('output')}"
            raise UserError(partial, found, "a file that does not exist yet", mend)
    kept = 0
    with parents(target):
        with writing(partial):
            file = partial.open("x", encoding="utf-8")

        def keep(line: str) -> None:
            nonlocal kept
            with writing(partial):
                file.write(f"{line}\n")
                file.flush()
            kept += 1

        try:
            yield keep
            kept = 0
        finally:
            with contextlib.suppress(OSError):  # of what could not be written before
                file.close()
            if kept:
                say(f"the {kept} answers that were found are in {partial}", err=True)
            else:
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def parents(target: Path) -> Iterator[None]:
    """Make the folders above a file; those that were missing go again where the block leaves nothing in them."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def json_line(row: Any, where: str) -> str:
    """A row as a line of JSON; `where` it is from, for messages.

    Raises:
        UserError: JSON or UTF-8 has no word for it.
    """
    try:
        return json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        expected = "what JSON can say, since it is written beside the answer"
        raise UserError(where, str(error), expected, "correct it") from None
