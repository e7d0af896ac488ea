"""The study on pretrained models: its experiments, one after another, each leaving its rows in `study/rows`.

    python study/real.py --real FOLDER --shared FOLDER --work runs/real --list
    python study/real.py --real FOLDER --shared FOLDER --work runs/real --only 'nusax-gemma-.*'

FOLDER of `--real` holds `gemma-3-270m` and `e5-small`, that of `--shared` the data sets. Hours on two cores. An
experiment whose rows are there is not run again; one that was killed goes on where it was. What each is for stands in
REAL.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiments as toys
import fusing
from rich.console import Console
from run import finished

from lingualift.provenance import library_versions

ROWS = Path(__file__).parent / "rows"
SEEDS = (50, 51, 52)
DEVELOPMENT = 20
WEIGHTS = (0.25, 0.5, 1.0)
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
NUSAX = ("ace", "ban", "bjn", "jav", "mad", "min", "nij", "sun")
LIBRARIES = ("lingualift", "torch", "transformers", "peft", "numpy")

Raw = dict[str, Any]
SUM = {"method": "arithmetic", "space": "delta"}
MEAN = {"method": "arithmetic", "space": "delta", "mean": True}
DELTA = {"method": "adamergex", "space": "delta"}
FACTORS = {"method": "adamergex", "space": "factors"}
FLARE = {"method": "flare", "fusion": "add_relu"}
READING = ["source-ft", "translate-test", "translate-train", "input-fusion", "x-mixup", FLARE]
READING += [{"method": "flare", "fusion": "cross_attention"}]
FEWER = ["source-ft", "translate-test", "translate-train", FLARE]
FUSED = ("jav", "min", "sun")
WRONG = 0.2
"""Share of the words that are dropped or replaced."""
PAPER = {**FACTORS, "modules": "(q|v)_proj"}
"""The paper's choice of modules for references: queries and values."""
NAMED = ["source-ft", SUM, DELTA, PAPER]
"""Rows on merging that named comparisons read; the others come after them."""
REST = ["vanilla", "reference-only", MEAN, FACTORS]
REST += [{**one, "weight": weight} for one in (SUM, MEAN, DELTA, FACTORS, PAPER) for weight in WEIGHTS]
REFERENCE = {"steps": 25, "batch_size": 8, "learning_rate": 2e-4}
"""Chosen under "Choice of settings" in REAL.md."""
console = Console()


@dataclass(frozen=True)
class Places:
    """Folders: data sets, pretrained models, what is made."""

    shared: Path
    real: Path
    work: Path


def experiments(places: Places) -> Iterator[tuple[str, Raw]]:
    """Name and experiment file of each part, one seed at a time, so that a part is an hour or two."""
    for learning_rate in (2e-4, 5e-4):
        for steps in (25, 60):
            reference = {"steps": steps, "batch_size": 8, "learning_rate": learning_rate}
            yield f"choice-gemma-{learning_rate:g}-{steps}", choice(places, reference)
    for learning_rate in (2e-4, 1e-3):
        yield f"choice-gemma-task-{learning_rate:g}", choice(places, REFERENCE, learning_rate)
    for learning_rate in (5e-4, 1e-3, 2e-3):
        yield f"choice-e5-{learning_rate:g}", choice_e5(places, learning_rate)
    for seed in SEEDS:
        yield f"nusax-gemma-{seed}", {**nusax(places, seed), "methods": NAMED}
    for seed in SEEDS:
        yield from conditions(places, f"nusax-e5-{seed}", e5(places, seed), READING)
    for seed in SEEDS:
        yield f"xnli-gemma-{seed}", {**xnli(places, seed), "methods": NAMED}
    for seed in SEEDS[:2]:
        yield f"nusax-gemma-fused-{seed}", {**fused(nusax(places, seed, FUSED)), "methods": FEWER}
    for seed in SEEDS:
        upper = ["target-ft"] if seed == SEEDS[0] else []
        yield f"nusax-gemma-{seed}-rest", {**nusax(places, seed), "methods": REST + upper}
    for seed in SEEDS:
        yield f"xnli-gemma-{seed}-rest", {**xnli(places, seed), "methods": REST}


def gemma(places: Places) -> Raw:
    """The decoder and how its adapters are trained."""
    return {
        "backbone": {"name": str(places.real / "gemma-3-270m"), "dtype": "bfloat16"},
        "adapter": {"type": "lora", "rank": 8, "alpha": 16},
        "scoring": {"max_length": 256},
    }


def nusax(places: Places, seed: int, targets: tuple[str, ...] = ("ind", *NUSAX)) -> Raw:
    """Sentiment in local languages of Indonesia, from English."""
    files = f"{places.shared}/data/nusax/{{language}}/{{split}}.jsonl.gz"
    return {
        **gemma(places),
        "languages": {"source": "eng", "targets": list(targets)},
        "tasks": [
            {"task": "nusax", "data": {"files": files, "splits": {"validation": "valid"}, "aligned_on": "id"}}
        ],
        "reference": {
            "data": {"files": files.replace("{split}", "train"), "aligned_on": "id"},
            "segment_tokens": 128,
        },
        "training": {
            "task": {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "max_length": 256},
            "reference": REFERENCE,
        },
        "weights": {"tune_on": "ind", "grid": list(GRID)},
        "seeds": [seed],
    }


def xnli(places: Places, seed: int) -> Raw:
    """Natural language inference, from English, with references on news."""
    files = f"{places.shared}/data/xnli/{{language}}/{{split}}.jsonl.gz"
    data = {
        "files": files,
        "splits": {"validation": "dev"},
        "max_rows": {"train": 2000, "validation": 500, "test": 1000},
    }
    return {
        **nusax(places, seed),
        "languages": {"source": "en", "targets": ["de", "sw", "th", "vi"]},
        "tasks": [{"task": "xnli", "data": data}],
        "reference": {
            "data": {"files": f"{places.shared}/data/ntrex/{{language}}.jsonl.gz"},
            "segment_tokens": 128,
        },
        "weights": {"tune_on": "de", "grid": list(GRID)},
    }


def fused(raw: Raw) -> Raw:
    """An experiment without references, whose training and test rows are translated by people."""
    data = {key: value for key, value in raw["tasks"][0]["data"].items() if key != "aligned_on"}
    english = {**data, "files": data["files"].replace("{language}", raw["languages"]["source"])}
    task = {"task": "nusax", "data": data, "translated": {"into_targets": data, "into_source": english}}
    training = {"task": raw["training"]["task"]}
    return {**toys.less(raw, "reference", "weights"), "tasks": [task], "training": training}


def e5(places: Places, seed: int, learning_rate: float = 5e-4) -> Raw:
    """The encoder, which answers by a head, and its rows with their translations."""
    task = {"steps": 96, "batch_size": 16, "learning_rate": learning_rate, "max_length": 256}
    raw = fused(nusax(places, seed, FUSED))
    return {**raw, "backbone": {"name": str(places.real / "e5-small")}, "training": {"task": task}}


def conditions(places: Places, name: str, raw: Raw, methods: list[Any]) -> Iterator[tuple[str, Raw]]:
    """Exact translations; a fifth of the words wrong in the English test rows; in the training rows too."""
    raw = {**raw, "methods": methods}
    folder = places.work / "noise" / name
    yield name, raw
    worse = fusing.worsened(raw, WRONG, folder / "test")
    yield f"{name}-test", worse
    yield f"{name}-train", toys.worse_training(worse, WRONG, folder / "train")


def choice_e5(places: Places, learning_rate: float) -> Raw:
    """One setting of the encoder, on validation rows of a language that is not reported."""
    raw = e5(places, DEVELOPMENT, learning_rate)
    task = raw["tasks"][0]
    tested = {"splits": {"validation": "valid", "test": "valid"}}
    into = {key: {**data, **tested} for key, data in task["translated"].items()}
    tasks = [{**task, "data": {**task["data"], **tested}, "translated": into}]
    return {**raw, "languages": {"source": "eng", "targets": ["ind"]}, "tasks": tasks, "methods": FEWER}


def choice(places: Places, reference: Raw, learning_rate: float = 5e-4) -> Raw:
    """One setting of task and references, on validation rows of the tuning language with the development seed."""
    raw = nusax(places, DEVELOPMENT, ("ind",))
    task = raw["tasks"][0]
    data = {**task["data"], "splits": {"validation": "valid", "test": "valid"}}
    methods = ["source-ft", {**SUM, "weight": 0.5}, {**DELTA, "weight": 0.5}]
    training = {"task": {**raw["training"]["task"], "learning_rate": learning_rate}, "reference": reference}
    changed = {"tasks": [{**task, "data": data}], "training": training, "weights": {}, "methods": methods}
    return {**raw, **changed}


def main() -> None:
    """Run what has no rows yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True, help="holds the pretrained models")
    parser.add_argument("--shared", type=Path, required=True, help="holds the data sets")
    parser.add_argument("--work", type=Path, required=True, help="where everything is made")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where the rows of finished experiments go")
    parser.add_argument("--only", default="", help="regular expression of the experiments' names")
    parser.add_argument("--list", action="store_true", help="name the experiments, and say which have rows")
    options = parser.parse_args()
    places = Places(options.shared.resolve(), options.real.resolve(), options.work.resolve())
    chosen = [one for one in experiments(places) if re.search(options.only, one[0])]
    for name, raw in chosen:
        done = (options.rows / f"{name}.json.gz").is_file()
        if options.list:
            console.print(f"{'rows' if done else '–':5} {name}")
        elif not done:
            run(name, raw, places, options.rows)


def run(name: str, raw: Raw, places: Places, rows: Path) -> None:
    """Run an experiment and keep its rows."""
    started = time.time()
    done = finished(name, raw, places.work)
    entry = {
        "experiment": name,
        "seconds": round(time.time() - started, 1),
        "configurations": len({(row["method"], row["variant"]) for row in done.rows}),
        "scores": len(done.rows),
        "versions": library_versions(*LIBRARIES),
    }
    keep(rows / f"{name}.json.gz", done.folder, entry, places)
    with (rows / "log.jsonl").open("a", encoding="utf-8") as log:
        print(json.dumps(entry), file=log)
    console.print(f"next: git add {rows}, and commit")


def keep(file: Path, folder: Path, entry: Raw, places: Places) -> None:
    """Write what a run found into one file: scores, every answer, and what chose the weights."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    answers: dict[str, list[Any]] = {}
    items: dict[str, Any] = {}
    for row in rows:
        path = folder / row["predictions"]
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        answers[row["predictions"]] = [line["prediction"] for line in lines]
        items[f"{row['task']}/{row['language']}"] = {
            "ids": [line["id"] for line in lines],
            "gold": [line["gold"] for line in lines],
        }
    steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))["steps"]
    sweeps = [step["facts"] for step in steps if step["kind"] == "sweep"]
    text = json.dumps({**entry, "rows": rows, "answers": answers, "items": items, "sweeps": sweeps})
    for place, word in ((places.real, "REAL"), (places.shared, "SHARED"), (places.work, "WORK")):
        text = text.replace(str(place), word)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
