"""FLARE and its rivals, with exact translations beside the test rows and with worse ones.

    python benchmarks/fusing.py --world --encoder runs/translators/world --output runs/fusing-world
    python benchmarks/fusing.py --nusax ../shared --encoder runs/translators/nusa --output runs/fusing-nusax

Rows are parallel by construction (the mini-world) or translated by people (NusaX), so they stand for exact translations
of each other. A worse translation is the English test row of which a share of the words is dropped or replaced
(`lingualift.miniworld.noise`). Training sees exact translations only, so that every adapter is trained once and scored
with each translation. `--encoder` is a translation model for FLARE-MT (`backbones/translator.py` trains small ones).

Writes `table.md` and `table.json`: means over seeds, and the differences of the best-known rows to three baselines with
95% intervals by paired bootstrap over test items and seeds. Nothing is tuned here: settings are those of
`examples/flare_nusax.yaml`, and for the mini-world those below; `--source-state` is that of every FLARE.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import lingualift as ll
from lingualift.cli.app import watching
from lingualift.config import Data
from lingualift.data.rows import Rows, load_rows
from lingualift.metrics.comparisons import compare
from lingualift.miniworld import write_data
from lingualift.miniworld.noise import noisy

EXAMPLE = Path(__file__).parents[1] / "examples" / "flare_nusax.yaml"
BASELINES = ("source-ft", "translate-test", "translate-train", "input-fusion")


def main() -> None:
    """Run the experiments and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    worlds = parser.add_mutually_exclusive_group(required=True)
    worlds.add_argument("--world", action="store_true", help="the mini-world's sentiment task")
    worlds.add_argument("--nusax", type=Path, metavar="FOLDER", help="holds data/nusax and the backbone")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, help="a translation model, for flare-mt")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.2], help="shares of words that are hit")
    parser.add_argument("--rows", type=int, help="training rows, at most")
    parser.add_argument("--steps", type=int, help="training steps, in place of the experiment's")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--source-state", default=ll.FlareConfig().source_state, help="of every flare")
    options = parser.parse_args()
    console = Console()
    options.output.mkdir(parents=True, exist_ok=True)
    raw = world(options.output) if options.world else nusax(options.nusax.resolve())
    raw |= {key: value for key, value in (("seeds", options.seeds), ("workers", options.workers)) if value}
    if options.rows:
        raw["tasks"][0]["data"]["max_rows"] = {"train": options.rows}
    if options.steps:
        raw["training"]["task"] = {**raw["training"]["task"], "steps": options.steps, "epochs": None}
    raw["methods"] = reading(raw["methods"], options.source_state)
    if options.encoder:
        raw["flare"] = {"source_encoder": str(options.encoder.resolve())}
        raw["methods"] = [*raw["methods"], "flare-mt"]
    found = {}
    for share in [0.0, *options.noise]:
        name = f"noise-{share:g}" if share else "exact"
        path = options.output / f"{name}.yaml"
        path.write_text(yaml.safe_dump(worsened(raw, share, options.output / name), sort_keys=False))
        with watching(console) as watch:
            done = ll.run(path, output=options.output / "runs" / name, watch=watch)
        found[name] = done
    table = {name: summary(done) for name, done in found.items()}
    (options.output / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    text = rendered(table)
    (options.output / "table.md").write_text(text)
    console.print(text, soft_wrap=True)
    console.print(
        f"next: read {options.output}/table.md, or a report, such as {found['exact'].page}", soft_wrap=True
    )


def world(folder: Path) -> dict[str, Any]:
    """The mini-world's sentiment task, 100 translated rows to train on."""
    if not (folder / "data").is_dir():
        write_data(folder / "data")
    where = f"{folder.resolve()}/data/sentiment"
    rows = {"files": f"{where}/{{language}}/{{split}}.jsonl"}
    return {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["sw", "id", "ht"]},
        "tasks": [
            {
                "task": "mini-sentiment",
                "data": {**rows, "max_rows": {"train": 100}},
                "translated": {"into_targets": rows, "into_source": {"files": f"{where}/en/{{split}}.jsonl"}},
            }
        ],
        "adapter": {"rank": 8, "alpha": 16},
        "training": {"task": {"steps": 80, "batch_size": 32, "learning_rate": 2e-3}},
        "methods": yaml.safe_load(EXAMPLE.read_text())["methods"],
        "seeds": [0, 1, 2],
    }


def nusax(shared: Path) -> dict[str, Any]:
    """The example, with its paths made whole."""
    text = EXAMPLE.read_text(encoding="utf-8").replace("../../shared", str(shared))
    raw: dict[str, Any] = yaml.safe_load(text)
    return raw


def reading(methods: Iterable[Any], place: str) -> list[Any]:
    """The methods, each `flare` with the source's states of one place."""
    whole = [{"method": one} if isinstance(one, str) else one for one in methods]
    return [{**one, "source_state": place} if one["method"] == "flare" else one for one in whole]


def worsened(raw: Mapping[str, Any], share: float, folder: Path) -> dict[str, Any]:
    """The experiment with a share of the words of its English test rows dropped or replaced."""
    if not share:
        return dict(raw)
    task = raw["tasks"][0]
    data = Data(**{**task["translated"]["into_source"], "max_rows": {}})
    source = raw["languages"]["source"]
    read = {split: load_rows(data, source, split, folder, ("id", "text")) for split in ("train", "test")}
    words = sorted({word for row in rows_of(read["train"]) for word in row["text"].split()})
    lines = []
    for row in rows_of(read["test"]):
        changed = {"id": row["id"], "text": noisy(row["text"], share, f"0 {row['id']}", words)}
        lines.append(json.dumps(changed, ensure_ascii=False) + "\n")
    for code in raw["languages"]["targets"]:  # one text for all: their rows say the same
        (folder / code).mkdir(parents=True, exist_ok=True)
        (folder / code / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    into = {
        **task["translated"],
        "into_source": {"files": f"{folder.resolve()}/{{language}}/{{split}}.jsonl"},
    }
    return {**raw, "tasks": [{**task, "translated": into}]}


def rows_of(rows: Rows) -> list[dict[str, Any]]:
    """The rows of a loaded split."""
    return [rows.row(index) for index in rows.chosen]


def summary(done: Any) -> dict[str, Any]:
    """Scores by method and language, means and deviations over seeds, and comparisons with the baselines."""
    results = json.loads((done.folder / "results.json").read_text(encoding="utf-8"))
    metric = results["rows"][0]["metric"]
    rows = [row for row in results["rows"] if row["metric"] == metric]
    source = rows[0]["source_language"]
    targets = list(dict.fromkeys(row["language"] for row in rows if row["language"] != source))
    scores: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((row["method"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["variant"]) == name]
        by_seed = [
            statistics.fmean(
                row["score"] for row in mine if row["seed"] == seed and row["language"] in targets
            )
            for seed in dict.fromkeys(row["seed"] for row in mine)
        ]
        cells = {
            code: statistics.fmean(row["score"] for row in mine if row["language"] == code)
            for code in [source, *targets]
            if any(row["language"] == code for row in mine)
        }
        deviation = statistics.stdev(by_seed) if len(by_seed) > 1 else None
        scores[called(*name)] = {
            **cells,
            "average": statistics.fmean(by_seed),
            "deviation": deviation,
            "seeds": len(by_seed),
        }

    def answers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        lines = (done.folder / row["predictions"]).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    against = {
        baseline: {
            called(one.method, one.variant): [one.gain, one.low, one.high]
            for one in compare(rows, answers, {"average": targets}, baseline=baseline)
            if one.where == "average"
        }
        for baseline in BASELINES
    }
    return {"metric": metric, "n": rows[0]["n"], "targets": targets, "scores": scores, "against": against}


def called(method: str, variant: str) -> str:
    """A row's name; where FLARE's states are taken, which is the same in all rows, stands in the command."""
    return f"{method} {variant.partition('-source_state=')[0]}".strip()


def rendered(table: Mapping[str, Any]) -> str:
    """The table as Markdown: a line for each method, its languages under each translation, then the differences."""
    first = next(iter(table.values()))
    targets = first["targets"]
    heads = [f"{code}, {name}" for name in table for code in targets] + [f"average, {name}" for name in table]
    lines = [f"{first['metric']} in percent, n = {first['n']} per language", ""]
    lines += [f"| method | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in first["scores"]:
        cells = [f"{found['scores'][method][code]:.1f}" for found in table.values() for code in targets]
        for found in table.values():
            one = found["scores"][method]
            spread = f" ± {one['deviation']:.1f}" if one["deviation"] is not None else ""
            cells.append(f"{one['average']:.1f}{spread}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    for name, found in table.items():
        lines += ["", f"{name}: points above (95% interval) on the average", ""]
        lines += [f"| method | {' | '.join(BASELINES)} |", "|---|" + "---|" * len(BASELINES)]
        for method in first["scores"]:
            cells = []
            for baseline in BASELINES:
                gain = found["against"][baseline].get(method)
                cells.append("" if gain is None else f"{gain[0]:+.1f} [{gain[1]:+.1f}, {gain[2]:+.1f}]")
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
