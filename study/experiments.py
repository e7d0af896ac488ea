"""The study's experiments, as experiment files. What each is for stands in PROTOCOL.md."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fusing

from lingualift.config import Data
from lingualift.data.rows import load_rows
from lingualift.fusion.functions import FUSIONS
from lingualift.miniworld.data import QA_PROMPT
from lingualift.miniworld.noise import noisy

SEEDS = (40, 41, 42)
"""Seeds of adapters, used by nothing else."""
BACKBONES = (1, 2, 3)
"""Seeds of the rebuilt backbones of the mini-world."""
WORLD_DATA = 7
"""Seed of the mini-world's rows."""
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
NOISE = (0.0, 0.1, 0.2, 0.4)
WEAK = ("jav", "min", "sun")
LOCAL = ("ind", "ace", "ban", "bjn", "jav", "min", "sun")

Raw = dict[str, Any]

FACTORS = {"method": "adamergex", "space": "factors"}
DELTA = {"method": "adamergex", "space": "delta"}
SUM = {"method": "arithmetic", "space": "delta"}
FLARE = {"method": "flare", "source_state": "block-output"}
"""FLARE as the protocol names it: what was the default before the study."""
ENTERING = {"method": "flare", "source_state": "block-input"}
"""FLARE as it is the default since."""
SUBTRACTED = ["source-ft", {**SUM, "weight": 1.0}, {**DELTA, "weight": 1.0}]
"""What tells whether subtracting the source reference matters: one space and one weight, with it and without it."""


@dataclass(frozen=True)
class Study:
    """One experiment of the study.

    Attributes:
        name: Of its file and its run folder: SETTING-PART; a mini-world setting ends in its backbone's seed.
        question: The first question of PROTOCOL.md that it answers.
        raw: The experiment file.
    """

    name: str
    question: str
    raw: Raw


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        shared: Holds `data` and `backbones`.
        work: What the study makes.
    """

    shared: Path
    work: Path

    def backbone(self, seed: int) -> Path:
        """A rebuilt backbone of the mini-world."""
        return self.work / "backbones" / str(seed)

    @property
    def translator(self) -> Path:
        """The mini-world's translation model."""
        return self.work / "translator"


def experiments(places: Places) -> list[Study]:
    """All of them, the named comparisons first; writes the texts that they read."""
    write_texts(places)
    found = [*merging(places), *fused(places)]
    order = ("M1", "F1", "M5", "B1", "F2", "M2", "M3", "M4", "M6", "M7")
    return sorted(found, key=lambda study: order.index(study.question))


def world(places: Places, seed: int) -> Raw:
    """Both tasks of the mini-world on a rebuilt backbone."""
    data = places.work / "data"

    def rows(task: str) -> Raw:
        return {"files": f"{data}/{task}/{{language}}/{{split}}.jsonl", "aligned_on": "id"}

    return {
        "backbone": {"name": str(places.backbone(seed))},
        "languages": {"source": "en", "targets": ["fr", "sw", "id", "ht"]},
        "tasks": [
            {"task": "mini-sentiment", "data": rows("sentiment")},
            {"task": "mini-qa", "data": rows("qa")},
        ],
        "reference": {
            "data": {"files": f"{data}/reference/{{language}}/train.jsonl", "aligned_on": "id"},
            "segment_tokens": 64,
        },
        "training": {
            "task": {"steps": 100, "batch_size": 32, "learning_rate": 1e-3},
            "reference": {"steps": 100, "batch_size": 16, "learning_rate": 3e-4},
        },
        "weights": {"tune_on": "fr", "grid": list(GRID)},
        "seeds": list(SEEDS),
    }


def nusax(places: Places, targets: Iterable[str] = LOCAL, **changes: Any) -> Raw:
    """Sentiment in local languages of Indonesia, from English."""
    folder = places.shared / "data/nusax"
    return {
        "backbone": {"name": str(places.shared / "backbones/nusantara-4m")},
        "languages": {"source": "eng", "targets": list(targets)},
        "tasks": [
            {
                "task": "nusax",
                "data": {
                    "files": f"{folder}/{{language}}/{{split}}.jsonl.gz",
                    "splits": {"validation": "valid"},
                    "aligned_on": "id",
                },
            }
        ],
        "reference": {
            "data": {"files": f"{folder}/{{language}}/train.jsonl.gz", "aligned_on": "id"},
            "segment_tokens": 128,
        },
        "training": {
            "task": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3, "max_length": 256},
            "reference": {"steps": 125, "batch_size": 16, "learning_rate": 1e-3},
        },
        "weights": {"tune_on": "ind", "grid": list(GRID)},
        "seeds": list(SEEDS),
        "scoring": {"max_length": 256},
        **changes,
    }


def nusatranslation(places: Places) -> Raw:
    """Sentiment of tweets, from Indonesian."""
    folder = places.shared / "data/nusatranslation"
    files = {
        "files": f"{folder}/{{language}}/{{split}}.jsonl.gz",
        "splits": {"validation": "valid"},
        "max_rows": {"train": 1000},
    }
    return {
        **nusax(places, weights={"tune_on": "jav", "grid": list(GRID)}),
        "languages": {"source": "ind", "targets": ["jav", "mad", "min", "sun"]},
        "tasks": [{"task": "nusatranslation", "data": files}],
        "reference": {"data": files, "segment_tokens": 128},
    }


def merging(places: Places) -> Iterator[Study]:
    """The questions on merging."""
    worlds = [(f"world{seed}", world(places, seed)) for seed in BACKBONES]
    real = [("nusax", nusax(places)), ("nusatranslation", nusatranslation(places))]
    merged = ["source-ft", SUM, FACTORS, DELTA]
    for name, raw in [*worlds, *real]:
        bound = ["target-ft"] if name.startswith("world") else []
        fixed = [{**one, "weight": weight} for one in (SUM, FACTORS, DELTA) for weight in (0.5, 1.0)]
        yield Study(
            f"{name}-main", "M1", {**raw, "methods": ["vanilla", "reference-only", *merged, *fixed, *bound]}
        )
        classes = raw["tasks"][:1]  # mini-qa's answers are no choice
        entropy = {"weights": {"by": "entropy", "grid": list(GRID)}, "tasks": classes}
        yield Study(f"{name}-entropy", "M5", {**raw, "methods": merged, **entropy})
    for name, raw in [*worlds, real[0]]:
        yield Study(f"{name}-curve", "M5", {**raw, "methods": merged, "weights": curves(raw)})
        parts = ("(q|k|v|o)_proj", "(q|v)_proj", "(gate|up|down)_proj")
        some = [{**DELTA, "modules": pattern, "weight": 1.0} for pattern in parts]
        yield Study(
            f"{name}-modules", "M4", {**raw, "methods": ["source-ft", {**DELTA, "weight": 1.0}, *some]}
        )
    for name, raw in [*worlds, ("nusaxweak", nusax(places, WEAK, weights={}))]:
        yield from references(places, name, raw)


def references(places: Places, name: str, raw: Raw) -> Iterator[Study]:
    """The questions that train references of their own; on NusaX few, since each takes minutes."""
    if name.startswith("world"):
        own = {"method": "adamergex-own-start"}
        starts = [FACTORS, DELTA, {**own, "space": "factors"}, {**own, "space": "delta"}]
        starts = [{**one, "weight": weight} for one in starts for weight in (0.5, 1.0)]
        yield Study(f"{name}-starts", "M3", {**raw, "methods": ["source-ft", *starts]})
        yield Study(f"{name}-ia3", "M6", ia3(raw))
        for rows in (100, 500):
            text = with_text(raw, max_rows={"train": rows})
            yield Study(f"{name}-text{rows}", "M7", {**text, "methods": SUBTRACTED})
        yield Study(f"{name}-steps400", "M2", {**with_steps(raw, 400), "methods": SUBTRACTED})
    else:  # what the others are compared with; the World's is in its main part
        yield Study(f"{name}-main", "M2", {**raw, "methods": SUBTRACTED})
        yield Study(f"{name}-steps25", "M2", {**with_steps(raw, 25), "methods": SUBTRACTED})
    yield from domains(places, name, raw)


def ia3(raw: Mapping[str, Any]) -> Raw:
    """The experiment with (IA)³, at the ten times larger learning rates that it is trained with."""
    training = {
        role: {**one, "learning_rate": 10 * one["learning_rate"]} for role, one in raw["training"].items()
    }
    methods = ["source-ft", "adamergex", {"method": "adamergex", "weight": 1.0}]
    return {**raw, "adapter": {"type": "ia3"}, "training": training, "methods": methods}


def curves(raw: Mapping[str, Any]) -> Raw:
    """The choice of the weight, with the validation scores of every target beside it."""
    tune_on = raw["weights"]["tune_on"]
    return {**raw["weights"], "curves": [code for code in raw["languages"]["targets"] if code != tune_on]}


def with_text(raw: Mapping[str, Any], **data: Any) -> Raw:
    """The experiment with another choice of reference text."""
    reference = raw["reference"]
    return {**raw, "reference": {**reference, "data": {**reference["data"], **data}}}


def with_steps(raw: Mapping[str, Any], steps: int) -> Raw:
    """The experiment with references trained for more or fewer steps."""
    training = raw["training"]
    return {**raw, "training": {**training, "reference": {**training["reference"], "steps": steps}}}


def domains(places: Places, name: str, raw: Raw) -> Iterator[Study]:
    """References of unequal size, of other domains than the task, with a format of their own, and of another task."""
    segment = raw["reference"]["segment_tokens"]
    data = places.work / "data"
    tasks = [("sentiment", "qa"), ("qa", "sentiment")]
    if name.startswith("world"):
        for mine, other in tasks:
            task = next(one for one in raw["tasks"] if one["task"] == f"mini-{mine}")
            labelled = {
                "task": f"mini-{other}",
                "data": {"files": f"{data}/{other}/{{language}}/{{split}}.jsonl"},
            }
            one = {**raw, "tasks": [task], "reference": labelled, "methods": SUBTRACTED}
            yield Study(f"{name}-{mine}by{other}", "M2", one)
    kinds = ("unequal", "format", "dialogue") if name.startswith("world") else ("news",)
    which = "world" if name.startswith("world") else "nusax"
    for kind in kinds:
        text = {"files": f"{places.work}/text/{which}/{kind}/{{language}}.jsonl"}
        one = {**raw, "reference": {"data": text, "segment_tokens": segment}, "methods": SUBTRACTED}
        yield Study(f"{name}-{kind}", "M2", one)
        if kind == "dialogue":
            longer = {**raw["training"], "reference": {"steps": 200, "batch_size": 16, "learning_rate": 2e-3}}
            methods = [*SUBTRACTED, {**SUM, "weight": 0.5}, {**DELTA, "weight": 0.5}, "reference-only"]
            lifting = {**one, "training": longer}
            yield Study(f"{name}-dialoguelong", "M2", {**lifting, "methods": methods})
            for rows in (100, 500):
                fewer = with_text({**lifting, "tasks": raw["tasks"][1:]}, max_rows={"train": rows})
                kept = ["source-ft", {**SUM, "weight": 1.0}, "reference-only"]
                yield Study(f"{name}-dialogue{rows}", "M7", {**fewer, "methods": kept})


def write_texts(places: Places) -> None:
    """The reference texts of `domains`.

    unequal (World): all texts of the source, the first 100 of the others.
    format (World): each text between marks that no task has.
    dialogue (World): the training rows of mini-qa as text, with question and answer.
    news (NusaX): NTREX's news in English, NusaParagraph's paragraphs in the others, 2,000 at most.
    """
    for code in ("en", "fr", "sw", "id", "ht"):
        own = texts_of(places.work / f"data/reference/{code}/train.jsonl")
        asked = read_rows(places.work / f"data/qa/{code}/train.jsonl")
        kinds = {
            "unequal": own if code == "en" else own[:100],
            "format": [f"= = = {text} = = =" for text in own],
            "dialogue": [f"{QA_PROMPT.format(**row)} {row['answer']}" for row in asked],
        }
        for kind, texts in kinds.items():
            write_rows(
                places.work / "text/world" / kind / f"{code}.jsonl", ({"text": text} for text in texts)
            )
    for code, file in {"eng": "ntrex/en", **{code: f"nusaparagraph/{code}" for code in WEAK}}.items():
        texts = texts_of(places.shared / f"data/{file}.jsonl.gz")[:2000]
        write_rows(places.work / "text/nusax/news" / f"{code}.jsonl", ({"text": text} for text in texts))


def texts_of(path: Path) -> list[str]:
    """The texts of a file of rows."""
    return [row["text"] for row in read_rows(path)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in raw.decode().split("\n") if line]


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """A file of JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def fused(places: Places) -> Iterator[Study]:
    """The questions on fusing, and on both together."""
    states = [{"method": "flare", "source_state": place} for place in ("block-input", "projection-input")]
    kinds = [{**FLARE, "fusion": name} for name in FUSIONS]
    for seed in BACKBONES:
        raw = with_references(fusing.world(places.work), world(places, seed))
        raw["flare"] = {"source_encoder": str(places.translator)}
        entering = [{**ENTERING, "fusion": "cross_attention"}, {**ENTERING, "padding": "right"}]
        further = [*kinds, *states, {**FLARE, "padding": "right"}, "flare-mt", *entering]
        yield from conditions(places, f"world{seed}", raw, further)
    some = [kind for kind in kinds if kind["fusion"] in ("add_relu", "cross_attention")]
    raw = with_references(fusing.nusax(places.shared), nusax(places))
    yield from conditions(places, "nusax", raw, [*some, *states])


def with_references(raw: Raw, merged: Raw) -> Raw:
    """An experiment on fusing with backbone, seeds and references of one on merging."""
    training = {**raw["training"], "reference": merged["training"]["reference"]}
    return {**raw, **{key: merged[key] for key in ("backbone", "seeds", "reference")}, "training": training}


def conditions(places: Places, name: str, raw: Raw, further: list[Any]) -> Iterator[Study]:
    """One setting: every method under every translation; with a blank English side; beside a merged adapter."""
    rivals = ["source-ft", "translate-test", "translate-train", "input-fusion", "x-mixup"]
    plain = {**less(raw, "reference"), "training": {"task": raw["training"]["task"]}}
    methods = {**plain, "methods": [*rivals, *further]}
    for share in NOISE:
        folder = places.work / "noise" / f"{name}-{share:g}"
        yield Study(f"{name}-noise{share:g}", "F1", fusing.worsened(methods, share, folder))
    yield Study(f"{name}-blank", "F2", blanked(methods, places.work / "noise" / f"{name}-blank"))
    onto = {"method": "flare-on-merged", "space": "delta", "weight": 0.5}
    merged = [{**DELTA, "weight": 0.5}, {**FLARE, **onto}, {**ENTERING, **onto}]
    both = {**less(raw, "flare"), "methods": ["source-ft", "translate-train", FLARE, ENTERING, *merged]}
    yield Study(f"{name}-both", "B1", both)
    yield Study(f"{name}-bothnoise", "B1", fusing.worsened(both, 0.2, places.work / "noise" / f"{name}-0.2"))
    trained = {**less(plain, "flare"), "methods": ["source-ft", "translate-train", "x-mixup", ENTERING]}
    asked = fusing.worsened(trained, 0.2, places.work / "noise" / f"{name}-0.2")
    yield Study(
        f"{name}-worsetrain", "F1", worse_training(asked, 0.2, places.work / "noise" / f"{name}-train")
    )


def less(raw: Mapping[str, Any], *keys: str) -> Raw:
    """The experiment without some of its settings."""
    return {key: value for key, value in raw.items() if key not in keys}


def worse_training(raw: Raw, share: float, folder: Path) -> Raw:
    """The experiment with a share of the words of its translated training rows dropped or replaced too."""
    task = raw["tasks"][0]
    data = Data(**{**task["translated"]["into_targets"], "max_rows": {}})
    for code in raw["languages"]["targets"]:
        rows = fusing.rows_of(load_rows(data, code, "train", folder, ("id", "text", "label")))
        words = sorted({word for row in rows for word in row["text"].split()})
        worse = (
            {
                "id": row["id"],
                "label": row["label"],
                "text": noisy(row["text"], share, f"0 {row['id']}", words),
            }
            for row in rows
        )
        write_rows(folder / code / "train.jsonl", worse)
    into = {**task["translated"], "into_targets": {"files": f"{folder}/{{language}}/{{split}}.jsonl"}}
    return {**raw, "tasks": [{**task, "translated": into}]}


def blanked(raw: Raw, folder: Path) -> Raw:
    """The experiment with a full stop for every English test text."""
    task = raw["tasks"][0]
    path = Path(task["translated"]["into_source"]["files"].format(split="test"))
    ids = [row["id"] for row in read_rows(path)]
    for code in raw["languages"]["targets"]:
        write_rows(folder / code / "test.jsonl", ({"id": one, "text": "."} for one in ids))
    into = {**task["translated"], "into_source": {"files": f"{folder}/{{language}}/{{split}}.jsonl"}}
    return {**raw, "tasks": [{**task, "translated": into}]}
