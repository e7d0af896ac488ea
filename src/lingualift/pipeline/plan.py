"""From an experiment to its steps; what can be wrong with its data is found on the way, before a step runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.backbone.loading import check_loadable, skeleton
from lingualift.backbone.reference import BackboneRef, find_backbone, load_tokenizer
from lingualift.config import Experiment, Method
from lingualift.data.datasets import Dataset, Examples, Texts, dataset_of
from lingualift.data.rows import check_aligned, load_rows
from lingualift.encoding.heads import head_of
from lingualift.encoding.limits import check_kept, check_own_texts, check_sources
from lingualift.encoding.text import set_language
from lingualift.errors import UserError
from lingualift.evaluation.runner import is_ranked
from lingualift.pipeline.checks import check_family, check_methods, check_modules, check_templates
from lingualift.pipeline.methods import METHODS, Cell, asked
from lingualift.pipeline.steps import Evaluate, Part, Step, Train
from lingualift.pipeline.store import Store
from lingualift.tasks import Task
from lingualift.tasks.language_modelling import REFERENCE_TASKS
from lingualift.training.data import check_objective
from lingualift.training.trainer import check_trackers


@dataclass(frozen=True)
class Planned:
    """A cell of the table and the step that fills it."""

    cell: Cell
    evaluation: Evaluate

    @property
    def seed(self) -> int | None:
        """The cell's seed; None for the plain backbone, which is the same for all."""
        return self.cell.seed if self.evaluation.adapter else None


@dataclass(frozen=True)
class Plan:
    """What an experiment comes down to.

    Attributes:
        experiment: The settings.
        backbone: The backbone that was found.
        cells: The table.
        steps: Every step once, each after its inputs.
    """

    experiment: Experiment
    backbone: BackboneRef
    cells: tuple[Planned, ...]
    steps: tuple[Step, ...]

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
        UserError: anything that would fail later: unknown task or method, missing file, bad row, no backbone.
    """
    check_methods(experiment)
    check_trackers(experiment.report_to)
    if not experiment.methods:
        raise UserError("methods", "is empty", "at least one method", "see `lingualift methods`")
    check_templates(experiment)
    backbone = find_backbone(experiment.backbone, base)
    check_loadable(backbone)
    check_family(experiment, backbone)
    check_modules(experiment, backbone)
    cells = tuple(_planned(experiment, backbone, base, logs))
    steps = tuple(_in_order(end for planned in cells for end in _ends(planned.evaluation)))
    check_data(experiment, backbone, steps)
    check_samples(experiment, base)
    check_tags(backbone, steps)
    check_fusion(backbone, steps)
    return Plan(experiment, backbone, cells, steps)


def _cells(experiment: Experiment, backbone: BackboneRef, base: Path, logs: Path | None) -> Iterator[Cell]:
    reference = experiment.reference
    text = (
        dataset_of(reference.task or REFERENCE_TASKS[backbone.objective], reference.data, base)
        if reference
        else None
    )
    for entry in experiment.tasks:
        generated = entry.answers == "generated"
        task = Examples(entry.task, entry.data, base, entry.prompt, entry.prompt_language, generated)
        for method in experiment.methods:
            for language in _languages(method, experiment):
                for seed in experiment.seeds:
                    yield Cell(
                        experiment, backbone, task, entry.translated, text, method, language, seed, logs
                    )


def _languages(method: Method, experiment: Experiment) -> tuple[str, ...]:
    on_source = METHODS[method.method].on_source
    return (*((experiment.languages.source,) if on_source else ()), *experiment.languages.targets)


def _planned(
    experiment: Experiment, backbone: BackboneRef, base: Path, logs: Path | None
) -> Iterator[Planned]:
    """The cells, those of the plain backbone for one seed: it is the same for all."""
    for cell in _cells(experiment, backbone, base, logs):
        adapter = METHODS[cell.method.method].adapter(cell)
        if adapter is not None or cell.seed == experiment.seeds[0]:
            scoring = experiment.scoring
            yield Planned(cell, Evaluate(backbone, adapter, asked(cell), cell.language, "test", scoring))


def _ends(evaluation: Evaluate) -> Iterator[Step]:
    """What a cell needs: its score, and what the report shows beside it."""
    yield evaluation
    if evaluation.adapter:
        yield from evaluation.adapter.shown


def _in_order(ends: Iterable[Step]) -> Iterator[Step]:
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
    """All rows that an experiment reads, some more than once; none is looked at."""

    def visit(step: Step) -> Iterator[Part]:
        yield from step.reads
        for needed in step.inputs.values():
            yield from visit(needed)

    for planned in _planned(experiment, backbone, base, None):
        for end in _ends(planned.evaluation):
            yield from visit(end)


def check_data(experiment: Experiment, backbone: BackboneRef, steps: Iterable[Step]) -> None:
    """Check what the rows of the steps, all of them read by now, must have in common.

    Raises:
        UserError: parallel data that is not; a task without labels where labels are needed; answers that are generated
            and leave no room for a prompt; a task or an objective that is not for the backbone's family.
    """
    parallel: dict[tuple[str, str, str], dict[str, Dataset]] = {}
    for dataset, language, split, _ in (part for step in steps for part in step.reads):
        use = dataset.task, dataset.data.model_dump_json(), split
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
                check_own_texts(translator, backbone, dataset.rows(language, split))
            beside = dataset.beside
            if beside and beside.use == "beside":
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


def check_samples(experiment: Experiment, base: Path) -> None:
    """Check that a sample of the training rows, which goes by their places, takes the same rows of their translations.

    Raises:
        UserError: the translations of a language are fewer or more than the rows, and name no sample of their own.
    """
    if not any(METHODS[method.method].trains_on_translations for method in experiment.methods):
        return
    for index, entry in enumerate(experiment.tasks):
        into = entry.translated.into_targets
        if into is None or "train" not in entry.data.max_rows or "train" in into.max_rows:
            continue
        rows = load_rows(entry.data, experiment.languages.source, "train", base, ())
        for target in experiment.languages.targets:
            theirs = load_rows(into, target, "train", base, ())
            if len(theirs.table) != len(rows.table):
                raise UserError(
                    theirs.where,
                    f"has {len(theirs.table)} rows",
                    f"{len(rows.table)} as in {rows.where}, since `max_rows` samples both by their places",
                    f"give tasks.{index}.translated.into_targets a `max_rows` of its own",
                )
