"""The study from nothing: backbones, texts, every experiment, numbers and figures.

    python study/run.py --shared ../shared --work runs/study
    python study/run.py --shared ../shared --work runs/study --only 'world.*-main'   # some of it
    python study/run.py --shared ../shared --work runs/study --list

Hours on two cores. What is finished is not done again, so that a killed run goes on where it was. Every configuration
that is run is a line of WORK/log.jsonl; numbers and figures follow from the runs (`study/effects.py`, `figures.py`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import methods
import yaml
from experiments import BACKBONES, WORLD_DATA, Places, Study, experiments
from rich.console import Console

import lingualift as ll
from lingualift.cli.app import watching
from lingualift.miniworld import write_data

ROOT = Path(__file__).parents[1]
NEEDED = ("data/nusax", "data/nusatranslation", "data/ntrex", "data/nusaparagraph", "backbones/nusantara-4m")
"""What the study reads that is not in the repository."""
console = Console()


def main() -> None:
    """Make what is missing and run what is not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="holds data sets and a backbone")
    parser.add_argument("--work", type=Path, required=True, help="where everything is made")
    parser.add_argument("--only", default="", help="regular expression of the experiments' names")
    parser.add_argument("--list", action="store_true", help="name the experiments and their questions")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    for name in NEEDED:
        if not (options.shared / name).is_dir():
            parser.error(f"--shared {options.shared} holds no {name}; it needs {', '.join(NEEDED)}")
    methods.register()
    places = Places(options.shared.resolve(), options.work.resolve())
    make_worlds(places)
    chosen = [study for study in experiments(places) if re.search(options.only, study.name)]
    if options.list:
        console.print("\n".join(f"{study.question:3} {study.name}" for study in chosen))
        return
    for index, study in enumerate(chosen, 1):
        console.print(f"[bold]{index}/{len(chosen)} {study.name}[/] ({study.question})")
        run(study, places, options.workers)
    console.print(f"next: python study/effects.py --work {options.work}, then python study/figures.py")


def make_worlds(places: Places) -> None:
    """The mini-world's rows, three backbones and a translation model."""
    if not (places.work / "data").is_dir():
        write_data(places.work / "data", seed=WORLD_DATA)
    pretrain = [sys.executable, str(ROOT / "backbones" / "decoder.py")]
    commands = [
        [*pretrain, "--seed", str(seed), "--output", str(places.backbone(seed))] for seed in BACKBONES
    ]
    script = [sys.executable, str(ROOT / "backbones" / "translator.py"), "--world"]
    commands.append([*script, "--output", str(places.translator)])
    wanted = [command for command in commands if not Path(command[-1]).is_dir()]
    for command in wanted:
        console.print(" ".join(command[1:]))
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), wanted))


def run(study: Study, places: Places, workers: int | None) -> None:
    """Run an experiment, or read that it is finished, and log it."""
    started = time.time()
    done = finished(study.name, study.raw, places.work, [f"workers={workers}"] if workers else [])
    rows = {(row["task"], row["method"], row["variant"], row["language"], row["seed"]) for row in done.rows}
    entry = {
        "experiment": study.name,
        "question": study.question,
        "time": started,
        "seconds": round(time.time() - started, 1),
        "steps": done.trained,
        "configurations": len({row[:3] for row in rows}),
        "scores": len(rows),
    }
    with (places.work / "log.jsonl").open("a", encoding="utf-8") as log:
        print(json.dumps(entry), file=log)


def finished(name: str, raw: Mapping[str, Any], work: Path, overrides: Sequence[str] = ()) -> Any:
    """What `ll.run` returns of an experiment, which is run in `work`, or goes on there, or is finished there."""
    path = work / "experiments" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(raw), sort_keys=False), encoding="utf-8")
    with watching(console) as watch:
        return ll.run(path, output=work / "runs" / name, overrides=overrides, replace=True, watch=watch)


if __name__ == "__main__":
    main()
