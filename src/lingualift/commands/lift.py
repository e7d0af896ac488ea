"""Lift an adapter that exists into another language: two references from raw text, one merge, and what came of it."""

from __future__ import annotations

import contextlib
import inspect
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lingualift.adapters.card import CARD_FILE, Card, as_code, as_line, shown, table
from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import Adapter, open_adapter
from lingualift.attachment import check_adapter
from lingualift.backbone.loading import check_positions, load_backbone
from lingualift.backbone.reference import BackboneRef, find_backbone
from lingualift.config import (
    Backbone,
    Data,
    Factor,
    GivenAdapter,
    Processes,
    Rank,
    Scoring,
    Seed,
    Training,
    check_number,
    checked,
)
from lingualift.data.output import check_output
from lingualift.data.rows import load_texts
from lingualift.data.source import Source
from lingualift.errors import UserError, setting
from lingualift.evaluation.perplexity import mean_nats
from lingualift.languages import language
from lingualift.merging import merge
from lingualift.merging.loraconfig import lora_config
from lingualift.metrics.comparisons import paired
from lingualift.pipeline.executors import Event, Watch, default_workers, run_locally
from lingualift.pipeline.steps import Initialise, Train, words_head
from lingualift.pipeline.store import Store
from lingualift.provenance import (
    PROVENANCE_FILE,
    atomic_folder,
    read_json,
    write_json,
    write_jsonl,
    write_text,
)
from lingualift.tasks import Example, Task
from lingualift.tasks.language_modelling import REFERENCE_TASKS, CausalLM

REPORT_FILE = "lift.json"
STORE = "lingualift-store"
LEARNING_RATES = {"lora": 2e-4, "ia3": 5e-4}
"""Of the references, by kind: those of the AdaMergeX authors."""
HELD_OUT = 20, 0.05, 500
"""Texts of each language that are never trained on: at least, share, at most; never more than a fifth."""
_SOURCE = "https://arxiv.org/abs/2402.18913"
_TASK_TYPES = {
    "decoder": ("CAUSAL_LM",),
    "encoder-decoder": ("SEQ_2_SEQ_LM",),
    "encoder": ("SEQ_CLS", "QUESTION_ANS"),
}
"""What peft calls the tasks of adapters that can be lifted, by family."""
_SHARED = ("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
"""What references take over from the adapter's configuration as it stands, beside its modules."""


@dataclass(frozen=True)
class Measure:
    """One number, of the backbone, of the adapter as it was, and of the lifted one.

    Attributes:
        what: "perplexity" or a metric.
        language: Of the texts or rows.
        n: Texts or rows.
        backbone: Of the plain backbone; None where it was not measured.
        before: Of the adapter as it was.
        after: Of the lifted adapter.
        low: Lower end of the 95% interval of `after - before` over items, by paired bootstrap; None for perplexity.
        high: Its upper end.
        chance: Percent of guessing; None for perplexity.
    """

    what: str
    language: str
    n: int
    backbone: float | None
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None

    @property
    def change(self) -> float:
        """What lifting did: `after - before`."""
        return self.after - self.before

    def cells(self) -> tuple[str, ...]:
        """The measure as a line of a table: what, backbone, before, after, change."""
        unit = f"n {self.n}" if self.chance is None else f"n {self.n}, chance {self.chance:.1f}"
        interval = "" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        digits = 2 if self.chance is None else 1
        backbone, before, after = (
            "–" if value is None else f"{value:.{digits}f}"
            for value in (self.backbone, self.before, self.after)
        )
        what = f"{self.what}, {self.language} ({unit})"
        return what, backbone, before, after, f"{self.change:+.{digits}f}{interval}"


HEAD = ("", "backbone", "before", "after", "change")


@dataclass(frozen=True)
class Lifted:
    """A lifted adapter.

    Attributes:
        output: Its folder.
        kind: "lora" or "ia3".
        rank: The largest rank of a module; 0 for (IA)³.
        energy_kept: Share of the update's spectral energy that a truncation kept; None where nothing was cut.
        measures: What was measured: perplexity on held-out text, scores if labelled rows were given.
        notes: What the user should know.
        trained: References that were trained now; the others were in the store.
        store: Where the references are.
    """

    output: Path
    kind: str
    rank: int
    energy_kept: float | None
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]
    trained: int
    store: Path

    def lines(self) -> list[str]:
        """What there is to say beside the measures, for people."""
        size = f"rank {self.rank}" if self.rank else "(IA)³"
        kept = f", {self.energy_kept:.1%} of the update's energy kept" if self.energy_kept is not None else ""
        return [
            f"{self.output}: {size}{kept}; references in {self.store}, {self.trained} of 2 trained now",
            *(f"note: {note}" for note in self.notes),
        ]


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
    languages = _languages(to, source_language)
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
    texts = _read_texts(languages, (text, source_text))
    rows = _read_rows(task, data, score_on or languages[:1], split)
    ref = find_backbone(
        checked(
            Backbone,
            name=backbone,
            revision=revision,
            dtype=dtype,
            quantization=quantization,
            chat_template=chat_template,
        )
    )
    given = given_adapter(_fitting(ref, opened))
    check_positions(load_backbone(ref)[0].bound, setting("max_length"), max_length)
    finished = Store(Path(store) if store else output.parent / STORE)
    finished.claim()
    with contextlib.ExitStack() as until_merged:
        scratch = Path(until_merged.enter_context(tempfile.TemporaryDirectory()))
        target, source = _references(ref, given, texts, settings, seed, scratch)
        needed = (target.start, *((target.words,) if target.words else ()), target, source)
        until_merged.enter_context(finished.needing(needed))
        missing = [step for step in needed if not finished.has(step)]
        if missing:
            watch(Event("plan", missing[0], done=len(missing), total=sum(step.cost for step in missing)))
            run_locally(missing, finished, workers or default_workers(), watch)
        folder = until_merged.enter_context(atomic_folder(output))
        folder.rmdir()  # the merge makes its folder by one rename of its own
        try:
            merged = merge(
                method="adamergex",
                task=opened.path,
                target_reference=finished.folder(target),
                source_reference=finished.folder(source),
                weight=weight,
                space="delta" if given.type == "lora" else "factors",
                rank=rank,
                output=folder,
            )
        except UserError as error:
            raise error.within(inspect.signature(lift).parameters, "merge") from None
        words = finished.folder(target.words) if target.words else None
        measures = _measure(ref.with_words(words), opened.path, folder, texts[languages[0]], rows, settings)
        _check_effect(measures, weight)
        lifted = Lifted(
            output=output,
            kind=given.type,
            rank=max(module.rank for module in open_adapter(folder).modules.values()),
            energy_kept=merged.energy_kept,
            measures=tuple(measures),
            notes=(*merged.warnings, *merged.notes, *_notes(ref, opened, texts, measures)),
            trained=sum(isinstance(step, Train) for step in missing),
            store=finished.root,
        )
        references = {"target": finished.folder(target), "source": finished.folder(source)}
        _describe(folder, lifted, ref, languages, weight, references)
    return lifted


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


@dataclass(frozen=True)
class _Texts:
    """The texts of a language, each once.

    Attributes:
        language: Its code.
        train: For the reference.
        held_out: For the perplexity; never trained on.
        where: Their file.
        repeated: How many stood there again and were dropped.
    """

    language: str
    train: list[str]
    held_out: list[str]
    where: str
    repeated: int


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


def _read_texts(languages: tuple[str, str], files: tuple[Path | str, Path | str]) -> dict[str, _Texts]:
    texts = {}
    for code, file in zip(languages, files, strict=True):
        found = load_texts(CausalLM(), checked(Data, files=str(file)), code, "train", Path())
        unique = list(dict.fromkeys(found))
        least, share, most = HELD_OUT
        count = min(max(least, int(share * len(unique))), most, len(unique) // 5)
        if not count:
            raise UserError(file, f"has {len(unique)} texts", "at least 5", "add text, one text a line")
        chosen = set(random.Random(0).sample(range(len(unique)), count))
        texts[code] = _Texts(
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
    if task is None:
        return []
    source = Source(task, checked(Data, files=data), Path())
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


def _references(
    ref: BackboneRef,
    given: GivenAdapter,
    texts: Mapping[str, _Texts],
    settings: Training,
    seed: int,
    folder: Path,
) -> tuple[Train, Train]:
    """The steps that train the target's and the source's reference, from one start."""
    for code, item in texts.items():
        write_jsonl(folder / f"{code}.jsonl", ({"text": line} for line in item.train))
    data = Source(REFERENCE_TASKS[ref.objective], Data(files="{language}.jsonl"), folder)
    start = Initialise(ref, given, seed)
    words = words_head(ref, data, tuple(texts), settings, seed, settings.max_length)
    target, source = (
        Train(start, data, code, settings, seed, settings.max_length, words=words) for code in texts
    )
    return target, source


def _measure(
    ref: BackboneRef,
    before: Path,
    after: Path,
    texts: _Texts,
    rows: Sequence[tuple[str, Task, list[Example]]],
    settings: Training,
) -> list[Measure]:
    """Perplexity on held-out text, and the scores."""
    from lingualift.evaluation.runner import adapted, evaluate

    folders = (None, before, after)
    found: list[float] = []
    for folder in folders:
        with adapted(ref, folder) as (model, tokenizer):
            nats = mean_nats(ref, model, tokenizer, texts.held_out, settings.max_length, texts.language)
            found.append(math.exp(min(nats, 700.0)) if math.isfinite(nats) else math.nan)
    plain, old_text, new_text = found
    measures = [Measure("perplexity", texts.language, len(texts.held_out), plain, old_text, new_text)]
    limit = load_backbone(ref)[0].bound
    scoring = Scoring() if limit is None else Scoring(max_length=min(Scoring().max_length, limit))
    for code, task, examples in rows:
        old, new = (evaluate(ref, folder, task, examples, scoring) for folder in folders[1:])
        for metric in task.metrics:
            then, now = (float(side.scores[metric]["score"] or 0.0) for side in (old, new))
            _, low, high = paired(metric, code, old.rows(), new.rows())
            chance = old.scores[metric]["chance"]
            measures.append(Measure(metric, code, len(examples), None, then, now, low, high, chance))
    return measures


def _check_effect(measures: Sequence[Measure], weight: float) -> None:
    """Check that the lifted adapter gives numbers, and other ones than before."""
    first = measures[0]
    if not math.isfinite(first.after):
        mend = f"lower the weight or the learning rate, or load the backbone in float32: {setting('dtype', 'float32')}"
        raise UserError("lift", f"the lifted adapter's perplexity is {first.after}", "a number", mend)
    if weight and first.after == first.before:
        mend = f"raise {setting('weight')}, {setting('steps')} or {setting('learning_rate')}"
        raise UserError("lift", "the lifted adapter answers as the adapter did", "a change", mend)


def _notes(
    ref: BackboneRef, adapter: Adapter, texts: Mapping[str, _Texts], measures: Sequence[Measure]
) -> list[str]:
    notes = []
    if ref.lacks_words:
        notes.append(
            f"the checkpoint of {shown(ref.name)!r} has no head for words: one was trained on both texts, to train the "
            "references and to measure perplexity by; the lifted adapter holds nothing of it"
        )
    name = adapter.config.get("base_model_name_or_path")
    if name and name not in (ref.name, ref.source):
        notes.append(
            f"the adapter calls its backbone {shown(name)!r}; it fits {shown(ref.name)!r}, but whether the two are "
            "the same could not be checked"
        )
    first, other = texts.values()
    if both := {*first.train, *first.held_out} & {*other.train, *other.held_out}:
        notes.append(f"{len(both)} texts stand in both files")
    for item in texts.values():
        if item.repeated:
            notes.append(f"{item.where}: {item.repeated} repeated texts were read once")
    if measures[0].change > 0:
        notes.append(
            "perplexity on held-out text rose: lifting did not bring the adapter nearer to the language"
        )
    return notes


def _describe(
    folder: Path,
    lifted: Lifted,
    ref: BackboneRef,
    languages: tuple[str, str],
    weight: float,
    references: Mapping[str, Path],
) -> None:
    """Write model card, provenance and numbers into the lifted adapter's folder."""
    config, merged = read_json(folder / CONFIG_FILE), read_json(folder / PROVENANCE_FILE)
    trained = {role: read_json(path / PROVENANCE_FILE) for role, path in references.items()}
    facts = {
        "kind": "lifted",
        "languages": list(languages),
        "backbone": ref.record(),
        "references": trained,
    }
    measures = [{**asdict(measure), "change": measure.change} for measure in lifted.measures]
    numbers = {"weight": weight, "rank": lifted.rank, "energy_kept": lifted.energy_kept, "measures": measures}
    write_json(folder / REPORT_FILE, {"schema": 1, **numbers, "notes": list(lifted.notes)})
    write_json(folder / PROVENANCE_FILE, {**merged, **facts})
    write_text(folder / CARD_FILE, _card(config, lifted, ref, languages, weight, trained))


def _card(
    config: Mapping[str, Any],
    lifted: Lifted,
    ref: BackboneRef,
    languages: tuple[str, str],
    weight: float,
    references: Mapping[str, Mapping[str, Any]],
) -> str:
    to, source = (language(code) for code in languages)
    settings = references["target"]["settings"]
    texts = " and ".join(
        f"{facts['rows']} texts ({code})" for code, facts in zip(languages, references.values(), strict=True)
    )
    recipe = [
        ("backbone", as_code(shown(ref.name))),
        ("from, to", f"{source.name} ({source.code}), {to.name} ({to.code})"),
        ("merge weight λ", f"{weight:g}"),
        ("rank", lifted.rank or "–"),
        ("references trained on", texts),
        (
            "steps of each",
            f"{settings['steps']} of {settings['batch_size']} × {settings['max_length']} tokens",
        ),
        ("peak learning rate", f"{settings['learning_rate']:g}"),
    ]
    return Card(
        title=f"{'LoRA' if lifted.kind == 'lora' else '(IA)³'} adapter, lifted into {to.name}",
        summary=f"A task learnt in {source.name}, carried into {to.name} by raw text in both languages: adapter ⊕ λ·("
        f"{to.name} reference ⊖ {source.name} reference), [AdaMergeX]({_SOURCE}). Made by `lingualift lift`; hashes "
        "of everything that went in are in `provenance.json`.",
        config=config,
        backbone={"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        languages=languages,
        tags=("cross-lingual-transfer", "merge", "adamergex"),
        sections=(
            table(("made with", ""), recipe),
            "## Before and after\n\n" + table(HEAD, [measure.cells() for measure in lifted.measures]),
            *(("\n".join(f"- Note: {as_line(note)}" for note in lifted.notes),) if lifted.notes else ()),
        ),
        sources=(_SOURCE,),
    ).text()
