"""A grid: every combination of its values is an experiment of its own, and steps that several need are made once."""

import json

import pytest

import lingualift as ll
from builders.refusals import refused
from builders.worlds import experiment, write_experiment
from lingualift.config import parse_experiment
from lingualift.pipeline import plan_of
from lingualift.report import write_report
from lingualift.runs.folder import read_run

KINDS = {"lora": {}, "ia3": {"adapter.type": "ia3", "training.task.learning_rate": 5e-4}}
SOURCES = {"en": {}, "fr": {"languages.source": "fr", "languages.targets": ["sw"]}}
QA = {"task": "mini-qa", "data": {"files": "data/qa/{language}/{split}.jsonl", "max_rows": {"test": 8}}}


def asked(data, **changes):
    """Two kinds of adapters times two source languages, on two tasks of which the second has targets of its own."""
    raw = experiment(data, methods=["vanilla", "source-ft", {"method": "adamergex", "weight": 0.5}])
    raw["tasks"] = [raw["tasks"][0], {**QA, "targets": ["sw"]}]
    raw["tasks"][1]["data"] = {**QA["data"], "files": f"{data}/qa/{{language}}/{{split}}.jsonl"}
    return {**raw, "grid": {"kind": KINDS, "labels": SOURCES}, **changes}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    write_experiment(folder / "grid.yaml", asked(data))
    ll.run(folder / "grid.yaml", output=folder / "run")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "run/results.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", SOURCES)
def test_a_point_scores_what_its_experiment_scores_alone(kind, labels, folder, results, data):
    raw = asked(data, grid={})
    if kind == "ia3":
        raw["adapter"] = {**raw["adapter"], "type": "ia3"}
        raw["training"]["task"] = {**raw["training"]["task"], "learning_rate": 5e-4}
    if labels == "fr":
        raw["languages"] = {"source": "fr", "targets": ["sw"]}
    path = folder / f"{kind}-{labels}.yaml"
    write_experiment(path, raw)
    alone = ll.run(path, output=folder / f"alone-{kind}-{labels}")
    assert alone.trained == 0  # the grid's run has made every step
    there = {"kind": kind, "labels": labels}
    told = ("adapter", "predictions", "grid", "seconds")
    mine = [row for row in results["rows"] if row["grid"] == there]
    assert [{key: row[key] for key in row if key not in told} for row in mine] == [
        {key: row[key] for key in row if key not in told} for row in alone.rows
    ]
    compared = [one for one in results["comparisons"] if one["grid"] == there]
    assert [{**one, "grid": {}} for one in compared] == [vars(one) for one in alone.comparisons]
    for row in mine:
        assert (folder / "run" / row["predictions"]).is_file()


def test_shared_steps_are_made_once(folder, data):
    whole, _ = plan_of(folder / "grid.yaml", output=folder / "run")
    keys = [step.key for step in whole.steps]
    assert len(set(keys)) == len(keys)
    parts = sum(len(point.steps) for point in whole.by_point())
    assert len(keys) < parts
    evaluations = [one.evaluation for one in whole.cells]
    plain = {step.key for step in evaluations if step.adapter is None and step.language == "sw"}
    assert len(plain) == 2  # tasks: the plain backbone is the same at every point


def test_each_point_has_tables_of_its_own(folder, results):
    run = read_run(folder / "run")
    write_report(folder / "run")
    table, page = ((folder / "run" / name).read_text() for name in ("table.md", "report.html"))
    for kind in KINDS:
        for labels in SOURCES:
            for task in ("mini-sentiment", "mini-qa"):
                assert f"**{task} (kind={kind}, labels={labels})**" in table
                assert f"{task} (kind={kind}, labels={labels})" in page
    assert len(run.rows) == len(results["rows"])
    assert "kind: lora, ia3; labels: en, fr" in page


def test_a_task_is_lifted_into_its_own_targets(results):
    languages = {}
    for row in results["rows"]:
        languages.setdefault((row["task"], row["grid"]["labels"]), set()).add(row["language"])
    assert languages["mini-qa", "en"] == {"en", "sw"}
    assert languages["mini-sentiment", "en"] >= {"en", "fr", "sw"}


ONCE = "the same at every point"
REFUSED = {
    "adapter.typ": ({"k": {"a": {"adapter.typ": 1}}}, "grid: at k=a, adapter.typ: ", "did you mean type?"),
    "a source among the targets": (
        {"k": {"a": {"languages.source": "fr"}}},
        "grid: at k=a, languages: ",
        "fr is the source",
    ),
    "the same twice": ({"k": {"a": {}, "b": {}}}, "grid: ", "k=b is the same experiment as k=a"),
    "no value": ({"k": {}}, "grid.k: ", "at least 1"),
    "a name that no file can have": ({"k/k": {"a": {}}}, "grid.k/k: ", "'k/k'"),
    "what is the same everywhere": ({"k": {"a": {"workers": 2}}}, "grid.k.a.workers: ", ONCE),
    "an index": ({"k": {"a": {"tasks.5.targets": ["fr"]}}}, "grid.k.a.tasks.5.targets: ", "'5' is no index"),
    "a grid in a grid": ({"k": {"a": {"grid": {}}}}, "grid.k.a.grid: ", ONCE),
    "too many": ({str(n): {"a": {}, "b": {"seeds": [n]}} for n in range(13)}, "grid: ", "4,096"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_grid(name, data):
    grid, *facts = REFUSED[name]
    with refused("experiment", *facts, mend="the keys"):
        parse_experiment(asked(data, grid=grid))


def test_what_is_wrong_at_one_point_names_it(data, tmp_path):
    raw = asked(
        data, grid={"rows": {"there": {}, "gone": {"tasks.0.data.files": "gone/{language}/{split}.jsonl"}}}
    )
    write_experiment(tmp_path / "e.yaml", raw)
    with refused("gone/en/test.jsonl, at rows=gone", "not there", mend="e.yaml"):
        plan_of(tmp_path / "e.yaml")


def test_a_tiny_grid_has_its_axes(data, tmp_path):
    write_experiment(tmp_path / "e.yaml", asked(data))
    rows = ll.run(tmp_path / "e.yaml", output=tmp_path / "tiny", tiny=True).rows
    found = {tuple(row["grid"].items()) for row in rows}
    assert found == {(("kind", kind), ("labels", labels)) for kind in KINDS for labels in SOURCES}


def test_values_that_a_tiny_run_cannot_tell_apart_are_one(data, tmp_path):
    grid = {"length": {"short": {}, "long": {"training.task.steps": 7}}, "kind": KINDS}
    write_experiment(tmp_path / "e.yaml", asked(data, grid=grid))
    run = ll.run(tmp_path / "e.yaml", output=tmp_path / "tiny", tiny=True)
    assert {row["grid"]["length"] for row in run.rows} == {"short"}
    assert any("length" in note and "long" in note for note in run.notes)


def test_a_value_may_be_named_by_an_alias(data):
    """What one point sets within a list that another names too is not set there."""
    raw = asked(data, grid={})
    one = raw["tasks"][:1]
    same = {"tasks": one, "tasks.0.targets": ["sw"]}
    raw["grid"] = {"tasks": {"narrow": same, "wide": {"tasks": one}}}
    narrow, wide = (point.experiment.languages.targets for point in parse_experiment(raw).points())
    assert (narrow, wide) == (("sw",), ("fr", "sw"))
