"""What lifting does in the mini-world: adapters of a plain peft script, lifted at the default settings.

    python benchmarks/lift.py --output runs/lift

Adapters of both tasks are trained on 2,000 English rows by `plain_peft.py`, each from an initialisation of its own, and
lifted into sw, id and ht; test rows are scored before and after. What is finished is not done again. Nothing is tuned
here. The last thing written is `table.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import plain_peft
from rich.console import Console

import lingualift as ll
from lingualift.cli.app import watching
from lingualift.miniworld import BACKBONE, WEAK, write_data

TASKS = ("qa", "sentiment")
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="adapters of each task, and draws of references")
    parser.add_argument(
        "--steps", type=int, default=100, help="of each training; another number, another --output"
    )
    parser.add_argument("--languages", nargs="+", default=WEAK)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if not (options.output / "data").is_dir():
        write_data(options.output / "data")
    found = []
    for task in TASKS:
        for seed in range(options.seeds):
            adapter = trained(options.output, task, seed, options.steps)
            for code in options.languages:
                numbers = lifted(options, adapter, task, code, seed)
                found.append({"task": task, "language": code, "seed": seed, "measures": numbers["measures"]})
    text = rendered(found)
    (options.output / "table.md").write_text(text, encoding="utf-8")
    console.print(text, soft_wrap=True)


def trained(folder: Path, task: str, seed: int, steps: int) -> Path:
    """A user's adapter; trained unless it lies there."""
    output = folder / f"{task}-{seed}"
    if not (output / "adapter_config.json").is_file():  # the last file that peft writes
        with (folder / f"data/{task}/en/train.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        console.print(f"training {output}")
        plain_peft.train(str(BACKBONE), rows, task, output, seed=seed, steps=steps)
    return output


def lifted(options: argparse.Namespace, adapter: Path, task: str, code: str, seed: int) -> Mapping[str, Any]:
    """The numbers of a lift; made unless they lie there."""
    output = adapter.with_name(f"{adapter.name}-{code}")
    data = options.output / "data"
    if not output.is_dir():
        with watching(console) as watch:
            ll.lift(
                backbone="miniworld",
                adapter=adapter,
                to=code,
                text=data / f"reference/{code}/train.jsonl",
                source_text=data / "reference/en/train.jsonl",
                task=f"mini-{task}",
                data=f"{data}/{task}/{{language}}/{{split}}.jsonl",
                output=output,
                steps=options.steps,
                seed=seed,
                watch=watch,
            )
    numbers: Mapping[str, Any] = json.loads((output / "lift.json").read_text(encoding="utf-8"))
    return numbers


def rendered(found: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table: means over the seeds, and the standard error of the mean change."""
    every = list(found)
    lines = [
        "| task | language | before | after | change | change of perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for task, code in dict.fromkeys((one["task"], one["language"]) for one in every):
        mine = [one["measures"] for one in every if (one["task"], one["language"]) == (task, code)]
        perplexities = [measures[0] for measures in mine]  # of the target's text
        scores = [next(one for one in measures if one["what"] != "perplexity") for measures in mine]
        before, after = (statistics.fmean(one[key] for one in scores) for key in ("before", "after"))
        changes = [one["change"] for one in scores]
        error = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else float("nan")
        change = f"{statistics.fmean(changes):+.1f} ± {error:.1f}"
        nearer = statistics.fmean(one["change"] for one in perplexities)
        of = statistics.fmean(one["before"] for one in perplexities)
        cells = [
            f"mini-{task}",
            code,
            f"{before:.1f}",
            f"{after:.1f}",
            change,
            f"{nearer:+.2f} (of {of:.1f})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
