"""benchmarks/fusing.py: its table is what the results say, and worse translations touch the source side alone."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fusing.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("fusing_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # the benchmark is a script over runs, which have their own tests
def test_the_table_is_what_the_results_say(script, tmp_path, monkeypatch, capsys):
    example = tmp_path / "example.yaml"
    example.write_text("methods: [source-ft, translate-test, translate-train, input-fusion, flare]")
    monkeypatch.setattr(script, "EXAMPLE", example)
    arguments = [
        "--world",
        "--output",
        str(tmp_path / "out"),
        "--rows",
        "8",
        "--steps",
        "1",
        "--workers",
        "1",
    ]
    arguments += ["--seeds", "0", "--noise", "0.5", "--source-state", "block-output"]
    monkeypatch.setattr(sys, "argv", ["fusing.py", *arguments])
    script.main()
    table = json.loads((tmp_path / "out/table.json").read_text())
    text = (tmp_path / "out/table.md").read_text()
    assert set(table) == {"exact", "noise-0.5"}
    for name, found in table.items():
        rows = json.loads((tmp_path / "out/runs" / name / "results.json").read_text())["rows"]
        for row in rows:
            if row["metric"] == "accuracy":
                method = script.called(row["method"], row["variant"])
                assert found["scores"][method][row["language"]] == row["score"]
        for baseline, gains in found["against"].items():
            for method, (gain, low, high) in gains.items():
                difference = found["scores"][method]["average"] - found["scores"][baseline]["average"]
                assert gain == pytest.approx(difference, abs=1e-5)
                assert low <= gain <= high
    assert {row["variant"] for row in rows if row["method"] == "flare"} == {
        "add_relu-source_state=block-output"
    }
    assert "flare add_relu" in table["exact"]["scores"]
    exact, worse = (table[name]["scores"] for name in ("exact", "noise-0.5"))
    assert all(exact[method] == worse[method] for method in ("source-ft", "translate-train"))
    assert exact["translate-test"] != worse["translate-test"]
    for method, one in exact.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {method} |"))
        assert f"{one['average']:.1f}" in line
    changed = [
        json.loads(line) for line in (tmp_path / "out/noise-0.5/sw/test.jsonl").read_text().splitlines()
    ]
    english = (tmp_path / "out/data/sentiment/en/test.jsonl").read_text().splitlines()
    assert [row["id"] for row in changed] == [json.loads(line)["id"] for line in english]
    assert (
        sum(row["text"] != json.loads(line)["text"] for row, line in zip(changed, english, strict=True)) > 290
    )
    assert all("label" not in row for row in changed)
    assert re.search(r"next: read .*table\.md", " ".join(capsys.readouterr().out.split()))
