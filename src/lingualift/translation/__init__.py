"""Rows of a task in another language, by a translation model.

Test rows are translated without a look at their answers and never dropped. Of training and validation rows whose
answer is a span, the answer is found again in the translation, or the row is dropped and counted.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Backbone, Data, Translation, files_at
from lingualift.data.datasets import Dataset, dataset_of
from lingualift.data.output import check_output, json_line
from lingualift.data.rows import data_file, data_fingerprint, fill_in, read_rows
from lingualift.errors import UserError
from lingualift.evaluation.likelihood import Progress
from lingualift.languages import OwnLanguages, knowing, own_facts, own_languages
from lingualift.languages import language as find_language
from lingualift.provenance import (
    PROVENANCE_FILE,
    atomic_folder,
    library_versions,
    reading,
    sha256_bytes,
    write_json,
)
from lingualift.tasks import RowError, Task, TextTask, text_of
from lingualift.translation.cache import Cache, Desk
from lingualift.translation.model import Model
from lingualift.translation.sentences import Piece, joined, pieces
from lingualift.translation.spans import Projection, Span

SPLITS = ("train", "validation", "test")
CACHE_FILE = "lingualift-translations.sqlite"


@dataclass(frozen=True)
class Counts:
    """What became of a split.

    Attributes:
        rows: Rows that were read.
        written: Rows that were written; all, but of training data that is answered by a span.
        dropped: Ids of the rows that were left out because their answer was not found in the translation.
        projected: How answers were found -> how many of them.
        other_answers: Further accepted answers of written rows, which were left out: only the first is carried over.
        cut: Ids of rows with a sentence that was too long for the model and translated in parts.
        unfinished: Ids of rows with a translation that ran into the limit of its length.
        empty: Ids of rows with a sentence that the model made nothing of, which stays as it was.
    """

    rows: int
    written: int
    dropped: list[str] = field(default_factory=list)
    projected: dict[str, int] = field(default_factory=dict)
    other_answers: int = 0
    cut: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def told(self) -> str:
        """All of it in words."""
        parts = [f"{self.written} of {self.rows} rows written"]
        if self.dropped:
            parts.append(f"{len(self.dropped)} dropped: answer not found in the translation")
        parts += [f"{number} answers found by {how}" for how, number in self.projected.items()]
        told = {
            "further answers left out": self.other_answers,
            "rows with a sentence cut in parts": len(self.cut),
            "rows with a translation that ran into the limit of its length": len(self.unfinished),
            "rows with a sentence that stays untranslated": len(self.empty),
        }
        return "; ".join([*parts, *(f"{number} {what}" for what, number in told.items() if number)])


@dataclass(frozen=True)
class Translated:
    """A translated data set.

    Attributes:
        folder: `<output>/<target language>`, with a file per split and `provenance.json`.
        files: Where the rows are, with {language} and {split}: the data of other commands.
        splits: Split -> what became of it.
        sentences: Different sentences that were needed.
        new: Those of them that the model translated now; the others were in the cache.
        notes: By which tag a language is told of that may have that of a near one.
    """

    folder: Path
    files: str
    splits: dict[str, Counts]
    sentences: int
    new: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """All of it in words."""
        lines = [*self.notes, f"{self.sentences} sentences, {self.new} of them translated now"]
        return lines + [f"{split}: {counts.told()}" for split, counts in self.splits.items()]


def translate(
    *,
    model: str | Backbone,
    source: str,
    target: str,
    task: str,
    data: str | Data,
    output: Path | str,
    splits: Sequence[str] | None = None,
    settings: Translation | None = None,
    cache: Path | str | None = None,
    languages: OwnLanguages | None = None,
    progress: Progress = lambda done, total: None,
) -> Translated:
    """Translate the rows of a task.

    Args:
        model: Hub id or folder of NLLB, M2M100 or mBART, or a `Backbone` with revision and dtype.
        source: Code of the rows' language.
        target: Code of the language to translate into.
        task: Registered name, or path of a Python file.
        data: Path template with {language} and {split}, or a `Data`.
        output: Folder; a folder named `target` is made in it.
        splits: Of train, validation and test; those that there are files for, if left out.
        settings: Beams, lengths and batches; `Translation()` if left out.
        cache: File of translated sentences; `lingualift-translations.sqlite` beside the output if left out.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).
        progress: Called with characters done and characters in all.

    Raises:
        UserError: no translation model, a language that it does not have, no rows, bad rows (each with file and
            line), an output that exists.
    """
    with knowing(own_languages(languages)):
        chosen = settings or Translation()
        where = dataset_of(task, files_at(data) if isinstance(data, str) else data, Path())
        folder = Path(output) / target
        if find_language(source).code == find_language(target).code:
            raise UserError(
                "target", f"{target!r} is the language of the rows", "another one", "name another --target"
            )
        check_output(folder, "folder")
        asked = _splits(where.data, source, splits)
        ref = find_backbone(Backbone(name=model) if isinstance(model, str) else model)
        kept = Path(cache) if cache else Path(output).absolute().parent / CACHE_FILE
        return translate_rows(where, source, target, asked, ref, chosen, folder, kept, progress)


def translate_rows(
    where: Dataset,
    source: str,
    target: str,
    splits: Sequence[str],
    ref: BackboneRef,
    settings: Translation,
    folder: Path,
    cache: Path,
    progress: Progress,
) -> Translated:
    """Translate rows into a new folder; errors as of `translate`.

    Args:
        where: Task and data.
        source: Code of the rows' language.
        target: Code of the language to translate into.
        splits: Of train, validation and test, at least one.
        ref: The translation model.
        settings: Beams, lengths and batches.
        folder: Gets a file per split, and `provenance.json`.
        cache: File of translated sentences.
        progress: Called with characters done and characters in all.
    """
    works = [Work(where, source, split) for split in splits]
    translator = Model(ref, source, target, settings)
    with Cache(cache) as opened:
        desk = Desk(translator, opened, settings.batch_size, progress)
        results = translate_works(works, desk)
    about = _provenance(ref, translator, where, source, target, settings)
    counts = _write(folder, works, results, about)
    files = f"{folder.parent}/{{language}}/{file_of(where.data, splits[0], '{split}')}"
    spoken = zip(map(find_language, (source, target)), translator.tags, strict=True)
    notes = [f"{known.name} ({known.code}) is tagged {tag}" for known, tag in spoken if known.near]
    return Translated(folder, files, counts, len(desk.found), desk.new, tuple(notes))


def translate_texts(
    texts: Sequence[str],
    source: str,
    target: str,
    ref: BackboneRef,
    settings: Translation,
    cache: Path,
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Translate texts, sentence by sentence; arguments and errors as of `translate_rows`.

    Returns:
        Text -> its translation, without white space at its ends; a sentence of which the model makes nothing stays.
    """
    translator = Model(ref, source, target, settings)
    cut = {text: pieces(text.strip(), translator.fits) for text in texts}
    with Cache(cache) as opened:
        desk = Desk(translator, opened, settings.batch_size, progress)
        desk.translate([piece.text for parts in cut.values() for piece in parts])
    words = {text: [desk.found[part.text].text or part.text for part in parts] for text, parts in cut.items()}
    return {text: joined(parts, words[text], translator.script).strip() for text, parts in cut.items()}


def _splits(data: Data, language: str, wanted: Sequence[str] | None) -> list[str]:
    """The splits to translate, in their usual order."""
    for split in wanted or ():
        if split not in SPLITS:
            raise UserError(
                f"split {split!r}", "is not known", f"one of {', '.join(SPLITS)}", "name one of them"
            )
    if wanted:
        return [split for split in SPLITS if split in wanted]
    if data.files is None or "{split}" not in data.files:
        raise UserError(
            data.files or data.hub,
            "does not tell which splits there are",
            "{split} in the path",
            "write for example data/{language}/{split}.jsonl, or name each split with --split",
        )
    names = {split: data.splits.get(split, split) for split in SPLITS}  # type: ignore[call-overload]
    with reading(Path(data.files)):
        there = [
            name
            for name, own in names.items()
            if Path(fill_in(data.files, language, own, data.names)).is_file()
        ]
    if not there:
        data_file(data, language, "train", Path())  # says what is there
    return there


class Work:
    """The rows of a split, and what of them is to be translated.

    Args:
        where: Task and data.
        language: Code of the rows' language.
        split: "train", "validation" or "test"; of a test split no column is looked at but those to translate.

    Raises:
        UserError: no data, a missing column, bad rows (each with file and line), a task that is answered by a span and
            does not say of what.
    """

    def __init__(self, where: Dataset, language: str, split: str) -> None:
        self.split = split
        place = where.data.of_split(split)
        self.file = file_of(where.data, split, split)
        self.data = data_fingerprint(where.data, language, split, where.base)
        self.task = where.get_task()
        self.rows: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.texts: dict[tuple[int, str], str] = {}
        self.spans: dict[int, Span | None] = {}
        self.answers: dict[int, int] = {}
        task, training = self.task, split != "test"
        self.names = place.columns
        self.marked = training and isinstance(task, Task) and task.encoder_head == "span"
        columns = _text_columns(task)
        also: tuple[str, ...] = ()
        if isinstance(task, Task) and self.marked:
            if task.passage_column not in columns:
                found = f"is answered by a span, and its passage_column is {task.passage_column!r}"
                mend = "set `passage_column` in the task's class"
                raise UserError(f"task {where.task!r}", found, f"one of {', '.join(columns)}", mend)
            also = (task.gold_column, *(("id",) if "id" in task.columns else ()))
        written = task.written_columns if isinstance(task, Task) and training else ()

        def add(number: int, raw: dict[str, Any], row: dict[str, Any]) -> None:
            index = len(self.rows)
            for column in (*columns, *(column for column in written if row.get(column))):
                self.texts[index, column] = text_of(row, column).strip()
            if isinstance(task, Task) and self.marked:
                assert task.passage_column is not None
                passage = self.texts.pop((index, task.passage_column))
                self._span(index, task, row, language, passage)
            named = self.names.get("id", "id")
            json_line(raw, f"{split} row {number}")  # what of it is not translated is written too
            self.rows.append(raw if raw.get(named) not in (None, "") else {**raw, named: number})
            self.ids.append(str(self.rows[-1][named]))

        read_rows(where.data, language, split, where.base, (*columns, *also), add)

    def _span(self, index: int, task: Task, row: dict[str, Any], language: str, passage: str) -> None:
        example = task.example(row, language)
        gold = task.gold(row, example)
        starts = task.starts(row, replace(example, gold=gold, language=language))
        if not starts:
            raise RowError("says not where its answer stands in the passage")
        self.spans[index] = None if starts[0] < 0 else Span(passage, starts[0], starts[0] + len(gold[0]))
        self.answers[index] = len(gold)


def _text_columns(task: Task | TextTask) -> tuple[str, ...]:
    if isinstance(task, Task) and task.text_columns is not None:
        return task.text_columns
    return tuple(column for column in task.columns if column != "id")


def translate_works(works: Sequence[Work], desk: Desk) -> dict[str, tuple[list[dict[str, Any]], Counts]]:
    """Translate all splits together, so that batches are of like length.

    Returns:
        Split -> its rows, translated, and what became of it.
    """
    fits = desk.translator.fits
    cut = {
        (work.split, index, column): pieces(text, fits)
        for work in works
        for (index, column), text in work.texts.items()
    }
    spans = {(work.split, index): span for work in works for index, span in work.spans.items() if span}
    projection = Projection(desk, spans)
    desk.translate([piece.text for read in cut.values() for piece in read] + projection.first())
    projection.run()
    return {work.split: _assembled(work, cut, projection, desk) for work in works}


def _assembled(
    work: Work, cut: dict[tuple[str, int, str], list[Piece]], projection: Projection, desk: Desk
) -> tuple[list[dict[str, Any]], Counts]:
    written: list[dict[str, Any]] = []
    dropped: list[str] = []
    told: dict[str, list[str]] = {"cut": [], "unfinished": [], "empty": []}
    how: Counter[str] = Counter()
    others = 0
    columns: dict[int, list[str]] = {}
    for index, column in work.texts:
        columns.setdefault(index, []).append(column)
    for index, raw in enumerate(work.rows):
        row, read = dict(raw), list[Piece]()
        for column in columns.get(index, ()):
            parts = cut[work.split, index, column]
            words = [desk.found[part.text].text or part.text for part in parts]
            row[work.names.get(column, column)] = joined(parts, words, desk.translator.script).strip()
            read += parts
        if work.marked:
            found = projection.found.get((work.split, index))
            if found is None:
                dropped.append(work.ids[index])
                continue
            assert isinstance(work.task, Task)
            passage, gold = str(work.task.passage_column), work.task.gold_column
            row[work.names.get(passage, passage)] = found.passage
            row[work.names.get(gold, gold)] = {"text": [found.answer], "answer_start": [found.start]}
            how[found.how] += 1
            others += work.answers[index] - 1
            read += found.read
        happened = {
            "cut": any(part.cut for part in read),
            "unfinished": not all(desk.found[part.text].complete for part in read),
            "empty": not all(desk.found[part.text].text for part in read),
        }
        for what, true in happened.items():
            if true:
                told[what].append(work.ids[index])
        written.append(row)
    if not written:
        raise UserError(
            f"split {work.split!r}",
            f"none of the answers of its {len(work.rows)} rows was found in the translations",
            mend="take another translation model, name training rows that are translated already, or have the test "
            "split alone translated (`lingualift translate --split test`)",
        )
    counts = Counts(len(work.rows), len(written), dropped, dict(how), others, **told)
    return written, counts


def _write(
    folder: Path,
    works: Sequence[Work],
    results: dict[str, tuple[list[dict[str, Any]], Counts]],
    about: dict[str, Any],
) -> dict[str, Counts]:
    with atomic_folder(folder) as scratch:
        for work in works:
            split, (rows, counts) = work.split, results[work.split]
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            content = "".join(lines).encode()
            zipped = work.file.endswith(".gz")
            (scratch / work.file).write_bytes(gzip.compress(content, mtime=0) if zipped else content)
            about["splits"][split] = {
                "file": work.file,
                "data": work.data,
                "rows_sha256": sha256_bytes(content),
                **asdict(counts),
            }
        write_json(scratch / PROVENANCE_FILE, about)
    return {split: counts for split, (_, counts) in results.items()}


def file_of(data: Data, split: str, name: str) -> str:
    """What the file of a translated split is called, by a name; it is compressed where the rows are."""
    zipped = (data.of_split(split).files or "").endswith(".gz")
    return f"{name}.jsonl.gz" if zipped else f"{name}.jsonl"


def _provenance(
    ref: BackboneRef, translator: Model, where: Dataset, source: str, target: str, settings: Translation
) -> dict[str, Any]:
    return {
        "made_by": "lingualift translate",
        "model": ref.record(),
        "source_language": source,
        "target_language": target,
        "tags": {"source": translator.tags[0], "target": translator.tags[1]},
        **own_facts(source, target),
        "settings": {**settings.model_dump(), "new_tokens": translator.new_tokens},
        "task": Path(where.task).name,
        "columns": list(_text_columns(where.get_task())),
        "splits": {},
        "versions": library_versions("lingualift", "transformers", "torch"),
    }
