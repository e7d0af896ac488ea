"""Experiments and trainings on the rows that ship."""

import json

import yaml

from lingualift.config import Adapter, Data, Training
from lingualift.data.datasets import Examples
from lingualift.tasks import shipped_languages, shipped_rows
from lingualift.training.trainer import initialise, train

LANGUAGES = {"nusax": ("en", "id", "jv"), "xcopa": ("en", "id", "it"), "xquad": ("en", "de", "es")}
STILL = Training(steps=1, batch_size=4, learning_rate=1e-12, warmup=0.0)


def write_experiment(folder, name, backbone, task, **changes):
    source, *targets = LANGUAGES[task]
    for code in (source, *targets):
        place = folder / code
        place.mkdir(parents=True, exist_ok=True)
        rows = shipped_rows(task, code)
        for split in ("train", "validation", "test"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (place / f"{split}.jsonl").write_text(text, encoding="utf-8")
        raw = [str(value) for row in rows for value in row.values() if isinstance(value, str)]
        (place / "text.txt").write_text(
            "\n".join(text.replace("\n", " ") for text in raw) + "\n", encoding="utf-8"
        )
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "max_length": 128}
    experiment = {
        "backbone": {"name": backbone},
        "languages": {"source": source, "targets": targets},
        "tasks": [{"task": task, "data": {"files": "{language}/{split}.jsonl"}}],
        "reference": {"data": {"files": "{language}/text.txt"}, "segment_tokens": 24},
        "adapter": {"rank": 2, "alpha": 4, "tokens": 3},
        "training": {"task": training, "reference": training},
        "methods": ["source-ft", "arithmetic", "adamergex", "target-ft"],
        "weights": {"tune_on": targets[0], "grid": [0, 1]},
        "scoring": {"max_length": 128},
        "workers": 1,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return path


def examples_of(folder, task):
    code = shipped_languages(task)[0]
    text = "".join(json.dumps(row) + "\n" for row in shipped_rows(task, code))
    (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
    return Examples(task, Data(files=str(folder / f"{task}.jsonl")), folder).labelled(code, "train")


def learn(ref, task, examples, start, output, settings=STILL, seed=0, segment_tokens=24):
    output.mkdir()
    train(
        ref, task, examples, settings, start=start, seed=seed, output=output, work=output.parent / "work",
        language="en", segment_tokens=segment_tokens,
    )  # fmt: skip
    return output


def drawn(ref, folder, **settings):
    folder.mkdir()
    initialise(ref, Adapter(rank=2, alpha=4, **settings), 0, folder)
    return folder
