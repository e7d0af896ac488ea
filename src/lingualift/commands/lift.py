"""Lift an adapter that exists into another language: two references from raw text, one merge, and what came of it."""

from __future__ import annotations

import contextlib
import inspect
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lingualift.adapters.folder import Adapter, open_adapter
from lingualift.attachment import check_adapter
from lingualift.backbone.loading import check_positions, load_backbone
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.commands.lifted import Lifted, SplitTexts, check_effect, describe, measure, notes
from lingualift.config import (
    Backbone,
    Data,
    Factor,
    GivenAdapter,
    Processes,
    Rank,
    Seed,
    Training,
    check_number,
    checked,
    files_at,
)
from lingualift.data.datasets import Examples, Texts
from lingualift.data.output import check_output
from lingualift.data.rows import load_texts
from lingualift.errors import UserError, setting
from lingualift.languages import OwnLanguages, knowing, language, own_languages
from lingualift.merging import merge
from lingualift.merging.engine import MergeReport
from lingualift.merging.loraconfig import lora_config
from lingualift.pipeline.executors import Event, Watch, default_workers, run_locally
from lingualift.pipeline.steps import Initialise, Train, words_head
from lingualift.pipeline.store import Store
from lingualift.provenance import (
    atomic_folder,
    write_jsonl,
)
from lingualift.tasks import Example, Task
from lingualift.tasks.language_modelling import REFERENCE_TASKS, CausalLM

STORE = "lingualift-store"
LEARNING_RATES = {"lora": 2e-4, "ia3": 5e-4}
"""Of the references, by kind: those of the AdaMergeX authors."""
HELD_OUT = 20, 0.05, 500
"""Texts of each language that are never trained on: at least, share, at most; never more than a fifth."""
_TASK_TYPES = {
    "decoder": ("CAUSAL_LM",),
    "encoder-decoder": ("SEQ_2_SEQ_LM",),
    "encoder": ("SEQ_CLS", "QUESTION_ANS"),
}
"""What peft calls the tasks of adapters that can be lifted, by family."""
_SHARED = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
"""What references take over from the adapter's configuration as it stands, beside its modules."""


def lift(
    *,
    backbone: str,
    adapter: Path | str,
    to: str,
    text: Path | str,
    source_text: Path | str,
    output: Path | str,
    source_language: str = "en",
    weight: float = 0.5,
    rank: int | None = None,
    task: str | None = None,
    data: str | None = None,
    score_on: Sequence[str] = (),
    split: Literal["train", "validation", "test"] = "test",
    steps: int = 100,
    learning_rate: float | None = None,
    batch_size: int = 8,
    max_length: int = 256,
    seed: int = 0,
    store: Path | str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    chat_template: bool = False,
    precision: str = "float32",
    workers: int | None = None,
    languages: OwnLanguages | None = None,
    watch: Watch = lambda event: None,
) -> Lifted:
    """Lift an adapter into another language: adapter ⊕ λ·(target reference ⊖ source reference).

    The references are trained on raw text with the adapter's own modules, ranks and scalings, both from one recorded
    draw, for equally many steps. LoRA is merged as updates (space delta), which does not ask that the adapter grew
    from that draw too; (IA)³ by its multiplicative rule. AdaMergeX, equations 7 and 9, https://arxiv.org/abs/2402.18913.

    Args:
        backbone: Hub id, folder, or `miniworld`.
        adapter: Folder of a LoRA or (IA)³ adapter for it, whoever trained it.
        to: Language to lift into.
        text: Raw text in it: one text a line (.txt), or a column `text` (.jsonl, .csv, .parquet).
        source_text: Raw text in the adapter's language.
        output: Folder to write; it must not exist.
        source_language: The adapter's language.
        weight: λ; where lifting cost anything, 0.5 cost less than 1 (study/README.md).
        rank: LoRA: rank to truncate to; exact (ranks add up) when left out.
        task: Labelled task to score before and after; needs `data`.
        data: Path template of its rows, with {language} and {split}.
        score_on: Languages to score; `to` when left out.
        split: Split to score.
        steps: Optimiser steps of each reference.
        learning_rate: Peak learning rate of the references; the paper's for the kind when left out.
        batch_size: Segments per step.
        max_length: Tokens per segment.
        seed: Draw of the references, and order of the texts.
        store: Folder of finished references, `lingualift-store` beside the output when left out.
        revision: Commit of the backbone on the hub.
        dtype: Number format of the backbone.
        quantization: `nf4` to round the backbone to 4 bits.
        chat_template: Whether the task's prompts are asked by the tokenizer's chat template.
        precision: float32, or bfloat16 autocast.
        workers: References trained at once; two, or one where there is a GPU or one processor, when left out.
        languages: Languages of your own: a TSV, or code -> its `name`, `script` and `nllb` (docs/experiment.md).
        watch: Told how the trainings go on.

    Returns:
        What was written and measured.

    Raises:
        UserError: anything the user can mend; whatever can be is found before a step is trained.
    """
    output = Path(output)
    check_output(output, "folder")
    check_number(Seed, "seed", seed)
    check_number(Processes | None, "workers", workers)
    with knowing(own_languages(languages)):
        codes = _languages(to, source_language)
        opened = open_adapter(adapter)
        given = given_adapter(opened)
        _check_merge(given.type, weight, rank)
        settings = checked(
            Training,
            steps=steps,
            batch_size=batch_size,
            learning_rate=LEARNING_RATES[given.type] if learning_rate is None else learning_rate,
            max_length=max_length,
            precision=precision,
        )
        texts = _read_texts(codes, (text, source_text))
        rows = _read_rows(task, data, score_on or codes[:1], split)
        ref = find_backbone(
            checked(
                Backbone,
                {"name": "backbone"},
                name=backbone,
                revision=revision,
                dtype=dtype,
                quantization=quantization,
                chat_template=chat_template,
            )
        )
        given = given_adapter(_fitting(ref, opened))
        check_positions(load_backbone(ref)[0].bound, setting("max_length"), max_length)
        job = _Job(ref, opened, given, codes, texts, rows, settings, seed, weight, rank)
        finished = Store(Path(store) if store else output.parent / STORE)
        finished.claim()
        return _lift(job, output, finished, workers or default_workers(), watch)


@dataclass(frozen=True)
class _Job:
    """An adapter that can be lifted, and all that goes into it; read and checked.

    Attributes:
        ref: The backbone.
        adapter: What is lifted.
        given: What its references are trained as, by the backbone's names.
        languages: The target's code, and the source's.
        texts: By language.
        rows: Language, task and examples to score.
        training: Of the references.
        seed: Draw of the references, and order of the texts.
        weight: λ.
        rank: To truncate to; None for exact.
    """

    ref: BackboneRef
    adapter: Adapter
    given: GivenAdapter
    languages: tuple[str, str]
    texts: Mapping[str, SplitTexts]
    rows: Sequence[tuple[str, Task, list[Example]]]
    training: Training
    seed: int
    weight: float
    rank: int | None


def _lift(job: _Job, output: Path, store: Store, workers: int, watch: Watch) -> Lifted:
    """Train the references that the store lacks, merge, measure, and write the folder."""
    with contextlib.ExitStack() as until_merged:
        scratch = Path(until_merged.enter_context(tempfile.TemporaryDirectory()))
        target, source = _references(job, scratch)
        needed = (target.start, *((target.words,) if target.words else ()), target, source)
        until_merged.enter_context(store.needing(needed))
        missing = [step for step in needed if not store.has(step)]
        if missing:
            watch(Event("plan", missing[0], done=len(missing), total=sum(step.cost for step in missing)))
            run_locally(missing, store, workers, watch)
        folder = until_merged.enter_context(atomic_folder(output))
        folder.rmdir()  # the merge makes its folder by one rename of its own
        references = {"target": store.folder(target), "source": store.folder(source)}
        merged = _merge(job, references, folder)
        words = store.folder(target.words) if target.words else None
        text = job.texts[job.languages[0]]
        measures = measure(job.ref.with_words(words), job.adapter.path, folder, text, job.rows, job.training)
        check_effect(measures, job.weight)
        lifted = Lifted(
            output=output,
            kind=job.given.type,
            rank=max(module.rank for module in open_adapter(folder).modules.values()),
            energy_kept=merged.energy_kept,
            measures=tuple(measures),
            notes=(*merged.warnings, *merged.notes, *notes(job.ref, job.adapter, job.texts, measures)),
            trained=sum(step.kind == "adapter" for step in missing),
            store=store.root,
        )
        describe(folder, lifted, job.ref, job.languages, job.weight, references)
    return lifted


def _merge(job: _Job, references: Mapping[str, Path], folder: Path) -> MergeReport:
    """Merge the adapter with its references into a new folder."""
    try:
        return merge(
            method="adamergex",
            task=job.adapter.path,
            target_reference=references["target"],
            source_reference=references["source"],
            weight=job.weight,
            space="delta" if job.given.type == "lora" else "factors",
            rank=job.rank,
            output=folder,
        )
    except UserError as error:
        raise error.within(inspect.signature(lift).parameters, "merge") from None


def given_adapter(adapter: Adapter) -> GivenAdapter:
    """The configuration with which references of an adapter are trained: its modules, ranks and scalings.

    Which modules those are is read off its tensors, so that patterns, `all-linear` and layer ranges mean what they
    meant when it was trained. Biases and saved modules are left out: they hold whole values, which the lifted
    adapter keeps from the adapter.

    Raises:
        UserError: it has no sound merge, or is of a kind or for a task that cannot be lifted.
    """
    modules = adapter.modules  # refuses what cannot be merged
    if adapter.kind not in LEARNING_RATES:
        mend = "train references of your own and merge them (docs/merging.md)"
        raise UserError(adapter.path, f"is a {adapter.kind} adapter", "LoRA or (IA)³", mend)
    shapes = {name: (module.rank, module.scaling) for name, module in modules.items()}
    lora = adapter.kind == "lora"
    config = lora_config(adapter.config, shapes, same_modules=True) if lora else adapter.config
    if config.get("layer_replication"):
        raise UserError(
            adapter.path, "sets layer_replication, which changes the backbone", mend="train with plain LoRA"
        )
    settings = {key: config[key] for key in _SHARED if config.get(key) is not None}
    settings |= {"peft_type": config["peft_type"], "target_modules": sorted(modules)}
    if adapter.kind == "ia3":
        settings["feedforward_modules"] = [
            name for name, module in sorted(modules.items()) if module.shapes[0][0] == 1
        ]
    for key in ("base_model_name_or_path", "revision"):
        settings[key] = config.get(key)
    return GivenAdapter(type=adapter.kind, settings=settings)  # type: ignore[arg-type]


def _languages(to: str, source: str) -> tuple[str, str]:
    codes = language(to).code, language(source).code
    if codes[0] == codes[1]:
        raise UserError(
            setting("to"),
            f"{to} is the source language too",
            "another",
            f"name it, or {setting('source_language')}",
        )
    return codes


def _check_merge(kind: str, weight: float, rank: int | None) -> None:
    """What the merge would refuse after the training is refused before it."""
    check_number(Factor, "weight", weight)
    check_number(Rank | None, "rank", rank)
    if rank is not None and kind != "lora":
        found = f"is {rank} for a {kind} adapter"
        raise UserError(setting("rank"), found, "LoRA, which can be truncated", "leave it out")


def _read_texts(languages: tuple[str, str], files: tuple[Path | str, Path | str]) -> dict[str, SplitTexts]:
    texts = {}
    for code, file, argument in zip(languages, files, ("text", "source_text"), strict=True):
        found = load_texts(CausalLM(), files_at(str(file), argument), code, "train", Path())
        unique = list(dict.fromkeys(found))
        least, share, most = HELD_OUT
        count = min(max(least, int(share * len(unique))), most, len(unique) // 5)
        if not count:
            raise UserError(file, f"has {len(unique)} texts", "at least 5", "add text, one text a line")
        chosen = set(random.Random(0).sample(range(len(unique)), count))
        texts[code] = SplitTexts(
            code,
            [item for index, item in enumerate(unique) if index not in chosen],
            [item for index, item in enumerate(unique) if index in chosen],
            Path(file).name,
            len(found) - len(unique),
        )
    first, other = ({*item.train, *item.held_out} for item in texts.values())
    if first <= other or other <= first:
        found_there = f"holds the same texts as {files[1]}"
        raise UserError(
            files[0],
            found_there,
            "text in another language",
            f"check {setting('text')} and {setting('source_text')}",
        )
    return texts


def _read_rows(
    task: str | None, data: str | None, languages: Sequence[str], split: str
) -> list[tuple[str, Task, list[Example]]]:
    if (task is None) != (data is None):
        given, missing = map(setting, ("task", "data") if data is None else ("data", "task"))
        raise UserError(given, f"is given without {missing}", "both, to score", f"name {missing}")
    if task is None or data is None:
        return []
    source = Examples(task, files_at(data), Path())
    return [(code, *source.labelled(code, split)) for code in languages]


def _fitting(ref: BackboneRef, adapter: Adapter) -> Adapter:
    """The adapter by the backbone's names, put on it once: what does not fit is found before anything is trained."""
    from lingualift.evaluation.runner import adapted

    check_adapter(ref, adapter.path)
    made_for = adapter.config.get("task_type")
    if made_for not in (None, *_TASK_TYPES[ref.family]):
        fitting = " or ".join(_TASK_TYPES[ref.family])
        found = f"is for {made_for}, which {ref.name!r} has no references from raw text for"
        raise UserError(adapter.path, found, f"an adapter for {fitting}", "lift one of those")
    with adapted(ref, adapter.path):
        pass
    names = {name for name, _ in load_backbone(ref)[0].named_modules()}
    named = adapter.named_as(names)
    for name in named.modules:
        if name not in names:
            found = f"has {name!r}, which the backbone has no module of (peft turns it into others when it loads it)"
            mend = "train the adapter anew on the backbone as transformers has it now"
            raise UserError(adapter.path, found, "modules of the backbone", mend)
    return named


def _references(job: _Job, folder: Path) -> tuple[Train, Train]:
    """The steps that train the target's and the source's reference, from one start."""
    for code, item in job.texts.items():
        write_jsonl(folder / f"{code}.jsonl", ({"text": line} for line in item.train))
    data = Texts(REFERENCE_TASKS[job.ref.objective], Data(files="{language}.jsonl"), folder)
    start, length = Initialise(job.ref, job.given, job.seed), job.training.max_length
    how = (job.ref, data, tuple(job.texts), job.training, job.seed, length)
    words = words_head(*how) if job.ref.lacks_words else None
    target, source = (
        Train(start, data, code, job.training, job.seed, length, words=words) for code in job.texts
    )
    return target, source
