"""Cells whose method has no rows in their language stay empty, and say why; the source language need not be scored."""

import json
import re

import pytest

import lingualift as ll
from builders.refusals import refused
from builders.worlds import LANGUAGES, experiment, small_data, write_experiment, write_jsonl
from lingualift.checking import check
from lingualift.config import load_experiment
from lingualift.miniworld.data import sentiment_rows
from lingualift.pipeline import plan_of
from lingualift.report import write_report

METHODS = ["vanilla", "source-ft", "translate-test", "translate-train", "target-ft", "reference-only"]


@pytest.fixture
def world(tmp_path):
    """Data of three languages with translations, and an experiment over it."""
    return built(tmp_path)


def built(tmp_path):
    small_data(tmp_path)
    for language in ("fr", "sw"):
        write_jsonl(
            tmp_path / "into-targets" / language / "train.jsonl", sentiment_rows(language, "train", 48)
        )
        write_jsonl(tmp_path / "into-source" / language / "test.jsonl", sentiment_rows("en", "test", 16))
    raw = experiment(tmp_path, methods=METHODS)
    raw["tasks"][0]["translated"] = {
        "into_targets": {"files": f"{tmp_path}/into-targets/{{language}}/{{split}}.jsonl"},
        "into_source": {"files": f"{tmp_path}/into-source/{{language}}/{{split}}.jsonl"},
    }
    return tmp_path, raw


def qa(folder, **more):
    return {"task": "mini-qa", "data": {"files": f"{folder}/qa/{{language}}/{{split}}.jsonl"}, **more}


def planned(folder, raw):
    return plan_of(write_experiment(folder / "e.yaml", raw), output=folder / "run")[0]


def gaps(plan):
    return {(one.task, one.method, one.language): one.reason for one in plan.empty}


def test_where_all_rows_are_there_nothing_is_empty(world):
    assert planned(*world).empty == ()


@pytest.mark.parametrize(
    ("missing", "empty"),
    [
        ("into-source/sw/test.jsonl", ["translate-test"]),
        ("into-targets/sw/train.jsonl", ["translate-train"]),
        ("sentiment/sw/train.jsonl", ["target-ft"]),
        ("reference/sw/train.jsonl", ["reference-only"]),
    ],
)
def test_a_method_without_rows_in_a_language_leaves_its_cell_empty(world, missing, empty):
    folder, raw = world
    whole = planned(folder, raw)
    (folder / missing).unlink()
    plan = planned(folder, {**raw, "seeds": [0, 1]})
    assert gaps(plan) == {("mini-sentiment", method, "sw"): f"{missing} is not there" for method in empty}
    cells = {(one.cell.method.method, one.cell.language) for one in whole.cells} - {(empty[0], "sw")}
    assert {(one.cell.method.method, one.cell.language) for one in plan.cells} == cells


def test_rows_of_a_method_whose_settings_differ_are_told_apart(world):
    folder, raw = world
    merged = {"method": "adamergex", "weight": 1.0}
    entries = [merged, {**merged, "module_weights": {"q_proj": 0.5}}]
    (folder / "reference/sw/train.jsonl").unlink()
    plan = planned(folder, {**raw, "methods": ["source-ft", *entries]})
    assert [(one.variant, one.language) for one in plan.empty] == [
        ("factors-weight=1", "sw"),
        ("factors-module_weights=q_proj:0.5-weight=1", "sw"),
    ]


@pytest.mark.parametrize(
    "missing",
    [
        "sentiment/en/train.jsonl",  # of the source language: what all methods are made from
        "sentiment/sw/test.jsonl",  # every cell of the language
        "sentiment/en/test.jsonl",  # that the source language is scored on
    ],
)
def test_a_file_without_which_a_method_or_a_language_has_no_cell_is_refused(world, missing):
    folder, raw = world
    (folder / missing).unlink()
    with refused(missing, "not there"):
        planned(folder, raw)


@pytest.mark.parametrize(
    ("key", "method"), [("into_source", "translate-test"), ("into_targets", "translate-train")]
)
def test_a_template_that_leads_nowhere_is_refused(world, key, method):
    folder, raw = world
    raw["tasks"][0]["translated"][key] = {"files": f"{folder}/into-nowhere/{{language}}/{{split}}.jsonl"}
    with refused("into-nowhere/fr", "not there"):
        planned(
            folder, {**raw, "tasks": [*raw["tasks"], qa(folder)], "methods": ["vanilla", "source-ft", method]}
        )


def test_a_language_that_no_task_has_rows_in_is_refused(world):
    folder, raw = world
    raw = {**raw, "methods": ["source-ft"], "languages": {"source": "en", "targets": ["fr", "sw", "id"]}}
    with refused("id/test.jsonl", "not there", mend=""):
        planned(folder, {**raw, "tasks": [*raw["tasks"], qa(folder)]})


def test_source_rows_that_are_not_there_are_not_needed_where_they_are_not_scored(world):
    folder, raw = world
    (folder / "sentiment/en/test.jsonl").unlink()
    with refused("en/test.jsonl", "not there", mend="source_language"):
        planned(folder, raw)
    plan = planned(folder, {**raw, "scoring": {"source_language": False}})
    assert plan.empty == ()
    assert {one.cell.language for one in plan.cells} == {"fr", "sw"}


def test_one_file_of_test_rows_will_do_for_one_target(world):
    folder, raw = world
    raw = {**raw, "languages": {"source": "en", "targets": ["sw"]}, "methods": ["source-ft"]}
    raw["tasks"][0]["data"]["test"] = {"files": f"{folder}/sentiment/sw/test.jsonl"}
    with refused("sw/test.jsonl", "2 languages"):
        planned(folder, raw)
    assert planned(folder, {**raw, "scoring": {"source_language": False}}).cells


def test_the_weight_of_all_cells_needs_its_rows(world):
    folder, raw = world
    raw = {**raw, "methods": ["source-ft", "adamergex"], "weights": {"tune_on": "fr"}}
    (folder / "sentiment/fr/validation.jsonl").unlink()
    with refused("fr/validation.jsonl", "not there"):
        planned(folder, raw)
    (folder / "sentiment/sw/validation.jsonl").unlink()
    with refused("validation.jsonl", "not there"):
        planned(folder, {**raw, "weights": {"by": "entropy"}})
    write_jsonl(folder / "sentiment/fr/validation.jsonl", sentiment_rows("fr", "validation", 12))
    plan = planned(folder, {**raw, "weights": {"by": "entropy"}})
    assert set(gaps(plan)) == {("mini-sentiment", "adamergex", "sw")}


@pytest.mark.parametrize(
    ("named", "empty"),
    [
        ([], {"translate-test": "into_source", "translate-train": "into_targets"}),
        (["into_targets"], {"translate-test": "into_source"}),
    ],
)
def test_a_task_that_names_no_translations_is_without_the_methods_that_read_them(world, named, empty):
    folder, raw = world
    other = qa(folder)
    other["translated"] = dict.fromkeys(named, other["data"])
    raw |= {"tasks": [*raw["tasks"], other], "methods": ["source-ft", "translate-test", "translate-train"]}
    plan = planned(folder, {**raw, "seeds": [0, 1]})
    assert gaps(plan) == {
        ("mini-qa", method, code): f"tasks.1.translated.{key} is not set"
        for method, key in empty.items()
        for code in ("fr", "sw")
    }
    there = {one.cell.method.method for one in plan.cells if one.cell.task.task == "mini-qa"}
    assert there == {"source-ft", "translate-test", "translate-train"} - {*empty}


def test_a_method_without_translations_at_any_task_and_a_task_without_any_method_are_refused(world):
    folder, raw = world
    sentiment, answers = raw["tasks"][0], qa(folder)
    for methods, tasks, grid, where in (
        (["source-ft", "translate-test"], [answers], {}, "tasks.0.translated.into_source"),
        (["translate-test"], [sentiment, answers], {}, "tasks.1.translated.into_source"),
        (
            ["source-ft", "translate-test"],
            [sentiment, answers],
            {"mt": {"with": {}, "without": {"tasks.0.translated": {}}}},
            "tasks.0.translated.into_source, at mt=without",
        ),
    ):
        with refused(where, "is not set", "translate-test reads", mend="lingualift translate --split test"):
            planned(folder, {**raw, "methods": methods, "tasks": tasks, "grid": grid})


def test_other_errors_are_no_gaps(world):
    folder, raw = world
    (folder / "into-source/sw/test.jsonl").write_text("")
    with refused("sw/test.jsonl", "empty"):
        planned(folder, raw)
    (folder / "into-source/sw/test.jsonl").unlink()
    (folder / "into-source/sw/test.jsonl").mkdir()
    with refused("sw/test.jsonl", "is a folder"):
        planned(folder, raw)


@pytest.mark.parametrize(
    "what", ["BuilderConfig 'sw' not found. Available: ['en', 'fr']", "Connection refused"]
)
def test_of_the_hub_a_configuration_that_is_not_there_is_a_gap_and_no_other_failure(world, monkeypatch, what):
    import datasets

    folder, raw = world
    raw["tasks"][0]["translated"]["into_source"] = {
        "hub": "a/b",
        "revision": "0" * 40,
        "config": "{language}",
    }

    def load(name, config, **_):
        if config == "sw":
            raise ValueError(what)
        return datasets.Dataset.from_list(sentiment_rows("en", "test", 16))

    monkeypatch.setattr(datasets, "load_dataset", load)
    if "Builder" in what:
        assert set(gaps(planned(folder, raw))) == {("mini-sentiment", "translate-test", "sw")}
    else:
        with refused("a/b sw test", "Connection refused"):
            planned(folder, raw)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two tasks: one without translations in `sw`, the other without test rows in `fr`, and nothing to answer back."""
    folder, raw = built(tmp_path_factory.mktemp("gaps"))
    (folder / "into-source/sw/test.jsonl").unlink()
    (folder / "qa/fr/test.jsonl").unlink()
    into = {"into_source": {"files": f"{folder}/qa-into/{{language}}/{{split}}.jsonl"}}
    raw["tasks"].append(qa(folder, translated=into))
    raw["methods"] = ["source-ft", "translate-test", "target-ft"]
    rows = [json.loads(line) for line in (folder / "qa/en/test.jsonl").read_text().splitlines()]
    write_jsonl(folder / "qa-into/sw/test.jsonl", rows)
    path = write_experiment(folder / "e.yaml", raw)
    return ll.run(path, output=folder / "run"), path


UNNAMED = "tasks.1.translated"
TOLD = [
    ("mini-sentiment", "translate-test", "sw", "into-source/sw/test.jsonl is not there"),
    ("mini-qa", "source-ft", "fr", "qa/fr/test.jsonl is not there"),
    ("mini-qa", "target-ft", "fr", "qa/fr/test.jsonl is not there"),
    *(
        (
            "mini-qa",
            "translate-test",
            code,
            f"{UNNAMED}.model is not set, and translate-test answers mini-qa in 'en'",
        )
        for code in ("fr", "sw")
    ),
]


def test_a_run_says_which_cells_are_empty_and_why(finished):
    run, path = finished
    results = json.loads((run.folder / "results.json").read_text())
    names = ("task", "method", "language", "reason")
    assert [tuple(one[name] for name in names) for one in results["empty"]] == TOLD
    assert list(run.empty) == results["empty"]
    assert all(set(one) == {*names, "variant", "grid"} for one in results["empty"])
    filled = {(row["task"], row["method"], row["language"]) for row in results["rows"]}
    assert not filled & {one[:3] for one in TOLD}
    write_report(run.folder)
    table, page = ((run.folder / name).read_text() for name in ("table.md", "report.html"))
    for text, gaps_shown in ((table, 3), (page, 4)):  # the page has both metrics of the first task
        assert text.count("–¹") == gaps_shown
        assert text.count("–²") == 2
        assert "into-source/sw/test.jsonl is not there" in text.replace("\\", "")
    sentiment, answers = table.split("**mini-qa**")
    assert re.search(
        r"translate-test +\| – +\| [\d.]+ +\| –¹ +\| – ", sentiment
    )  # no average over what is not there
    assert re.search(
        r"source-ft +\| [\d.]+ +\| –¹ +\| ([\d.]+) +\| \1 ", answers
    )  # nobody has fr: sw is all there is
    assert re.search(r"translate-test +\| – +\| –² +\| –² +\| – +\|( –)? *(\| –)? +\| – ", answers)
    assert table.count("Not compared, for want of rows: translate-test.") == 2
    found = {finding.where: finding.found for finding in check(path, rows=8).findings}
    assert "translate-test stays empty: into-source/sw/test.jsonl" in found["mini-sentiment sw"]


def test_comparisons_are_over_the_languages_that_a_task_has(finished):
    run, _ = finished
    where = {(one.task, one.method, one.where) for one in run.comparisons if one.metric != "macro_f1"}
    assert where == {
        ("mini-sentiment", "translate-test", "fr"),
        *(("mini-sentiment", "target-ft", where) for where in ("fr", "sw", "average")),
        *(("mini-qa", "target-ft", where) for where in ("sw", "average")),
    }


def test_a_tiny_run_has_the_cells_of_a_task_of_ones_own_that_have_rows(world):
    folder, raw = world
    source = (
        "from lingualift.tasks import TASKS, Example, Task\n\n\nclass Own(Task):\n"
        "    columns = ('text',)\n    gold_column = 'label'\n    metrics = ('accuracy',)\n    source = 'a test'\n\n"
        "    def example(self, row, language):\n"
        "        return Example(str(row['id']), row['text'], choices={'positive': 'good', 'negative': 'bad'})\n\n\n"
        "TASKS.register('own-gaps')(Own())\n"
    )
    (folder / "own.py").write_text(source)
    raw["tasks"][0]["task"] = "own.py"
    (folder / "sentiment/sw/train.jsonl").unlink()
    raw["methods"] = ["source-ft", "target-ft"]
    run = ll.run(write_experiment(folder / "e.yaml", raw), output=folder / "tiny", tiny=True)
    assert [(one["method"], one["language"]) for one in run.empty] == [("target-ft", "sw")]


def test_the_switch_scores_the_targets_alone_and_scores_nothing_anew(world):
    folder, raw = world
    raw["methods"] = ["vanilla", "source-ft", "target-ft"]
    whole = ll.run(write_experiment(folder / "e.yaml", raw), output=folder / "whole")
    targets = ll.run(
        folder / "e.yaml", output=folder / "targets", overrides=["scoring.source_language=false"]
    )
    assert targets.trained == 0
    assert not load_experiment(targets.folder / "experiment.yaml").scoring.source_language

    def known(run):
        return {
            (row["method"], row["language"], row["metric"], row["seed"]): row["score"] for row in run.rows
        }

    assert known(targets) == {cell: score for cell, score in known(whole).items() if cell[1] != "en"}
    assert {row["language"] for row in whole.rows} == set(LANGUAGES)
    assert " en " not in (targets.folder / "table.md").read_text()
