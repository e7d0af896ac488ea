"""Files of rows: JSON Lines, CSV, plain text and parquet as tables, read as a stream within bounds."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import sys
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lingualift.errors import UserError, did_you_mean
from lingualift.parsing import is_missing, parse_json
from lingualift.provenance import reading
from lingualift.tasks import RowError

FORMATS = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".txt.gz": "text",
}
LINE, RATIO = "LINGUALIFT_LINE_MIB", "LINGUALIFT_UNPACK_RATIO"
"""What raises the bounds of a line, and of what a packed file may unpack to (docs/experiment.md)."""
_USUAL = {LINE: 64, RATIO: 100}  # no row of text is so long; text packs to a tenth, a twentieth at best
_FREE = 16 << 20  # bytes that anything may unpack to
_TOLD = 3  # values that a message names
_BATCH = 1024  # rows of a parquet file that are read at once


@dataclass(frozen=True)
class Choice:
    """Which rows of a file are wanted.

    Attributes:
        choose: From each row's group to the places of the wanted ones, in order.
        column: Rows with one value there are one group, and a row without one is its own; every row is if None.
    """

    choose: Callable[[Sequence[int]], Sequence[int]]
    column: str | None = None

    def __call__(
        self, where: object, total: int, names: Collection[str], values: Callable[[str], Iterable[Any]]
    ) -> Sequence[int]:
        """Choose from so many rows, of which `values` has those of a column."""
        if self.column is None:
            return self.choose(range(total))
        if self.column not in names:
            mend = did_you_mean(self.column, names, "correct `group_by`")
            raise UserError(where, f"has no column {self.column!r}", mend=mend)
        known: dict[object, int] = {}
        try:
            found = (_group(value) or object() for value in values(self.column))
            return self.choose([known.setdefault(value, len(known)) for value in found])
        except RowError as error:
            raise UserError(where, str(error), mend="correct or remove the row") from None


@dataclass(frozen=True)
class Keep:
    """Which rows of a file belong to the data: it is as if the others were not there.

    Attributes:
        patterns: Column -> what its values match, `*` for any text.
        others: Column -> a few values that matched nothing, as they are found.
    """

    patterns: Mapping[str, str]
    others: dict[str, dict[str, None]] = field(default_factory=dict)

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of them."""
        for column, pattern in self.patterns.items():
            value = str(row.get(column))
            if not re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), value, re.DOTALL):
                known = self.others.setdefault(column, {})
                if len(known) < _TOLD:
                    known[value] = None
                return False
        return True

    def check(self, where: object, columns: Collection[str], left: int) -> None:
        """Refuse data that has no such column, or no row that belongs to it."""
        for name in self.patterns:
            if name not in columns:
                mend = did_you_mean(name, columns, "correct `where`")
                raise UserError(where, f"has no column {name!r}", f"columns {', '.join(self.patterns)}", mend)
        if left == 0 and self.others:
            column, values = next(iter(self.others.items()))
            found = f"has no row whose {column} is {self.patterns[column]!r}"
            mend = "correct `where`, or say under `names` what the data calls the language"
            raise UserError(where, f"{found}, but {', '.join(map(repr, values))}", mend=mend)


class Table(Protocol):
    """Rows of a file or data set, by their indices; those that nobody chose are not kept."""

    @property
    def column_names(self) -> list[str]:
        """Every column that a row has."""

    def __len__(self) -> int:
        """Rows in all, chosen or not."""

    def row(self, index: int) -> dict[str, Any]:
        """A row; a value that is missing is None. Raises `RowError`: a value cannot be read."""

    def column(self, name: str) -> list[Any]:
        """All values of a column of a table that nothing was chosen from."""

    def each(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row in turn, of these columns, of a table that nothing was chosen from."""


@dataclass(frozen=True)
class TextTable:
    """Rows exactly as they stand in text: `2024-01-01`, `NA` and `007` stay text.

    Attributes:
        rows: Index -> column -> value.
        lines: Line of the file that each row begins on.
        column_names: Every column that a row has.
    """

    rows: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]]
    lines: Sequence[int]
    column_names: list[str]

    @classmethod
    def of(cls, given: Sequence[Mapping[str, Any]]) -> TextTable:
        """Rows that somebody has already; pandas' missing values are missing."""
        rows = [{name: None if is_missing(value) else value for name, value in row.items()} for row in given]
        return cls(rows, range(1, len(rows) + 1), list(dict.fromkeys(name for row in rows for name in row)))

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> dict[str, Any]:
        """A row."""
        return self.rows[index]

    def column(self, name: str) -> list[Any]:
        """All values of a column; None where a row lacks it."""
        return [self.rows[index].get(name) for index in range(len(self))]

    def each(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row in turn, of these columns; None where it lacks one."""
        for index in range(len(self)):
            yield {name: self.rows[index].get(name) for name in columns}


@dataclass(frozen=True)
class ArrowTable:
    """Rows of a parquet file or of a data set on the hub.

    Values are taken as they stand: what the data calls an image or a sound is neither decoded nor fetched.

    Attributes:
        content: The rows that are kept, a `pyarrow.Table`.
        total: Rows in all.
        places: Index -> place in `content`; None where all are kept.
        classes: Column -> the names of its classes, which stand there by their numbers.
        numbers: Index -> place in the file, from 0, where rows were left out; None where it is the index.
    """

    content: Any
    total: int
    places: Mapping[int, int] | None
    classes: Mapping[str, Sequence[str]]
    numbers: Sequence[int] | None = None

    def only(self, keep: Keep) -> ArrowTable:
        """The rows that belong to the data, of a table that nothing was chosen from; raises as `row`."""
        import pyarrow

        kept = _kept([self.content], keep, self.classes)
        taken = self.content.take(pyarrow.array(kept, pyarrow.int64()))
        return ArrowTable(taken, len(kept), None, self.classes, kept)

    @property
    def column_names(self) -> list[str]:
        """Every column."""
        return list(self.content.column_names)

    def __len__(self) -> int:
        return self.total

    def row(self, index: int) -> dict[str, Any]:
        """A row, its classes by their names.

        Raises:
            RowError: a value is none, e.g. text that is no UTF-8 or a date that no calendar has.
        """
        place = index if self.places is None else self.places[index]
        row = self.content.slice(place, 1)
        return {name: _values(row, name, self.classes)[0] for name in row.column_names}

    def column(self, name: str) -> list[Any]:
        """All values of a column, classes by their names; raises as `row`."""
        return _values(self.content, name, self.classes)

    def each(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row that is kept in turn, of these columns; raises as `row`."""
        for begin in range(0, self.content.num_rows, _BATCH):
            part = self.content.slice(begin, _BATCH)
            for values in zip(*(_values(part, name, self.classes) for name in columns), strict=True):
                yield dict(zip(columns, values, strict=True))


def _values(rows: Any, name: str, classes: Mapping[str, Sequence[str]]) -> list[Any]:
    """The values of a column of some rows.

    The order of classes is each data set's own: a number says nothing without it. -1 is no class, as in test splits
    whose labels are kept back.
    """
    try:
        values = rows.column(name).to_pylist()
    except UnicodeDecodeError:
        raise RowError(f"column {name!r} holds bytes that are no UTF-8") from None
    except (ValueError, OverflowError, ArithmeticError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RowError(f"column {name!r} holds a value that cannot be read ({reason})") from None
    names = classes.get(name)
    if names is None:
        return [None if is_missing(value) else value for value in values]
    return [_class_name(name, names, value) for value in values]


def _kept(batches: Iterable[Any], keep: Keep, classes: Mapping[str, Sequence[str]]) -> list[int]:
    """Places of the rows that belong to the data."""
    kept, begin = [], 0
    for batch in batches:
        columns = {name: _values(batch, name, classes) for name in keep.patterns}
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        kept += [begin + place for place, row in enumerate(rows) if keep(row)]
        begin += batch.num_rows
    return kept


def _class_name(column: str, names: Sequence[str], value: Any) -> str | None:
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if not isinstance(value, int) or value >= len(names):
        raise RowError(f"column {column!r} is {value}, which is none of {len(names)} classes")
    return names[value]


def _group(value: Any) -> str:
    """What rows of one group share; empty where a row has no value."""
    return "" if value is None or is_missing(value) else str(value).strip()


def read_table(
    path: Path, columns: Sequence[str], choose: Choice | None, keep: Keep | None = None
) -> tuple[Table, Sequence[int]]:
    """Read a file of rows; every line is looked at, and what is not chosen is not kept.

    Args:
        path: The file.
        columns: Those that are wanted, which tell what separates the cells of a CSV file.
        choose: Which rows are wanted; all if None.
        keep: Which rows belong to the data, among which is chosen; all if None.

    Returns:
        The table, and the indices of the rows that are chosen.

    Raises:
        UserError: an unknown format, a file that is empty, unreadable or malformed, or beyond the bounds.
    """
    kind = FORMATS[_suffix(path)]
    with reading(path):
        if path.stat().st_size == 0:
            raise UserError(path, "is empty", "at least one row", "check the file")
        if kind == "parquet":
            return _read_parquet(path, choose, keep)
        try:
            return _read_text(path, lambda: _READERS[kind](path, columns), choose, keep)
        except UnicodeDecodeError:
            raise _no_utf8(path) from None


def _suffix(path: Path) -> str:
    for suffix in FORMATS:
        if path.name.endswith(suffix):
            return suffix
    raise UserError(
        path,
        f"is of an unknown format ({path.suffix or 'no suffix'})",
        " ".join(FORMATS),
        "convert or rename it",
    )


Lines = Iterator[tuple[int, dict[str, Any]]]


def _read_text(
    path: Path, read: Callable[[], Lines], choose: Choice | None, keep: Keep | None
) -> tuple[TextTable, Sequence[int]]:
    """Rows of a text file. Where some are chosen it is read twice: how many there are decides which."""
    lines, names, every = array("Q"), dict[str, None](), list[dict[str, Any]]()
    column, values = choose.column if choose else None, list[Any]()
    for line, row in read():
        names.update(dict.fromkeys(row))
        if keep is not None and not keep(row):
            continue
        lines.append(line)
        if choose is None:
            every.append(row)
        elif column is not None:
            values.append(sys.intern(_group(row.get(column))))
    if keep is not None:
        keep.check(path, names, len(lines))
    if choose is None:
        return TextTable(every, lines, list(names)), range(len(lines))
    chosen = choose(path, len(lines), names, lambda _: values)
    wanted = set(chosen)
    rows = (row for _, row in read() if keep is None or keep(row))
    some = {index: row for index, row in enumerate(rows) if index in wanted}
    return TextTable(some, lines, list(names)), chosen


def _read_parquet(path: Path, choose: Choice | None, keep: Keep | None) -> tuple[ArrowTable, Sequence[int]]:
    import pyarrow
    from pyarrow import parquet

    most = _FREE + _bound(RATIO) * path.stat().st_size
    try:
        with path.open("rb") as file:
            opened = parquet.ParquetFile(file)
            schema, total = opened.schema_arrow, opened.metadata.num_rows
            if len(set(schema.names)) < len(schema.names):
                raise UserError(path, "names a column twice", "one name per column", "rename it")
            numbers = _numbers(path, opened, keep) if keep else range(total)
            chosen: Sequence[int] = range(len(numbers))
            if choose:
                chosen = choose(path, len(numbers), schema.names, lambda name: _column(opened, name, numbers))
            kept, size = [], 0
            read = [numbers[index] for index in chosen] if keep else chosen
            for batch in _chosen(opened.iter_batches(_BATCH, use_threads=False), read):
                kept.append(batch)
                size += batch.nbytes
                if size > most:
                    raise _unpacks(path)
            content = pyarrow.Table.from_batches(kept, schema)
            if content.num_rows != len(chosen):
                raise ValueError(f"it says that it has {total} rows, and has others")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(path, f"cannot be read ({reason})", mend="fetch or write the file again") from None
    places = {index: place for place, index in enumerate(chosen)} if choose else None
    told = numbers if keep else None
    return ArrowTable(content, len(numbers), places, _classes(schema), told), chosen


def _column(opened: Any, name: str, numbers: Sequence[int]) -> Iterator[Any]:
    """A column of a parquet file, at these places."""
    for batch in _chosen(opened.iter_batches(_BATCH, columns=[name], use_threads=False), numbers):
        yield from batch.column(0).to_pylist()


def _numbers(path: Path, opened: Any, keep: Keep) -> Sequence[int]:
    """Places of the rows of a parquet file that belong to the data."""
    schema = opened.schema_arrow
    keep.check(path, schema.names, len(schema.names))
    columns = list(keep.patterns)
    try:
        found = _kept(opened.iter_batches(_BATCH, columns=columns, use_threads=False), keep, _classes(schema))
    except RowError as error:
        raise UserError(path, str(error), mend="correct or remove the row") from None
    keep.check(path, schema.names, len(found))
    return found


def _chosen(batches: Iterator[Any], chosen: Sequence[int]) -> Iterator[Any]:
    """Of each batch, the rows that are chosen."""
    import pyarrow

    begin, place = 0, 0
    for batch in batches:
        end = begin + batch.num_rows
        upto = place
        while upto < len(chosen) and chosen[upto] < end:
            upto += 1
        if upto - place == batch.num_rows:
            yield batch
        elif upto > place:
            yield batch.take(pyarrow.array([index - begin for index in chosen[place:upto]]))
        begin, place = end, upto


def _classes(schema: Any) -> dict[str, list[str]]:
    """The names of classes that the library `datasets` wrote into a parquet file, by column."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"].decode())["info"]["features"]
        labels = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return {name: names for name, names in labels.items() if _are_names(names)}


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _no_utf8(path: Path) -> UserError:
    """The error of a file in another encoding, which is not guessed."""
    with io.BufferedReader(_Bytes(path)) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(b"\x1f\x8b"):
                return UserError(
                    path, "cannot be read: it is compressed", mend=f"rename it to {path.name}.gz"
                )
            try:
                line.decode()
            except UnicodeDecodeError as error:
                found = f"cannot be read: byte 0x{line[error.start]:02x} is not UTF-8"
                return UserError(f"{path}:{number}", found, mend="write the file again, in UTF-8")
    return UserError(path, "cannot be read: it is not UTF-8", mend="write the file again, in UTF-8")


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file.

    Raises:
        UserError: a NUL, which no text holds, and UTF-16 without a mark at every other place; or as `_Bytes`.
    """
    newline = "" if path.suffix == ".csv" else None
    with io.TextIOWrapper(io.BufferedReader(_Bytes(path)), encoding="utf-8-sig", newline=newline) as file:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                mend = "write the file again, in UTF-8"
                raise UserError(f"{path}:{number}", "holds NUL, as UTF-16 does", "text in UTF-8", mend)
            yield line


def _json_rows(path: Path, _: Sequence[str]) -> Lines:
    """Line and object of every line that is not blank."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, missing=True)
            problem = "" if isinstance(row, dict) else f"holds a {type(row).__name__}"
        except ValueError as error:
            problem = str(error)
        if problem:
            raise UserError(f"{path}:{number}", problem, "one JSON object per line", "correct that line")
        yield number, row


def _csv_rows(path: Path, columns: Sequence[str]) -> Lines:
    """First line and cells of every row below the header."""
    csv.field_size_limit(_bound(LINE) << 20)  # the library's own is 128 KiB a cell
    reader = csv.reader(_lines(path), strict=True, delimiter=_delimiter(path, columns))
    begin = 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path}:1", "names a column twice", "one name per column", "rename it")
        begin = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                found = f"has {len(cells)} cells"
                mark = reader.dialect.delimiter
                mend = f'put quotes around a cell that holds {mark!r}: "a{mark} b"'
                raise UserError(f"{path}:{begin}", found, f"{len(header)} as in the header", mend)
            if cells:
                yield begin, dict(zip(header, cells, strict=True))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{begin}", f"is not CSV ({error})", mend="correct that line") from None


def _delimiter(path: Path, columns: Sequence[str]) -> str:
    """A comma, but where the header has the columns only if it is cut by `;` or by tabs."""
    header = next(_lines(path), "")
    found = [mark for mark in ",;\t" if set(columns) <= set(next(csv.reader([header], delimiter=mark), []))]
    return found[0] if found else ","


def _text_rows(path: Path, _: Sequence[str]) -> Lines:
    """Line and content of every line that is not blank, in the column `text`: one line is one text."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, {"text": line.strip()}


_READERS = {"json": _json_rows, "csv": _csv_rows, "text": _text_rows}


class _Bytes(io.RawIOBase):
    """The bytes of a file, unpacked if its name ends in `.gz`, counted as they come.

    Raises:
        UserError: a line, or what a little packed unpacks to, is longer than rows of text are: it is not held; what is
            packed is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._line, self._ratio = path, _bound(LINE) << 20, _bound(RATIO)
        self._packed = path.open("rb")
        self._unpacked = gzip.GzipFile(fileobj=self._packed) if path.suffix == ".gz" else self._packed
        self._read, self._lines, self._open = 0, 0, 0  # bytes, whole lines, bytes of the line that goes on

    def readable(self) -> bool:
        """A stream to read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as there is something left."""
        try:
            chunk = self._unpacked.read(len(buffer))
        except (EOFError, zlib.error) as error:
            mend = "fetch or write the file again"
            raise UserError(self._path, f"cannot be read ({error})", mend=mend) from None
        buffer[: len(chunk)] = chunk
        self._count(chunk)
        return len(chunk)

    def _count(self, chunk: bytes) -> None:
        self._read += len(chunk)
        self._lines += chunk.count(b"\n")
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        self._open = len(chunk) - end - 1 + (self._open if end < 0 else 0)
        if self._open > self._line:
            mend = f"cut it, or allow more by the environment variable {LINE}"
            found = f"holds a line of more than {self._line >> 20} MiB"
            raise UserError(f"{self._path}:{self._lines + 1}", found, mend=mend)
        if self._read > _FREE + self._ratio * self._packed.tell():
            raise _unpacks(self._path)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._unpacked.close()
            self._packed.close()
        super().close()


def _unpacks(path: Path) -> UserError:
    found = f"unpacks to more than {_bound(RATIO)} times its size, as no text does"
    return UserError(path, found, mend=f"write it again, or allow more by the environment variable {RATIO}")


def _bound(name: str) -> int:
    """A bound, which an environment variable may raise.

    Raises:
        UserError: the variable is no whole number above 0.
    """
    text = os.environ.get(name) or str(_USUAL[name])
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise UserError(name, f"is {text!r}", "a whole number above 0", "correct it, or unset the variable")
    return int(text)
