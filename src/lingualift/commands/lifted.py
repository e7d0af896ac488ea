"""What came of lifting an adapter: measured before and after, and written down beside the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingualift.adapters.card import CARD_FILE, Card, as_code, as_line, shown, table
from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import Adapter
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Scoring, Training
from lingualift.errors import UserError, setting
from lingualift.evaluation.perplexity import mean_nats
from lingualift.languages import language, own_facts
from lingualift.metrics.comparisons import paired
from lingualift.provenance import PROVENANCE_FILE, read_json, write_json, write_text
from lingualift.tasks import Example, Task

REPORT_FILE = "lift.json"
_SOURCE = "https://arxiv.org/abs/2402.18913"


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


@dataclass(frozen=True)
class SplitTexts:
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


def measure(
    ref: BackboneRef,
    before: Path,
    after: Path,
    texts: SplitTexts,
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


def check_effect(measures: Sequence[Measure], weight: float) -> None:
    """Check that the lifted adapter gives numbers, and other ones than before."""
    first = measures[0]
    if not math.isfinite(first.after):
        mend = f"lower the weight or the learning rate, or load the backbone in float32: {setting('dtype', 'float32')}"
        raise UserError("lift", f"the lifted adapter's perplexity is {first.after}", "a number", mend)
    if weight and first.after == first.before:
        mend = f"raise {setting('weight')}, {setting('steps')} or {setting('learning_rate')}"
        raise UserError("lift", "the lifted adapter answers as the adapter did", "a change", mend)


def notes(
    ref: BackboneRef, adapter: Adapter, texts: Mapping[str, SplitTexts], measures: Sequence[Measure]
) -> list[str]:
    """What the user should know of what went in, and of what came out."""
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


def describe(
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
        **own_facts(*languages),
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
