"""benchmarks/lift.py: its table is what the lifts measured, and a second run trains nothing."""

import json
import re
import statistics
import sys
from pathlib import Path

import lift as script
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call():
        arguments = [
            "lift.py",
            "--output",
            str(tmp_path),
            "--seeds",
            "2",
            "--steps",
            "2",
            "--languages",
            "sw",
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()
        return (tmp_path / "table.md").read_text()

    return call


@pytest.mark.slow  # the benchmark is a script over lifts, which have their own tests
def test_the_table_is_what_the_lifts_measured(run, tmp_path, monkeypatch):
    text = run()
    for task in script.TASKS:
        numbers = [json.loads((tmp_path / f"{task}-{seed}-sw/lift.json").read_text()) for seed in (0, 1)]
        assert [one["weight"] for one in numbers] == [0.5, 0.5]
        measures = [
            {one["what"]: one for one in found["measures"] if one["language"] == "sw"} for found in numbers
        ]
        scores = [next(one for name, one in found.items() if name != "perplexity") for found in measures]
        before, after = (statistics.fmean(one[key] for one in scores) for key in ("before", "after"))
        line = next(line for line in text.splitlines() if line.startswith(f"| mini-{task} | sw |"))
        assert f"| {before:.1f} | {after:.1f} | {after - before:+.1f} ± " in line
        error = abs(scores[0]["change"] - scores[1]["change"]) / 2  # of two: half their distance
        assert float(re.search(r"± (\S+)", line)[1]) == pytest.approx(error, abs=0.05)
        assert f"{statistics.fmean(one['perplexity']['change'] for one in measures):+.2f} (of " in line
    monkeypatch.setattr(script.plain_peft, "train", None)
    monkeypatch.setattr(script.ll, "lift", None)
    assert run() == text


def test_the_guide_shows_a_table_of_this_form():
    page = (ROOT / "docs/lift.md").read_text(encoding="utf-8")
    head = script.rendered([]).strip()
    table = page.split(head)[1].split("\n\n")[0].strip().splitlines()
    assert [line.split(" | ")[:2] for line in table] == [
        [f"| mini-{task}", code] for task in script.TASKS for code in script.WEAK
    ]
    assert "python benchmarks/lift.py" in page
