"""Run folders as if something large had been run: answers drawn at random, and scored and compared as a run does."""

import json
import random
import zlib
from dataclasses import asdict
from pathlib import Path

from lingualift.config import dump_experiment, parse_experiment
from lingualift.metrics.comparisons import compare, with_rows
from lingualift.metrics.scores import METRICS

_CELL = ("task", "method", "variant", "language")
CODES = ("de", "ru", "fr", "es", "zh", "vi", "tr", "ar", "el", "th", "hi", "sw")
METHODS = {  # each with its variant, and how often it is right in percent
    ("vanilla", ""): 40,
    ("source-ft", ""): 60,
    ("xlt", "vanilla"): 42,
    ("reference-only", ""): 41,
    ("arithmetic", "delta-sum"): 58,
    ("adamergex", "factors"): 61,
    ("adamergex", "delta"): 64,
    ("translate-test", ""): 66,
    ("translate-train", ""): 70,
    ("flare", "add_relu"): 72,
    ("x-mixup", ""): 71,
    ("target-ft", ""): 78,
}
ENTRIES = {
    ("arithmetic", "delta-sum"): {"method": "arithmetic", "space": "delta"},
    ("adamergex", "delta"): {"method": "adamergex", "space": "delta"},
}


def large_experiment(codes=CODES, methods=tuple(METHODS), tasks=("xnli",), seeds=(0, 1), tuned="fr", **more):
    data = {"files": "data/{language}/{split}.jsonl"}
    raw = {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": list(codes)},
        "tasks": [{"task": task, "data": data, "translated": {"into_source": data}} for task in tasks],
        "reference": {"data": {"files": "text/{language}.jsonl"}},
        "training": {"task": {"epochs": 1}, "reference": {"epochs": 1}},
        "methods": [ENTRIES.get(each, {"method": each[0]}) for each in methods],
        "weights": {"tune_on": tuned},
        "seeds": list(seeds),
    }
    return parse_experiment(raw | more)


def write_run(
    folder: Path, experiment=None, *, methods=METHODS, n=40, ids="row", better=0.0, empty=None
) -> Path:
    """A run folder with predictions.

    `ids` begins the name of each test row, `better` is added to every method, and `empty` says of the cells that lack
    rows (task, method, variant, language) which ones.
    """
    lacking = empty or {}
    experiment = experiment or large_experiment(methods=tuple(methods))
    rows, answers, compared = [], {}, []
    (folder / "predictions").mkdir(parents=True)
    for point in experiment.points():
        mine = []
        for row in _rows(point, methods):
            if tuple(row[name] for name in _CELL) in lacking:
                continue
            name = ".".join(map(str, (*row["grid"].values(), *list(row.values())[:4], row["seed"])))
            row["predictions"] = f"predictions/{name}.jsonl"
            answers[row["predictions"]] = _answers(
                row, methods[row["method"], row["variant"]] + better, n, ids
            )
            found = answers[row["predictions"]]
            golds, said = [(one["gold"][0],) for one in found], [one["prediction"] for one in found]
            score = METRICS["accuracy"].score(said, golds, row["language"])
            row |= {"score": score.value, "stderr": score.stderr, "chance": 50.0, "n": n}
            lines = "".join(json.dumps(one) + "\n" for one in found)
            (folder / row["predictions"]).write_text(lines, encoding="utf-8")
            mine.append(row)
        averages = with_rows(point.experiment.averages(), mine)
        found = compare(mine, lambda row: answers[row["predictions"]], averages)
        compared += [{**asdict(one), "grid": dict(point.grid)} for one in found]
        rows += mine
    (folder / "experiment.yaml").write_text(dump_experiment(experiment), encoding="utf-8")
    results = {"schema": 1, "rows": rows, "comparisons": compared}
    results["empty"] = [
        {**dict(zip(_CELL, cell, strict=True)), "grid": {}, "reason": reason}
        for cell, reason in lacking.items()
    ]
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def _rows(point, methods):
    asked = point.experiment
    for method, variant in methods:
        for code in (asked.languages.source, *asked.languages.targets):
            if code == asked.languages.source and method not in ("vanilla", "source-ft", "xlt"):
                continue
            for seed in (None,) if method in ("vanilla", "xlt") else asked.seeds:
                yield {
                    "task": Path(point.task.task).stem,
                    "language": code,
                    "method": method,
                    "variant": variant,
                    "metric": "accuracy",
                    "seed": seed,
                    "weight": 0.75 if method in ("arithmetic", "adamergex") else None,
                    "malformed": 0,
                    "truncated": 0,
                    "grid": dict(point.grid),
                }


def _answers(row, right, n, ids):
    place = "/".join(str(row[name]) for name in ("task", "language", "method", "variant", "seed"))
    drawn = random.Random(zlib.crc32(place.encode()))
    share = (right + drawn.uniform(-6, 6)) / 100
    golds = random.Random(0)
    return [
        {
            "id": f"{ids}-{number}",
            "gold": [(gold := golds.choice(["yes", "no"]))],
            "prediction": gold if drawn.random() < share else {"yes": "no", "no": "yes"}[gold],
        }
        for number in range(n)
    ]
