"""Run folders, in which people keep things of their own: for which experiment one is, and what in it is of our making.

What we made is recorded, and no other file is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lingualift.config import Experiment, dump_experiment, load_experiment
from lingualift.errors import UserError
from lingualift.provenance import (
    is_inside,
    locked,
    read_json,
    reading,
    sha256_bytes,
    sha256_file,
    write_json,
    write_text,
    writing,
)
from lingualift.runs.records import Entry

EXPERIMENT_FILE, RESULTS_FILE, STEPS_FILE, LOG_FILE = (
    "experiment.yaml",
    "results.json",
    "steps.json",
    "log.jsonl",
)
PAGE_FILE, TABLE_FILE = "report.html", "table.md"
RESULTS = (RESULTS_FILE, STEPS_FILE, TABLE_FILE, PAGE_FILE)
"""What says how a run ended."""
RECORD_FILE = "made.json"
_ABOUT = "what lingualift made here, and may replace or remove: texts as long as their sha256 is this one; no others"


def check_folder(folder: Path, experiment: Experiment, replace: bool, names: Iterable[str] = ()) -> None:
    """Check that an experiment may run into a folder; nothing is written.

    Args:
        folder: Where.
        experiment: What will run.
        replace: Whether results of another experiment may give way.
        names: Paths within the folder of what will be written.

    Raises:
        UserError: it holds another experiment's run (unless that may be replaced), no run at all, or files that were
            changed since a run wrote them.
    """
    older = set(files_of_older_run(folder))
    ours = {*made(folder), *older}
    there = folder / EXPERIMENT_FILE
    if EXPERIMENT_FILE not in ours:
        _check_empty(folder)
        return
    same = not there.is_file() or _same(there, experiment)
    if not same and not replace:
        raise UserError(
            folder,
            "holds the run of another experiment",
            "the same experiment, to go on with it",
            "choose another --output, or replace its results with --replace (finished steps are kept)",
        )
    check(folder, set(names) - older, changed=(EXPERIMENT_FILE,) if same else ())


def _check_empty(folder: Path) -> None:
    with reading(folder):
        others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others not in ([], [".lock"]):
        found = "is not empty and no run folder"
        if EXPERIMENT_FILE in others:
            found = f"holds an {EXPERIMENT_FILE} that no run wrote"
        raise UserError(folder, found, "a folder that is new or that a run made", "choose another --output")


@contextlib.contextmanager
def claimed(folder: Path, experiment: Experiment, replace: bool) -> Iterator[None]:
    """Make the run folder, put the resolved experiment into it, and keep other runs out while the block lasts.

    Raises:
        UserError: as `check_folder`, or it cannot be written.
    """
    check_folder(folder, experiment, replace)
    with alone(folder):
        check_folder(folder, experiment, replace)  # another run may have come first
        adopt(folder, files_of_older_run(folder))
        there = folder / EXPERIMENT_FILE
        same = there.is_file() and _same(there, experiment)
        if not same:
            discard(folder, RESULTS)  # lest they pass for this experiment's
        if not same or load_experiment(there).published != experiment.published:
            place(folder, {EXPERIMENT_FILE: dump_experiment(experiment)})
        yield


@contextlib.contextmanager
def still_there(folder: Path, experiment: Experiment) -> Iterator[None]:
    """Keep other runs out of a run's folder while its results are written.

    Raises:
        UserError: the folder was removed meanwhile, or another run has replaced the experiment in it.
    """
    mend = "run the same command again: finished steps are kept"
    if not (folder / EXPERIMENT_FILE).is_file():
        raise UserError(folder, "was removed while the run went on", mend=mend)
    with alone(folder):
        if not _same(folder / EXPERIMENT_FILE, experiment):
            found = "holds another experiment now, which was started there while this run went on"
            raise UserError(folder, found, mend="run again with another --output: finished steps are kept")
        yield


def _same(there: Path, experiment: Experiment) -> bool:
    """Whether a resolved experiment file gives the same results, however fast, and whatever is shown beside them."""
    pace: Any = {
        "published": True,
        "workers": True,
        "report_to": True,
        "scoring": {"batch_size"},
        "training": {"task": {"checkpoint_steps"}, "reference": {"checkpoint_steps"}},
    }
    try:
        other = load_experiment(there)
    except UserError:
        return False
    return other.model_dump(exclude=pace) == experiment.model_dump(exclude=pace)


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


def files_of_older_run(folder: Path) -> list[str]:
    """Files of a run by a version that kept no record of what it made; its log tells it by."""
    entries, _ = read_log(folder / LOG_FILE)
    if made(folder) or not entries or not {"time", "event", "step", "key"} <= entries[0].keys():
        return []
    try:
        rows = [row for row in read_json(folder / RESULTS_FILE)["rows"] if isinstance(row, dict)]
    except (UserError, KeyError, TypeError):
        rows = []
    named = {str(row.get(key)) for row in rows for key in ("predictions", "adapter")}
    views = [folder / name for name in named if re.fullmatch(r"(predictions|adapters)/[^/]+", name)]
    files = (path for view in views for path in (view, *view.rglob("*")) if path.is_file())
    return [EXPERIMENT_FILE, *RESULTS, *(str(path.relative_to(folder)) for path in files)]


def read_log(path: Path) -> tuple[tuple[Mapping[str, Any], ...] | None, int]:
    """Entries, and lines that are none: a killed run may leave half a line."""
    if not path.is_file():
        return None, 0
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    entries, garbled = [], 0
    for line in text.splitlines():
        try:
            entries.append(Entry.model_validate(json.loads(line)).model_dump(exclude_none=True))
        except (ValueError, RecursionError):  # pydantic's is a ValueError
            garbled += 1
    return tuple(entries), garbled
