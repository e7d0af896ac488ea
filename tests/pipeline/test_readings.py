"""A run keeps both readings of generated answers; which one counts is a choice that scores nothing anew."""

import json

import pytest

import lingualift as ll
from builders.worlds import experiment, read_jsonl, write_experiment
from lingualift.metrics.scores import METRICS
from lingualift.report import write_report

TASK = """
from lingualift.miniworld import LABEL_WORDS, SENTIMENT_PROMPT
from lingualift.tasks import TASKS, Example, Task


class Written(Task):
    columns = ("text",)
    gold_column = "label"
    labels = tuple(LABEL_WORDS)
    metrics = ("accuracy",)
    source = "a test"
    max_new_tokens = 2

    def example(self, row, language):
        return Example(str(row["id"]), SENTIMENT_PROMPT.format(text=row["text"]))

    def parse(self, text, example):
        return text if text == "<positive>" else None

    def parse_lenient(self, text, example):
        return {words: label for label, words in LABEL_WORDS.items()}.get(text.split(" ")[0]) if text else None


TASKS.register("written")(Written())
"""


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readings")
    (folder / "written.py").write_text(TASK)
    raw = experiment(data, methods=["vanilla"])
    raw["tasks"][0]["task"] = "written.py"
    raw["grid"] = {"reading": {"strict": {}, "lenient": {"scoring.reading": "lenient"}}}
    return ll.run(write_experiment(folder / "e.yaml", raw), output=folder / "run")


def test_one_evaluation_serves_both_readings(run):
    assert run.trained == 3  # languages
    rows = {(row["grid"]["reading"], row["language"]): row for row in run.rows}
    assert len(rows) == 6
    for (reading, language), row in rows.items():
        assert row["reading"] == reading
        assert row["malformed"] == row["readings"][reading]["malformed"]
        assert (row["score"], row["stderr"]) == tuple(
            row["readings"][reading][key] for key in ("score", "stderr")
        )
        assert row["readings"] == rows["strict", language]["readings"]
        answers = read_jsonl(run.folder / row["predictions"])
        read = [answer["prediction"] for answer in answers]
        assert read == [answer["readings"][reading]["prediction"] for answer in answers]
        golds = [tuple(answer["gold"]) for answer in answers]
        assert row["score"] == METRICS["accuracy"].score(read, golds, language).value
        assert [answer["correct"] for answer in answers] == [
            one in gold for one, gold in zip(read, golds, strict=True)
        ]
    assert rows["strict", "en"]["malformed"] == 16
    assert rows["lenient", "en"]["malformed"] == 0
    assert rows["lenient", "en"]["score"] > 90  # the backbone knows English


def test_the_report_counts_both(run):
    write_report(run.folder)
    table, page = ((run.folder / name).read_text() for name in ("table.md", "report.html"))
    assert "| 48 (lenient 0) |" in table
    assert "| 0 (strict 48)  |" in table or "| 0 (strict 48) |" in table
    mean = sum(row["score"] for row in run.rows if row["grid"]["reading"] == "lenient") / 3
    told = (
        f"By the lenient reading, on average over all languages of a line: vanilla {mean:.1f} (0 malformed)."
    )
    for text in (table, page):
        assert told in text
        assert (
            "By the strict reading, on average over all languages of a line: vanilla 0.0 (48 malformed)."
            in text
        )


def test_results_of_before_are_reported_still(run):
    """A run folder whose rows have no readings."""
    path = run.folder / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        del row["reading"], row["readings"]
    path.write_text(json.dumps(results))
    write_report(run.folder)
    assert "lenient 0" not in (run.folder / "table.md").read_text()
