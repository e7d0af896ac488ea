"""Whether a change of the code changed what it computes: the same experiments on two commits, all numbers compared.

    python benchmarks/unchanged.py BEFORE                      # a commit, against the working tree; ten minutes
    python benchmarks/unchanged.py BEFORE --only 'prefix|demo'
    python benchmarks/unchanged.py BEFORE --shared FOLDER      # where the data of `examples/nusax.yaml` lie

Compared are `results.json` without `seconds`, and every tensor of every adapter in the run folders, by its hash. Keys
of steps and provenance hold the code's own fingerprint and may differ; fields that only the later results have are
left out. The demo; `examples/nusax.yaml` and `examples/flare_nusax.yaml` of the earlier commit at two steps; a prefix
on an encoder-decoder; (IA)³ and a head on an encoder; an encoder that lacks a head for words: small backbones of the
real classes with random weights, one worker and one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from lingualift.provenance import fingerprint
from lingualift.tasks import shipped_rows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
SHORT = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "max_length": 128}
ROWS = {"train": 32, "validation": 16, "test": 32}


def main() -> None:
    """Run every case on both commits, and show which agree; exit code 1 if one does not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="the commit to compare the working tree with")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="data of the examples")
    parser.add_argument("--only", default="", help="regular expression of cases")
    options = parser.parse_args()
    table, same = Table("case", "rows", "adapters", "tensors", "after"), True
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", tree, options.before], cwd=ROOT, check=True)
        try:
            for name, command in cases(Path(scratch) / "inputs", tree, options.shared.resolve()):
                if not re.search(options.only, name):
                    continue
                before, after = (
                    made(name, command, place, Path(scratch) / place.name) for place in (tree, ROOT)
                )
                after = {**after, "results": known(before["results"], after["results"])}
                same &= before == after
                told = "the same" if before == after else f"differs: {first_difference(before, after)}"
                adapters = before["adapters"].values()
                table.add_row(
                    name,
                    str(len(before["results"]["rows"])),
                    str(len(adapters)),
                    str(sum(map(len, adapters))),
                    told,
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    Console().print(table)
    sys.exit(0 if same else 1)


def known(before: Any, after: Any) -> Any:
    """What is there after, without the fields that were not there before."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: known(value, after[key]) for key, value in before.items() if key in after}
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [known(*pair) for pair in zip(before, after, strict=True)]
    return after


def cases(folder: Path, tree: Path, shared: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each case, but for its output; examples are those of a tree."""
    from builders.tiny import build

    folder.mkdir()
    yield "demo", ["demo", "--seeds", "1"]
    for name in ("nusax", "flare_nusax"):
        raw = yaml.safe_load(
            (tree / "examples" / f"{name}.yaml")
            .read_text(encoding="utf-8")
            .replace("../../shared", str(shared))
        )
        raw["training"] = {"task": SHORT, **({"reference": SHORT} if "reference" in raw else {})}
        raw["tasks"][0]["data"]["max_rows"] = ROWS
        targets = raw["languages"]["targets"][:2]
        yield (
            name,
            experiment(
                folder / name, {**raw, "languages": {"source": "eng", "targets": targets}, "seeds": [0]}
            ),
        )
    for name, backbone, adapter in (
        ("prefix", "mt5", {"type": "prefix", "tokens": 3}),
        ("encoder", "xlmr", {"type": "ia3"}),
        ("encoder without words", "e5", {"type": "lora", "rank": 2, "alpha": 4}),
    ):
        place = folder / name
        raw = {
            **toy(place),
            "backbone": {"name": str(build(backbone, place / "backbone"))},
            "adapter": adapter,
        }
        yield name, experiment(place, raw)


def toy(folder: Path) -> dict[str, Any]:
    """An experiment on the rows that ship with a task, which are written into a folder."""
    for code in ("en", "id", "jv"):
        rows = shipped_rows("nusax", code)
        (folder / code).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            (folder / code / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return {
        "languages": {"source": "en", "targets": ["id", "jv"]},
        "tasks": [{"task": "nusax", "data": {"files": "{language}/{split}.jsonl"}}],
        "reference": {"data": {"files": "{language}/train.jsonl"}, "segment_tokens": 24},
        "training": {"task": SHORT, "reference": SHORT},
        "methods": ["source-ft", "arithmetic", "adamergex", "target-ft"],
        "weights": {"tune_on": "id", "grid": [0, 0.5, 1]},
        "scoring": {"max_length": 128},
    }


def experiment(folder: Path, raw: dict[str, Any]) -> list[str]:
    """Write an experiment; the command that runs it."""
    folder.mkdir(exist_ok=True)
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump({**raw, "workers": 1}), encoding="utf-8")
    return ["run", str(file)]


def made(name: str, command: list[str], tree: Path, work: Path) -> dict[str, Any]:
    """What a case comes to with the code of a tree: its results, and the hash of each tensor of each adapter."""
    output = work.parent / "runs" / work.name / name
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lingualift", *command, "--output", str(output)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    run = output / "run" if command[0] == "demo" else output
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["rows"] = [
        {key: value for key, value in row.items() if key != "seconds"} for row in results["rows"]
    ]
    adapters = {
        str(file.relative_to(run)): {
            key: fingerprint([str(value.dtype), value.shape, value.tobytes().hex()])
            for key, value in load_file(file).items()
        }
        for file in sorted(run.glob("adapters/**/*.safetensors"))
    }
    return {"results": results, "adapters": adapters}


def first_difference(before: Any, after: Any, path: str = "") -> str:
    """Where two values of the same form differ first."""
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return next(
            first_difference(before[key], after[key], f"{path}/{key}")
            for key in before
            if before[key] != after[key]
        )
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return next(
            first_difference(*pair, f"{path}/{index}")
            for index, pair in enumerate(zip(before, after, strict=True))
            if pair[0] != pair[1]
        )
    return f"{path}: {str(before)[:60]} → {str(after)[:60]}"


if __name__ == "__main__":
    main()
