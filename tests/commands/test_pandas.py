"""Predictions open in pandas as the documents say: nothing lost, text stays text, malformed answers are missing."""

import re
from pathlib import Path

import pandas
import pytest

import lingualift as ll
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl

DOCS = (Path(__file__).parents[2] / "docs/interop.md").read_text(encoding="utf-8")
BLOCK = DOCS.split("## pandas")[1].split("```python\n")[1].split("```")[0]
OPTIONS = re.search(r'read_json\("scores.predictions.jsonl", (.*)\)', BLOCK)[1]
NUMBERS = """
from lingualift.tasks import TASKS, Example, Task


class Codes(Task):
    columns = ("id", "text")
    gold_column = "code"
    metrics = ("exact_match",)
    source = "made up"
    max_new_tokens = 1

    def example(self, row, language):
        return Example(row["id"], row["text"])

    def parse(self, text, example):
        return {"0": None, "1": "07", "2": "1.0", "3": "nan"}[example.id[-1]]


TASKS.register("codes")(Codes())
"""


def opened(path):
    return eval(f"pandas.read_json({str(path)!r}, {OPTIONS})", {"pandas": pandas})


def records(table):
    """Rows of a table as JSON has them; what is missing is None."""
    return [
        {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def test_predictions_of_a_run_are_read_whole(data, tmp_path):
    raw = experiment(data, methods=["vanilla"])
    raw["tasks"].append({"task": "mini-qa", "data": {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}})
    done = ll.run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    files = sorted(done.folder.glob("predictions/*.jsonl"))
    assert len(files) == 6
    for path in files:
        table = opened(path)
        assert records(table) == read_jsonl(path)
        assert len(table) == 16
        assert table["correct"].dtype == bool


def test_text_stays_text_and_malformed_answers_are_missing(cli, inside):
    (inside / "codes.py").write_text(NUMBERS, encoding="utf-8")
    rows = [{"id": f"0{i}", "text": "kitabu", "code": "07", "created_at": "12"} for i in range(4)]
    write_jsonl(inside / "test.jsonl", rows)
    common = ("--backbone", "miniworld", "--task", "codes.py", "--language", "sw")
    scored = cli("evaluate", *common, "--data", "{split}.jsonl", "--output", "scores.json")
    asked = cli("predict", *common, "--input", "test.jsonl", "--output", "answers.jsonl")
    assert (scored.code, asked.code) == (0, 0), scored.err + asked.err
    for name in ("scores.predictions.jsonl", "answers.jsonl"):
        table = opened(inside / name)
        assert table["prediction"].isna().tolist() == [True, False, False, False]
        assert table["prediction"].tolist()[1:] == ["07", "1.0", "nan"]
        assert table["id"].tolist() == ["00", "01", "02", "03"]
        assert records(table) == read_jsonl(inside / name)
    assert table["created_at"].tolist() == ["12"] * 4
    assert opened(inside / "scores.predictions.jsonl")["correct"].tolist() == [False, True, False, False]
    changed = pandas.read_json(inside / "scores.predictions.jsonl", lines=True)
    assert changed["prediction"].tolist()[1:3] != ["07", "1.0"], (
        "the options that the documents name are needed"
    )


@pytest.mark.parametrize("label", ["positive", "negative"])
def test_the_documented_table_says_what_the_file_says(cli, data, inside, capsys, label):
    files = f"{data}/sentiment/{{language}}/{{split}}.jsonl"
    common = ("--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw")
    done = cli("evaluate", *common, "--data", files, "--output", "scores.json")
    assert done.code == 0, done.err
    names = {}
    exec(compile(BLOCK, "interop.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("0 malformed of 16\n")
    rows = read_jsonl(inside / "scores.predictions.jsonl")
    right = [row["correct"] for row in rows if row["gold"] == [label]]
    shown = float(re.search(rf"^{label} +(\S+)$", printed, re.MULTILINE)[1])
    assert shown == pytest.approx(sum(right) / len(right), abs=1e-6), "shown with six decimals"
    assert names["scores"][label].tolist() == [row["scores"][label] for row in rows]
