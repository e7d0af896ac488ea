"""From an experiment to its steps; what can be wrong with its data is found on the way, before a step runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingualift.backbone.loading import check_loadable, skeleton
from lingualift.backbone.reference import BackboneRef, find_backbone, load_tokenizer
from lingualift.config import Experiment, MethodSettings, Point, grid_name
from lingualift.data.datasets import Dataset, Examples, Texts, dataset_of
from lingualift.data.rows import NoRows, check_aligned, data_fingerprint, load_rows
from lingualift.encoding.heads import head_of
from lingualift.encoding.limits import check_kept, check_own_texts, check_sources
from lingualift.encoding.text import set_language
from lingualift.errors import UserError
from lingualift.evaluation.runner import is_ranked
from lingualift.languages import knowing
from lingualift.pipeline.checks import (
    check_family,
    check_methods,
    check_modules,
    check_templates,
    check_translations,
    untranslated,
)
from lingualift.pipeline.methods import METHODS, Cell, asked
from lingualift.pipeline.steps import Back, Evaluate, Part, Step, Train, Translate, back
from lingualift.pipeline.store import Store
from lingualift.report.published import check_published
from lingualift.runs.folder import task_at
from lingualift.tasks import Task
from lingualift.tasks.language_modelling import REFERENCE_TASKS
from lingualift.training.data import check_objective
from lingualift.training.trainer import check_trackers
from lingualift.translation.model import check_languages


@dataclass(frozen=True)
class Planned:
    """A cell of the table, the step that fills it, and where on the experiment's grid it stands."""

    cell: Cell
    evaluation: Evaluate
    grid: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """The cell's seed; None for the plain backbone, which is the same for all."""
        return self.cell.seed if self.evaluation.adapter else None


@dataclass(frozen=True)
class Empty:
    """A cell of the table that stays empty, for all seeds: its method has no rows in its language, or no translations.

    Attributes:
        method: Method.
        variant: Its variant.
        task: Task.
        language: Language.
        grid: Where on the experiment's grid it stands: axis -> name of its value.
        reason: Which rows are not there, or which setting would name them.
    """

    method: str
    variant: str
    task: str
    language: str
    grid: Mapping[str, str]
    reason: str

    @classmethod
    def of(cls, cell: Cell, grid: Mapping[str, str], lacking: NoRows) -> Empty:
        """The cell that lacks rows, at a point of the grid."""
        place = lacking.where.removeprefix(f"{cell.task.base}/")
        kind = cell.method.variant(cell.experiment.adapter.type)
        named = (cell.method.method, kind, Path(cell.task.task).stem, cell.language)
        return cls(*named, grid, f"{place} {lacking.found}")


Lacking = list[tuple[Cell, Mapping[str, str], NoRows]]


@dataclass(frozen=True)
class Plan:
    """What an experiment comes down to.

    Attributes:
        experiment: The settings.
        cells: The table, of all tasks and all points of the grid.
        steps: Every step once, each after its inputs.
        empty: The cells that cannot be filled.
    """

    experiment: Experiment
    cells: tuple[Planned, ...]
    steps: tuple[Step, ...]
    empty: tuple[Empty, ...] = ()

    @property
    def backbone(self) -> BackboneRef:
        """The backbone, of a plan that has one alone."""
        return self.cells[0].cell.backbone

    def by_point(self) -> list[Plan]:
        """A plan for each point of the grid; itself without one."""
        found: dict[str, list[Planned]] = {}
        for planned in self.cells:
            found.setdefault(grid_name(planned.grid), []).append(planned)
        return [_plan(self.experiment.at(cells[0].grid), cells) for cells in found.values()]

    def points_of(self) -> dict[Step, list[Mapping[str, str]]]:
        """Step -> the points of the grid that need it."""
        found: dict[Step, list[Mapping[str, str]]] = {}
        for planned in self.cells:
            for step in in_order(_ends(planned.evaluation)):
                grids = found.setdefault(step, [])
                grids += [] if planned.grid in grids else [planned.grid]
        return found

    def homes(self) -> dict[Step, Cell]:
        """Step -> a cell that needs it, whose backbone and adapter are the step's."""
        found: dict[Step, Cell] = {}
        for planned in self.cells:
            for step in in_order(_ends(planned.evaluation)):
                found.setdefault(step, planned.cell)
        return found

    def missing(self, store: Store) -> list[Step]:
        """The steps that a store does not hold, each after its inputs."""
        return [step for step in self.steps if not store.has(step)]


def make_plan(experiment: Experiment, base: Path, logs: Path | None = None) -> Plan:
    """Plan an experiment, checking all of its data on the way.

    Args:
        experiment: The settings.
        base: Folder that relative paths start from: the experiment file's.
        logs: Folder for the files of experiment trackers.

    Raises:
        UserError: anything that would fail later: unknown task or method, bad row, no backbone; a missing file, where
            a method then has no cell at a task, or a language none at all; translations that no task names. Other
            cells that lack rows are left empty.
    """
    check_trackers(experiment.report_to)
    backbones: dict[str, BackboneRef] = {}
    cells: list[Planned] = []
    lacking: Lacking = []
    with knowing(experiment.languages.added()):
        points = experiment.points()
        check_translations(points, base)
        for point in points:
            with _told_where(point):
                filled, without = _plan_point(point, backbones, base, logs)
            cells += filled
            lacking += without
        _check_languages(cells, lacking)
        if experiment.published:
            check_published(experiment, list(map(_named, cells)))
        found = [Empty.of(*one) for one in lacking]
        empty = tuple(
            one for index, one in enumerate(found) if one not in found[:index]
        )  # once for all seeds
        return replace(_plan(experiment, cells), empty=empty)


def _named(planned: Planned) -> tuple[str, str, str]:
    """What tables call a cell's task, method and variant."""
    cell = planned.cell
    task = task_at(Path(cell.task.task).stem, planned.grid)
    return task, cell.method.method, cell.method.variant(cell.experiment.adapter.type)


def _check_languages(cells: Sequence[Planned], lacking: Lacking) -> None:
    """Refuse a language in which every cell lacks rows, whatever the task: it may be misspelt."""
    filled = {planned.cell.language for planned in cells}
    for cell, _, error in lacking:
        if cell.language not in filled:
            if cell.language != cell.experiment.languages.source:
                raise error
            mend = (
                "check the path, or set `scoring: {source_language: false}`, which scores the targets alone"
            )
            raise UserError(error.where, error.found, error.expected, mend)


def _plan(experiment: Experiment, cells: Sequence[Planned]) -> Plan:
    steps = in_order(end for planned in cells for end in _ends(planned.evaluation))
    return Plan(experiment, tuple(cells), tuple(steps))


def _plan_point(
    point: Point, backbones: dict[str, BackboneRef], base: Path, logs: Path | None
) -> tuple[list[Planned], Lacking]:
    """The cells of one task at a point of the grid, all of whose data was checked, and those that lack rows."""
    experiment = point.experiment
    if not experiment.methods:
        raise UserError("methods", "is empty", "at least one method", "see `lingualift methods`")
    check_methods(point)
    check_templates(experiment)
    asked = experiment.backbone.model_dump_json()
    if asked not in backbones:
        backbones[asked] = find_backbone(experiment.backbone, base)
        check_loadable(backbones[asked])
    backbone = backbones[asked]
    check_family(point, backbone)
    check_modules(experiment, backbone)
    cells, lacking = _with_rows(_planned(point, backbone, base, logs))
    for cell in _cells(experiment, backbone, base, logs):
        unnamed = untranslated(point, cell.method, base)
        lacking += [(cell, point.grid, unnamed)] if unnamed else []
    steps = list(in_order(end for planned in cells for end in _ends(planned.evaluation)))
    check_data(experiment, backbone, steps)
    check_samples(point, base)
    check_tags(backbone, steps)
    check_translators(point, steps)
    check_fusion(backbone, steps)
    return cells, lacking


def _read(planned: Planned) -> None:
    """Read all rows of a cell; raises as `load_rows`."""
    _ = list(in_order(_ends(planned.evaluation)))


def _with_rows(
    cells: Iterable[Planned], look: Callable[[Planned], None] = _read
) -> tuple[list[Planned], Lacking]:
    """The cells all of whose rows are there, as `look` tells, and those that lack some.

    Raises:
        NoRows: every cell of a method lacks some.
    """
    filled: list[Planned] = []
    lacking: Lacking = []
    for planned in cells:
        try:
            look(planned)
        except NoRows as error:
            lacking.append((planned.cell, planned.grid, error))
        else:
            filled.append(planned)
    there = [planned.cell.method for planned in filled]
    for cell, _, missing in lacking:
        if cell.method not in there:
            raise missing
    return filled, lacking


@contextlib.contextmanager
def _told_where(point: Point) -> Iterator[None]:
    """Name the point of the grid in what is found wrong there."""
    try:
        yield
    except UserError as error:
        if not point.grid:
            raise
        raise error.located(f", at {grid_name(point.grid)}") from None


def _cells(experiment: Experiment, backbone: BackboneRef, base: Path, logs: Path | None) -> Iterator[Cell]:
    reference = experiment.reference
    text = (
        dataset_of(reference.task or REFERENCE_TASKS[backbone.objective], reference.data, base)
        if reference
        else None
    )
    (entry,) = experiment.tasks
    generated = entry.answers == "generated"
    task = Examples(entry.task, entry.data, base, entry.prompt, entry.prompt_language, generated)
    for method in experiment.methods:
        for language in _languages(method, experiment):
            for seed in experiment.seeds:
                yield Cell(experiment, backbone, task, entry.translated, text, method, language, seed, logs)


def _languages(method: MethodSettings, experiment: Experiment) -> tuple[str, ...]:
    on_source = METHODS[method.method].on_source and experiment.scoring.source_language
    return (*((experiment.languages.source,) if on_source else ()), *experiment.languages.targets)


def _planned(point: Point, backbone: BackboneRef, base: Path, logs: Path | None) -> Iterator[Planned]:
    """The cells whose translations are named, those of the plain backbone for one seed: it is the same for all."""
    experiment = point.experiment
    for cell in _cells(experiment, backbone, base, logs):
        if untranslated(point, cell.method, base):
            continue
        adapter = METHODS[cell.method.method].adapter(cell)
        if adapter is not None or cell.seed == experiment.seeds[0]:
            scoring = experiment.scoring
            told = _back(cell)
            step = Evaluate(backbone, adapter, asked(cell), cell.language, "test", scoring, told)
            yield Planned(cell, step, point.grid)


def _back(cell: Cell) -> Back | None:
    """How the answers of a cell come back into the language of their gold; None where they are in it, or no text."""
    if METHODS[cell.method.method].reads != "instead" or not cell.task.get_task().writes:
        return None
    return back(cell.translated, cell.experiment.languages.source, cell.language, cell.task.base)


def _ends(evaluation: Evaluate) -> Iterator[Step]:
    """What a cell needs: its score, and what the report shows beside it."""
    yield evaluation
    if evaluation.adapter:
        yield from evaluation.adapter.shown


def in_order(ends: Iterable[Step]) -> Iterator[Step]:
    """Every step that the ends need, once, each after its inputs."""
    seen: set[str] = set()

    def visit(step: Step) -> Iterator[Step]:
        if step.key in seen:
            return
        seen.add(step.key)
        for needed in step.inputs.values():
            yield from visit(needed)
        yield step

    for end in ends:
        yield from visit(end)


def rows_read(experiment: Experiment, backbone: BackboneRef, base: Path) -> Iterator[Part]:
    """All rows that an experiment without a grid reads, some more than once; none is looked at."""
    for point in experiment.points():
        for planned in _planned(point, backbone, base, None):
            yield from _parts(planned)


def _parts(planned: Planned) -> Iterator[Part]:
    """The rows of a cell, none of which is looked at."""

    def visit(step: Step) -> Iterator[Part]:
        yield from step.reads
        for needed in step.inputs.values():
            yield from visit(needed)

    for end in _ends(planned.evaluation):
        yield from visit(end)


def check_there(
    experiment: Experiment, backbone: BackboneRef, base: Path, looked_at: Collection[str]
) -> None:
    """Refuse an experiment without a grid for files that are not there as `make_plan` does, before any is read.

    Args:
        experiment: The settings.
        backbone: The backbone.
        base: Folder that relative paths start from.
        looked_at: Tasks whose files count; those of others are taken to be there.

    Raises:
        NoRows: a method then has no cell at a task, or a language none at all.
    """

    def look(planned: Planned) -> None:
        for dataset, language, split, _ in _parts(planned):
            if dataset.task in looked_at:
                data_fingerprint(dataset.data, language, split, base)

    found = [_with_rows(_planned(point, backbone, base, None), look) for point in experiment.points()]
    _check_languages(*([one for part in parts for one in part] for parts in zip(*found, strict=True)))


def check_data(experiment: Experiment, backbone: BackboneRef, steps: Iterable[Step]) -> None:
    """Check what the rows of the steps, all of them read by now, must have in common.

    Raises:
        UserError: parallel data that is not; a task without labels where labels are needed; answers that are generated
            and leave no room for a prompt; a task or an objective that is not for the backbone's family.
    """
    parallel: dict[tuple[str, str, str], dict[str, Dataset]] = {}
    for dataset, language, split, _ in (part for step in steps for part in step.reads):
        use = dataset.task, dataset.data.model_dump_json(), split
        if not dataset.made:
            parallel.setdefault(use, {})[language] = dataset
        if isinstance(dataset, Texts):
            check_objective(backbone, dataset.get_task())
            continue
        task, rows = dataset.labelled(language, split)
        if backbone.family == "encoder":
            head_of(backbone.family, task, rows, dataset.task)
        if backbone.family == "decoder":
            _check_room(task, rows, experiment)
        if dataset.unlabelled and not is_ranked(backbone, task, rows):
            raise UserError(
                "weights.by",
                f"is entropy, and answers to {dataset.task!r} are no choice between labels",
                "score",
                "set `weights.tune_on`",
            )
    for (_, _, split), datasets in parallel.items():
        dataset = next(iter(datasets.values()))
        check_aligned(dataset.data, list(datasets), split, dataset.base)


def check_tags(backbone: BackboneRef, steps: Iterable[Step]) -> None:
    """Check that a tokenizer that tags its texts knows the languages of the steps; raises as `set_language`."""
    if backbone.family != "encoder-decoder":
        return
    tokenizer = load_tokenizer(backbone)
    for dataset, language, _, _ in (part for step in steps for part in step.reads):
        for code in (language, *((dataset.beside.language,) if dataset.beside else ())):
            set_language(tokenizer, code)


def check_translators(point: Point, steps: Iterable[Step]) -> None:
    """Check that the models that translate do so, and know the languages.

    Raises:
        UserError: as `check_languages`; a model is named and nothing is left for it.
    """
    asked: dict[BackboneRef, dict[str, None]] = {}
    for step in steps:
        one = step.back if isinstance(step, Evaluate) else step
        if isinstance(one, Back | Translate):
            asked.setdefault(one.model, {}).update({one.language: None, one.into: None})
    for model, languages in asked.items():
        check_languages(model, languages)
    given = point.task.translated
    if given.model and not asked and given.into_targets and given.into_source:
        found = "is set, and translates nothing: `into_targets` and `into_source` are both named"
        raise UserError(f"tasks.{point.index}.translated.model", found, mend="remove it, or one of them")


def check_fusion(backbone: BackboneRef, steps: Sequence[Step]) -> None:
    """Check what adapters fuse, and that the source sides that they read fit.

    Raises:
        UserError: a layer that is not there or cannot fuse; an empty source side, or one that is too long; a language
            that a source encoder does not know, or a text longer than it reads; source states that cannot be kept.
    """
    draws = [(step, step.fused) for step in steps if step.fused]
    if not draws:
        return
    from lingualift.fusion.config import fusion_config
    from lingualift.fusion.translator import find_translator

    model, tokenizer = skeleton(backbone), load_tokenizer(backbone)
    translator_of = functools.cache(find_translator)  # one for all languages and seeds
    for fused in dict.fromkeys(fused for _, fused in draws):
        fusion_config(model, fused.adapter, fused.settings).places(model)
    if any(isinstance(step, Train) and step.cache_sources for step in steps):
        check_kept(backbone, tokenizer)
    for step in steps:
        for dataset, language, split, limit in step.reads:
            if isinstance(dataset, Texts):
                continue
            if step.fused and step.fused.source_encoder:
                translator = translator_of(step.fused.source_encoder)
                translator.tag(language)
                if not dataset.maker:
                    check_own_texts(translator, backbone, dataset.rows(language, split))
            beside = dataset.beside
            if beside and beside.use == "beside" and not dataset.maker:
                rows = dataset.rows(language, split)
                check_sources(backbone, model.config, tokenizer, rows, limit, beside.labelled)


def _check_room(task: Task, rows: Sequence[Any], experiment: Experiment) -> None:
    """Refuse a longest answer as long as prompt and answer may be: told now, not after training."""
    room, longest = experiment.scoring.max_length, experiment.scoring.new_tokens(task.max_new_tokens)
    if longest >= room and not rows[0].choices:
        raise UserError(
            "scoring.max_length",
            f"is {room}, and answers are generated up to {longest} tokens",
            "room for a prompt beside the answer",
            f"write for example {2 * longest}",
        )


def check_samples(point: Point, base: Path) -> None:
    """Check that a sample of the training rows, which goes by their places, takes the same rows of their translations.

    Raises:
        UserError: the translations of a language are fewer or more than the rows, and name no sample of their own.
    """
    experiment = point.experiment
    if not any(METHODS[method.method].trains_on_translations for method in experiment.methods):
        return
    entry = point.task
    into = entry.translated.into_targets
    if into is None or "train" not in entry.data.max_rows or "train" in into.max_rows:
        return
    rows = load_rows(entry.data, experiment.languages.source, "train", base, ())
    for target in experiment.languages.targets:
        try:
            theirs = load_rows(into, target, "train", base, ())
        except NoRows:
            continue  # its cells are empty
        if len(theirs.table) != len(rows.table):
            raise UserError(
                theirs.where,
                f"has {len(theirs.table)} rows",
                f"{len(rows.table)} as in {rows.where}, since `max_rows` samples both by their places",
                f"give tasks.{point.index}.translated.into_targets a `max_rows` of its own",
            )
