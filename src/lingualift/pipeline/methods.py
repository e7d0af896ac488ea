"""The transfer methods, each a function from a cell of the table to the adapter that fills it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lingualift.backbone import BackboneRef, check_positions, read_config
from lingualift.config import Experiment, Method
from lingualift.errors import UserError
from lingualift.pipeline.steps import Initialise, Merge, MergeRecipe, Sweep, Train
from lingualift.registry import Registry
from lingualift.source import Source


@dataclass(frozen=True)
class Cell:
    """A place in the table: one method on one task in one language with one seed.

    Attributes:
        experiment: Settings.
        backbone: The backbone.
        task: The task and its rows.
        reference: The reference task and its rows; None where no method needs it.
        method: Method and variant.
        language: Where the method is scored.
        seed: Initialisation and order of the data.
        logs: Folder for the files of experiment trackers.
    """

    experiment: Experiment
    backbone: BackboneRef
    task: Source
    reference: Source | None
    method: Method
    language: str
    seed: int
    logs: Path | None = None

    def task_adapter(self, language: str) -> Train:
        """The adapter of the task in a language that has labels."""
        return self._train(self.task, language, "task")

    def reference_adapter(self, language: str) -> Train:
        """The adapter of the reference task in a language; needs text only."""
        assert self.reference is not None
        return self._train(self.reference, language, "reference")

    def _train(self, source: Source, language: str, role: str) -> Train:
        start = Initialise(self.backbone, self.experiment.adapter, self.seed)
        settings = getattr(self.experiment.training, role)
        reference = self.experiment.reference
        segment_tokens = reference.segment_tokens if reference else 512
        trackers = self.experiment.report_to
        return Train(start, source, language, settings, self.seed, segment_tokens, trackers, self.logs)

    def merged(self, *, subtract_source: bool) -> Merge:
        """The task adapter moved by the reference adapters; the weight fixed, or tuned on the tuning language."""
        how = MergeRecipe(self.method.method, self.method.space, self.method.combine, self.method.modules)
        weights = self.experiment.weights

        def sweep(language: str) -> Sweep:
            return Sweep(
                how,
                self._roles(language, subtract_source),
                weights.grid,
                self.task,
                language,
                self.experiment.scoring,
                variant(self.method, self.experiment.adapter.type),
                decides=language == weights.tune_on,
            )

        roles = self._roles(self.language, subtract_source)
        if self.method.weight is not None:
            return Merge(how, roles, self.method.weight, self.language)
        assert weights.tune_on is not None
        curves = tuple(sweep(language) for language in weights.curves)
        return Merge(how, roles, sweep(weights.tune_on), self.language, curves)

    def _roles(self, target: str, subtract_source: bool) -> tuple[tuple[str, Train], ...]:
        source = self.experiment.languages.source
        roles = [("task", self.task_adapter(source)), ("target", self.reference_adapter(target))]
        return (*roles, ("source", self.reference_adapter(source))) if subtract_source else tuple(roles)


@dataclass(frozen=True)
class TransferMethod:
    """A row of the table.

    Attributes:
        adapter: The adapter that a cell is scored with; None for the plain backbone.
        summary: What it does, in one line.
        paper_name: What the papers call it.
        source: Where it was published.
        needs_reference: Whether it needs unlabelled text.
        merges: Whether it has a merge weight.
        seeded: Whether it differs between seeds (`is_seeded` asks the method's settings too).
        on_source: Whether a score in the source language makes sense.
        prompt: The prompt that it asks by; None for the one that the experiment chooses.
        needs_words: Whether it asks a model that was not trained on the task, which an encoder has no head for.
    """

    adapter: Callable[[Cell], Train | Merge | None]
    summary: str
    paper_name: str
    source: str
    needs_reference: bool = False
    merges: bool = False
    seeded: bool = True
    on_source: bool = False
    prompt: str | None = None
    needs_words: bool = False


METHODS: Registry[TransferMethod] = Registry("method")
_ADAMERGEX = "https://arxiv.org/abs/2402.18913"


def _method(name: str, **facts: object) -> Callable[[Callable[[Cell], Train | Merge | None]], TransferMethod]:
    def enter(function: Callable[[Cell], Train | Merge | None]) -> TransferMethod:
        summary = (function.__doc__ or "").strip()
        return METHODS.register(name)(TransferMethod(function, summary, **facts))  # type: ignore[arg-type]

    return enter


@_method("vanilla", paper_name="Vanilla", source=_ADAMERGEX, seeded=False, on_source=True, needs_words=True)
def vanilla(_: Cell) -> None:
    """The backbone as it is."""


@_method("source-ft", paper_name="Eng-FT, zero-shot", source=_ADAMERGEX, on_source=True)
def source_ft(cell: Cell) -> Train:
    """The task adapter of the source language, used in the target language."""
    return cell.task_adapter(cell.experiment.languages.source)


@_method(
    "xlt",
    paper_name="XLT",
    source="https://arxiv.org/abs/2305.07004",
    on_source=True,
    prompt="xlt",
    needs_words=True,
)
def xlt(cell: Cell) -> Train | None:
    """The backbone, or the source language's task adapter, asked by the cross-lingual-thought prompt."""
    return source_ft.adapter(cell) if cell.method.ask == "source-ft" else None  # type: ignore[return-value]


@_method("reference-only", paper_name="(control)", source=_ADAMERGEX, needs_reference=True, needs_words=True)
def reference_only(cell: Cell) -> Train:
    """The target language's reference adapter alone: what the text gives without the task."""
    return cell.reference_adapter(cell.language)


@_method(
    "arithmetic",
    paper_name="AriMerge",
    source="https://arxiv.org/abs/2306.14870",
    needs_reference=True,
    merges=True,
)
def arithmetic(cell: Cell) -> Merge:
    """Task adapter plus weight times the target reference (sum), or that divided by 1 + weight (mean)."""
    return cell.merged(subtract_source=False)


@_method("adamergex", paper_name="AdaMergeX", source=_ADAMERGEX, needs_reference=True, merges=True)
def adamergex(cell: Cell) -> Merge:
    """Task adapter plus weight times (target reference minus source reference), as the adapter's structure asks."""
    return cell.merged(subtract_source=True)


@_method("target-ft", paper_name="(upper bound)", source=_ADAMERGEX)
def target_ft(cell: Cell) -> Train:
    """The task adapter trained on labels of the target language itself."""
    return cell.task_adapter(cell.language)


def is_seeded(method: Method) -> bool:
    """Whether its scores differ between seeds: the plain backbone's do not."""
    return METHODS[method.method].seeded and not (method.method == "xlt" and method.ask == "vanilla")


def asked(cell: Cell) -> Source:
    """The task of a cell, by the prompt of its method."""
    prompt = METHODS[cell.method.method].prompt
    return replace(cell.task, prompt=prompt, prompt_language=None) if prompt else cell.task


def variant(method: Method, adapter_type: str) -> str:
    """What tells apart two rows of one method: space, combination, modules, a fixed weight, who is asked."""
    if method.method == "xlt":
        return method.ask
    if not METHODS[method.method].merges:
        return ""
    parts: list[str] = [method.space] if adapter_type == "lora" else []
    parts += [method.combine] if method.method == "arithmetic" else []
    parts += [f"modules={method.modules}"] if method.modules else []
    parts += [f"weight={method.weight:g}"] if method.weight is not None else []
    return "-".join(parts)


def check_methods(experiment: Experiment) -> None:
    """Check that every method is known, has what it needs, and has no setting that it ignores.

    Raises:
        UserError: names the entry of `methods` in the experiment file.
    """
    for index, method in enumerate(experiment.methods):
        where = f"methods.{index}"
        entry = METHODS[method.method]
        if entry.needs_reference and experiment.reference is None:
            raise UserError(
                where, f"{method.method} needs unlabelled text", mend="add `reference:` with its data"
            )
        if entry.merges and method.weight is None and experiment.weights.tune_on is None:
            mend = "set `weights.tune_on` to a target language with validation rows, or give the method a `weight`"
            raise UserError(where, f"{method.method} has no merge weight", mend=mend)
        _check_settings(where, method, entry, experiment.adapter.type)


def check_family(experiment: Experiment, backbone: BackboneRef) -> None:
    """Check that methods and adapter suit the backbone's family.

    Raises:
        UserError: names the entry of the experiment file.
    """
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
        for index, entry in enumerate(experiment.tasks):
            idle = {"prompt", "prompt_language", "answers"} & entry.given()
            if idle:
                found = f"is set, and {backbone.name!r} is an encoder, which reads no prompt"
                raise UserError(f"tasks.{index}.{min(idle)}", found, mend="remove it")
        prefix = experiment.adapter.tokens if experiment.adapter.type == "prefix" else 0
        lengths = {
            "training.task.max_length": experiment.training.task.max_length,
            "scoring.max_length": experiment.scoring.max_length,
        }
        if experiment.reference:
            lengths["reference.segment_tokens"] = experiment.reference.segment_tokens
        for where, tokens in lengths.items():
            check_positions(read_config(backbone), where, tokens, prefix)
    if experiment.adapter.type != "prefix":
        return
    if backbone.family == "decoder":
        found = f"is prefix, and {backbone.name!r} is a decoder"
        raise UserError("adapter.type", found, "lora or ia3", "choose one of them")
    for role in ("task", "reference"):
        if getattr(experiment.training, role).gradient_checkpointing:
            raise UserError(
                f"training.{role}.gradient_checkpointing",
                "drops the prefix: transformers keeps no keys and values under it",
                "false with prefix adapters",
                "remove it",
            )


def _check_settings(where: str, method: Method, entry: TransferMethod, adapter_type: str) -> None:
    used = {"method"}
    used |= {"ask"} if method.method == "xlt" else set()
    if entry.merges:
        used |= {"weight"} if adapter_type == "prefix" else {"modules", "weight"}
        used |= {"space"} if adapter_type == "lora" else set()
        used |= {"combine"} if method.method == "arithmetic" else set()
    idle = sorted(method.given() - used)
    if idle:
        raise UserError(
            f"{where}.{idle[0]}",
            f"{method.method} does not use it with {adapter_type} adapters",
            mend="remove it",
        )
    if method.modules is not None:
        try:
            re.compile(method.modules)
        except re.error as error:
            found = f"{method.modules!r} is no regular expression ({error})"
            raise UserError(f"{where}.modules", found) from None
