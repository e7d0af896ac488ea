"""Folders in which people keep things of their own beside ours: what we made there is recorded, no other is touched."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from lingualift.errors import UserError
from lingualift.provenance import (
    is_inside,
    locked,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
    writing,
)

RECORD_FILE = "made.json"
_ABOUT = "what lingualift made here, and may replace or remove: texts as long as their sha256 is this one; no others"


def alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time write into a folder, which is made if it is not there; raises as `locked`."""
    return locked(folder / ".lock")


def made(folder: Path) -> dict[str, list[str]]:
    """Path within the folder -> sha256 of each text that we made there, two while one takes the place of the other.

    Second names of files that are kept elsewhere have none: they are replaced as they are.

    Raises:
        UserError: the record cannot be read.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    found = read_json(path)
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not all(isinstance(known, list) for known in files.values()):
        expected, mend = (
            "`files` with the sha256 of each",
            "move it away; files of those names are then yours",
        )
        raise UserError(path, "is no record of what was made here", expected, mend)
    return {name: known for name, known in files.items() if is_inside(name)}


def check(folder: Path, names: Iterable[str], changed: Collection[str] = ()) -> None:
    """Check that files may be written: nobody else's is there, and nobody has changed ours.

    Args:
        folder: Where.
        names: Paths within it of what will be written.
        changed: Paths of ours that may have been changed, since they stay as they are.

    Raises:
        UserError: names the file.
    """
    record = made(folder)
    for name in {**record, **dict.fromkeys(names)}:
        if name not in changed:
            _check(folder / name, record.get(name))


def _check(path: Path, known: Sequence[str] | None, fresh: str | None = None) -> None:
    """Raise where a file is there that is neither ours nor what is to be written."""
    there = os.path.lexists(path)
    if there and known is None and not (fresh and _is_one_of(path, [fresh])):
        raise _taken(path, "is there and not of our making")
    if there and known and not _is_one_of(path, [*known, *filter(None, [fresh])]):
        raise _taken(path, "was changed since it was written")


def _taken(path: Path, found: str) -> UserError:
    return UserError(
        path, found, "a place for a file of ours", "move it away, then run the same command again"
    )


def _is_one_of(path: Path, known: Sequence[str]) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_file(path) in known


def place(folder: Path, contents: Mapping[str, str | Path]) -> None:
    """Write files into a folder and record them; each appears whole, and none where somebody else's is.

    Args:
        folder: Where.
        contents: Path within it -> text, or the file that gets a second name (a copy where the disk has no hard links).

    Raises:
        UserError: as `check`, before anything is written; or a file cannot be written.
    """
    record = made(folder)
    texts = {name: sha256_bytes(text.encode()) for name, text in contents.items() if isinstance(text, str)}
    for name in contents:
        _check(folder / name, record.get(name), texts.get(name))
    later = {name: [texts[name]] if name in texts else [] for name in contents}
    _record(folder, record | {name: [*record.get(name, []), *known] for name, known in later.items()})
    for name, content in contents.items():
        if isinstance(content, Path):
            _share(content, folder / name)
        elif not _is_one_of(folder / name, later[name]):
            write_text(folder / name, content)
    _record(folder, record | later)


def _record(folder: Path, files: Mapping[str, Sequence[str]]) -> None:
    if files != made(folder):
        write_json(folder / RECORD_FILE, {"about": _ABOUT, "files": files})


def _share(path: Path, target: Path) -> None:
    """Give a file a second name, by one rename."""
    with writing(target):
        if target.is_file() and target.samefile(path):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=target.parent) as scratch:
            other = Path(scratch) / "file"
            try:
                other.hardlink_to(path)
            except OSError:
                shutil.copy2(path, other)
            other.replace(target)


def discard(folder: Path, names: Iterable[str]) -> None:
    """Remove files that we made and nobody changed since, and the folders that they leave empty."""
    record = made(folder)
    gone = record.keys() & set(names)
    for name in gone:
        path = folder / name
        if not record[name] or _is_one_of(path, record[name]):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what is left in there is somebody's
            for parent in path.relative_to(folder).parents[:-1]:
                (folder / parent).rmdir()
    _record(folder, {name: known for name, known in record.items() if name not in gone})


def adopt(folder: Path, names: Iterable[str]) -> None:
    """Record files of ours that an older version made, which kept no record."""
    there = [name for name in names if (folder / name).is_file()]
    _record(folder, {name: [sha256_file(folder / name)] for name in there} | made(folder))
