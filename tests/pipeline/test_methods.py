"""What a plan refuses, and that it refuses before anything runs."""

import pytest

from builders.refusals import refused
from builders.worlds import TASK, experiment, write_experiment, write_jsonl
from lingualift.config import METHOD_SETTINGS, SumMethod
from lingualift.pipeline import plan_of
from lingualift.pipeline.methods import METHODS, _method
from lingualift.pipeline.results import cell_name
from lingualift.tasks import get_task


def plan(folder, raw):
    return plan_of(write_experiment(folder / "e.yaml", raw), output=folder / "run")[0]


def merging(data, *methods, **changes):
    return experiment(data, methods=["source-ft", *methods], weights={"tune_on": "fr"}, **changes)


def of(*methods, **settings):
    """The methods, the last with settings."""
    return {"methods": [*methods[:-1], {"method": methods[-1], **settings}]}


def on(task, files):
    return {"tasks": [{"task": task, "data": {"files": files}}]}


@pytest.mark.parametrize(
    ("changes", "where", "found", "mend"),
    [
        ({"methods": []}, "methods", "empty", "`lingualift methods`"),
        ({"methods": ["adamergx"]}, "'adamergx'", "not known", "adamergex"),
        ({"methods": ["adamergex"], "weights": {}}, "methods.0", "adamergex has no merge weight", "`weight`"),
        (
            {"methods": ["vanilla", "adamergex"], "reference": None},
            "methods.1",
            "adamergex needs unlabelled text",
            "`reference:`",
        ),
        (
            {"methods": ["reference-only"], "training": {"task": {"steps": 1}}},
            "training.reference",
            "reference-only trains on unlabelled text (methods.0)",
            "epochs: 1",
        ),
        (of("vanilla", space="delta"), "/e.yaml", "methods.0.space: vanilla does not use it", "the keys"),
        (of("adamergex", combine="mean"), "/e.yaml", "0.combine: adamergex does not use it", "the keys"),
        (
            of("adamergex", space="delta") | {"adapter": {"type": "ia3"}},
            "methods.0, adamergex on (IA)³, space delta",
            "no factors",
            'space="factors"',
        ),
        (of("adamergex", modules="("), "methods.0.modules", "no regular expression", "the pattern"),
        (of("vanilla", "adamergex", modules="no_proj"), "methods.1.modules", "'no_proj' matches", "q_proj"),
        ({"backbone": {"name": "./none"}}, "backbone './none'", "no folder", "the path"),
        (on("mini-sentimant", "{language}.csv"), "task 'mini-sentimant'", "not known", "mini-sentiment?"),
        (on("none.py", "{language}.csv"), "/none.py", "not there", "the path"),
        (on("mini-sentiment", "{split}.jsonl"), "{split}.jsonl", "{language} in the path", "{language}/"),
        ({"languages": {"source": "en", "targets": ["fr", "de"]}}, "/de/test.jsonl", "language 'de'", "sw"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(data, tmp_path, changes, where, found, mend):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"id": "1", "text": "x", "label": "positive"}])
    raw = merging(data, "target-ft", "reference-only") | changes
    with refused(where, found, mend=mend):
        plan(tmp_path, raw)
    assert {path.name for path in tmp_path.iterdir()} <= {"e.yaml", "train.jsonl", "test.jsonl"}


def test_a_reference_task_cannot_be_scored(data, tmp_path):
    raw = experiment(data)
    raw["tasks"] = [
        {"task": "causal-lm", "data": {"files": f"{data}/sentiment/{{language}}/{{split}}.jsonl"}}
    ]
    with refused("task 'causal-lm'", "no labels"):
        plan(tmp_path, raw)


def test_every_row_is_read_before_a_step_runs(data, tmp_path):
    files = f"{data}/sentiment/{{language}}/{{split}}.jsonl"
    for language in ("en", "fr", "sw"):
        write_jsonl(
            tmp_path / language / "train.jsonl", [{"text": "a"}, {"text": "" if language == "sw" else "b"}]
        )
    raw = merging(data, "adamergex", reference={"data": {"files": "{language}/train.jsonl"}})
    raw["tasks"] = [{"task": "mini-sentiment", "data": {"files": files}}]
    with refused("sw/train.jsonl", "sw/train.jsonl:2: column 'text' is empty"):
        plan(tmp_path, raw)


def test_no_two_cells_share_a_file_name(data, tmp_path):
    methods = [
        {"method": "adamergex", "modules": pattern}
        for pattern in ("q.*", "q_.*", "(q|v)_proj", "[q|v]_proj", "q+_proj")
    ]
    raw = merging(data, *methods)
    planned = plan(tmp_path, raw)
    names = [cell_name(one) for one in planned.cells]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_.=") for name in names)


def test_inputs_come_before_what_reads_them_and_every_step_once(data, tmp_path):
    planned = plan(tmp_path, merging(data, "adamergex", "target-ft", "reference-only", seeds=[0, 1]))
    keys = [step.key for step in planned.steps]
    assert len(set(keys)) == len(keys)
    for index, step in enumerate(planned.steps):
        assert {source.key for source in step.inputs.values()} <= set(keys[:index])
    trained = [step.label() for step in planned.steps if step.kind == "adapter"]
    assert len(trained) == 2 * (3 + 3)  # T + L + 1 for the merges, and the upper bound's own


def registered(name, before=TASK):
    return f"{before}TASKS.register('{name}')(Mine())\n"


@pytest.mark.parametrize(
    ("text", "place", "found", "mend"),
    [
        ("raise RuntimeError('broken here')", ":1", "RuntimeError: broken here", "correct"),
        ("def (", ":1", "SyntaxError", "correct"),
        ("", "", "0 tasks; exactly one", "docs/your-own-task.md"),
        (registered("one-a") + registered("one-b", ""), "", "2 tasks; exactly one", "docs/your-own-task.md"),
        (registered("nusax"), ":16", "'nusax' is registered twice", "correct"),
        (registered("mine-class").replace("Mine())", "Mine)"), "", "no instance", "Mine()"),
        (registered("mine-c").replace('    columns = ("id", "text")\n', ""), ":5", "`columns`", "set it"),
        (registered("mine-s").replace('    source = "a test"\n', ""), ":5", "`source`", "set it"),
    ],
)
def test_a_broken_task_file_is_the_users_error(tmp_path, text, place, found, mend):
    (tmp_path / "broken.py").write_text(text)
    with refused(f"{tmp_path / 'broken.py'}{place}", found, mend=mend):
        get_task("broken.py", tmp_path)


def test_a_task_file_that_fails_on_a_row_is_the_users_error(data, tmp_path):
    (tmp_path / "mine.py").write_text(
        TASK.replace('row["text"]', 'row["txt"]') + "TASKS.register('mine-row')(Mine())\n"
    )
    raw = experiment(data)
    raw["tasks"][0]["task"] = "mine.py"
    with refused("/mine.py:13", "`example` of Mine", "KeyError: 'txt'", "/test.jsonl:1", mend="or the row"):
        plan(tmp_path, raw)


def test_a_task_with_a_metric_that_is_not_known_is_refused_before_training(data, tmp_path):
    text = TASK.replace('"accuracy"', '"acuracy"') + "TASKS.register('mine-metric')(Mine())\n"
    (tmp_path / "mine.py").write_text(text)
    raw = experiment(data)
    raw["tasks"][0]["task"] = "mine.py"
    with refused("mine.py:8", "'acuracy'", mend="accuracy"):
        plan(tmp_path, raw)


def test_two_task_files_of_one_name_keep_their_own_code(tmp_path):
    from lingualift.tasks import task_code

    codes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.py").write_text(TASK + f"TASKS.register('same-{name}')(Mine())\n")
        get_task("task.py", tmp_path / name)
    codes = [task_code("task.py", tmp_path / name) for name in ("one", "two")]
    assert codes[0] != codes[1]


def test_two_tasks_that_would_share_a_name_in_the_results_are_refused(data, tmp_path):
    raw = experiment(data)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.py").write_text(TASK + f"TASKS.register('stem-{name}')(Mine())\n")
    raw["tasks"] = [{**raw["tasks"][0], "task": f"{name}/task.py"} for name in ("one", "two")]
    with refused("e.yaml", "tasks: task is named twice"):
        plan(tmp_path, raw)


def test_planning_writes_nothing(data, tmp_path):
    plan(tmp_path, merging(data, "adamergex"))
    assert {path.name for path in tmp_path.iterdir()} <= {"e.yaml", "train.jsonl", "test.jsonl"}


@pytest.mark.parametrize(
    ("rule", "place", "found", "mend"),
    [
        ("magmax", "merge method 'magmax'", "not known", "known: adamergex, arithmetic"),
        ("ties", "ties on LoRA, space delta", "single elements", 'space="factors"'),
    ],
)
def test_a_merge_that_there_is_not_is_refused_before_anything_runs(
    rule, place, found, mend, data, tmp_path, monkeypatch
):
    """A transfer method may merge by a rule of another name; neither training nor scoring comes before the refusal."""

    @_method("mine", paper_name="", source="a test", needs_reference=True)
    def mine(cell):
        """Mine."""
        return cell.merged(subtract_source=False, by=rule)

    monkeypatch.setitem(METHOD_SETTINGS, "mine", SumMethod)
    raw = experiment(data, methods=[{"method": "mine", "space": "delta", "weight": 0.5}])
    try:
        with refused(place, found, mend=mend):
            plan_of(write_experiment(tmp_path / "e.yaml", raw))
    finally:
        METHODS.pop("mine")
