"""What a shell gives: options, terminals and pipes, permissions."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from fuzzing.adapters import uses
from fuzzing.experiments import NAMES
from fuzzing.folders import copied_run, sealed
from fuzzing.ground import (
    CONFIG,
    EXPERIMENT,
    GROUND,
    MERGED,
    PLAIN,
    PROVENANCE,
    SCORE,
    WEIGHTS,
    copied,
    experiment_text,
    read_json,
)
from fuzzing.trial import EITHER, OK, REFUSED, Trial
from fuzzing.values import HOSTILE_PATTERNS, NUMBERS, PATTERNS, WORDS

_WORDS = tuple(word for word in WORDS if "\0" not in word)  # which no shell passes on
_OPTION_VALUES = (*_WORDS, *map(str, NUMBERS), *PATTERNS, "\udcff", "x" * 300 + "/y")
# fmt: off
OPTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("evaluate", *SCORE, "--data", f"{GROUND}/rows.jsonl", "--split", "train", "--output", "out.json"),
     ("--language", "--task", "--data", "--output", "--batch-size", "--max-length", "--prompt",
     "--prompt-language", "--beside", "--beside-language", "--dtype", "--quantization", "--split", "--backbone",
     "--adapter")),
    (("predict", *SCORE, "--input", f"{GROUND}/rows.jsonl", "--output", "out.jsonl"), ("--language", "--input",
     "--output", "--batch-size", "--max-length", "--prompt", "--adapter", "--beside")),
    (("merge", "--task", f"{GROUND}/task", "--source-reference", f"{GROUND}/source", "--target-reference",
     f"{GROUND}/target", "--output", "out"), ("--weight", "--modules", "--module-weight", "--rank", "--method",
     "--adapter", "--density", "--seed", "--cutoff", "--output", "--task", "--space")),
    (("train", *SCORE, "--data", f"{GROUND}/rows.jsonl", "--steps", "1", "--output", "out"), ("--rank",
     "--alpha", "--modules", "--tokens", "--batch-size", "--learning-rate", "--max-length", "--seed", "--start",
     "--precision", "--epochs", "--output", "--report-to", "--words-head")),
    (("inspect", f"{GROUND}/task"), ("",)),
    (("report", f"{GROUND}/run/none"), ("",)),
    (("store", "list", f"{GROUND}/store"), ("",)),
    (("init",), ("--task",)),
    (("plan", "e.yaml", "--no-calibrate"), ("--set", "--output", "--store", "--for", "")),
)
# fmt: on
"""Commands, and options of them that anything is given to."""


def options(draw: random.Random, here: Path) -> Trial:
    """Options of the command line."""
    (here / "e.yaml").write_text(experiment_text(), encoding="utf-8")
    arguments, names = draw.choice(OPTIONS)
    name = draw.choice(names)
    value = draw.choice(_OPTION_VALUES)
    right = EITHER
    if name in ("--modules", "--module-weight") and draw.random() < 0.03:
        value = draw.choice(HOSTILE_PATTERNS)
    if name == "--module-weight" and draw.random() < 0.8:
        value += "=" + draw.choice(("1", "nan", "x", "1e308"))
    if name == "--adapter" and arguments[0] == "merge":
        value += draw.choice(("=1", "=", "=nan", f"{GROUND}/task=1"))
    if name in ("--backbone", "--adapter") and value.count("/") == 1:
        value = value.replace("/", "")  # else it is one of the hub
    if "--steps" in arguments and name == "--epochs":
        arguments = tuple(word for word in arguments if word not in ("--steps", "1"))
        value = draw.choice(("nan", "inf", "-1", "0", "1e308", "1e-320", "x"))
        right = REFUSED if value in ("nan", "inf", "-1", "x") else EITHER
    given = (*arguments, name, value) if name else (*arguments, value)
    return Trial(f"{arguments[0]} {name}", given, right)


# fmt: off
_SHOWS: tuple[tuple[str, ...], ...] = (
    ("tasks",), ("languages",), ("methods",), ("--help",),
    ("inspect", f"{GROUND}/task"),
    ("plan", "e.yaml", "--no-calibrate"),
    ("store", "list", "store"),
    ("report", "run"),
    ("evaluate", *SCORE, "--data", f"{GROUND}/rows.jsonl", "--split", "train", "--output", "out.json"), PLAIN,
)
# fmt: on


def terminal(draw: random.Random, here: Path) -> Trial:
    """Terminals and pipes that are not UTF-8, full, or closed; names that a terminal might take for orders."""
    name = draw.choice(NAMES)
    changes: dict[str, Any] = {"languages": {**EXPERIMENT["languages"], "groups": {name: ["sw"]}}}
    pattern = draw.choice(("[a-z]_proj|q_proj", "[/x]|q_proj", "q_proj"))
    changes["methods"] = ["source-ft", {"method": "adamergex", "weight": 0.5, "modules": pattern}]
    # Escaped, so that a name is a value and not an error of the text.
    (here / "e.yaml").write_text(json.dumps({**EXPERIMENT, **changes}), encoding="utf-8")
    where = draw.choice(("utf-8", "cp1252", "ascii", "latin-1", "/dev/full", "pipe"))
    arguments = draw.choice(_SHOWS)
    if arguments[0] == "report":
        _named_run(here, name)
    elif arguments[0] == "store":
        _named_store(here, name)
    lists = arguments[0] in ("tasks", "languages", "methods")
    right = OK if lists and where not in ("/dev/full", "pipe") else EITHER
    stays = ("out*", "plain*", "run/*")  # an answer that was written stays when nobody can be told of it
    what = f"{arguments[0]} to {where}"
    return Trial(what, arguments, right, stays, alters=("run/*",), stdout=where)


def _named_run(here: Path, name: str) -> None:
    """A finished run that has hostile names in it."""
    folder = copied_run(here)
    content = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8"))
    content["languages"]["groups"] = {name: ["sw"]}
    (folder / "experiment.yaml").write_text(json.dumps(content), encoding="utf-8")


def _named_store(here: Path, name: str) -> None:
    """A store with a step of a hostile name, sealed."""
    store = copied(here, "store", "store")
    step = sorted(store.glob("*/*/step.json"))[0]
    content = {**read_json(step), "label": name}
    del content["seal"]
    step.write_bytes(sealed(content))


def permissions(draw: random.Random, here: Path) -> Trial:
    """Files and folders that may not be read, or not be written, by whoever calls."""
    shutil.copy(here / GROUND / "rows.jsonl", here / "rows.jsonl")
    (here / "e.yaml").write_text(experiment_text(), encoding="utf-8")
    (here / "place").mkdir()
    score = ("--data", "rows.jsonl", "--split", "train", "--output")
    cases: tuple[tuple[str, int, tuple[str, ...]], ...] = (
        ("rows.jsonl", 0, ("evaluate", *SCORE, *score, "out.json")),
        ("rows.jsonl", 0, ("predict", *SCORE, "--input", "rows.jsonl", "--output", "out.jsonl")),
        ("rows.jsonl", 0, ("train", *SCORE, "--data", "rows.jsonl", "--steps", "1", "--output", "out")),
        ("e.yaml", 0, ("plan", "e.yaml", "--no-calibrate")),
        (f"a/{WEIGHTS}", 0, uses(draw)[0]),
        (f"a/{CONFIG}", 0, uses(draw)[0]),
        (f"a/{PROVENANCE}", 0, uses(draw)[0]),
        ("a", 0, uses(draw)[0]),
        ("store", 0, ("store", draw.choice(("list", "verify", "prune")), "store")),
        ("store", 0o500, ("store", "prune", "store", "--unused-for", "0")),
        ("store", 0, ("plan", "e.yaml", "--no-calibrate", "--store", "store")),
        ("run", 0, ("report", "run")),
        ("run/results.json", 0, ("report", "run")),
        ("run/log.jsonl", 0, ("report", "run")),
        ("run", 0o500, ("report", "run")),
        ("place", 0o500, ("evaluate", *SCORE, *score, "place/out.json")),
        ("place", 0o500, ("predict", *SCORE, "--input", "rows.jsonl", "--output", "place/out.jsonl")),
        ("place", 0o500, ("merge", *MERGED, "--output", "place/out")),
        ("place", 0, ("run", "e.yaml", "--output", "place/run")),
    )
    path, mode, arguments = draw.choice(cases)
    top = path.split("/")[0]
    if top in ("store", "run"):
        copied(here, top, top)
    elif top == "a":
        copied(here, "task", "a")
    below = (here / path).rglob("*") if mode else ()
    for one in sorted((one for one in below if one.is_dir()), reverse=True):
        one.chmod(mode)
    (here / path).chmod(mode)
    leaves = ("lingualift-store*",) if arguments[0] == "lift" else ("store/locks*",)
    return Trial(f"{arguments[0]}: {path} {mode:o}", arguments, REFUSED, leaves, bound=True)
