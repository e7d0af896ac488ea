"""How many files one follows: three commands, and the files of the package in which they call a function.

    python benchmarks/journeys.py           # a table; half a minute
    python benchmarks/journeys.py --list    # and the files

- merge: a weight, from `lingualift merge` to the merged tensors on disk.
- fuse: a row of a FLARE adapter, from `lingualift evaluate` and the row's file to the first fusion.
- run: an experiment on merging, from `lingualift run` to its `results.json`.

A file counts if the command calls one of its functions other than while modules are imported. One worker, which is the
command's own process; the mini-world's data and backbone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import lingualift
from lingualift.miniworld import write_data

PACKAGE = Path(lingualift.__file__).parent
ROWS = "data/sentiment/{language}/{split}.jsonl"
ENGLISH = "data/into-english/sentiment/{language}/{split}.jsonl"
EXPERIMENT = {
    "backbone": {"name": "miniworld"},
    "languages": {"source": "en", "targets": ["fr"]},
    "tasks": [
        {
            "task": "mini-sentiment",
            "data": {"files": ROWS, "max_rows": {"train": 32, "test": 16}},
            "translated": {"into_targets": {"files": ROWS}, "into_source": {"files": ENGLISH}},
        }
    ],
    "reference": {"data": {"files": "data/reference/{language}/train.jsonl"}, "segment_tokens": 64},
    "training": {"task": {"steps": 2, "batch_size": 8}, "reference": {"steps": 2, "batch_size": 8}},
    "methods": ["source-ft", "adamergex", "flare"],
    "weights": {"tune_on": "fr", "grid": [0.5, 1.0]},
    "workers": 1,
}


def main() -> None:
    """Make what the commands read, follow each in a process of its own, and show what they call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        journeys = {name: follow(command, Path(folder)) for name, command in prepare(Path(folder)).items()}
    console = Console()
    table = Table("journey", "files", "lines of the longest")
    for name, files in journeys.items():
        longest = max(files, key=lines)
        table.add_row(name, str(len(files)), f"{lines(longest)} ({longest})")
    console.print(table)
    for name, files in journeys.items() if options.list else ():
        console.print(f"{name}: {' '.join(sorted(files))}", highlight=False)


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write data and an experiment into a folder and train its adapters; the three commands."""
    write_data(folder / "data")
    (folder / "all.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (folder / "merging.yaml").write_text(
        yaml.safe_dump({**EXPERIMENT, "methods": ["source-ft", "adamergex"]})
    )
    lingual = [sys.executable, "-m", "lingualift"]
    subprocess.run(
        [*lingual, "run", "all.yaml", "--output", "all"], cwd=folder, check=True, capture_output=True
    )
    made: dict[str, str] = {}
    for recipe in folder.glob("store/adapter/*/step.json"):
        made[json.loads(recipe.read_text())["label"]] = str(recipe.parent)
    task, fused = (
        made["train mini-sentiment in en, seed 0"],
        "train mini-sentiment by flare add_relu in fr, seed 0",
    )
    target, source = (made[f"train causal-lm in {code}, seed 0"] for code in ("fr", "en"))
    roles = ["--task", task, "--target-reference", target, "--source-reference", source]
    asked = ["--task", "mini-sentiment", "--language", "fr", "--data", ROWS, "--beside", ENGLISH]
    return {
        "merge": ["merge", "--method", "adamergex", *roles, "--weight", "0.7", "--output", "merged"],
        "fuse": [
            "evaluate",
            "--backbone",
            "miniworld",
            "--adapter",
            made[fused],
            *asked,
            "--output",
            "scores.json",
        ],
        "run": ["run", "merging.yaml", "--output", "fresh/run"],
    }


def follow(command: list[str], folder: Path) -> list[str]:
    """The files in which a command calls a function, as paths within the package.

    Raises:
        RuntimeError: the command failed.
    """
    found = folder / "found.json"
    done = subprocess.run(
        [sys.executable, __file__, *command],
        cwd=folder,
        env={**os.environ, "FOLLOWED": str(found)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return [str(file) for file in json.loads(found.read_text())]


def traced(found: Path) -> None:
    """Run the command of `sys.argv` here, noting the files of the functions that it calls."""
    from lingualift.__main__ import main as command_line
    from lingualift.fusion.functions import FUSIONS

    first_fusion = FUSIONS["add_relu"].fuse.__code__
    results = Path("fresh/run/results.json")
    files: set[str] = set()
    over = False

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal over
        code = frame.f_code
        if event != "call" or over or code.co_filename in files or not is_ours(code):
            return
        over = code is first_fusion or results.exists()
        if code is first_fusion or not (over or importing(frame)):
            files.add(code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        command_line()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        found.write_text(json.dumps([str(Path(file).relative_to(PACKAGE)) for file in files]))


def is_ours(code: CodeType) -> bool:
    """Whether code is a function of the package; the bodies of modules and classes are none."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and code.co_filename.startswith(f"{PACKAGE}{os.sep}")


def importing(frame: FrameType) -> bool:
    """Whether a function is called while one of the package's modules is imported."""
    caller: FrameType | None = frame
    while caller is not None:
        code = caller.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(f"{PACKAGE}{os.sep}"):
            return True
        caller = caller.f_back
    return False


def lines(file: str) -> int:
    """Lines of a file of the package."""
    return (PACKAGE / file).read_text(encoding="utf-8").count("\n")


if __name__ == "__main__":
    if "FOLLOWED" in os.environ:
        traced(Path(os.environ["FOLLOWED"]))
    else:
        main()
