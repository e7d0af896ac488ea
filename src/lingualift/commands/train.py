"""Training one adapter, or a head for words, outside an experiment: from the command line or a script of your own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lingualift.attachment import check_adapter
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import Adapter, Backbone, Data, Seed, Training, check_number
from lingualift.data.datasets import Dataset, Texts
from lingualift.errors import UserError
from lingualift.languages import OwnLanguages, knowing, own_languages
from lingualift.languages import language as find_language
from lingualift.provenance import atomic_folder, fingerprint, sha256_folder
from lingualift.training.trainer import Progress, Tracking, check_trackers, initialise, train
from lingualift.training.words import settings_of, train_words


def train_once(
    backbone: Backbone,
    source: Dataset,
    language: str,
    adapter: Adapter,
    settings: Training,
    *,
    output: Path,
    seed: int = 0,
    start: Path | None = None,
    progress: Progress = lambda done, total: None,
    report_to: Sequence[str] = (),
    words: Path | None = None,
    languages: OwnLanguages | None = None,
) -> None:
    """Train one adapter into a new folder.

    Args:
        backbone: The backbone.
        source: Task and rows.
        language: Language of the rows.
        adapter: Type, rank, modules, seed of the initialisation.
        settings: Steps, batch, learning rate.
        output: Folder to write; it must not exist. Checkpoints lie beside it until it is whole.
        seed: Order of the data; added to the adapter's initialisation seed.
        start: Adapter folder to start from instead of a fresh initialisation.
        progress: Called with steps done and steps in all.
        report_to: Experiment trackers; what they write to files goes to `logs` in the output.
        words: Folder of the head for words that text is learnt by, on an encoder without one: `train_head`.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).

    Raises:
        UserError: bad data, no backbone, an adapter to start from that does not fit, an output that exists.
    """
    check_number(Seed, "seed", seed)
    check_trackers(report_to)
    ref = _speaking(find_backbone(backbone), source, words)
    if start is not None:
        check_adapter(ref, start)
    with knowing(own_languages(languages)):
        rows = source.rows(language, "train")
        everything = {
            "backbone": ref.identity(),
            "rows": source.identity(language, "train"),
            "adapter": adapter.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "start": sha256_folder(start) if start else None,
        }
        with _output(output) as scratch, tempfile.TemporaryDirectory() as drawn:
            if start is None:
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
            )


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
