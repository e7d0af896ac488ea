"""Training one adapter, or a head for words, outside an experiment: from the command line or a script of your own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lingualift.adapters.config import FUSED, MIXUP
from lingualift.adapters.folder import open_adapter
from lingualift.attachment import answering, check_adapter
from lingualift.backbone.loading import skeleton
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Adapter, Backbone, Data, Seed, Training, check_number, checked, files_at
from lingualift.data.datasets import Beside, Dataset, Texts
from lingualift.encoding.parallel import source_language
from lingualift.errors import UserError, setting
from lingualift.fusion.config import CONFIGS, FlareConfig, FusionConfig, fusion_config
from lingualift.languages import OwnLanguages, knowing, own_languages
from lingualift.languages import language as find_language
from lingualift.provenance import atomic_folder, fingerprint, sha256_folder
from lingualift.training.trainer import (
    Progress,
    Tracking,
    check_trackers,
    initialise,
    initialise_fused,
    train,
)
from lingualift.training.words import settings_of, train_words


def train_once(
    backbone: Backbone,
    source: Dataset,
    language: str,
    adapter: Adapter | FusionConfig,
    settings: Training,
    *,
    output: Path,
    seed: int = 0,
    start: Path | None = None,
    first_stage: Path | None = None,
    cache_sources: bool = False,
    progress: Progress = lambda done, total: None,
    report_to: Sequence[str] = (),
    words: Path | None = None,
    languages: OwnLanguages | None = None,
) -> None:
    """Train one adapter into a new folder.

    Args:
        backbone: The backbone.
        source: Task and rows, with the same rows in the source language `beside` them for an adapter that reads both.
        language: Language of the rows.
        adapter: Type, rank, modules, seed of the initialisation; or a `FlareConfig` or `MixupConfig`.
        settings: Steps, batch, learning rate.
        output: Folder to write; it must not exist. Checkpoints lie beside it until it is whole.
        seed: Order of the data; added to the adapter's initialisation seed.
        start: Adapter folder to start from instead of a fresh initialisation.
        first_stage: Folder of the LoRA adapter that was trained on the task in the source language, beside which one
            that reads both languages is trained; needed for such a one.
        cache_sources: Whether the source's states are kept on disk while a FLARE adapter is trained.
        progress: Called with steps done and steps in all.
        report_to: Experiment trackers; what they write to files goes to `logs` in the output.
        words: Folder of the head for words that text is learnt by, on an encoder without one: `train_head`.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).

    Raises:
        UserError: bad data, no backbone, an adapter to start from that does not fit, an output that exists; a source
            side for an adapter that reads none, or none for one that does.
    """
    check_number(Seed, "seed", seed)
    check_trackers(report_to)
    ref = _speaking(find_backbone(backbone), source, words)
    with knowing(own_languages(languages)):
        _check_stages(adapter, source, start, first_stage, cache_sources)
        for folder in filter(None, (start, first_stage)):
            check_adapter(ref, folder)
        rows = source.rows(language, "train")
        everything = {
            "backbone": ref.identity(),
            "rows": source.identity(language, "train"),
            "adapter": adapter.to_dict()
            if isinstance(adapter, FusionConfig)
            else adapter.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "start": sha256_folder(start) if start else None,
            **({"first_stage": sha256_folder(first_stage), "cached": cache_sources} if first_stage else {}),
        }
        with _output(output) as scratch, tempfile.TemporaryDirectory() as drawn:
            if isinstance(adapter, FusionConfig):
                assert first_stage is not None
                headed = answering(ref, source.get_task(), rows)
                initialise_fused(headed, adapter, first_stage, Adapter().init_seed + seed, Path(drawn))
            elif start is None:
                initialise(ref, adapter, adapter.init_seed + seed, Path(drawn))
            train(
                ref,
                source.get_task(),
                rows,
                settings,
                start=start or Path(drawn),
                seed=seed,
                output=scratch,
                work=output.parent / f".{output.name}.{fingerprint(everything)[:12]}.checkpoints",
                language=language,
                segment_tokens=settings.max_length,
                about={
                    "task": source.task,
                    "language": language,
                    **source.identity(language, "train")["data"],
                },
                progress=progress,
                tracking=Tracking(tuple(report_to), f"{Path(source.task).stem}.{language}.seed{seed}"),
                cache_sources=cache_sources,
            )


def _check_stages(
    adapter: Adapter | FusionConfig,
    source: Dataset,
    start: Path | None,
    first_stage: Path | None,
    cache_sources: bool,
) -> None:
    """Check that an adapter has what it reads and stands beside, and another one nothing of it; as `train_once`."""
    fuses = isinstance(adapter, FusionConfig)
    if fuses and first_stage is None:
        raise _no_first_stage()
    if first_stage is not None and (not fuses or start is not None):
        why = (
            "an adapter to start from has its own"
            if start is not None
            else "the adapter reads no source side"
        )
        raise UserError(setting("first_stage"), f"is given, and {why}", mend="leave it out")
    if cache_sources and not isinstance(adapter, FlareConfig):
        found = "is set, and the adapter is no FLARE adapter"
        raise UserError(setting("cache_sources"), found, mend="leave it out")
    beside = source.beside
    if not fuses:
        source_language(start, beside, beside.language if beside else None)
        return
    makes_its_own = isinstance(adapter, FlareConfig) and adapter.source_encoder is not None
    if beside is None and not makes_its_own:
        expected = "the same rows in the source language, which the adapter reads beside them"
        raise UserError(setting("beside"), "is missing", expected, f"name them: {setting('beside')}")
    if beside is not None and makes_its_own:
        found = "is given, and a source encoder reads the rows' own text"
        raise UserError(setting("beside"), found, mend="leave it out")


def adapter_of(
    kind: str, backbone: Backbone, given: Mapping[str, Any], fusing: Mapping[str, Any]
) -> Adapter | FusionConfig:
    """The adapter that is asked for by its kind: lora, ia3, prefix, flare or x-mixup.

    Args:
        kind: Of these.
        backbone: The backbone, whose layers are named where none are.
        given: Fields of `Adapter`.
        fusing: Fields of `FlareConfig` or `MixupConfig`; None for what is not set.

    Raises:
        UserError: a field that the kind does not have, or a value that cannot be.
    """
    chosen = {name: value for name, value in fusing.items() if value is not None}
    known = {field.name for field in dataclasses.fields(CONFIGS[kind])} if kind in FUSED else set()
    idle = sorted(chosen.keys() - known)
    if idle:
        raise UserError(setting(idle[0]), f"is set, and {kind} has no such setting", mend="leave it out")
    if kind not in FUSED:
        return checked(Adapter, {"type": "adapter"}, type=kind, **given)
    return fusion_config(
        skeleton(find_backbone(backbone)), checked(Adapter, **given), {"kind": kind, **chosen}
    )


def side_of(
    beside: str | None, language: str | None, kind: str, first_stage: Path | None, start: Path | None = None
) -> Beside | None:
    """The source side of rows to train on; None without one.

    Args:
        beside: Path template of the same rows in the source language, with the rows' own {language}.
        language: Code of their language; that of the first stage if None.
        kind: Of adapter, by which the source side's own answers are read or not.
        first_stage: Folder of the adapter of the source language.
        start: Adapter folder to start from.

    Raises:
        UserError: the language is not told; nothing reads a source side.
    """
    if kind not in FUSED:
        code = source_language(start, beside, language)
        return Beside(files_at(beside, "beside"), code) if beside and code else None
    if first_stage is None:
        raise _no_first_stage()
    code = language or (open_adapter(first_stage).provenance or {}).get("language")
    if beside is None and language is not None:
        mend = f"name them: {setting('beside')}, or leave it out"
        raise UserError(setting("beside_language"), "is given, and there are no rows in it", mend=mend)
    if beside is None:
        return None
    if not isinstance(code, str):
        found = "is left out, and the first stage does not tell its language"
        raise UserError(setting("beside_language"), found, "its code", "name it, for example en")
    return Beside(files_at(beside, "beside"), code, labelled=kind == MIXUP)


def _no_first_stage() -> UserError:
    expected = "the LoRA adapter that was trained on the task in the source language"
    mend = f"train it, then name its folder: {setting('first_stage')}"
    return UserError(setting("first_stage"), "is missing", expected, mend)


def _speaking(ref: BackboneRef, source: Dataset, words: Path | None) -> BackboneRef:
    """The backbone with the head for words that was named; one that it lacks or cannot use is told before anything."""
    needed = isinstance(source, Texts) and ref.lacks_words
    if needed and words is None:
        raise UserError(
            f"backbone {ref.name!r}",
            f"has no head for words in its checkpoint, and {source.task} learns words",
            "one that was trained on the text of all languages, for all of their references",
            "train it once: lingualift train-head; then name it: --words-head DIR",
        )
    if words is not None and not needed:
        why = "the task learns no words" if ref.lacks_words else f"{ref.name!r} needs none"
        raise UserError("--words-head", f"is given, and {why}", mend="leave it out")
    return ref.with_words(words)


def train_head(
    backbone: Backbone,
    data: Data,
    languages: Sequence[str],
    settings: Training,
    *,
    output: Path,
    seed: int = 0,
    own: OwnLanguages | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Train a head for words into a new folder, for all references that are to be merged with each other.

    Args:
        backbone: An encoder whose checkpoint has none.
        data: Raw text, by language.
        languages: All that references will be trained in: the source language and the targets.
        settings: As references will be trained; the head's own follow from them (`words.settings_of`).
        output: Folder to write; it must not exist. Checkpoints lie beside it until it is whole.
        seed: Draw of the head, order of the text.
        own: Those of them that are languages of your own: a TSV, or code -> its `name`, `script` and `nllb`.
        progress: Called with steps done and steps in all.

    Raises:
        UserError: bad data, no such backbone or one that needs no head, an output that exists.
    """
    check_number(Seed, "seed", seed)
    ref = find_backbone(backbone)
    codes = list(dict.fromkeys(languages))
    with knowing(own_languages(own)):
        _train_head(ref, data, codes, settings, output, seed, progress)


def _train_head(
    ref: BackboneRef,
    data: Data,
    codes: list[str],
    settings: Training,
    output: Path,
    seed: int,
    progress: Progress,
) -> None:
    for code in codes:
        find_language(code)
    source = Texts("masked-lm", data, Path())
    texts = {code: source.rows(code, "train") for code in codes}
    own = settings_of(settings, len(codes))
    identities = {code: source.identity(code, "train") for code in codes}
    everything = {
        "backbone": ref.identity(),
        "rows": identities,
        "settings": own.model_dump(mode="json"),
        "seed": seed,
    }
    with _output(output) as scratch:
        train_words(
            ref,
            texts,
            own,
            seed=seed,
            output=scratch,
            work=output.parent / f".{output.name}.{fingerprint(everything)[:12]}.checkpoints",
            segment_tokens=settings.max_length,
            about={"data": {code: found["data"] for code, found in identities.items()}},
            progress=progress,
        )


@contextlib.contextmanager
def _output(output: Path) -> Iterator[Path]:
    """The folder to fill; under `accelerate launch` only the first process writes it."""
    if os.environ.get("RANK", "0") != "0":
        with tempfile.TemporaryDirectory() as unused:
            yield Path(unused)
        return
    with atomic_folder(output) as scratch:
        yield scratch
