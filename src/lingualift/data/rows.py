"""One loader for hub data sets and local files; a bad row is reported with its file and line."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lingualift.config import Aside, Data
from lingualift.data.tables import ArrowTable, Choice, Keep, Table, TextTable, read_table
from lingualift.errors import UserError, did_you_mean
from lingualift.languages import language as find_language
from lingualift.parsing import jsonable
from lingualift.provenance import reading, sha256_file
from lingualift.tasks import Example, RowError, Task, TaskError, TextTask, text_of
from lingualift.tasks.base import check_number

Made = TypeVar("Made")
_SHOWN = 5  # bad rows that one message names


class NoRows(UserError):
    """A split that is not there in a language, while it may be in others: a cell of the table may lack it."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split in one language.

    Attributes:
        where: The file, or hub id and split, for messages.
        table: All rows of the split; of a sample, those that are chosen.
        chosen: Indices of the rows to use, in order.
        columns: The task's column -> the data's column.
    """

    where: str
    table: Table
    chosen: Sequence[int]
    columns: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.chosen)

    def number(self, index: int) -> int:
        """Line (JSON Lines, CSV) or place (other data, the first is 1) of a row of `table`."""
        if isinstance(self.table, TextTable):
            return self.table.lines[index]
        numbers = getattr(self.table, "numbers", None)
        return 1 + (index if numbers is None else numbers[index])

    def locate(self, index: int) -> str:
        """File and line, or row, of a row of `table`, for messages."""
        between = ":" if isinstance(self.table, TextTable) else " row "
        return f"{self.where}{between}{self.number(index)}"

    def row(self, index: int) -> dict[str, Any]:
        """A chosen row.

        Raises:
            UserError: it cannot be read.
        """
        with self._where(self.locate(index)):
            return self.table.row(index)

    def column(self, name: str) -> list[Any]:
        """A column of all rows, where none was left out; raises as `row`."""
        with self._where(self.where):
            return self.table.column(name)

    @contextlib.contextmanager
    def _where(self, where: str) -> Iterator[None]:
        try:
            yield
        except RowError as error:
            raise UserError(where, str(error), mend="correct or remove the row") from None


def load_examples(task: Task, data: Data, language: str, split: str, base: Path) -> list[Example]:
    """Read the examples of a labelled task.

    Args:
        task: Turns rows into examples.
        data: Where the rows are.
        language: Code as written in the experiment.
        split: "train", "validation" or "test".
        base: Folder that relative paths start from.

    Raises:
        UserError: no data, a missing column, bad rows (each with file and line), ids that stand twice.
    """
    return _load(task, data, language, split, base, lambda _, row: row)


def load_questions(task: Task, data: Data, language: str, split: str, base: Path) -> list[Example]:
    """Examples without gold: no label is looked at, nor need there be one; arguments and errors as `load_examples`."""

    def ask(row: Mapping[str, Any]) -> Example:
        return replace(task.example(row, language), language=language)

    rows = load_rows(data, language, split, base, task.columns)
    return list(_by_id(rows, task.columns, ask).values())


def _load(
    task: Task,
    data: Data,
    language: str,
    split: str,
    base: Path,
    change: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
) -> list[Example]:
    """As `load_examples`; each row, called by its id, is changed before it becomes an example."""
    columns = (*task.columns, task.gold_column)
    rows = load_rows(data, language, split, base, columns)
    examples: list[Example] = []
    first_at: dict[str, int] = {}

    def add(index: int, row: Mapping[str, Any]) -> None:
        named = row if "id" in task.columns else _named(row, rows.number(index))
        named = change(str(named["id"]), named)
        example = task.example(named, language)
        _check_repeated(example.id, index, first_at)
        examples.append(_labelled(task, named, example, language))

    _each(rows, columns, add)
    return examples


def _labelled(task: Task, row: Mapping[str, Any], example: Example, language: str) -> Example:
    """The example of a labelled row, with its gold answer."""
    found = replace(example, gold=task.gold(row, example), language=language)
    return replace(found, completion=task.completion(row, found), starts=task.starts(row, found))


def load_paired(
    task: Task,
    data: Data,
    beside: Data,
    language: str,
    split: str,
    base: Path,
    source: str,
    filled_by: str | None = None,
    labelled: bool = False,
) -> list[Example]:
    """Read examples with the same rows in the source language beside them, as their `source`; they pair by `id`.

    A row without `id` is called by its line, which `lingualift translate` writes into the `id` of its translation. Rows
    of the source side that no example asks for are left out.

    Args:
        task: Turns rows into examples.
        data: Where the rows are.
        beside: Where the rows of the source side are.
        language: Code of the examples' language, which fills in `data`.
        split: "train", "validation" or "test".
        base: Folder that relative paths start from.
        source: Code of the source side's language.
        filled_by: Code that fills in `beside`; that of the examples where None.
        labelled: Whether the source side's own answers are read where no choices are given: spans and text. If not, no
            label of it is looked at, nor need there be one.

    Raises:
        UserError: as `load_examples`, for either side; examples whose id no row has; sides without ids that are not
            equally long.
    """

    def ask(row: Mapping[str, Any]) -> Example:
        example = task.example(row, source)
        answered = labelled and not example.choices
        return _labelled(task, row, example, source) if answered else replace(example, language=source)

    columns = (*task.columns, task.gold_column) if labelled else task.columns
    rows, found = _read_beside(beside, filled_by or language, split, base, columns, ask)
    examples = load_examples(task, data, language, split, base)
    opened = functools.partial(load_rows, data, language, split, base, task.columns)
    _check_pairs(rows, found, task.columns, [row.id for row in examples], language, opened)
    return [replace(example, source=found[example.id]) for example in examples]


def load_joined(
    task: Task, data: Data, beside: Data, language: str, split: str, base: Path, filled_by: str
) -> list[Example]:
    """Read examples whose texts hold the source side's too: column by column, the row's first, then a line break.

    The labels are the row's; an answer that is marked by its place in the row's text stays in its place.

    Args:
        task: Its `text_columns` are joined; all of its columns but `id` if it names none.
        data: Where the rows are.
        beside: Where the rows of the source side are; they pair as in `load_paired`.
        language: Code of the examples' language.
        split: "train", "validation" or "test".
        base: Folder that relative paths start from.
        filled_by: Code that fills in `beside`.

    Raises:
        UserError: as `load_paired`.
    """
    rows, found = _read_beside(beside, filled_by, split, base, task.columns, dict)
    texts = task.text_columns or tuple(column for column in task.columns if column != "id")

    def join(name: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        theirs = found.get(name, row)  # what is missing is told for all rows at once, below
        return {**row, **{column: f"{row[column]}\n{theirs[column]}" for column in texts}}

    examples = _load(task, data, language, split, base, join)
    opened = functools.partial(load_rows, data, language, split, base, task.columns)
    _check_pairs(rows, found, task.columns, [row.id for row in examples], language, opened)
    return examples


def instead(row: Example) -> Example:
    """The source side of a row, with the row's labels: its translation is asked, and its gold answers count."""
    assert row.source is not None
    return replace(row.source, gold=row.gold)


def _read_beside(
    beside: Data,
    language: str,
    split: str,
    base: Path,
    columns: tuple[str, ...],
    make: Callable[[Mapping[str, Any]], Made],
) -> tuple[Rows, dict[str, Made]]:
    """The rows of a source side, and what is made of each, by id; no other column is looked at."""
    rows = load_rows(beside, language, split, base, columns)
    return rows, _by_id(rows, columns, make)


def _by_id(
    rows: Rows, columns: tuple[str, ...], make: Callable[[Mapping[str, Any]], Made]
) -> dict[str, Made]:
    """What is made of each row, by its id; no column but these is looked at."""
    found: dict[str, Made] = {}
    first_at: dict[str, int] = {}

    def add(index: int, row: Mapping[str, Any]) -> None:
        named = row if "id" in columns else _named(row, rows.number(index))
        _check_repeated(str(named["id"]), index, first_at)
        found[str(named["id"])] = make(named)

    _each(rows, columns, add)
    return found


def _check_pairs(
    rows: Rows,
    found: Mapping[str, Any],
    columns: tuple[str, ...],
    ids: Sequence[str],
    language: str,
    theirs: Callable[[], Rows],
) -> None:
    """Check that a source side has a row for each of some examples; raises as `load_paired`.

    Args:
        rows: The source side.
        found: What was made of it, by id.
        columns: Those that were read.
        ids: The examples'.
        language: Code of the examples' language.
        theirs: Opens the rows that the examples were made of.
    """
    missing = [name for name in ids if name not in found]
    if missing:
        some = ", ".join(map(repr, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            rows.where,
            f"has no row with id {some}{more}",
            f"one for each of {len(ids)} rows in {language!r}, since rows pair by `id`",
            "add the rows that are missing, or leave their partners out",
        )
    if _has_ids(columns, rows) or _has_ids(columns, their := theirs()):
        return
    if _numbers(rows) != _numbers(their):
        raise UserError(
            rows.where,
            f"has {len(rows.table)} rows",
            f"{len(their.table)} as in {their.where}, on the same lines, since rows without `id` pair by their lines",
            "give the rows of both an `id`",
        )


def _numbers(rows: Rows) -> list[int]:
    """The numbers of all rows of a file, those outside of a sample too."""
    return [rows.number(index) for index in range(len(rows.table))]


def _has_ids(columns: tuple[str, ...], rows: Rows) -> bool:
    return "id" in columns or "id" in rows.table.column_names


def _named(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The row, called by its number if it has no id."""
    check_number("id", row.get("id"))
    return {**row, "id": number} if row.get("id") in (None, "") else row


def _check_repeated(id: str, index: int, first_at: dict[str, int]) -> None:
    """Note where an id stands, the first time."""
    if id in first_at:
        raise RowError(f"id {id!r} stands in row {first_at[id] + 1} already")
    first_at[id] = index


Given = Path | Sequence[Mapping[str, Any]]
"""A file of rows, or the rows themselves."""


def load_unlabelled(
    task: Task, rows: Given, language: str, beside: tuple[Given, str] | None = None
) -> list[tuple[dict[str, Any], Example]]:
    """Read rows that need no label; one that has a label is asked like any other.

    Args:
        task: Turns rows into examples.
        rows: A file, or the rows themselves.
        language: Code that the task is told.
        beside: The same rows in the source language, and its code; they pair as in `load_paired`. None for rows alone.

    Returns:
        Each row as JSON has it, and its example without gold. A row without `id` is called by its line, or by its
        place (the first is 1).

    Raises:
        UserError: no rows, a missing column, bad rows (each with file and line), ids that stand twice; examples whose
            id no row of the source side has; sides without ids that are not equally long.
    """
    columns = tuple(column for column in task.columns if column != "id")
    every = _given_rows(rows, "rows", columns)
    asked: list[tuple[dict[str, Any], Example]] = []
    first_at: dict[str, int] = {}

    def add(index: int, row: Mapping[str, Any]) -> None:
        example = task.example(_named(row, every.number(index)), language)
        _check_repeated(example.id, index, first_at)
        asked.append((_as_json(every.table.row(index)), replace(example, language=language)))

    _each(every, columns, add)
    if beside is None:
        return asked
    given, source = beside

    def ask(row: Mapping[str, Any]) -> Example:
        return replace(task.example(row, source), language=source)

    side = _given_rows(given, "beside", columns)
    found = _by_id(side, columns, ask)
    _check_pairs(side, found, columns, list(first_at), language, lambda: every)
    return [(row, replace(example, source=found[example.id])) for row, example in asked]


def _given_rows(given: Given, name: str, columns: Sequence[str]) -> Rows:
    """Rows of a file, or given as they are, which messages call by `name`; raises as `load_unlabelled`."""
    if isinstance(given, Path):
        where, (table, _) = str(given), read_table(_there(given, "a file of rows"), columns, None)
    else:
        where, table = name, TextTable.of(given)
        for number in range(len(table)):
            try:
                _as_json(table.row(number))
            except RowError as error:
                raise UserError(
                    f"{name}:{number + 1}", str(error), mend="correct or remove the row"
                ) from None
    _check_columns(where, table, columns)
    return Rows(where, table, range(len(table)), {})


def _as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it will be written beside an answer.

    Raises:
        RowError: JSON has nothing for a value, or UTF-8 for a text.
    """
    found = {}
    for name, value in row.items():
        try:
            found[jsonable(str(name))] = jsonable(value)
        except ValueError as error:
            raise RowError(f"column {name!r} {error}") from None
    return found


def load_texts(task: TextTask, data: Data, language: str, split: str, base: Path) -> list[str]:
    """Read the texts of a reference task; arguments and errors as for `load_examples`."""
    (column,) = task.columns
    texts: list[str] = []
    rows = load_rows(data, language, split, base, task.columns)
    _each(rows, task.columns, lambda _, row: texts.append(text_of(row, column).strip()))
    return texts


def read_rows(
    data: Data,
    language: str,
    split: str,
    base: Path,
    columns: tuple[str, ...],
    use: Callable[[int, dict[str, Any], dict[str, Any]], None],
) -> Rows:
    """Hand every row to `use`: its line or place, the row as JSON has it, and the row under the task's names.

    Args:
        data: Where the rows are.
        language: Code as written by the user.
        split: "train", "validation" or "test".
        base: Folder that relative paths start from.
        columns: The task's columns that must be there, none of them empty; no other column is looked at.
        use: May raise `RowError`.

    Raises:
        UserError: no data, a missing column, bad rows (each with file and line).
    """
    rows = load_rows(data, language, split, base, columns)

    def add(index: int, row: Mapping[str, Any]) -> None:
        number = rows.number(index)
        use(number, _as_json(rows.table.row(index)), dict(_named(row, number)))

    _each(rows, columns, add)
    return rows


def _each(rows: Rows, columns: Sequence[str], use: Any) -> None:
    """Hand every row, its columns checked, to `use`; report all bad ones in one message."""
    problems: list[str] = []
    bad = 0
    names = {column: rows.columns.get(column, column) for column in columns}
    for index in rows.chosen:
        try:
            use(index, _checked(rows.table.row(index), names))
        except RowError as error:
            bad += 1
            if bad <= _SHOWN:
                problems.append(f"{rows.locate(index)}: {error}")
        except TaskError as error:
            raise error.at(rows.locate(index)) from error
    if bad:
        more = f"\n  and {bad - _SHOWN} more" if bad > _SHOWN else ""
        found = f"{bad} bad row{'s' * (bad > 1)}:\n  " + "\n  ".join(problems) + more
        raise UserError(rows.where, found, mend="correct or remove them")


def _checked(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The named columns of a row, none of them empty; other columns stay under their own names."""
    row = dict(raw)
    for column, name in names.items():
        value = raw.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowError(f"column {name!r} is {'missing' if value is None else 'empty'}")
        check_number(name, value)
        row[column] = value
    return row


def load_rows(data: Data, language: str, split: str, base: Path, columns: tuple[str, ...]) -> Rows:
    """Open a split, check its columns and choose the sample; no row is looked at yet.

    Raises:
        UserError: no such file or data set, unknown format, malformed file, no rows, a missing column.
    """
    choose = _choice(data, split)
    data, split = _place(data, split)
    if data.files is not None:
        path = data_file(data, language, split, base)
        wanted = [data.columns.get(name, name) for name in columns]
        where, (table, chosen) = str(path), read_table(path, wanted, choose, _keep(data, language, split))
    else:
        where, table = _load_hub(data, language, split)
        chosen = choose(where, len(table), table.column_names, table.column) if choose else range(len(table))
    _check_columns(where, table, columns, data.columns)
    return Rows(where, table, chosen, data.columns)


def _check_columns(
    where: str, table: Table, columns: Sequence[str], names: Mapping[str, str] | None = None
) -> None:
    """Refuse data without rows or without a column; `names` maps columns, where the user can map them."""
    if len(table) == 0:
        raise UserError(where, "has no rows", "at least one", "check the file")
    for column in columns:
        name = (names or {}).get(column, column)
        if name not in table.column_names:
            raise UserError(
                where,
                f"has no column {name!r}",
                f"columns {', '.join(columns)}",
                did_you_mean(
                    name,
                    table.column_names,
                    "rename it" if names is None else "map it under `columns:` or rename it",
                ),
            )


def _keep(data: Data, language: str, split: str) -> Keep | None:
    """Which rows of a file are those of a split in a language; None for all."""
    if not data.where:
        return None
    name = data.splits.get(split, split)  # type: ignore[call-overload]
    return Keep({column: fill_in(value, language, name, data.names) for column, value in data.where.items()})


def _place(data: Data, split: str) -> tuple[Data, str]:
    """Where the rows of a split lie, and in which split there: others than its own hold rows that are put aside."""
    there = data.aside.of if data.aside and split == "validation" else split
    return data.of_split(split), there


def _choice(data: Data, split: str) -> Choice | None:
    """Which rows make a split, or the sample of it; None for all of its file."""
    wanted = data.max_rows.get(split)  # type: ignore[call-overload]
    aside = data.aside if data.aside and split in ("validation", data.aside.of) else None
    if wanted is None and aside is None:
        return None

    def choose(groups: Sequence[int]) -> Sequence[int]:
        rows: Sequence[int] = range(len(groups))
        if aside:
            left = _put_aside(groups, aside, data.sample_seed)
            rows = [index for index in rows if (index in left) == (split == "validation")]
        if wanted is None or wanted >= len(rows):
            return rows
        return sorted(random.Random(data.sample_seed).sample(rows, wanted))

    if aside is None or aside.group_by is None:
        return Choice(choose)
    return Choice(choose, data.of_split(aside.of).columns.get(aside.group_by, aside.group_by))


def _put_aside(groups: Sequence[int], aside: Aside, seed: int) -> set[int]:
    """The places of the rows that are put aside: whole groups, until there are as many as asked for."""
    draw = random.Random(f"aside {seed}")
    if aside.group_by is None:
        left = set(draw.sample(range(len(groups)), min(aside.rows, len(groups))))
    else:
        members: dict[int, list[int]] = {}
        for place, group in enumerate(groups):
            members.setdefault(group, []).append(place)
        left = set()
        for group in draw.sample(range(len(members)), len(members)):
            if len(left) < aside.rows:
                left.update(members[group])
    if len(left) == len(groups):
        found = f"puts {aside.rows} rows of {aside.of} aside, of {len(groups)}"
        found += f" that share few values of {aside.group_by!r}" * (aside.group_by is not None)
        raise UserError("data.validation.rows", found, "fewer than there are", "put fewer aside")
    return left


def fill_in(template: str, language: str, split: str, names: Mapping[str, str] | None = None) -> str:
    """Fill a template's placeholders; `names` has what the data calls a language.

    Raises:
        UserError: `{nllb}` for a language that NLLB does not have, `{iso639_3}` for one without such a code.
    """
    known = find_language(language)
    for place, code, what in (("nllb", known.nllb, "NLLB"), ("iso639_3", known.iso639_3, "ISO 639-3")):
        if f"{{{place}}}" in template and not code:
            found = f"{known.name} ({language}) has no {what} code"
            raise UserError(template, found, mend="use {language} instead")
    own = {find_language(code).code: name for code, name in (names or {}).items()}.get(known.code, language)
    return template.format(
        language=own, iso639_3=known.iso639_3, bcp47=known.code, nllb=known.nllb, split=split
    )


def data_file(data: Data, language: str, split: str, base: Path) -> Path:
    """Path of the local file that holds a split of a language.

    Raises:
        UserError: the template cannot tell the splits apart, or there is no such file (`NoRows`) that may be looked at.
    """
    whole, (data, split) = data, _place(data, split)
    assert data.files is not None
    if data is whole and split != "train" and "{split}" not in data.files:
        raise UserError(
            data.files,
            f"names one file for all splits, and {split} is asked for",
            "{split} in the path",
            "write for example data/{language}/{split}.jsonl",
        )
    path = base / fill_in(data.files, language, data.splits.get(split, split), data.names)  # type: ignore[call-overload]
    return _there(path, f"the {split} data of language {language!r}", "leave the language out", NoRows)


def _there(path: Path, expected: str, otherwise: str = "", missing: type[UserError] = UserError) -> Path:
    """The path of a file that is there, be it readable or not.

    Raises:
        UserError: it is not (`missing`), is a folder, has a name that no disk takes, or lies in a folder that may not
            be read.
    """
    with reading(path):
        if path.is_dir():
            raise UserError(path, "is a folder", expected, "name a file in it")
        if not path.is_file():
            mend = ", or ".join(filter(None, ("check the path", otherwise)))
            raise missing(path, "is not there", expected, _nearby(path) or mend)
    return path


def _nearby(path: Path) -> str:
    """What lies where the file was looked for, the beginnings of output aside."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    found = (entry.name for entry in parent.iterdir())
    names = sorted(name for name in found if not name.startswith(".") and not name.endswith(".partial"))[:12]
    return f"{parent} holds {', '.join(names)}" if names else ""


_LACKING = ("BuilderConfig ", "Unknown split ")
"""How `datasets` begins to say that a data set has no such configuration, or split."""


def _load_hub(data: Data, language: str, split: str) -> tuple[str, Table]:
    import datasets

    config = fill_in(data.config, language, split, data.names) if data.config else None
    name = data.splits.get(split, split)  # type: ignore[call-overload]
    where = " ".join(filter(None, (data.hub, config, name)))
    try:
        found = datasets.load_dataset(data.hub, config, revision=data.revision, split=name)
    except Exception as error:  # the hub client raises many kinds; each means that the rows are not to be had
        reason = " ".join(str(error).split())[:300]
        lacking = isinstance(error, ValueError) and reason.startswith(_LACKING)
        raise (NoRows if lacking else UserError)(
            where,
            f"cannot be loaded from the hub ({type(error).__name__}: {reason})",
            "a parquet data set at that revision",
            "check id, revision, config and split, or name local `files:`; `lingualift data export` writes them for "
            "shipped tasks, also where a data set is a script",
        ) from error
    content = found.with_format("arrow")[:]
    labels = {
        column: feature.names
        for column, feature in found.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    table, keep = ArrowTable(content, len(content), None, labels), _keep(data, language, split)
    if keep is None:
        return where, table
    keep.check(where, table.column_names, len(content))
    try:
        kept = table.only(keep)
    except RowError as error:
        raise UserError(where, str(error), mend="correct or remove the row") from None
    keep.check(where, table.column_names, len(kept))
    return where, kept


def data_fingerprint(data: Data, language: str, split: str, base: Path) -> dict[str, Any]:
    """What determines the rows: the file's sha256 or the hub's commit, columns and sample."""
    how: dict[str, Any] = {
        "columns": data.of_split(split).columns,
        "max_rows": data.max_rows.get(split),  # type: ignore[call-overload]
        "sample_seed": data.sample_seed,
    }
    if data.aside and split in ("validation", data.aside.of):
        how["aside"] = [data.aside.rows, split == "validation"]
        if data.aside.group_by is not None:
            how["aside"].append(data.aside.group_by)
    place, there = _place(data, split)
    keep = _keep(place, language, there)
    if keep is not None:
        how["where"] = dict(keep.patterns)
    if data.of_split(split).files is not None:
        path = data_file(data, language, split, base)
        with reading(path):
            state = path.stat()
            return {"sha256": _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns), **how}
    data, split = _place(data, split)
    config = fill_in(data.config, language, split, data.names) if data.config else None
    return {"hub": data.hub, "revision": data.revision, "config": config, "split": split, **how}


@functools.cache
def _sha256(path: Path, *_state: int) -> str:
    """The hash of a file in a state of it: a run asks for it again and again."""
    return sha256_file(path)


def check_aligned(data: Data, languages: Sequence[str], split: str, base: Path) -> None:
    """Check that the rows of all languages carry the same keys in the same order.

    Raises:
        UserError: names the first row that differs, in both files.
    """
    if data.aligned_on is None:
        return
    column, whole = data.aligned_on, data.model_copy(update={"max_rows": {}})
    first = load_rows(whole, languages[0], split, base, (column,))
    name = data.of_split(split).columns.get(column, column)
    keys = first.column(name)
    for language in languages[1:]:
        other = load_rows(whole, language, split, base, (column,))
        theirs = other.column(name)
        for index, (key, their) in enumerate(zip(keys, theirs, strict=False)):
            if key != their:
                raise UserError(
                    other.locate(index),
                    f"{name} is {their!r}",
                    f"{key!r} as in {first.locate(index)}, since the data is aligned on {column!r}",
                    "put the rows of both files in the same order, or remove `aligned_on`",
                )
        if len(keys) != len(theirs):
            raise UserError(
                other.where,
                f"has {len(theirs)} rows",
                f"{len(keys)} as in {first.where}, since the data is aligned on {column!r}",
                "add or remove rows, or remove `aligned_on`",
            )
