"""Rows of the hub as files for an experiment, with a record of where each came from."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.data.hub import Hub, Part, Snapshot, drawn, fetched, part_rows, parts_of
from lingualift.data.hubsets import HUB_SETS, WIKIPEDIA, DataSet
from lingualift.data.output import json_line, parents
from lingualift.data.rows import fill_in
from lingualift.errors import UserError, did_you_mean, setting
from lingualift.provenance import locked, read_json, sha256_file, umask, write_json, writing
from lingualift.tasks import RowError, Task, class_of, get_task

RECORD = "source.json"
SPLITS = ("train", "validation", "test")
ROWS = 10_000
_FILES = "{language}/{split}.jsonl.gz"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: The output.
        written: Files written by this call.
        kept: Files that were there already, as they would be written.
        records: Task -> file -> what its `source.json` says of it, of all files asked for.
        notes: What was left out, a sentence each.
    """

    folder: Path
    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    records: Mapping[str, Mapping[str, Mapping[str, Any]]]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """What was read, for people."""
        found = []
        for task, files in self.records.items():
            origins = {(one["hub"], one["commit"], one["licence"]) for one in files.values()}
            for hub, commit, licence in sorted(origins, key=str):
                mine = [one for one in files.values() if (one["hub"], one["commit"]) == (hub, commit)]
                rows = sum(one["rows"] for one in mine)
                found.append(
                    f"{self.folder / task}: {len(mine)} files, {rows:,} rows of {hub} at {commit} "
                    f"(licence: {licence or 'the card says none'})"
                )
        there = f", {len(self.kept)} were there already" if self.kept else ""
        return [*found, f"{len(self.written)} files written{there}", *self.notes]

    def entries(self) -> str:
        """The lines of an experiment file that read what was exported."""
        texts = [
            line for task in self.records if task == WIKIPEDIA for line in ("reference:", _data(self, task))
        ]
        tasks = [f"  - task: {task}\n  {_data(self, task)}" for task in self.records if task != WIKIPEDIA]
        return "\n".join([*(["tasks:"] if tasks else []), *tasks, *texts])


def _data(exported: Exported, task: str) -> str:
    aside = HUB_SETS[task].aside
    shown = aside.model_dump(exclude_none=True) if aside else {}
    left = (
        f", validation: {{{', '.join(f'{key}: {value}' for key, value in shown.items())}}}" if aside else ""
    )
    files = json.dumps(str(exported.folder / task / _FILES), ensure_ascii=False)
    return f"  data: {{files: {files}{left}}}"


@dataclass(frozen=True)
class _File:
    """A file to write: a split of a task in a language, and the data set that has it."""

    task: str
    language: str
    split: str
    rows: DataSet

    @property
    def name(self) -> str:
        return _FILES.format(language=self.language, split=self.split)

    def of(self, template: str, split: str = "") -> str:
        """A template of the data set, filled in."""
        return fill_in(template, self.language, split, self.rows.languages)

    def origin(self, max_rows: int, sample_seed: int) -> dict[str, Any]:
        """What is known of it before the hub is asked: where its rows are, and which of them are taken."""
        sample = {"max_rows": max_rows, "sample_seed": sample_seed} if self.task == WIKIPEDIA else {}
        beginning = {"ids_begin_with": self.of(self.rows.beginning)} if self.rows.beginning else {}
        return {
            "hub": self.rows.hub,
            "config": self.of(self.rows.config),
            "split": self.rows.splits[self.split],
            **beginning,
            **sample,
        }


def export_data(
    tasks: Sequence[str],
    *,
    languages: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
    output: Path | str = "data",
    max_rows: int | None = None,
    sample_seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the rows of tasks, which are read from the hub, as `<output>/<task>/{language}/{split}.jsonl.gz`.

    Rows keep their order and have an `id`: the data set's own, else their place (the first is 1). Beside them
    `source.json` says of each file its data set, commit, configuration, split, files there, licence, rows and sha256. A
    call goes on where an earlier one stopped, at the commits that it read, and overwrites nothing.

    Args:
        tasks: Shipped tasks, and `wikipedia` for reference text.
        languages: Codes, by which folders are named; all that a task has if None. A task that lacks one is written
            without it, if another has it.
        splits: Some of train, validation and test; those that there are if None.
        revision: Branch, tag or commit to read; the main branch if None, or where that holds a script, the branch that
            the hub converts to parquet.
        output: Folder to write into.
        max_rows: Rows of reference text per language, 10,000 if None: a sample, for which only parts of the files are
            fetched.
        sample_seed: Seed of that sample; 0 if None.
        progress: Told of bytes fetched and bytes in all.

    Raises:
        UserError: an unknown task, language or split; no rows on the hub; a file in the way that was not written so;
            no access to the hub. Files that are written stay.
    """
    folder = Path(output)
    sample = _sample(tasks, max_rows, sample_seed)
    files, notes = _asked(tasks, languages, splits)
    _check_revision(files, revision)
    records = {task: _read_record(folder / task) for task in dict.fromkeys(file.task for file in files)}
    kept: list[_File] = []
    missing: list[_File] = []
    for file in files:
        origin = file.origin(*sample)
        there = _is_there(folder / file.task / file.name, records[file.task].get(file.name), origin)
        (kept if there else missing).append(file)
    hub = Hub(revision, _commits(records))
    if revision is not None:
        for file in kept:  # they are to be at the commit that is asked for
            hub.find(file.rows.hub, file.of(file.rows.config), file.rows.splits[file.split])
    if missing:
        _write_all(folder, missing, hub, sample, progress)
    found = {task: _read_record(folder / task) for task in records}
    return Exported(
        folder,
        tuple(folder / file.task / file.name for file in missing),
        tuple(folder / file.task / file.name for file in kept),
        {task: {f.name: found[task][f.name] for f in files if f.task == task} for task in records},
        tuple(notes),
    )


# What is asked for


def _sample(tasks: Sequence[str], max_rows: int | None, sample_seed: int | None) -> tuple[int, int]:
    """Rows of a sample of reference text, and its seed."""
    for name, value in (("max_rows", max_rows), ("sample_seed", sample_seed)):
        if value is not None and WIKIPEDIA not in tasks:
            mend = f"write `data: {{{name}: …}}` in the experiment file, and leave it out here"
            raise UserError(setting(name), f"is given without {WIKIPEDIA}", "reference text to sample", mend)
    if max_rows is not None and max_rows < 1:
        raise UserError(setting("max_rows"), f"is {max_rows}", "at least 1", f"leave it out for {ROWS:,}")
    return max_rows or ROWS, sample_seed or 0


def _asked(
    tasks: Sequence[str], languages: Sequence[str] | None, splits: Sequence[str] | None
) -> tuple[list[_File], list[str]]:
    """The files of tasks, and what there is none of, in words."""
    for split in splits or ():
        if split not in SPLITS:
            raise UserError(
                setting("splits"), f"is {split!r}", ", ".join(SPLITS), did_you_mean(split, SPLITS)
            )
    codes = list(dict.fromkeys(languages)) if languages is not None else None
    if codes is not None and not codes:
        raise UserError(
            setting("languages"), "names none", "codes: de,fr", "name one, or leave it out for all"
        )
    if not tasks:
        raise UserError("tasks", "names none", ", ".join(HUB_SETS), "name one")
    files: list[_File] = []
    notes: list[str] = []
    for task in dict.fromkeys(tasks):
        own, lacking = _of_task(task, codes, splits or SPLITS)
        files += own
        notes += lacking
    had = {file.language for file in files}
    nowhere = [code for code in codes or () if code not in had]
    if nowhere or not files:
        where = f"language {nowhere[0]!r}" if nowhere else ", ".join(tasks)
        mend = "leave it out" if nowhere else f"leave {setting('splits')} out"
        raise UserError(where, f"has nothing to export: {'; '.join(notes)}", mend=mend)
    return files, notes


def _of_task(task: str, codes: Sequence[str] | None, splits: Sequence[str]) -> tuple[list[_File], list[str]]:
    """The files of a task, and what of it there is not, in words."""
    if task not in HUB_SETS:
        raise UserError(
            f"task {task!r}", "has no data set that is known here", "", did_you_mean(task, HUB_SETS)
        )
    sets, missing = HUB_SETS[task].sets, HUB_SETS[task].missing
    if not sets:
        mend = (
            f"write its rows, with the columns of docs/tasks.md, as data/{task}/{{language}}/{{split}}.jsonl"
        )
        raise UserError(f"task {task!r}", missing, mend=mend)
    every = sorted({code for rows in sets for code in rows.languages})
    if codes is None and not every:
        found = f"is not given, and {task} has hundreds"
        raise UserError(setting("languages"), found, "codes: de,fr", "name them")
    files = [
        _File(task, code, split, rows)
        for code in (every if codes is None else codes)
        for split in SPLITS
        for rows in sets
        if split in splits and split in rows.splits and rows.knows(code)
    ]
    strange = [code for code in codes or () if not any(rows.knows(code) for rows in sets)]
    bare = [code for code in codes or () if code not in {*strange, *(file.language for file in files)}]
    notes = [f"{task} has no rows in {', '.join(strange)}, but in {', '.join(every)}"] if strange else []
    if bare or (not files and not strange):
        notes.append(
            f"{task} has no {' or '.join(splits)} split" + (f" in {', '.join(bare)}" if bare else "")
        )
    return files, notes


def _check_revision(files: Sequence[_File], revision: str | None) -> None:
    """Refuse a commit for several data sets: it is one's alone."""
    sets = sorted({file.rows.hub for file in files})
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision) and len(sets) > 1:
        raise UserError(
            setting("revision"),
            f"is the commit {revision}, and rows are read from {', '.join(sets)}",
            "a commit of the one data set that is read",
            f"export them one by one, with {setting('splits')} and {setting('languages')}",
        )


# What is there already


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What `source.json` says of the files beside it; nothing where there is none."""
    path = folder / RECORD
    if not path.exists():
        return {}
    record = read_json(path)
    try:
        files: dict[str, dict[str, Any]] = record["files"]
        if not all({"hub", "commit", "licence", "rows", "sha256"} <= one.keys() for one in files.values()):
            raise KeyError
    except (KeyError, TypeError, AttributeError):
        mend = f"move it away, or choose another {setting('output')}"
        raise UserError(path, "was not written by an export", "a record of exported files", mend) from None
    return files


def _commits(records: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, list[str]]:
    """The commits at which each data set was read."""
    found: dict[str, list[str]] = {}
    for one in (one for files in records.values() for one in files.values()):
        commits = found.setdefault(one["hub"], [])
        commits += [one["commit"]] if one["commit"] not in commits else []
    return found


def _is_there(path: Path, record: Mapping[str, Any] | None, origin: Mapping[str, Any]) -> bool:
    """Whether a file is there as it would be written.

    Raises:
        UserError: another one is.
    """
    mend = f"move it away, or choose another {setting('output')}"
    if not path.exists() and not path.is_symlink():
        return False
    if record is None:
        raise UserError(path, "is there, and no export wrote it", "a file that does not exist yet", mend)
    asked = {name: record.get(name) for name in origin}
    if asked != origin:
        different = ", ".join(f"{name} {asked[name]!r}" for name in origin if asked[name] != origin[name])
        wanted = ", ".join(f"{name} {value!r}" for name, value in origin.items() if asked[name] != value)
        raise UserError(path, f"was exported with {different}", wanted, mend)
    if not path.is_file() or sha256_file(path) != record["sha256"]:
        raise UserError(path, "was changed since it was exported", f"sha256 {record['sha256']}", mend)
    return True


# How it is written


def _write_all(
    folder: Path,
    missing: Sequence[_File],
    hub: Hub,
    sample: tuple[int, int],
    progress: Callable[[int, int], None],
) -> None:
    """Write files, one after the other."""
    reads = [_Read.of(file, hub, sample) for file in missing]
    done, total = 0, sum(read.size for read in reads)
    progress(0, total)

    def tell(bytes: int) -> None:
        nonlocal done
        done += bytes
        progress(done, total)

    for read in reads:
        _write(folder / read.file.task, read, tell)


@dataclass(frozen=True)
class _Read:
    """A file to write, and what is to be read for it."""

    file: _File
    origin: Mapping[str, Any]
    snapshot: Snapshot
    names: Sequence[str]
    parts: Sequence[Part] | None

    @classmethod
    def of(cls, file: _File, hub: Hub, sample: tuple[int, int]) -> _Read:
        """Ask the hub where the rows are; of a sample, which parts of the files hold it."""
        origin = file.origin(*sample)
        snapshot, names = hub.find(origin["hub"], origin["config"], origin["split"])
        parts = None
        if file.task == WIKIPEDIA:
            parts = drawn(parts_of(snapshot, names, _columns(file.task)), *sample)
        return cls(file, origin, snapshot, names, parts)

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        if self.parts is not None:
            return sum(part.size for part in self.parts)
        return sum(self.snapshot.sizes[name] for name in self.names)

    @property
    def files(self) -> list[str]:
        """The files on the hub that rows are read from."""
        return list(self.names if self.parts is None else dict.fromkeys(part.file for part in self.parts))

    def rows(self, tell: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        """The rows, as they are written; raises as `asking`, `read_table`, and for a row that cannot be one."""
        place = 0
        for where, raw in self._raw(tell):
            place += 1
            if not str(raw.get(self.file.rows.id, "")).startswith(self.origin.get("ids_begin_with", "")):
                continue
            try:
                yield _row(self.file, raw, place)
            except RowError as error:
                mend = f"name another {setting('revision')}"
                raise UserError(f"{where} row {place}", str(error), mend=mend) from None

    def _raw(self, tell: Callable[[int], None]) -> Iterator[tuple[str, dict[str, Any]]]:
        where = f"{self.snapshot.hub} {self.origin['config']} {self.origin['split']}"
        if self.parts is not None:
            for part in self.parts:
                for row in part_rows(self.snapshot, part, _columns(self.file.task)):
                    yield where, row
                tell(part.size)
            return
        for name in self.names:
            table = fetched(self.snapshot, name, ())
            tell(self.snapshot.sizes[name])
            yield from ((where, row) for row in table.each(table.column_names))


def _columns(task: str) -> list[str]:
    """The columns that are written, without those that a row may lack."""
    if task == WIKIPEDIA:
        return ["id", "text"]
    known = _labelled(task)
    return list(dict.fromkeys(["id", *known.columns, known.gold_column]))


def _labelled(task: str) -> Task:
    known = get_task(task)
    assert isinstance(known, Task)
    return known


def _row(file: _File, raw: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A row as it is written: an id, the columns of the task, classes by their names."""
    own = raw.get(file.rows.id)
    given = {**file.rows.change(raw), "id": place if own is None else own}
    columns = _columns(file.task)
    for name in columns:
        if given.get(name) is None:
            raise RowError(f"column {name!r} is missing")
    if file.task == WIKIPEDIA:
        return {name: given[name] for name in columns}
    task = _labelled(file.task)
    if task.labels:
        given[task.gold_column] = class_of(given, task.gold_column, task.labels)
    more = [name for name in task.written_columns if given.get(name) is not None]
    return {name: given[name] for name in dict.fromkeys([*columns, *more])}


def _write(folder: Path, read: _Read, tell: Callable[[int], None]) -> None:
    """Write a file whole or not at all, and note it before it has its name, so that it is known for ours."""
    target = folder / read.file.name
    with writing(target), locked(folder / f".{RECORD}.lock"), _scratch(target) as scratch:
        if target.exists():
            raise UserError(target, "was written meanwhile", mend="run it again, when nobody else does")
        rows = _pack(scratch, read.rows(tell))
        if not rows:
            where = f"{read.origin['hub']} {read.origin['config']} {read.origin['split']}"
            found = f"has no rows in {read.file.language} at {read.snapshot.commit}"
            raise UserError(where, found, "at least one", f"name another {setting('revision')}")
        entry = {
            **read.origin,
            "revision": read.snapshot.branch,
            "commit": read.snapshot.commit,
            "files": read.files,
            "licence": read.snapshot.licence,
            "rows": rows,
            "sha256": sha256_file(scratch),
        }
        files = {**_read_record(folder), read.file.name: entry}
        record = {"schema": 1, "task": read.file.task, "files": dict(sorted(files.items()))}
        write_json(folder / RECORD, record)
        scratch.rename(target)


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A file beside `target`, gone at the end unless it was renamed; what a killed process left is written over."""
    scratch = target.with_name(f".{target.name}.partial")
    with parents(target):
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)


def _pack(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON Lines, packed; equal rows give equal bytes. Returns how many."""
    count = 0
    with path.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            for row in rows:
                line = json_line(row, f"the row with id {row['id']!r}")
                packed.write(f"{line}\n".encode())
                count += 1
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o666 & ~umask())
    return count
