"""What inputs are made from, and what tells which outcomes are right.

Nothing here is told what the package would say: what must be refused is told by a reader that is not ours (safetensors,
PyYAML, json, gzip, pyarrow), by a recorded hash, or by what the docs promise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fuzzing.trial import EITHER, REFUSED, call
from fuzzing.values import CANARY
from lingualift.miniworld.data import reference_rows, sentiment_rows
from lingualift.provenance import write_jsonl

PAYLOAD = f"open({CANARY!r}, 'w').write('ran')\n"
"""A module that writes the canary when it is imported."""

GROUND = "../../ground"
"""What inputs are made from, from the folder of an input."""

WEIGHTS, CONFIG, PROVENANCE = "adapter_model.safetensors", "adapter_config.json", "provenance.json"
ADAPTERS = ("task", "source", "target")
"""Adapters that `train` wrote; `merged` is what `merge` made of them, and `ia3` is of another kind."""
EXPERIMENT: dict[str, Any] = {
    "backbone": {"name": "miniworld"},
    "languages": {"source": "en", "targets": ["fr", "sw"], "groups": {"weak": ["sw"]}},
    "tasks": [
        {"task": "mini-sentiment", "data": {"files": f"{GROUND}/data/sentiment/{{language}}/{{split}}.jsonl"}}
    ],
    "reference": {
        "data": {"files": f"{GROUND}/data/reference/{{language}}/train.jsonl"},
        "segment_tokens": 32,
    },
    "adapter": {"rank": 2, "alpha": 4},
    "training": {
        "task": {"steps": 2, "batch_size": 8, "learning_rate": 5e-3},
        "reference": {"steps": 2, "batch_size": 8, "learning_rate": 5e-3},
    },
    "methods": ["source-ft", {"method": "adamergex", "weight": 0.5}],
    "seeds": [0],
    "workers": 1,
}
ROWS = sentiment_rows("en", "test", 3)
SCORE = ("--backbone", "miniworld", "--task", "mini-sentiment", "--language", "en")
MERGED = (
    *("--task", f"{GROUND}/task"),
    *("--source-reference", f"{GROUND}/source"),
    *("--target-reference", f"{GROUND}/target"),
)
PLAIN = ("predict", *SCORE, "--input", f"{GROUND}/rows.jsonl", "--output", "plain.jsonl")


def lay(root: Path) -> None:
    """Lay the ground: data, a finished run with its store, and adapters; in the folder `root/ground`.

    Raises:
        RuntimeError: a command failed.
    """
    ground = root / "ground"
    for language in ("en", "fr", "sw"):
        for split, count in (("train", 24), ("validation", 6), ("test", 8)):
            rows = sentiment_rows(language, split, count)
            write_jsonl(ground / "data" / "sentiment" / language / f"{split}.jsonl", rows)
        write_jsonl(ground / "data" / "reference" / language / "train.jsonl", reference_rows(language, 30))
    write_jsonl(ground / "rows.jsonl", ROWS)
    Path("e.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False), encoding="utf-8")
    commands = [("run", "e.yaml", "--output", f"{GROUND}/run")]
    for name, task, language in (
        ("task", "sentiment", "en"),
        ("source", "reference", "en"),
        ("target", "reference", "fr"),
    ):
        data = f"{GROUND}/data/{task}/{language}/train.jsonl"
        asked = ("--task", "mini-sentiment" if name == "task" else "causal-lm", "--language", language)
        start = ("--start", f"{GROUND}/task") if name != "task" else ("--rank", "2")
        more = ("--data", data, "--steps", "2", "--max-length", "32", "--learning-rate", "0.01")
        commands.append(
            ("train", "--backbone", "miniworld", *asked, *more, *start, "--output", f"{GROUND}/{name}")
        )
    ia3 = ("--data", f"{GROUND}/rows.jsonl", "--steps", "1", "--adapter", "ia3", "--output", f"{GROUND}/ia3")
    commands += [("train", *SCORE, *ia3), ("merge", *MERGED, "--output", f"{GROUND}/merged"), PLAIN]
    for arguments in commands:
        done = call(arguments)
        if done.code or done.error:
            raise RuntimeError(f"{arguments[0]} failed: {done.err}") from done.error
    store = ground / "store"
    for kind in [path for path in store.iterdir() if path.is_dir() and path.name not in ("locks", "work")]:
        for entry in sorted(kind.iterdir())[1:]:
            shutil.rmtree(entry)  # one of each kind is enough
    for lock in (store / "locks").iterdir():
        lock.unlink()


def copied(here: Path, name: str, to: str) -> Path:
    """A copy of a folder of the ground."""
    return Path(shutil.copytree(here / GROUND / name, here / to))


def read_json(path: Path) -> Any:
    """The value of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def known(read: Callable[[], Any]) -> frozenset[str]:
    """What is right of content that another reader reads, or refuses."""
    try:
        read()
    except Exception:  # whatever it raises, it does not take the content
        return REFUSED
    return EITHER


def experiment_text(changes: Mapping[str, Any] | None = None) -> str:
    """The experiment as YAML, with other values of some keys."""
    return yaml.safe_dump({**EXPERIMENT, **(changes or {})}, sort_keys=False, allow_unicode=True)


def deserialized(content: bytes) -> None:
    """Read a safetensors file by the reference reader, which raises what it refuses."""
    import safetensors

    safetensors.deserialize(content)


def pickled() -> bytes:
    """A pickle that writes the canary when it is read."""
    return f"cbuiltins\nopen\n(V{CANARY}\nVw\ntR.".encode()
