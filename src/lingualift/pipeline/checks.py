"""What an experiment asks for that cannot be: found by its settings and the backbone's, before any data is read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from lingualift.adapters.patterns import Patterns
from lingualift.backbone.architectures import bound_of, positions_of
from lingualift.backbone.loading import check_positions, skeleton
from lingualift.backbone.reference import BackboneRef, read_config
from lingualift.config import (
    Data,
    Experiment,
    FlareMethod,
    FlareMtMethod,
    LayerSwapMethod,
    MergeMethod,
    MethodSettings,
    Point,
    SplitData,
    grid_name,
)
from lingualift.data.datasets import labelled_task
from lingualift.data.rows import NoRows
from lingualift.errors import UserError
from lingualift.merging.methods import METHODS as MERGES
from lingualift.merging.methods import check_merge
from lingualift.merging.plan import Zones, block_factors, by_zones, matches_nothing
from lingualift.pipeline.methods import METHODS, TransferMethod
from lingualift.training.trainer import adapted_modules

LANGUAGE_PLACES = ("{language}", "{iso639_3}", "{bcp47}", "{nllb}")


def check_methods(point: Point) -> None:
    """Check that every method is known, has what it needs, and has no setting that it ignores.

    Raises:
        UserError: names the entry of `methods` in the experiment file.
    """
    experiment = point.experiment
    for index, method in enumerate(experiment.methods):
        where = f"methods.{index}"
        entry = METHODS[method.method]
        if entry.needs_reference and experiment.reference is None:
            raise UserError(
                where, f"{method.method} needs unlabelled text", mend="add `reference:` with its data"
            )
        if entry.needs_reference and experiment.training.reference is None:
            found = f"is missing, and {method.method} trains on unlabelled text ({where})"
            raise UserError("training.reference", found, mend="say how: `training: {reference: {epochs: 1}}`")
        if isinstance(method, MergeMethod):
            _check_merge(where, method, experiment)
        _check_fusing(where, method, entry, point)
    _check_shared(point)


def _check_merge(where: str, method: MergeMethod, experiment: Experiment) -> None:
    """Refuse a merge without a weight, or with settings that mean nothing to the kind of adapter."""
    if method.weight is None and experiment.weights.tune_on is None and experiment.weights.by == "score":
        mend = (
            "set `weights.tune_on`, or the task's `tune_on`, to a target language with validation rows, or "
            "`weights.by: entropy`, or give the method a `weight`"
        )
        raise UserError(where, f"{method.method} has no merge weight", mend=mend)
    kind = experiment.adapter.type
    idle = {"modules", "module_weights", "layer_weights"} & method.given() if kind == "prefix" else set()
    if idle:
        found = "is set, and prefix adapters have no modules"
        raise UserError(f"{where}.{min(idle)}", found, mend="remove it")
    for name in ("modules", "module_weights"):
        for pattern in _patterns(method)[name]:
            Patterns(f"{where}.{name}").end(pattern)
    if method.method not in MERGES:
        return
    try:
        check_merge(kind, method.method, method)
    except UserError as error:
        place = (
            f"{where}.{error.where}"
            if error.where in type(method).model_fields
            else f"{where}, {error.where}"
        )
        raise UserError(place, error.found, error.expected, error.mend) from None


def _check_shared(point: Point) -> None:
    """Refuse settings of fusing, and of the translations that are read beside rows, that nothing here uses."""
    experiment = point.experiment
    methods = experiment.methods
    uses = {
        "fusion_modules": any(isinstance(method, FlareMtMethod) for method in methods),
        "cache_sources": any(isinstance(method, FlareMethod) for method in methods),
        "source_encoder": any(METHODS[method.method].translated_by_model for method in methods),
    }
    for key in sorted(experiment.flare.given()):
        if not uses[key]:
            raise UserError(f"flare.{key}", "is set, and no method here uses it", mend="remove it")
    if experiment.training.translated and not any(
        METHODS[method.method].trains_on_translations for method in experiment.methods
    ):
        found = "is set, and no method here trains on translations"
        raise UserError("training.translated", found, mend="remove it")
    into = point.task.translated.into_source
    idle = {"max_rows", "sample_seed", "aligned_on"} & into.given() if into else set()
    if idle:
        raise UserError(
            f"tasks.{point.index}.translated.into_source.{min(idle)}",
            "is not used: the partners of the test rows are found by `id`",
            mend="remove it; `data` says which test rows there are",
        )


def check_family(point: Point, backbone: BackboneRef) -> None:
    """Check that methods and adapter suit the backbone's family.

    Raises:
        UserError: names the entry of the experiment file.
    """
    experiment = point.experiment
    if backbone.family == "encoder":
        for index, method in enumerate(experiment.methods):
            if METHODS[method.method].needs_words:
                raise UserError(
                    f"methods.{index}",
                    f"{method.method} asks a model that was not trained on the task, and {backbone.name!r} is an "
                    "encoder, which answers by a head that the task adapter brings",
                    "methods that begin from the task adapter, such as source-ft",
                    "remove it",
                )
        idle = {"prompt", "prompt_language", "answers"} & point.task.given()
        if idle:
            found = f"is set, and {backbone.name!r} is an encoder, which reads no prompt"
            raise UserError(f"tasks.{point.index}.{min(idle)}", found, mend="remove it")
    _check_lengths(experiment, backbone)
    if experiment.adapter.type != "prefix":
        return
    if backbone.family == "decoder":
        found = f"is prefix, and {backbone.name!r} is a decoder"
        raise UserError("adapter.type", found, "lora or ia3", "choose one of them")
    for role in ("task", "reference", "translated"):
        settings = getattr(experiment.training, role)
        if settings and settings.gradient_checkpointing:
            raise UserError(
                f"training.{role}.gradient_checkpointing",
                "drops the prefix: transformers keeps no keys and values under it",
                "false with prefix adapters",
                "remove it",
            )


def _check_lengths(experiment: Experiment, backbone: BackboneRef) -> None:
    """Check that the backbone has positions for the longest rows that the experiment allows."""
    prefix = experiment.adapter.tokens if experiment.adapter.type == "prefix" else 0
    second = experiment.training.translated
    lengths = {
        "training.task.max_length": experiment.training.task.max_length,
        **({"training.translated.max_length": second.max_length} if second else {}),
        "scoring.max_length": experiment.scoring.max_length,
    }
    if experiment.reference:
        lengths["reference.segment_tokens"] = experiment.reference.segment_tokens
    places = positions_of(read_config(backbone))
    if places is None or max(lengths.values()) + prefix <= places:
        return
    limit = places if backbone.family == "encoder" else bound_of(skeleton(backbone))
    for where, tokens in lengths.items():
        check_positions(limit, where, tokens, prefix)


def check_translations(points: Sequence[Point], base: Path) -> None:
    """Check that at each point of a grid every method has the translations of a task, and every task those of a method.

    Args:
        points: All of an experiment.
        base: Folder that paths of tasks start from.

    Raises:
        UserError: a method has them at no task, or no method has those of a task.
    """
    for place, group in itertools.groupby(points, lambda point: grid_name(point.grid)):
        lacking = [
            [untranslated(point, method, base) for method in point.experiment.methods] for point in group
        ]
        for errors in (*zip(*lacking, strict=True), *lacking):
            if errors and errors[0] and all(errors):
                raise errors[0].located(f", at {place}") if place else errors[0]


def untranslated(point: Point, method: MethodSettings, base: Path) -> NoRows | None:
    """Which translations a method reads that its task does not name, so that its cells there are empty; None if none.

    Arguments as for `check_translations`.
    """
    given, experiment, entry = point.task.translated, point.experiment, METHODS[method.method]
    if given.model is not None:
        return None
    source, where = experiment.languages.source, f"tasks.{point.index}.translated"
    needed = {
        "into_targets": (entry.trains_on_translations, f"training rows translated from {source!r}", "train"),
        "into_source": (entry.reads is not None, f"test rows translated into {source!r}", "test"),
    }
    for key, (asked_for, what, split) in needed.items():
        if asked_for and getattr(given, key) is None:
            return NoRows(
                f"{where}.{key}",
                "is not set",
                f"the {what}, which {method.method} reads (methods.{experiment.methods.index(method)})",
                f"name a `model` beside it, or write them by `lingualift translate --split {split} …` and name their "
                "files (docs/translate.md)",
            )
    if entry.reads == "instead" and labelled_task(point.task.task, base).writes:
        targets = ", ".join(map(repr, experiment.languages.targets))
        return NoRows(
            f"{where}.model",
            f"is not set, and {method.method} answers {Path(point.task.task).stem} in {source!r}",
            f"a translation model, which translates the answers back into the language of the gold ones ({targets})",
            f"name one, or remove {method.method}",
        )
    return None


def _check_fusing(where: str, method: MethodSettings, entry: TransferMethod, point: Point) -> None:
    """Refuse a method that fuses by what the experiment does not name, or in what is no LoRA."""
    experiment = point.experiment
    if entry.translated_by_model and experiment.flare.source_encoder is None:
        raise UserError(
            "flare.source_encoder",
            f"is not set, and {method.method} reads by it ({where})",
            "a translation model (NLLB, M2M100)",
            "write for example `flare: {source_encoder: facebook/nllb-200-distilled-600M}`",
        )
    if isinstance(method, FlareMtMethod):
        from lingualift.fusion.functions import FUSIONS

        _ = FUSIONS[method.fusion]
        if experiment.flare.cache_sources and method.answer_source == "generate":
            found = f"is set, and the sources of {method.method} answer anew each time ({where})"
            raise UserError("flare.cache_sources", found, mend="leave it out, or `answer_source: last`")
    if entry.fuses and experiment.adapter.type != "lora":
        raise UserError(
            "adapter.type",
            f"is {experiment.adapter.type}, and {method.method} fuses in LoRA ({where})",
            "lora",
        )


def _patterns(method: MergeMethod) -> dict[str, tuple[str, ...]]:
    """Key -> patterns of modules in it."""
    return {
        "modules": (method.modules,) if method.modules else (),
        "module_weights": tuple(method.module_weights),
    }


def check_modules(experiment: Experiment, backbone: BackboneRef) -> None:
    """Check that what says where to merge names modules that get an adapter; raises a `UserError`."""
    merges = [
        (f"methods.{index}", each)
        for index, each in enumerate(experiment.methods)
        if isinstance(each, MergeMethod)
    ]
    about = {"modules", "module_weights", "layer_weights", "bottom", "top", "transition"}
    if not any(about & method.given() for _, method in merges):
        return
    names = adapted_modules(backbone, experiment.adapter)
    for where, method in merges:
        for key, patterns in _patterns(method).items():
            for pattern in patterns:
                if not Patterns(f"{where}.{key}").end(pattern).among(names):
                    raise matches_nothing(f"{where}.{key}", pattern, names)
        block_factors(f"{where}.layer_weights", method.layer_weights, names)
        if isinstance(method, LayerSwapMethod):
            _check_zones(where, method, names)


def _check_zones(where: str, method: LayerSwapMethod, names: Sequence[str]) -> None:
    zones = Zones(method.bottom, method.top, method.transition)
    try:
        parts = by_zones(zones, {}, names, names)
    except UserError as error:
        raise UserError(where, error.found, error.expected, error.mend) from None
    if not any(parts.values()):
        mend = "raise `bottom` or `top`, or remove the method"
        raise UserError(where, "leaves every block to the task", "some of the target reference's", mend)


def check_templates(experiment: Experiment) -> None:
    """Check that the rows of a task differ between languages.

    One file may be the translation of all targets if it holds the source language's own rows: parallel data.

    Raises:
        UserError: names the path, or the data set on the hub, that has no place for the language.
    """
    source, targets = experiment.languages.source, experiment.languages.targets
    reference = (experiment.reference,) if experiment.reference else ()
    read: list[tuple[str | None, Data, int]] = [
        (entry.task, entry.data, 1 + len(targets)) for entry in (*experiment.tasks, *reference)
    ]
    weights, named = experiment.weights, {method.method for method in experiment.methods}
    every = 1 + len(targets)
    languages_of = {
        "train": every if "target-ft" in named else 1,
        "validation": every if weights.curves or weights.by == "entropy" else 1,
        "test": len(targets) + experiment.scoring.source_language,
    }
    for entry in experiment.tasks:
        own_place = [split for split in languages_of if isinstance(getattr(entry.data, split), SplitData)]
        read += [(entry.task, entry.data.of_split(split), languages_of[split]) for split in own_place]
    for entry in experiment.tasks:
        into = entry.translated
        read += [(entry.task, into.into_targets, len(targets))] if into.into_targets else []
        own = (entry.data.files or "").replace("{language}", source)  # of which all rows may be translations
        if into.into_source and into.into_source.files != own:
            read.append((entry.task, into.into_source, len(targets)))
    for task, data, languages in read:
        template = " ".join((data.files or data.config or "", *data.where.values()))
        if languages > 1 and not any(place in template for place in LANGUAGE_PLACES):
            what, where = ("file", "path") if data.files else ("configuration of the hub's", "`config`")
            raise UserError(
                data.files or str(data.hub),
                f"names one {what} of task {task!r} for {languages} languages",
                f"{{language}} in the {where}, or in `where`"
                if data.files
                else f"{{language}} in {where}, or in `where`",
                "write for example data/{language}/{split}.jsonl" if data.files else "write it there",
            )
