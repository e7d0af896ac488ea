"""From `study/rows` to `study/real.json`: every comparison of REAL.md whose rows are there, with interval and p-value.

python study/real_effects.py
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from effects import Cell, Runs, Scored, correct, rounded
from questions import Question, Row
from rich.console import Console
from rich.table import Table

import real

NUMBERS = Path(__file__).parent / "real.json"
SUM, DELTA, PAPER = "delta-sum", "delta", "factors-modules=(q|v)_proj"
FLARE = ("flare", "add_relu")
console = Console()


class Kept(Runs):
    """The rows that finished experiments left; a setting's are in one file for each seed and condition."""

    reported: ClassVar = {
        "nusax-gemma": real.NUSAX,
        "xnli-gemma": ("sw", "th", "vi"),
        "nusax-e5": real.FUSED,
        "nusax-gemma-fused": real.FUSED,
    }

    def files(self, setting: str, part: str) -> list[Path]:
        """The files of a setting under a condition: exact translations (empty), `test`, `train`."""
        wanted = re.compile(rf"{setting}-\d+{part and '-' + part}\.json\.gz")
        return sorted(path for path in self.folder.glob("*.json.gz") if wanted.fullmatch(path.name))

    @functools.cache  # noqa: B019 - lives as long as the program
    def cells(self, setting: str, row: Row) -> dict[Cell, Scored]:
        """The scores of a row by the task's first metric."""
        found = {}
        for path in self.files(setting, row.part):
            kept = read(path)
            mine = [one for one in kept["rows"] if (one["task"], one["method"], one["variant"]) == row[1:]]
            for one in mine:
                if one["metric"] == mine[0]["metric"]:
                    items = kept["items"][f"{one['task']}/{one['language']}"]
                    answers = kept["answers"][one["predictions"]]
                    seed = next(each["seed"] for each in kept["rows"] if each["seed"] is not None)
                    cell = Cell(0, one["seed"] if one["seed"] is not None else seed, one["language"])
                    found[cell] = self.resampled(one, items["ids"], items["gold"], answers)
        return found


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """What an experiment left."""
    kept: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return kept


def questions() -> Iterator[Question]:
    """The ten named comparisons of REAL.md, in its order."""

    def asked(
        setting: str, label: str, one: tuple[str, str], base: tuple[str, str], part: str = ""
    ) -> Question:
        task = setting.split("-")[0]
        return Question("named", setting, label, Row(part, task, *one), Row(part, task, *base), named=True)

    source = ("source-ft", "")
    for setting in ("nusax-gemma", "xnli-gemma"):
        yield asked(setting, "sum, λ tuned, against source-ft", ("arithmetic", SUM), source)
        if setting == "nusax-gemma":
            yield asked(setting, "adamergex (delta) against source-ft", ("adamergex", DELTA), source)
            yield asked(setting, "adamergex (delta) against sum", ("adamergex", DELTA), ("arithmetic", SUM))
        yield asked(setting, "adamergex (factors, q and v) against source-ft", ("adamergex", PAPER), source)
    exact, wrong = "flare against translate-test, exact", "flare against translate-test, a fifth wrong"
    yield asked("nusax-e5", exact, FLARE, ("translate-test", ""))
    yield asked("nusax-e5", wrong, FLARE, ("translate-test", ""), "test")
    for setting in ("nusax-e5", "nusax-gemma-fused"):
        yield asked(setting, "flare against translate-train, exact", FLARE, ("translate-train", ""))


def main() -> None:
    """Compare what is there, correct over all ten, write, and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=real.ROWS, help="what finished experiments left")
    parser.add_argument("--output", type=Path, default=NUMBERS)
    options = parser.parse_args()
    runs, every = Kept(options.rows), list(questions())
    there = [one for one in every if runs.cells(one.setting, one.one) and runs.cells(one.setting, one.base)]
    entries = [asdict(one) | asdict(runs.effect(one)) for one in there]
    correct(entries, len(every) - len(there))
    options.output.write_text(json.dumps(rounded({"effects": entries}), indent=1) + "\n", encoding="utf-8")
    table = Table("setting", "comparison", "points", "95%", "seeds", "p (Holm)", "t-test", box=None)
    for entry in entries:
        table.add_row(
            entry["setting"],
            entry["label"],
            f"{entry['gain']:+.1f}",
            f"[{entry['low']:+.1f}, {entry['high']:+.1f}]".replace("[", "\\["),
            " ".join(f"{part:+.1f}" for part in entry["parts"]),
            f"{entry['p_holm']:.3f}",
            f"{entry['p_parts']:.3f}",
        )
    console.print(table)
    console.print(f"{len(there)} of {len(every)} named comparisons have rows; in {options.output}")


if __name__ == "__main__":
    main()
