"""The transfer methods, each a function from a cell of the table to the adapter that fills it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lingualift.adapters.config import FLARE, MIXUP
from lingualift.backbone.reference import BackboneRef
from lingualift.config import (
    Data,
    Experiment,
    FlareMethod,
    FlareMtMethod,
    MergeMethod,
    MethodSettings,
    Translated,
    XltMethod,
    XMixupMethod,
)
from lingualift.data.datasets import Beside, Dataset, Examples, Texts, Use
from lingualift.errors import UserError
from lingualift.merging.methods import METHODS as MERGES
from lingualift.merging.methods import check_merge
from lingualift.pipeline.steps import (
    Adapted,
    Initialise,
    InitialiseFused,
    Merge,
    MergeRecipe,
    Sweep,
    Train,
    translation,
    words_head,
)
from lingualift.registry import Registry


@dataclass(frozen=True)
class Cell:
    """A place in the table: one method on one task in one language with one seed.

    Attributes:
        experiment: Settings.
        backbone: The backbone.
        task: The task and its rows.
        translated: The same rows in the other language.
        reference: The reference task and its rows; None where no method needs it.
        method: The method and its settings.
        language: Where the method is scored.
        seed: Initialisation and order of the data.
        logs: Folder for the files of experiment trackers.
    """

    experiment: Experiment
    backbone: BackboneRef
    task: Examples
    translated: Translated
    reference: Dataset | None
    method: MethodSettings
    language: str
    seed: int
    logs: Path | None = None

    def task_adapter(self, language: str) -> Train:
        """The adapter of the task in a language that has labels."""
        return self._train(self.task, language, "task")

    def reference_adapter(self, language: str) -> Train:
        """The adapter of the reference task in a language; needs text only."""
        assert self.reference is not None
        trained = self._train(self.reference, language, "reference")
        if not (self.backbone.lacks_words and isinstance(self.reference, Texts)):
            return trained
        source, targets = self.experiment.languages.source, self.experiment.languages.targets
        every = (source, *targets) if _subtracts(self.experiment) else targets
        read = tuple(code for code in every if self.reference.has_file(code, "train"))
        how = (self.backbone, self.reference, read, trained.settings, self.seed, trained.segment_tokens)
        return replace(trained, words=words_head(*how))

    def translated_adapter(self, *, use: Use | None = None) -> Train:
        """The task adapter of the source language, trained further on rows translated into the target language.

        Args:
            use: How the original stands with each row; None for translations alone.
        """
        return self._train(self._translations(use), self.language, "second", self._first_stage())

    def flare_adapter(self, use: Use | None, **settings: Any) -> Train:
        """A FLARE adapter beside stage 1; arguments as for `fused_adapter`."""
        method, layers = self.method, self.experiment.flare.fusion_modules
        assert isinstance(method, FlareMtMethod)
        own = method.model_dump(include=FlareMethod.model_fields.keys() - {"method"})
        shared = {**own, "fusion_modules": list(layers) if layers else None}
        trained = self.fused_adapter(self._translations(use), kind=FLARE, **shared, **settings)
        return replace(trained, cache_sources=use is not None and self.experiment.flare.cache_sources)

    def mixed_adapter(self) -> Train:
        """An X-Mixup adapter beside stage 1, which learns to answer the originals too."""
        assert isinstance(self.method, XMixupMethod)
        chosen = self.method.model_dump(exclude={"method"})
        return self.fused_adapter(self._translations("beside", labelled=True), kind=MIXUP, **chosen)

    def fused_adapter(self, rows: Examples, **settings: Any) -> Train:
        """An adapter of stage 2, beside that of stage 1, trained on translations.

        Args:
            rows: Translations, with what stands beside them.
            settings: As for `InitialiseFused`.
        """
        start = InitialiseFused(self._first_stage(), self.experiment.adapter, settings)
        return self._train(rows, self.language, "second", start)

    def _first_stage(self) -> Train:
        return self.task_adapter(self.experiment.languages.source)

    def _translations(self, use: Use | None, *, labelled: bool = False) -> Examples:
        """Training rows translated into the target language, with their originals if these are used."""
        original, source = self.task.data, self.experiment.languages.source
        beside = Beside(_whole(original), source, use, source, labelled) if use else None
        data = self.translated.into_targets
        if data is None:
            step = translation(self.task, self.translated, source, self.language, "train")
            return replace(self.task, made=step.written(), beside=beside)
        sample = {"max_rows": original.max_rows, "sample_seed": original.sample_seed}
        data = data if "train" in data.max_rows else data.model_copy(update=sample)
        return replace(self.task, data=data, beside=beside)

    def _train(
        self,
        dataset: Dataset,
        language: str,
        role: Literal["task", "reference", "second"],
        start: Initialise | InitialiseFused | Train | None = None,
    ) -> Train:
        start = start or Initialise(self.backbone, self.experiment.adapter, self.seed)
        settings = getattr(self.experiment.training, role)
        reference = self.experiment.reference
        segment_tokens = reference.segment_tokens if reference else 512
        trackers = self.experiment.report_to
        return Train(start, dataset, language, settings, self.seed, segment_tokens, trackers, self.logs)

    def merged(self, *, subtract_source: bool, by: str | None = None) -> Merge:
        """The task adapter moved by the reference adapters; the weight fixed, or tuned on the tuning language.

        Args:
            subtract_source: Whether the source language's reference is taken away.
            by: Name of the merge method; the transfer method's own when left out.

        Raises:
            UserError: there is no such merge, or none of this kind of adapter and in this space.
        """
        method, weights = self.method, self.experiment.weights
        assert isinstance(method, MergeMethod)
        how = MergeRecipe(by or method.method, method.model_copy(update={"weight": None}))
        check_merge(self.experiment.adapter.type, how.method, method)

        grid = weights.grid
        if MERGES[how.method].by_block:
            grid = tuple(weight for weight in grid if 0 <= weight <= 1)  # a part of a block
            if not grid and method.weight is None:
                mend = "add one, or give the method a `weight`"
                raise UserError("weights.grid", f"has no weight for {how.method}", "one from 0 to 1", mend)

        def sweep(language: str, *, by: Literal["score", "entropy"] = "score") -> Sweep:
            return Sweep(
                how,
                self._roles(language, subtract_source),
                grid,
                self.task if by == "score" else replace(self.task, unlabelled=True),
                language,
                self.experiment.scoring,
                method.variant(self.experiment.adapter.type),
                decides=by == "entropy" or language == weights.tune_on,
                by=by,
            )

        roles = self._roles(self.language, subtract_source)
        if method.weight is not None:
            return Merge(how, roles, method.weight, self.language)
        curves = tuple(sweep(language) for language in weights.curves)
        if weights.by == "entropy":
            return Merge(how, roles, sweep(self.language, by="entropy"), self.language, curves)
        assert weights.tune_on is not None
        return Merge(how, roles, sweep(weights.tune_on), self.language, curves)

    def _roles(self, target: str, subtract_source: bool) -> tuple[tuple[str, Train], ...]:
        source = self.experiment.languages.source
        roles = [("task", self.task_adapter(source)), ("target", self.reference_adapter(target))]
        return (*roles, ("source", self.reference_adapter(source))) if subtract_source else tuple(roles)


def _subtracts(experiment: Experiment) -> bool:
    """Whether a method reads the text of the source language."""
    return any(METHODS[method.method].subtracts for method in experiment.methods)


@functools.cache
def _encoder(name: str, base: Path) -> dict[str, str]:
    """Settings of FLARE-MT that say which translation model is meant; raises as `find_translator`."""
    from lingualift.fusion.translator import find_translator

    found = find_translator(name, base=base).ref
    return {"source_encoder": found.source, "source_encoder_fingerprint": found.fingerprint}


def _whole(data: Data) -> Data:
    """The same data without a sample: rows pair by `id`."""
    return data.model_copy(update={"max_rows": {}})


@dataclass(frozen=True)
class TransferMethod:
    """A row of the table.

    Attributes:
        adapter: The adapter that a cell is scored with; None for the plain backbone.
        summary: What it does, in one line.
        paper_name: What the papers call it.
        source: Where it was published.
        needs_reference: Whether it needs unlabelled text.
        subtracts: Whether it takes the source language's reference away, and so needs text in it.
        on_source: Whether a score in the source language makes sense.
        prompt: The prompt that it asks by; None for the one that the experiment chooses.
        needs_words: Whether it asks a model that was not trained on the task, which an encoder has no head for.
        trains_on_translations: Whether it needs training rows translated into the target languages.
        reads: How the translations of test rows into the source language are read; None where they are not.
        fuses: Whether stage 2 puts an adapter beside that of stage 1 which reads source and target.
        translated_by_model: Whether a translation model reads the rows, which `flare.source_encoder` names.
    """

    adapter: Callable[[Cell], Adapted | None]
    summary: str
    paper_name: str
    source: str
    needs_reference: bool = False
    subtracts: bool = False
    on_source: bool = False
    prompt: str | None = None
    needs_words: bool = False
    trains_on_translations: bool = False
    reads: Use | None = None
    fuses: bool = False
    translated_by_model: bool = False


METHODS: Registry[TransferMethod] = Registry("method")
_ADAMERGEX = "https://arxiv.org/abs/2402.18913"


def _method(name: str, **facts: object) -> Callable[[Callable[[Cell], Adapted | None]], TransferMethod]:
    def enter(function: Callable[[Cell], Adapted | None]) -> TransferMethod:
        summary = (function.__doc__ or "").strip()
        return METHODS.register(name)(TransferMethod(function, summary, **facts))  # type: ignore[arg-type]

    return enter


@_method("vanilla", paper_name="Vanilla", source=_ADAMERGEX, on_source=True, needs_words=True)
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
    assert isinstance(cell.method, XltMethod)
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
)
def arithmetic(cell: Cell) -> Merge:
    """Task adapter plus weight times the target reference (sum), or that divided by 1 + weight (mean)."""
    return cell.merged(subtract_source=False)


@_method(
    "adamergex",
    paper_name="AdaMergeX",
    source=_ADAMERGEX,
    needs_reference=True,
    subtracts=True,
)
def adamergex(cell: Cell) -> Merge:
    """Task adapter plus weight times (target reference minus source reference), as the adapter's structure asks."""
    return cell.merged(subtract_source=True)


@_method("ties", paper_name="TIES", source="https://arxiv.org/abs/2306.01708", needs_reference=True)
def ties(cell: Cell) -> Merge:
    """As arithmetic, by TIES: small elements are dropped, and those go whose sign is not the sum's."""
    return cell.merged(subtract_source=False)


@_method("dare", paper_name="DARE", source="https://arxiv.org/abs/2311.03099", needs_reference=True)
def dare(cell: Cell) -> Merge:
    """As arithmetic, by DARE: elements are dropped at random, the rest made larger by as much."""
    return cell.merged(subtract_source=False)


@_method(
    "layer-swap", paper_name="Layer Swapping", source="https://arxiv.org/abs/2410.01335", needs_reference=True
)
def layer_swap(cell: Cell) -> Merge:
    """The target reference's outer blocks around the task adapter's middle ones, averaged where they meet."""
    return cell.merged(subtract_source=False)


@_method("target-ft", paper_name="(upper bound)", source=_ADAMERGEX)
def target_ft(cell: Cell) -> Train:
    """The task adapter trained on labels of the target language itself."""
    return cell.task_adapter(cell.language)


_FLARE = "https://arxiv.org/abs/2501.06892"


@_method("translate-test", paper_name="translate-test", source=_FLARE, reads="instead")
def translate_test(cell: Cell) -> Train:
    """The task adapter of the source language, asked with the translation of the input into that language."""
    return cell.task_adapter(cell.experiment.languages.source)


@_method("translate-train", paper_name="LoRA", source=_FLARE, trains_on_translations=True)
def translate_train(cell: Cell) -> Train:
    """The task adapter of the source language, trained further on rows translated into the target language."""
    return cell.translated_adapter()


@_method(
    "input-fusion",
    paper_name="input-level fusion",
    source=_FLARE,
    trains_on_translations=True,
    reads="joined",
)
def input_fusion(cell: Cell) -> Train:
    """As translate-train, with the text of both languages in one prompt."""
    return cell.translated_adapter(use="joined")


@_method(
    "flare",
    paper_name="FLARE",
    source=_FLARE,
    trains_on_translations=True,
    reads="beside",
    fuses=True,
)
def flare(cell: Cell) -> Train:
    """Beside the task adapter, one in whose bottlenecks the states of source and target text meet."""
    return cell.flare_adapter("beside")


@_method(
    "flare-mt",
    paper_name="FLARE-MT",
    source=_FLARE,
    trains_on_translations=True,
    fuses=True,
    translated_by_model=True,
)
def flare_mt(cell: Cell) -> Train:
    """As flare, with a translation model's encoder reading the target text: no translation at test time."""
    encoder = cell.experiment.flare.source_encoder
    assert encoder is not None
    return cell.flare_adapter(None, **_encoder(encoder, cell.task.base))


@_method(
    "x-mixup",
    paper_name="X-Mixup",
    source="https://arxiv.org/abs/2205.04182",
    trains_on_translations=True,
    reads="beside",
    fuses=True,
)
def x_mixup(cell: Cell) -> Train:
    """Beside the task adapter, one that learns source and target together, their states mixed behind one block."""
    return cell.mixed_adapter()


def asked(cell: Cell) -> Examples:
    """The task of a cell as its method asks it: by a prompt of its own, with translations."""
    method = METHODS[cell.method.method]
    if method.reads:
        source, data = cell.experiment.languages.source, cell.translated.into_source
        if data is not None:
            return replace(cell.task, beside=Beside(_whole(data), source, method.reads))
        step = translation(cell.task, cell.translated, cell.language, source, "test")
        return replace(cell.task, beside=Beside(cell.task.data, source, method.reads, made=step.written()))
    return replace(cell.task, prompt=method.prompt, prompt_language=None) if method.prompt else cell.task
