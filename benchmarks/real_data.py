"""Every task on real data, with a small backbone: does the whole way hold, and what does it score?

    python benchmarks/real_data.py --data ../shared/data --backbone ../shared/backbones/nusantara-4m --output runs/real
    python benchmarks/real_data.py --data ../shared/data --backbone my-encoder --output runs/encoder --tasks nusax,xnli

The folder of data holds `<task>/<language>/<split>.jsonl.gz` with the columns of the hub's data sets. Small backbones
cannot reason, count or find answers in long passages: many scores lie at chance, which stands beside them. Nothing is
tuned: λ is 1, one seed, training lengths are fixed here. The last thing written is `table.md`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import lingualift as ll
from lingualift.backbone.reference import find_backbone
from lingualift.cli.app import watching
from lingualift.config import Backbone


@dataclass(frozen=True)
class Spec:
    """A task: its languages, what its splits are called there, its reference text, and how long it is trained.

    Attributes:
        folder: Folder of the data.
        source: Language with labels.
        targets: Languages to lift it into.
        splits: Split -> (folder, split) where the rows are; with `source:` before the split for the source alone.
        text: Template of the reference text.
        rows: Rows of train and test, at most.
        epochs: Passes over the training rows.
        max_length: Tokens.
        steps: Steps of each reference's training.
    """

    folder: str
    source: str
    targets: tuple[str, ...]
    splits: dict[str, tuple[str, str]]
    text: str
    rows: tuple[int, int]
    epochs: float
    max_length: int = 128
    steps: int = 125


BIBLE = "bible/{language}.jsonl.gz"
SPECS = {
    "nusax": Spec(
        "nusax", "eng", ("ind", "jav", "min", "sun"), {}, "nusax/{language}/train.jsonl.gz", (500, 400), 6
    ),
    "nusatranslation": Spec(
        "nusatranslation",
        "ind",
        ("jav", "min", "sun", "mad"),
        {},
        "nusatranslation/{language}/train.jsonl.gz",
        (2000, 1200),
        3,
    ),
    "xnli": Spec("xnli", "en", ("es", "sw", "vi"), {}, BIBLE, (6000, 1000), 1),
    "xcopa": Spec("xcopa", "en", ("id", "sw", "vi"), {"source:test": ("xcopa", "val")}, BIBLE, (400, 500), 6),
    "tydiqa-goldp": Spec(
        "tydiqa_goldp", "en", ("id", "sw"), {"test": ("tydiqa_goldp", "dev")}, BIBLE, (1500, 300), 2, 384
    ),
    "xquad": Spec(
        "xquad", "en", ("de", "es"), {"source:train": ("tydiqa_goldp", "train")}, BIBLE, (1500, 300), 2, 384
    ),
    "mgsm": Spec("mgsm", "en", ("es", "sw"), {}, BIBLE, (8, 250), 4, 1024),
}


def link(data: Path, output: Path, task: str) -> None:
    """Lay the splits of a task out as an experiment reads them."""
    spec = SPECS[task]
    for language in (spec.source, *spec.targets):
        for split in ("train", "test"):
            folder, name = spec.splits.get(split, (spec.folder, split))
            if language == spec.source:
                folder, name = spec.splits.get(f"source:{split}", (folder, name))
            there = data / folder / language / f"{name}.jsonl.gz"
            here = output / "data" / task / language / f"{split}.jsonl.gz"
            if there.is_file() and not here.exists():
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(there.resolve())


def experiment(data: Path, output: Path, task: str, backbone: Path, *, encoder: bool) -> Path:
    """Write the experiment of a task."""
    spec = SPECS[task]
    link(data, output, task)
    training = {"batch_size": 16, "learning_rate": 1e-3 if encoder else 2e-3}
    wanted: dict[str, Any] = {
        "backbone": {"name": str(backbone.resolve())},
        "languages": {"source": spec.source, "targets": list(spec.targets)},
        "tasks": [
            {
                "task": task,
                "data": {
                    "files": f"data/{task}/{{language}}/{{split}}.jsonl.gz",
                    "max_rows": {"train": spec.rows[0], "test": spec.rows[1]},
                },
            }
        ],
        "reference": {"data": {"files": str(data.resolve() / spec.text)}, "segment_tokens": 128},
        "adapter": {"type": "lora", "rank": 8, "alpha": 16},
        "training": {
            "task": {**training, "epochs": spec.epochs, "max_length": spec.max_length},
            "reference": {**training, "steps": spec.steps},
        },
        "methods": [
            *([] if encoder else ["vanilla"]),
            "source-ft",
            {"method": "adamergex", "weight": 1},
        ],
        "scoring": {"max_length": spec.max_length, "batch_size": 64},
    }
    path = output / f"{task}.yaml"
    path.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")
    return path


def lines(task: str, rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table: the task's first metric, by method, one column of languages with their scores."""
    metric = rows[0]["metric"]
    mine = [row for row in rows if row["metric"] == metric]
    found = []
    for method in dict.fromkeys(row["method"] for row in mine):
        cells = [row for row in mine if row["method"] == method]
        scores = ", ".join(f"{row['language']} {row['score']:.1f}" for row in cells)
        sizes = sorted({row["n"] for row in cells})
        chance = sorted({round(row["chance"], 1) for row in cells})
        shown = ["–".join(map(str, dict.fromkeys((values[0], values[-1])))) for values in (sizes, chance)]
        malformed = sum(row["malformed"] for row in cells)
        found.append(f"| {task} | {metric} | {method} | {scores} | {shown[0]} | {shown[1]} | {malformed} |")
    return found


def main() -> None:
    """Run the tasks, one after another, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(SPECS), help="separated by commas")
    options = parser.parse_args()
    encoder = find_backbone(Backbone(name=str(options.backbone.resolve()))).family == "encoder"
    table = ["| task | metric | method | score | n | chance | malformed |", "|---|---|---|---|---|---|---|"]
    options.output.mkdir(parents=True, exist_ok=True)
    for task in options.tasks.split(","):
        if encoder and task == "mgsm":
            continue  # its answers are text of the model's own
        path = experiment(options.data, options.output, task, options.backbone, encoder=encoder)
        with watching(Console(stderr=True)) as watch:
            finished = ll.run(path, output=options.output / task, store=options.output / "store", watch=watch)
        rows = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))["rows"]
        table += lines(task, rows)
        (options.output / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print((options.output / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
