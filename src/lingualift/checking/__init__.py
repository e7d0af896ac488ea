"""A check of an experiment before the money is spent: is its text spelled, is there room to gain, is anything leaked?

Read the function `check` below top to bottom; `findings.py` says what counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lingualift.backbone.loading import load_backbone
from lingualift.checking.backbone import label_counts, lengths, vanilla_score
from lingualift.checking.findings import (
    Finding,
    by_grade,
    in_backbone,
    in_gaps,
    in_labels,
    in_lengths,
    in_overlap,
    in_scores,
    in_spelling,
)
from lingualift.checking.overlap import find_overlap
from lingualift.checking.records import LanguageRecord, OverlapRecord, TaskRecord
from lingualift.checking.rows import Part, parts_of, sample
from lingualift.checking.spelling import is_spaced, spell
from lingualift.data.datasets import Examples
from lingualift.data.rows import check_aligned
from lingualift.errors import UserError
from lingualift.evaluation.likelihood import Progress
from lingualift.evaluation.perplexity import mean_nats
from lingualift.languages import knowing
from lingualift.pipeline import plan_of
from lingualift.pipeline.cost import estimate, misfits
from lingualift.pipeline.plan import Plan
from lingualift.provenance import fingerprint
from lingualift.runs.folder import task_at

Said = TypeVar("Said")
Known = dict[str, Any]
"""Fingerprint of what a backbone was asked -> what it said."""
ROWS = 200
"""Rows per language and task that the backbone reads: a score's standard error is then at most 3.5 points."""


@dataclass(frozen=True)
class Check:
    """What was seen.

    Attributes:
        source: The source language.
        languages: The source language first, if it has text; then the targets.
        tasks: Tasks by language.
        overlaps: Test items against what adapters learn from.
        findings: What is not as it should be, the gravest first.
    """

    source: str
    languages: tuple[LanguageRecord, ...]
    tasks: tuple[TaskRecord, ...]
    overlaps: tuple[OverlapRecord, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make results mean nothing."""
        return tuple(finding for finding in self.findings if finding.grade == "error")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "languages": [record.to_dict() for record in self.languages],
            "tasks": [record.to_dict() for record in self.tasks],
            "overlaps": [record.to_dict() for record in self.overlaps],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    experiment: Path | str,
    *,
    overrides: list[str] | None = None,
    rows: int = ROWS,
    progress: Progress = lambda done, total: None,
) -> Check:
    """Check an experiment: its files and rows, how the backbone spells and knows each language, overlap, headroom.

    Nothing is trained or written. Overlap and labels are counted over all rows, the rest over a sample.

    Args:
        experiment: The YAML file.
        overrides: `a.b=value` each, over the file's keys.
        rows: Rows of the sample, per language and task.
        progress: Called with parts done and parts in all.

    Raises:
        UserError: what `lingualift plan` finds: a missing file or column, a bad row, an unknown method; and a backbone
            that cannot be loaded or does not fit into memory.
    """
    if rows < 1:
        raise UserError("--rows", f"is {rows}", "at least 1", f"leave it out for {ROWS}")
    plan, store = plan_of(experiment, overrides=overrides)
    problems = misfits(estimate(plan, store, calibrate=True))
    points = plan.by_point()

    def part_of(index: int) -> Progress:
        return lambda done, total: progress(index * total + done, len(points) * total)

    known: Known = {}
    with knowing(plan.experiment.languages.added()):
        every = [_check(point, rows, part_of(index), known) for index, point in enumerate(points)]
    errors = [Finding("error", each.where, each.found, each.expected, each.mend) for each in problems]
    gaps = in_gaps((task_at(one.task, one.grid), one.language, one.method, one.reason) for one in plan.empty)
    return Check(
        every[0].source,
        tuple(dict.fromkeys(record for one in every for record in one.languages)),
        tuple(record for one in every for record in one.tasks),
        tuple(dict.fromkeys(record for one in every for record in one.overlaps)),
        by_grade(
            list(dict.fromkeys([*errors, *gaps, *(finding for one in every for finding in one.findings)]))
        ),
    )


def _once(known: Known, make: Callable[[], Said], *asked: Any) -> Said:
    """What a backbone says of some text, measured once for all points of a grid that ask for the same."""
    key = fingerprint(asked)
    if key not in known:
        known[key] = make()
    said: Said = known[key]
    return said


def _check(plan: Plan, rows: int, progress: Progress, known: Known) -> Check:
    """Check a plan that has one backbone; arguments as of `check`, with what is known from other plans."""
    parts = parts_of(plan)
    source = plan.experiment.languages.source
    asked = [point.experiment.languages for point in plan.experiment.points()]
    languages = tuple(
        dict.fromkeys([source, *(code for one in asked for code in (one.source, *one.targets))])
    )
    pairs = list(dict.fromkeys((part.dataset.task, part.language) for part in parts if part.is_labelled()))
    stage = _stages(progress, len(languages) + len(pairs))
    seen = tuple(_languages(plan, languages, rows, stage, known))
    tasks = tuple(_task(plan, parts, task, language, rows, next(stage), known) for task, language in pairs)
    overlaps = tuple(_overlaps(list({part.about(): part for part in parts}.values()), languages))
    context = _context(load_backbone(plan.backbone)[0])
    names = dict.fromkeys(record.task for record in tasks)
    by_task = [[record for record in tasks if record.task == name] for name in names]
    findings = [
        *in_backbone(
            plan.backbone.name,
            plan.backbone.lacks_words,
            any(step.kind == "words-head" for step in plan.steps),
        ),
        *(finding for record in seen for finding in in_spelling(record)),
        *(finding for record in tasks for finding in in_labels(record)),
        *(finding for record in overlaps for finding in in_overlap(record)),
        *(
            finding
            for records in by_task
            for finding in in_lengths(records, plan.experiment.training, context)
        ),
        *(finding for records in by_task for finding in in_scores(records, source)),
    ]
    return Check(source, seen, tasks, overlaps, by_grade(findings))


def _stages(progress: Progress, count: int) -> Iterator[Progress]:
    """One progress after another, each a hundredth part of `count` hundred at a time."""
    for stage in range(count):
        yield lambda done, total, stage=stage: progress(100 * stage + 100 * done // total, 100 * count)  # type: ignore[misc]


def _context(model: Any) -> int | None:
    """Places for tokens that a backbone has, as far as its configuration says."""
    places = getattr(model.config, "max_position_embeddings", None)
    return int(places) if places and places > 0 else None


def _languages(
    plan: Plan, languages: Sequence[str], rows: int, stage: Iterator[Progress], known: Known
) -> Iterator[LanguageRecord]:
    """The languages' text: the reference text, or the test rows of the first task where there is none."""
    model, tokenizer = load_backbone(plan.backbone)
    reference = plan.experiment.reference
    window = min(reference.segment_tokens if reference else 512, _context(model) or 2**30)
    translated = {
        code: spell(tokenizer, texts).tokens for code, texts in _parallel(plan, languages, rows).items()
    }
    base: LanguageRecord | None = None
    for language in languages:
        progress = next(stage)
        part = next((part for part in _candidates(plan, language) if part.is_there()), None)
        if part is None:
            continue
        texts = part.texts()
        some = sample(texts, rows)
        record = LanguageRecord(
            language=language,
            origin=Path(part.dataset.task).stem if part.is_labelled() else "reference",
            texts=len(texts),
            spelling=spell(tokenizer, some),
            spaced=is_spaced(language),
            relative=None,
            parallel=language in translated,
            longest=max(len(ids) for ids in tokenizer(some, add_special_tokens=False)["input_ids"]),
            nats=None
            if plan.backbone.lacks_words
            else _once(
                known,
                lambda some=some, language=language, progress=progress: mean_nats(  # type: ignore[misc]
                    plan.backbone, model, tokenizer, some, window, language, progress
                ),
                *(plan.backbone.identity(), some, window, language),
            ),
        )
        if language == languages[0]:
            base = record
        elif language in translated:
            record = replace(record, relative=translated[language] / translated[languages[0]])
        elif base and record.spaced and base.spaced and record.origin == base.origin:
            record = replace(record, relative=record.spelling.per_word / base.spelling.per_word)
        yield record


def _candidates(plan: Plan, language: str) -> list[Part]:
    """Where a language's text may lie, the best first."""
    cell = plan.cells[0].cell
    reference = [Part(cell.reference, language, "train")] if cell.reference else []
    return [*reference, Part(cell.task, language, "test")]


def _parallel(plan: Plan, languages: Sequence[str], rows: int) -> dict[str, list[str]]:
    """The same sentences in the source language, which comes first, and in others; empty if no data is parallel."""
    for place, first in enumerate(_candidates(plan, languages[0])):
        if first.dataset.data.aligned_on and first.is_there():
            every = [_candidates(plan, language)[place] for language in languages]
            parts = [part for part in every if part.is_there()]
            check_aligned(
                first.dataset.data, [part.language for part in parts], first.split, first.dataset.base
            )
            return {part.language: sample(part.texts(), rows) for part in parts}
    return {}


def _task(
    plan: Plan,
    parts: Sequence[Part],
    name: str,
    language: str,
    rows: int,
    progress: Progress,
    known: Known,
) -> TaskRecord:
    """A task in a language: its rows by split, and the plain backbone's score on a sample of validation rows.

    Where there are no validation rows the sample is of training rows, else of test rows: reading the plain backbone's
    score off them decides nothing.
    """
    experiment = plan.experiment
    _, tokenizer = load_backbone(plan.backbone)
    mine = [part for part in parts if (part.dataset.task, part.language) == (name, language)]
    dataset = mine[0].dataset
    assert isinstance(dataset, Examples)
    task = dataset.get_task()
    counts, labels, limits, longest = {}, {}, {}, 0
    cut: dict[str, float] = {}
    for part in mine:
        examples = part.examples()
        texts = sample(examples, rows)
        needed = lengths(plan.backbone.family, tokenizer, task, texts, part.split, experiment.scoring)
        limit = part.max_length or experiment.scoring.max_length
        counts[part.split] = len(examples)
        labels[part.split] = label_counts(examples)
        share = sum(tokens > limit for tokens in needed) / len(needed)
        if share >= cut.get(part.split, 0):  # of rows of one's own and translated ones, those that lose more
            limits[part.split], cut[part.split] = limit, share
        longest = max(longest, *needed)
    best = next(
        part
        for part in (Part(dataset, language, split) for split in ("validation", "train", "test"))
        if part.is_there()
    )
    some = sample(best.examples(), rows)
    vanilla = (
        None
        if plan.backbone.family == "encoder"
        else _once(
            known,
            lambda: vanilla_score(plan.backbone, task, best.split, some, experiment.scoring, progress),
            *(plan.backbone.identity(), name, best.split, [asdict(one) for one in some]),
            experiment.scoring.model_dump(mode="json"),
        )
    )
    return TaskRecord(Path(name).stem, language, counts, labels, limits, cut, longest, vanilla)


def _overlaps(parts: Sequence[Part], languages: Sequence[str]) -> Iterator[OverlapRecord]:
    """Test items against the reference text of their language, and the rows that a task's adapters learn from."""
    for language in languages:
        tests = [part for part in parts if part.language == language and part.split == "test"]
        learnt = [
            part for part in parts if part.split != "test" and part.language in (languages[0], language)
        ]
        for other in learnt:
            if not other.is_labelled() and other.language != language:
                continue
            texts = other.items()
            for test in tests:
                if other.is_labelled() and other.dataset.task != test.dataset.task:
                    continue
                items = test.items()
                found = find_overlap(items, texts, spaced=is_spaced(language))
                named = f"{other.split} rows of {other.language}" if other.is_labelled() else "reference text"
                name = Path(test.dataset.task).stem
                among = other.dataset.data.aside if other.split == "validation" else None
                aside = among is not None and among.of == "test" and among.group_by is None
                yield OverlapRecord(name, language, named, len(items), len(texts), tuple(found), aside)
