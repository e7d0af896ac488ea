"""The merge weight by the entropy of answers: without labels, in each target itself."""

import json
import math
import statistics

import pytest

import lingualift as ll
from builders.refusals import refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.config import Weights
from lingualift.evaluation.runner import entropy
from lingualift.pipeline import plan_of, run
from lingualift.tasks import TASKS

GRID = [0.0, 0.5, 4.0]


@pytest.fixture(scope="module")
def data_without_labels(data, tmp_path_factory):
    """The data, its validation rows without labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for path in data.rglob("*.jsonl"):
        rows = read_jsonl(path)
        if path.stem == "validation":
            rows = [
                {key: value for key, value in row.items() if key not in ("label", "answer")} for row in rows
            ]
        write_jsonl(folder / path.relative_to(data), rows)
    return folder


@pytest.fixture(scope="module")
def finished(data_without_labels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("entropy")
    raw = experiment(
        data_without_labels, methods=["source-ft", "adamergex"], weights={"by": "entropy", "grid": GRID}
    )
    return run(write_experiment(folder / "e.yaml", raw), output=folder / "run")


def sweeps(finished):
    steps = json.loads((finished.folder / "steps.json").read_text())["steps"]
    return {step["facts"]["language"]: step["facts"] for step in steps if step["kind"] == "sweep"}


def test_every_target_chooses_its_least_entropy(finished):
    found = sweeps(finished)
    assert set(found) == {"fr", "sw"}
    for language, sweep in found.items():
        assert sweep["metric"] == "entropy"
        assert sweep["decides"]
        least = min(one["score"] for one in sweep["tried"])
        assert sweep["chosen"] in [one["weight"] for one in sweep["tried"] if one["score"] == least]
        rows = json.loads((finished.folder / "results.json").read_text())["rows"]
        weights = {
            row["weight"] for row in rows if row["method"] == "adamergex" and row["language"] == language
        }
        assert weights == {sweep["chosen"]}


def test_the_entropy_is_that_of_the_predicted_probabilities(finished, data_without_labels):
    """As `predict` tells them, for λ = 0, which is the task adapter."""
    asked = read_jsonl(data_without_labels / "sentiment/sw/validation.jsonl")
    adapter = finished.folder / "adapters" / "mini-sentiment.sw.source-ft.seed0"
    answered = ll.predict(
        backbone="miniworld", task="mini-sentiment", language="sw", rows=asked, adapter=adapter
    )
    each = [
        -sum(p * math.log(p) for p in row["probabilities"].values() if p) / math.log(2) for row in answered
    ]
    at_nought = next(one for one in sweeps(finished)["sw"]["tried"] if one["weight"] == 0)
    assert at_nought["score"] == pytest.approx(100 * statistics.fmean(each), rel=1e-4)
    assert at_nought["stderr"] == pytest.approx(
        100 * statistics.pstdev(each) / math.sqrt(len(each)), rel=1e-4
    )


def test_labels_of_validation_rows_change_nothing(data, data_without_labels, tmp_path):
    keys = []
    for folder in (data, data_without_labels):
        raw = experiment(folder, methods=["adamergex"], weights={"by": "entropy", "grid": GRID})
        planned, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
        keys.append(
            [step.dataset.rows(step.language, "validation") for step in planned.steps if step.kind == "sweep"]
        )
    assert keys[0] == keys[1]
    assert not any(row.gold for rows in keys[0] for row in rows)


def test_the_report_shows_the_curve(finished):
    assert "entropy" in finished.page.read_text(encoding="utf-8")


def test_what_has_no_distribution_is_refused(data, tmp_path):
    raw = experiment(data, methods=["adamergex"], weights={"by": "entropy"})
    raw["tasks"] = [{"task": "mini-qa", "data": {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}}]
    with refused("weights.by", "entropy", "'mini-qa'"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_one_way_of_choosing_at_a_time():
    with pytest.raises(ValueError, match="entropy chooses in each target itself"):
        Weights(by="entropy", tune_on="fr")


def test_a_fair_draw_has_all_of_it_and_a_sure_answer_none(mini, monkeypatch, tmp_path):
    from lingualift.evaluation import runner

    fair = {"positive": -3.0, "negative": -3.0}
    sure = {"positive": 0.0, "negative": -1e9}
    for scores, expected in ((fair, 100.0), (sure, 0.0)):
        one = runner.Prediction("1", (), "positive", False, None, scores)
        monkeypatch.setattr(runner, "predict", lambda *given, one=one: ([one], 0))
        monkeypatch.setattr(runner, "adapted", _nothing)
        example = TASKS["mini-sentiment"].example({"id": "1", "text": "x"}, "en")
        found = entropy(mini, tmp_path, TASKS["mini-sentiment"], [example], None)
        assert found == {"score": pytest.approx(expected), "stderr": 0.0}


class _nothing:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return None, None

    def __exit__(self, *_):
        pass
