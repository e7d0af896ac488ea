"""benchmarks/real_data.py: it lays the data out, runs every task that suits, and its table is what the results say."""

import dataclasses
import gzip
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from lingualift.tasks import shipped_rows

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_data.py"


@pytest.fixture
def script(monkeypatch):
    """The script, with the languages that ship and four rows of each."""
    spec = importlib.util.spec_from_file_location("real_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real_data", module)
    spec.loader.exec_module(module)
    few = {
        "nusax": {"targets": ("ind",)},
        "xcopa": {"targets": ("id",), "splits": {"source:test": ("xcopa", "val")}},
    }
    for task, changes in few.items():
        text = "text/{language}.jsonl.gz"
        found = dataclasses.replace(module.SPECS[task], rows=(4, 4), epochs=1, text=text, steps=2, **changes)
        monkeypatch.setitem(module.SPECS, task, found)
    return module


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.slow  # the benchmark is a script over runs, which have their own tests
def test_the_table_is_what_the_results_say(script, tmp_path, monkeypatch, capsys):
    data, output = tmp_path / "data", tmp_path / "out"
    for language in ("eng", "ind"):
        for split in ("train", "test"):
            write(data / "nusax" / language / f"{split}.jsonl.gz", shipped_rows("nusax", language))
    for language, splits in {"en": ("train", "val"), "id": ("test",)}.items():
        for split in splits:
            write(data / "xcopa" / language / f"{split}.jsonl.gz", shipped_rows("xcopa", language))
    for number, language in enumerate(("eng", "ind", "en", "id")):
        text = "the red book is on the table " * (number + 1)
        write(data / "text" / f"{language}.jsonl.gz", [{"text": text}] * 40)
    from lingualift.miniworld import BACKBONE

    arguments = ["--data", str(data), "--backbone", str(BACKBONE), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["real_data.py", *arguments, "--tasks", "nusax,xcopa"])
    script.main()
    table = (output / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    told = {}
    for line in table.splitlines()[2:]:
        task, metric, method, scores, n, chance, malformed = (cell.strip() for cell in line.split("|")[1:-1])
        assert n == "4"
        told |= {(task, metric, method, *cell.split()): (chance, malformed) for cell in scores.split(", ")}
    for task in ("nusax", "xcopa"):
        rows = json.loads((output / task / "results.json").read_text(encoding="utf-8"))["rows"]
        mine = [row for row in rows if row["metric"] == rows[0]["metric"]]
        keys = {(task, r["metric"], r["method"], r["language"], f"{r['score']:.1f}") for r in mine}
        assert keys == {key for key in told if key[0] == task}
    assert {key[2] for key in told} == {"vanilla", "source-ft", "adamergex"}
