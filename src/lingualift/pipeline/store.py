"""Finished steps on disk: one folder each, addressed by everything that determines it; whole, or never read."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from lingualift.errors import UserError
from lingualift.pipeline.steps import KINDS, Step
from lingualift.provenance import (
    atomic_folder,
    file_lock,
    fingerprint,
    locked,
    read_json,
    reading,
    sha256_file,
    write_json,
    writing,
)
from lingualift.training.trainer import LOGS, STATES
from lingualift.translation import CACHE_FILE

RECIPE_FILE, STORE_FILE = "step.json", "store.json"
_LOG = logging.getLogger("lingualift.store")
_WORK, _LOCKS = "work", "locks"
_KEY = re.compile("[0-9a-f]{20}")
_SCRATCH = re.compile(r"\.([0-9a-f]{20})\..*\.partial")
_SENTENCES = rf"{re.escape(CACHE_FILE)}(-journal)?"
_CHECKPOINT = re.compile(rf"checkpoint-\d+|seal-\d+\.json|\d+\.json|{LOGS}|{STATES}|{_SENTENCES}")
"""What a step leaves in its `work` folder."""
State = Literal["whole", "altered", "unreadable", "stale", "unfinished"]


@dataclass(frozen=True)
class Entry:
    """A folder of a store that we made, as it lies there.

    Attributes:
        path: The folder.
        kind: Kind of its step; "checkpoint" or "scratch" for what unfinished steps left.
        label: What people see.
        state: "whole"; "altered" (it is made again when it is needed); "unreadable" (by this user); "stale" (made by
            another version of the code or of a library, never read again); "unfinished" (left by a step that did not
            end).
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
class Pruned:
    """What `Store.prune` did.

    Attributes:
        gone: Entries that were removed (or would be), each with the reason.
        kept: How many entries stay.
        needed: How many of these stay only because a run that is going on needs them.
    """

    gone: list[tuple[Entry, str]]
    kept: int
    needed: int


@dataclass(frozen=True)
class Store:
    """A folder of finished steps, that any number of runs may share at once.

    Attributes:
        root: Holds `<kind>/<key>` for each finished step, `work/<key>` for the checkpoints of unfinished ones, and
            `locks/`. Whatever else people put there, within those folders too, is neither read nor removed.
    """

    root: Path

    def folder(self, step: Step) -> Path:
        """Where the step's output is, or will be."""
        return self.root / step.kind / step.key[:20]

    def has(self, step: Step) -> bool:
        """Whether the step is finished, and its output is as it was written.

        Raises:
            UserError: its output may not be read.
        """
        folder = self.folder(step)
        return folder.is_dir() and damage(folder) is None

    def work(self, step: Step) -> Path:
        """Scratch space that outlives a killed run: checkpoints."""
        return self.root / _WORK / step.key[:20]

    def clear_work(self, step: Step) -> None:
        """Remove the checkpoints of a step."""
        _remove_checkpoints(self.work(step))

    def recipe(self, step: Step) -> dict[str, Any]:
        """What a finished step was made from, the seconds it took, and its warnings."""
        return dict(read_json(self.folder(step) / RECIPE_FILE))

    def check(self) -> None:
        """Check that the folder is a store or can become one; nothing is written.

        Raises:
            UserError: there is a folder of that name that is no store.
        """
        with writing(self.root):
            if self.root.is_dir() and any(self.root.iterdir()) and not self._is_store():
                mend = "choose another --store"
                raise UserError(self.root, "is not empty and no store of finished steps", mend=mend)

    def claim(self) -> None:
        """Make the folder; raises as `check`, and where it cannot be written."""
        self.check()
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / STORE_FILE).is_file():
                write_json(self.root / STORE_FILE, {"schema": 1})

    def check_writable(self) -> None:
        """Check that steps can be written; raises a `UserError` where they cannot."""
        if self.root.is_dir() and not os.access(self.root, os.W_OK | os.X_OK):
            found = "may not be written by you, and steps are missing in it"
            raise UserError(self.root, found, mend="choose another --store, or ask its owner: chmod -R g+w")

    def _is_store(self) -> bool:
        try:
            return bool(read_json(self.root / STORE_FILE) == {"schema": 1})
        except UserError:
            return False

    def _lock_file(self, name: str) -> Path:
        return self.root / _LOCKS / f"{name}.lock"

    def _lock(self, name: str) -> FileLock:
        return file_lock(self._lock_file(name))

    @contextlib.contextmanager
    def needing(self, steps: Iterable[Step]) -> Iterator[None]:
        """Keep steps and their checkpoints from being pruned while the block lasts; it begins when no prune is at work.

        In a store that this user may only read, nothing can be kept.
        """
        if not os.access(self.root, os.W_OK):
            yield
            return
        name = f"run-{uuid.uuid4().hex}"
        mine, needs = self._lock(name), self.root / _LOCKS / f"{name}.json"
        with writing(self.root), self._lock("prune"):
            mine.acquire()
            write_json(needs, [step.key[:20] for step in steps])
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the store may be gone
                needs.unlink()
                Path(mine.lock_file).unlink()
            mine.release()

    def _needed(self) -> set[str]:
        """Keys of the steps that runs need which are going on; those of runs that were killed are forgotten."""
        found: set[str] = set()
        for path in (self.root / _LOCKS).glob("run-*.json"):
            try:
                with self._lock(path.stem).acquire(timeout=0):
                    path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(UserError):  # it ends just now
                    found.update(read_json(path))
        return found

    @contextlib.contextmanager
    def writing(self, step: Step) -> Iterator[Path | None]:
        """A folder to fill; it becomes the step's output when the block ends well.

        One process at a time: another that wants the same step waits, and gets None because there is nothing left to
        do. What a killed process left unfinished is cleared away, and so is an output that was altered.
        """
        folder = self.folder(step)
        with locked(self._lock_file(step.key[:20])):
            if self.has(step):
                yield None
                return
            with collected_warnings() as warnings:
                if folder.exists():
                    _LOG.warning("%s: %s; it is made again", folder, damage(folder))
                for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
                    shutil.rmtree(leftover, ignore_errors=True)
                started = time.monotonic()
                ready = folder.with_name(f".{folder.name}.ready.partial")
                with atomic_folder(ready) as scratch:
                    yield scratch
                    facts = {"seconds": round(time.monotonic() - started, 3), "warnings": warnings}
                    seal(scratch, {**step.description(), "key": step.key, **facts})
                with writing(folder):
                    _settle(ready, folder)

    def used(self, steps: Iterable[Step]) -> None:
        """Note that finished steps were needed now, for `prune`."""
        for step in steps:
            with contextlib.suppress(OSError):  # a store that may only be read
                (self.folder(step) / RECIPE_FILE).touch()

    def entries(self) -> Iterator[Entry]:
        """Every folder of the store that we made, each checked against its hashes.

        Raises:
            UserError: the folder is no store, or cannot be read.
        """
        with reading(self.root):
            self._check_there()
            for kind in sorted([*KINDS, _WORK]):
                for folder in _own_folders(self.root / kind):
                    entry = _entry(folder)
                    if entry:
                        yield entry

    def _check_there(self) -> None:
        if not self.root.is_dir() or not self._is_store():
            expected = "the store of a run (`store` beside the run folder)"
            raise UserError(self.root, "is no store of finished steps", expected, "name it with --store")

    def prune(
        self,
        *,
        needed: frozenset[str] | None = None,
        unused_for: float | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove what no run will read again: scratch of killed steps, altered and stale entries, what is asked for.

        What a run that is going on needs stays.

        Args:
            needed: Key beginnings of the steps to keep; whole entries that are not among them go. None keeps all.
            unused_for: Seconds: what was not needed for so long goes. None keeps all.
            dry_run: Remove nothing.

        Raises:
            UserError: the folder is no store, or cannot be written.
        """
        if dry_run:
            entries = list(self.entries())
            going = list(_prunable(entries, needed, unused_for))
            return Pruned(going, len(entries) - len(going), 0)
        with reading(self.root):
            self._check_there()  # a lock is a file, and goes into no folder of somebody else's
        with writing(self.root), self._lock("prune"):
            busy, gone, spared = self._needed(), [], 0
            entries = list(self.entries())
            for entry, why in _prunable(entries, needed, unused_for):
                if entry.key not in busy and self._remove(entry):
                    gone.append((entry, why))
                else:
                    spared += 1
        return Pruned(gone, len(entries) - len(gone), spared)

    def _remove(self, entry: Entry) -> bool:
        """Remove an entry, unless somebody is making it; whether it is gone."""
        try:
            with self._lock(entry.key).acquire(timeout=0):
                if entry.kind == "scratch":
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.kind == "checkpoint":
                    _remove_checkpoints(entry.path)
                else:
                    _remove_output(entry.path)
        except Timeout:
            return False
        return True


def _own_folders(kind: Path) -> Iterator[Path]:
    """Folders that are called as ours are; links lead out of the store and are nobody's to follow."""
    if kind.is_dir() and not kind.is_symlink():
        for path in sorted(kind.iterdir()):
            named = _KEY.fullmatch(path.name) or _SCRATCH.fullmatch(path.name)
            if named and path.is_dir() and not path.is_symlink():
                yield path


def _settle(ready: Path, folder: Path) -> None:
    """Put a finished step where it belongs; beside what others put there, its record last."""
    if not folder.exists():
        ready.rename(folder)
        return
    (folder / RECIPE_FILE).unlink(missing_ok=True)
    for path in sorted(ready.rglob("*"), key=lambda path: path == ready / RECIPE_FILE):
        target = folder / path.relative_to(ready)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            path.replace(target)
    shutil.rmtree(ready)


def _remove_output(folder: Path) -> None:
    """Remove the files that the record of a finished step names, the record first."""
    recorded = _record(folder)
    (folder / RECIPE_FILE).unlink(missing_ok=True)
    for name in recorded["files"] if recorded else ():
        (folder / name).unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("*"):
        if _CHECKPOINT.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Remove folders that hold nothing any more, however deep."""
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


def seal(folder: Path, recipe: dict[str, Any]) -> None:
    """Write `step.json`: the recipe, the sha256 of every file in the folder, and one over all of these."""
    there = (path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): sha256_file(path) for path in there}
    content = {**recipe, "files": files}
    write_json(folder / RECIPE_FILE, {**content, "seal": fingerprint(content)})


def _record(folder: Path) -> dict[str, Any] | None:
    """What `seal` wrote; None where it is not there, or not as it was written."""
    try:
        recipe = dict(read_json(folder / RECIPE_FILE))
        whole = recipe.pop("seal") == fingerprint(recipe) and isinstance(recipe["files"], dict)
        inside = all(
            ".." not in Path(name).parts and not Path(name).is_absolute() for name in recipe["files"]
        )
    except (UserError, KeyError, TypeError, ValueError):
        return None
    return recipe if whole and inside else None


def damage(folder: Path) -> str | None:
    """What differs between a finished step's folder and what was written, in words; None if nothing does.

    Raises:
        UserError: the folder may not be read.
    """
    try:
        (folder / RECIPE_FILE).open("rb").close()
    except PermissionError:
        with reading(folder):
            raise
    except OSError:
        return f"{RECIPE_FILE} is missing"
    recipe = _record(folder)
    if recipe is None:
        return f"{RECIPE_FILE} is damaged"
    for name, expected in recipe["files"].items():
        path = folder / name
        try:
            state = path.stat()
            found = _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError:
            with reading(path):
                raise
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} was altered"
    return None


@functools.lru_cache(maxsize=100_000)
def _sha256(path: Path, *_state: int) -> str:
    """The hash of a file in a state of it: a run asks for it again and again."""
    return sha256_file(path)


def _entry(folder: Path) -> Entry | None:
    """What is told of a folder that is called as ours are; None if nothing of ours is in it."""
    size, newest = _size(folder)
    if folder.parent.name == _WORK:
        if not any(_CHECKPOINT.fullmatch(path.name) for path in folder.glob("*")):
            return None
        return Entry(folder, "checkpoint", "checkpoint of an unfinished step", "unfinished", "", size, newest)
    if folder.name.startswith("."):
        return Entry(folder, "scratch", "scratch of an unfinished step", "unfinished", "", size, newest)
    if not (folder / RECIPE_FILE).is_file():
        return None
    kind = folder.parent.name
    try:
        problem = damage(folder)
    except UserError as error:
        return Entry(folder, kind, "?", "unreadable", error.found, size, newest)
    recipe = _record(folder)
    if problem or recipe is None:
        return Entry(folder, kind, "?", "altered", problem or "", size, newest)
    used = (folder / RECIPE_FILE).stat().st_mtime
    step = KINDS.get(str(recipe.get("kind")))
    state: State = "whole" if step and step.made(recipe) else "stale"
    return Entry(folder, kind, str(recipe.get("label")), state, "", size, used)


def _size(folder: Path) -> tuple[int, float]:
    """Bytes in a folder, and when the newest of its files was written; a run may be moving them."""
    size, newest = 0, 0.0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            if path.is_file():
                size, newest = size + state.st_size, max(newest, state.st_mtime)
    return size, newest


def _prunable(
    entries: Iterable[Entry], needed: frozenset[str] | None, unused_for: float | None
) -> Iterator[tuple[Entry, str]]:
    """What may be removed from a store, with the reason; arguments as for `Store.prune`."""
    now = time.time()
    for entry in entries:
        if entry.state == "unreadable" or (entry.state == "altered" and _record(entry.path) is None):
            continue  # which of its files are ours cannot be told
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
