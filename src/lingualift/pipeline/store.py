"""Finished steps on disk: one folder each, addressed by everything that determines it; whole, or never read."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lingualift.errors import UserError
from lingualift.pipeline.steps import Step, is_current
from lingualift.provenance import atomic_folder, fingerprint, read_json, sha256_file, write_json, writing

RECIPE_FILE, STORE_FILE = "step.json", "store.json"
_LOG = logging.getLogger("lingualift.store")
_WORK, _LOCKS = "work", "locks"
State = Literal["whole", "altered", "stale", "unfinished"]


@dataclass(frozen=True)
class Entry:
    """A folder of a store, as it lies there.

    Attributes:
        path: The folder.
        kind: Kind of its step; "checkpoint" or "scratch" for what unfinished steps left.
        label: What people see.
        state: "whole"; "altered" (it is made again when it is needed); "stale" (made by another version of the code or
            of a library, never read again); "unfinished" (left by a step that did not end).
        problem: What was found altered, "" otherwise.
        size: Bytes on disk.
        used: When it was made or last needed, in seconds since 1970.
    """

    path: Path
    kind: str
    label: str
    state: State
    problem: str
    size: int
    used: float

    @property
    def key(self) -> str:
        """The first 20 hexadecimal digits of the step's key."""
        return self.path.name.lstrip(".")[:20]


@dataclass(frozen=True)
class Store:
    """A folder of finished steps, that any number of runs may share at once.

    Attributes:
        root: Holds `<kind>/<key>` for each finished step, `work/<key>` for the checkpoints of unfinished ones, and
            `locks/`.
    """

    root: Path

    def folder(self, step: Step) -> Path:
        """Where the step's output is, or will be."""
        return self.root / step.kind / step.key[:20]

    def has(self, step: Step) -> bool:
        """Whether the step is finished, and its output is as it was written."""
        folder = self.folder(step)
        return folder.is_dir() and damage(folder) is None

    def work(self, step: Step) -> Path:
        """Scratch space that outlives a killed run: checkpoints."""
        return self.root / _WORK / step.key[:20]

    def recipe(self, step: Step) -> dict[str, Any]:
        """What a finished step was made from, the seconds it took, and its warnings."""
        return dict(read_json(self.folder(step) / RECIPE_FILE))

    def claim(self) -> None:
        """Make the folder.

        Raises:
            UserError: there is a folder of that name that is no store, or it cannot be written.
        """
        with writing(self.root):
            if self.root.is_dir() and any(self.root.iterdir()) and not self._is_store():
                mend = "choose another --store"
                raise UserError(self.root, "is not empty and no store of finished steps", mend=mend)
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / STORE_FILE).is_file():
                write_json(self.root / STORE_FILE, {"schema": 1})

    def _is_store(self) -> bool:
        return (self.root / STORE_FILE).is_file() or (self.root / _LOCKS).is_dir()

    def _lock(self, key: str) -> FileLock:
        with writing(self.root / _LOCKS):
            (self.root / _LOCKS).mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / _LOCKS / f"{key[:20]}.lock")

    @contextlib.contextmanager
    def writing(self, step: Step) -> Iterator[Path | None]:
        """A folder to fill; it becomes the step's output when the block ends well.

        One process at a time: another that wants the same step waits, and gets None because there is nothing left to
        do. What a killed process left unfinished is cleared away, and so is an output that was altered.
        """
        folder = self.folder(step)
        with self._lock(step.key):
            if self.has(step):
                yield None
                return
            with collected_warnings() as warnings:
                if folder.exists():
                    _LOG.warning("%s: %s; it is made again", folder, damage(folder))
                for leftover in (folder, *folder.parent.glob(f".{folder.name}.*.partial")):
                    shutil.rmtree(leftover, ignore_errors=True)
                started = time.monotonic()
                with atomic_folder(folder) as scratch:
                    yield scratch
                    facts = {"seconds": round(time.monotonic() - started, 3), "warnings": warnings}
                    seal(scratch, {**step.description(), "key": step.key, **facts})

    def used(self, steps: Iterable[Step]) -> None:
        """Note that finished steps were needed now, for `prune`."""
        for step in steps:
            with contextlib.suppress(OSError):  # a store that may only be read
                (self.folder(step) / RECIPE_FILE).touch()

    def entries(self) -> Iterator[Entry]:
        """Every folder of the store, each checked against its hashes.

        Raises:
            UserError: the folder is no store.
        """
        if not self.root.is_dir() or not self._is_store():
            expected = "the store of a run (`store` beside the run folder)"
            raise UserError(self.root, "is no store of finished steps", expected, "name it with --store")
        for kind in sorted(path for path in self.root.iterdir() if path.is_dir() and path.name != _LOCKS):
            for folder in sorted(path for path in kind.iterdir() if path.is_dir()):
                yield _entry(folder)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry, unless a run is working on it; whether it is gone."""
        try:
            with self._lock(entry.key).acquire(timeout=0), writing(entry.path):
                shutil.rmtree(entry.path)
        except Timeout:
            return False
        return True


def seal(folder: Path, recipe: dict[str, Any]) -> None:
    """Write `step.json`: the recipe, the sha256 of every file in the folder, and one over all of these."""
    files = {name: sha256_file(folder / name) for name in _files(folder)}
    content = {**recipe, "files": files}
    write_json(folder / RECIPE_FILE, {**content, "seal": fingerprint(content)})


def damage(folder: Path) -> str | None:
    """What differs between a finished step's folder and what was written, in words; None if nothing does."""
    try:
        recipe = dict(read_json(folder / RECIPE_FILE))
        recorded, seals = dict(recipe["files"]), recipe.pop("seal")
    except (UserError, KeyError, TypeError, ValueError):
        return f"{RECIPE_FILE} is missing or damaged"
    if fingerprint(recipe) != seals:
        return f"{RECIPE_FILE} was altered"
    there = _files(folder)
    if missing := sorted(recorded.keys() - there):
        return f"{missing[0]} is missing"
    if unknown := sorted(there - recorded.keys()):
        return f"{unknown[0]} was added"
    for name, expected in recorded.items():
        path = folder / name
        try:
            state = path.stat()
            found = _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} was altered"
    return None


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder) != Path(RECIPE_FILE)
    }


@functools.lru_cache(maxsize=100_000)
def _sha256(path: Path, *_state: int) -> str:
    """The hash of a file in a state of it: a run asks for it again and again."""
    return sha256_file(path)


def _entry(folder: Path) -> Entry:
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    size, newest = (
        sum(state.st_size for state in files),
        max((state.st_mtime for state in files), default=0.0),
    )
    if folder.parent.name == _WORK or folder.name.startswith("."):
        kind = "checkpoint" if folder.parent.name == _WORK else "scratch"
        return Entry(folder, kind, f"{kind} of an unfinished step", "unfinished", "", size, newest)
    problem = damage(folder)
    if problem:
        return Entry(folder, folder.parent.name, "?", "altered", problem, size, newest)
    recipe = read_json(folder / RECIPE_FILE)
    used = (folder / RECIPE_FILE).stat().st_mtime
    state: State = "whole" if is_current(recipe) else "stale"
    return Entry(folder, folder.parent.name, recipe["label"], state, "", size, used)


def prunable(
    entries: Iterable[Entry], *, needed: frozenset[str] | None = None, unused_for: float | None = None
) -> Iterator[tuple[Entry, str]]:
    """What may be removed from a store, with the reason.

    Scratch of killed steps, altered and stale entries always; further ones as the arguments say.

    Args:
        entries: Those of the store.
        needed: Key beginnings of the steps to keep; whole entries that are not among them go. None keeps all.
        unused_for: Seconds: what was not needed for so long goes. None keeps all.
    """
    now = time.time()
    for entry in entries:
        if entry.kind == "scratch":
            yield entry, "left by a step that was killed"
        elif entry.state == "altered":
            yield entry, f"altered: {entry.problem}"
        elif entry.state == "stale":
            yield entry, "made by another version of the code or of a library"
        elif needed is not None and entry.key not in needed:
            yield entry, "no experiment that was named needs it"
        elif unused_for is not None and now - entry.used > unused_for:
            yield entry, f"not used for {(now - entry.used) / 86400:.0f} days"


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings that lingualift's own loggers give in the block."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    logger, handler = logging.getLogger("lingualift"), Collect()
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
