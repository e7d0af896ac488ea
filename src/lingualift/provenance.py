"""Fingerprints, manifests and atomic writes: what a result was made from, and folders that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from lingualift.errors import UserError, mend_of, setting
from lingualift.parsing import parse_json

PROVENANCE_FILE = "provenance.json"
_FULL = 1 << 16  # bytes: with less than this a disk counts as full


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: Path, *, suffixes: tuple[str, ...] = ()) -> str:
    """Hex sha256 over the names and contents of a folder's files, however deep; `suffixes` narrows them."""
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and (not suffixes or file.suffix in suffixes)
    )
    return fingerprint({str(file.relative_to(path)): sha256_file(file) for file in files})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON value; the order of keys does not matter, the order of lists does."""
    return sha256_bytes(canonical_json(value).encode())


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions; one that is absent is left out."""
    found = {name: _installed(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache
def _installed(name: str) -> str | None:
    """The version of a distribution; a plan asks for it a thousand times, and each answer costs a file."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    try:
        with reading(path, "a JSON file"):
            return parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(path, "is not JSON (not UTF-8)", "a JSON file", "restore or rewrite it") from None
    except ValueError as error:
        raise UserError(path, str(error), "a JSON file", "restore or rewrite it") from None


@contextlib.contextmanager
def reading(source: Path, expected: str = "") -> Iterator[None]:
    """Turn the operating system's refusals to read `source` into errors that say what to do.

    Args:
        source: The file or folder.
        expected: What should be there.

    Raises:
        UserError: no such file, no permission, a folder, a name that is too long, a disk that fails.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        mend = mend_of("read", error.errno) or "fetch or write the file again"
        named = source if error.filename is None else Path(os.fsdecode(error.filename))
        where = named if source in named.parents else source
        raise UserError(where, f"cannot be read ({reason})", expected, mend) from error


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `target` into errors that say what to do.

    Raises:
        UserError: no space, no permission, a file in the way, a read-only disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else _full_disk(error, target)
        mend = mend_of("written", code)
        if code is None or mend is None:
            raise
        raise UserError(target, f"cannot be written ({os.strerror(code)})", mend=mend) from error


def _full_disk(error: Exception, target: Path) -> int | None:
    """The code of a full disk, where a library says it in words of its own (torch's and safetensors' writers)."""
    if "os error 28" in str(error) or os.strerror(errno.ENOSPC) in str(error):
        return errno.ENOSPC
    if not isinstance(error, RuntimeError):
        return None
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    return errno.ENOSPC if shutil.disk_usage(there).free < _FULL else None


def taken(target: Path, kind: str) -> UserError:
    """The error of an output that is there already; `kind` of thing that was to be written."""
    expected = f"a {kind} that does not exist yet"
    return UserError(target, "exists already", expected, f"choose another {setting('output')}")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes `target` by one rename when the block ends well.

    Nothing is left behind when the block raises. Two processes may race: one wins, the other gets the error.

    Yields:
        The scratch folder, empty.

    Raises:
        UserError: `target` exists already, or cannot be written.
    """
    exists = taken(target, "folder")
    with writing(target):
        if target.exists() or target.is_symlink():
            raise exists
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with writing(target):
            scratch.chmod(0o777 & ~umask())
            yield scratch
            open_to_all(scratch)
            for file in scratch.rglob("*"):
                if file.is_file():
                    _sync(file)
            try:
                scratch.rename(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise exists from None
                raise
            _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file by one rename, so that a reader sees the old content or the new, never a part.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def json_text(value: Any) -> str:
    """The text of a JSON file, indented for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented for people, by one rename."""
    write_text(path, json_text(value))


def jsonl_text(rows: Iterable[Any]) -> str:
    """The text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON Lines by one rename."""
    write_text(path, jsonl_text(rows))


def open_to_all(folder: Path) -> None:
    """Let others read a folder's files as the umask says, however private the library that wrote them made them."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask())


def is_inside(name: str) -> bool:
    """Whether a path that a record names lies within the folder of the record."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that everybody can take who may write there; others wait.

    Raises:
        UserError: it cannot be written.
    """
    lock = file_lock(path)
    with writing(path.parent):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def file_lock(path: Path) -> FileLock:
    """A lock that everybody can take who may write there; its folder is made.

    Raises:
        UserError: the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(0o666)
    return FileLock(path)


def umask() -> int:
    """What a process takes from the permissions of files that it makes."""
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
