"""Running again: what is finished is not done again, what changed is, and nothing else."""

import json
import shutil
import signal

import pytest

from builders.refusals import refused
from builders.runs import flip, lose, redone, timeless, tuned
from builders.worlds import TASK, experiment, read_jsonl, write_experiment
from lingualift.adapters import open_adapter
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.executors import run_step

TASK_FILE = (
    TASK.replace('row["text"],', 'row["text"] + " Rating:",') + 'TASKS.register("mine-NAME")(Mine())\n'
)


def rewrite(path, change):
    rows = read_jsonl(path)
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_second_run_does_nothing_and_finds_the_same(mine):
    before, table = timeless(mine / "run"), (mine / "run" / "table.md").read_text()
    log = read_jsonl(mine / "run" / "log.jsonl")
    again = run(mine / "e.yaml", output=mine / "run")
    assert again.trained == 0
    assert read_jsonl(mine / "run" / "log.jsonl") == log
    assert timeless(mine / "run") == before
    assert (mine / "run" / "table.md").read_text() == table


def test_runs_may_be_moved_with_their_store(mine):
    assert redone(mine) == []


def test_the_adapters_of_a_run_stay_whole_without_the_store(mine, tmp_path):
    adapters = {path.name: path for path in (mine / "store").glob("*/*/adapter_model.safetensors")}
    assert adapters
    shutil.rmtree(mine / "store")
    (mine / "run").rename(tmp_path / "moved")
    for row in timeless(tmp_path / "moved"):
        opened = open_adapter(tmp_path / "moved" / row["adapter"])
        opened.verify()
        assert opened.modules


def test_changed_settings_of_the_task_retrain_the_task_and_no_reference(mine):
    training = tuned("data")["training"]
    training["task"]["learning_rate"] = 1e-3
    steps = redone(mine, training=training)
    assert [step for step in steps if step.startswith("train")] == [
        f"train mini-sentiment in {language}, seed 0" for language in ("en", "fr", "sw")
    ]


def test_changed_settings_of_the_reference_retrain_the_references_alone(mine):
    training = tuned("data")["training"]
    training["reference"]["batch_size"] = 4
    steps = redone(mine, training=training)
    assert [step for step in steps if step.startswith("train")] == [
        f"train causal-lm in {language}, seed 0" for language in ("en", "fr", "sw")
    ]
    assert len([step for step in steps if step.startswith("evaluate")]) == 2  # what adamergex made


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("sentiment/sw/test.jsonl", ["evaluate mini-sentiment in sw"] * 3),
        ("sentiment/sw/validation.jsonl", []),
        (
            "sentiment/sw/train.jsonl",
            ["evaluate mini-sentiment in sw", "train mini-sentiment in sw, seed 0"],
        ),
        (
            "reference/sw/train.jsonl",
            [
                "evaluate mini-sentiment in sw",
                "merge by adamergex (delta) for sw",
                "train causal-lm in sw, seed 0",
            ],
        ),
        (
            "sentiment/fr/validation.jsonl",
            [
                "choose the weight of adamergex (delta) on fr",
                *[f"evaluate mini-sentiment in {code}" for code in ("fr", "sw")],
                *[f"merge by adamergex (delta) for {code}" for code in ("fr", "sw")],
            ],
        ),
    ],
)
def test_changed_rows_redo_what_reads_them_and_nothing_else(mine, file, expected):
    rewrite(mine / "data" / file, lambda rows: rows[0].update(text="so good ."))
    assert redone(mine) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 2},
        {"scoring": {"batch_size": 3}},
        {
            "training": {
                **tuned("d")["training"],
                "task": {**tuned("d")["training"]["task"], "checkpoint_steps": 7},
            }
        },
        {"languages": {"source": "en", "targets": ["sw", "fr"], "groups": {"weak": ["sw"]}}},
    ],
)
def test_settings_that_change_no_result_redo_nothing(mine, changes):
    assert redone(mine, **changes) == []


def test_a_new_seed_or_language_or_method_adds_its_own_steps(mine):
    assert redone(mine, methods=[*tuned("d")["methods"], "reference-only"]) == [
        "evaluate mini-sentiment in fr",
        "evaluate mini-sentiment in sw",
    ]
    steps = redone(mine, seeds=[0, 1])
    assert [step for step in steps if "seed" in step] == [step for step in steps if "seed 1" in step] != []


KINDS = ["initialisation", "adapter", "sweep", "merged", "evaluation"]


NAMING_PLACES = ("step.json", "provenance.json", "README.md")  # of the folder that was copied to be `mine`


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        pytest.param(kind, damage, marks=() if damage is flip or kind == "adapter" else pytest.mark.slow)
        for kind in KINDS
        for damage in (flip, lose, halve)
    ],
)
def test_an_altered_step_is_told_and_made_again_as_it_was(mine, kind, damage):
    before = timeless(mine / "run")
    step = sorted((mine / "store" / kind).iterdir())[0]
    whole = {path: path.read_bytes() for path in step.iterdir() if path.name not in NAMING_PLACES}
    path = max(whole, key=lambda path: path.stat().st_size)
    damage(path)
    assert len(redone(mine)) == 1
    again = run(mine / "e.yaml", output=mine / "run")
    assert again.trained == 1
    assert {path: path.read_bytes() for path in whole} == whole
    assert timeless(mine / "run") == before
    warnings = [line["text"] for line in read_jsonl(mine / "run" / "log.jsonl") if line["event"] == "warning"]
    assert [path.name in text and "it is made again" in text for text in warnings] == [True]
    assert redone(mine) == []


@pytest.mark.parametrize("damage", [flip, lose, halve])
def test_a_step_whose_recipe_is_altered_is_made_again(mine, damage):
    for folder in sorted((mine / "store" / "evaluation").iterdir())[:2]:
        damage(folder / "step.json")
    assert len(redone(mine)) == 2
    assert run(mine / "e.yaml", output=mine / "run").trained == 2


def test_an_input_altered_while_the_run_goes_on_is_not_read(mine):
    planned, store = plan_of(mine / "e.yaml", output=mine / "run")
    merged = next(step for step in planned.steps if step.kind == "merged")
    shutil.rmtree(store.folder(merged))
    flip(store.folder(merged.inputs["task"]) / "adapter_model.safetensors")
    with refused("store/adapter/", "adapter_model.safetensors", mend="again"):
        run_step(merged, store, lambda done, total: None)
    assert not store.folder(merged).exists()


def test_a_killed_sweep_keeps_the_weights_it_has_scored(mine):
    planned, store = plan_of(mine / "e.yaml", output=mine / "run")
    (sweep,) = (step for step in planned.steps if step.kind == "sweep")
    before = (store.folder(sweep) / "sweep.json").read_bytes()
    shutil.rmtree(store.folder(sweep))

    class KilledError(Exception):
        pass

    def die(done, total):
        if 2 * done >= total:  # of two weights, counted in rows
            raise KilledError

    with pytest.raises(KilledError):
        run_step(sweep, store, die)
    (kept,) = store.work(sweep).iterdir()
    state, seen = kept.stat(), []

    def progress(done, total):
        seen.append((done, kept.stat().st_mtime_ns))

    run_step(sweep, store, progress)
    assert seen == [(12, state.st_mtime_ns), (24, state.st_mtime_ns)]
    assert (store.folder(sweep) / "sweep.json").read_bytes() == before
    assert not store.work(sweep).exists()


def test_weights_are_scored_on_further_languages_for_the_report_alone(mine):
    before = timeless(mine / "run")
    weights = {"tune_on": "fr", "grid": [0.0, 1.0], "curves": ["sw"]}
    assert redone(mine, weights=weights) == ["score the weights of adamergex (delta) on sw"]
    run(mine / "e.yaml", output=mine / "run", replace=True)
    assert timeless(mine / "run") == before
    steps = json.loads((mine / "run" / "steps.json").read_text())["steps"]
    curves = {step["facts"]["language"]: step["facts"] for step in steps if step["kind"] == "sweep"}
    assert {language: facts["decides"] for language, facts in curves.items()} == {"fr": True, "sw": False}
    row = next(row for row in before if (row["method"], row["language"]) == ("adamergex", "fr"))
    assert row["weight"] == curves["fr"]["chosen"]
    assert [entry["weight"] for entry in curves["sw"]["tried"]] == [0.0, 1.0]


def test_steps_tell_what_they_were_and_cost(mine):
    steps = json.loads((mine / "run" / "steps.json").read_text())["steps"]
    planned, _ = plan_of(mine / "e.yaml", output=mine / "run")
    assert [step["key"] for step in steps] == [step.key for step in planned.steps]
    assert {step["kind"] for step in steps} == set(KINDS)
    known = {step["key"] for step in steps}
    for step in steps:
        assert step["seconds"] >= 0
        assert step["warnings"] == []
        assert set(step["inputs"].values()) <= known
    task = next(step["facts"] for step in steps if step["label"] == "train mini-sentiment in en, seed 0")
    assert (task["rows"], task["settings"]["learning_rate"]) == (48, 5e-3)
    merged = [step["facts"] for step in steps if step["kind"] == "merged"]
    rows = timeless(mine / "run")
    assert {facts["weights"]["target_reference"] for facts in merged} == {
        row["weight"] for row in rows if row["method"] == "adamergex"
    }


def test_a_task_file_that_changes_is_trained_anew(inside, data):
    task = inside / "mine.py"
    task.write_text(TASK_FILE.replace("NAME", "changed"))
    raw = experiment(data, methods=["source-ft"])
    raw["tasks"][0]["task"] = "mine.py"
    write_experiment(inside / "e.yaml", raw)
    run("e.yaml", output="run")
    planned, store = plan_of("e.yaml", output="run")
    assert planned.missing(store) == []
    task.write_text(task.read_text() + "# changed\n")
    planned, store = plan_of("e.yaml", output="run")
    assert len(planned.missing(store)) == len(planned.steps) - 1  # all but the initialisation


def test_the_choice_of_the_weight_sees_no_test_row_and_no_other_language(mine, tmp_path):
    (sweep,) = (mine / "store" / "sweep").glob("*/sweep.json")
    before = sweep.read_text()
    opposite = {"positive": "negative", "negative": "positive"}
    for language in ("en", "fr", "sw"):
        for split in ("test", *(["validation"] if language != "fr" else [])):
            file = mine / "data" / "sentiment" / language / f"{split}.jsonl"
            rewrite(file, lambda rows: [row.update(label=opposite[row["label"]]) for row in rows])
    run(mine / "e.yaml", output=tmp_path / "fresh")
    (again,) = (tmp_path / "store" / "sweep").glob("*/sweep.json")
    assert again.read_text() == before
    mirrored = {
        (row["method"], row["seed"], row["language"]): row["score"]
        for row in timeless(mine / "run")
        if row["metric"] == "accuracy"
    }
    for row in timeless(tmp_path / "fresh"):
        if row["metric"] == "accuracy" and row["method"] != "target-ft":
            assert row["score"] == pytest.approx(100 - mirrored[row["method"], row["seed"], row["language"]])


def test_two_experiments_share_the_reference_adapters_of_one_store(inside, data):
    write_experiment(inside / "one.yaml", tuned(str(data)))
    other = tuned(str(data))
    other["tasks"] = [{"task": "mini-qa", "data": {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}}]
    write_experiment(inside / "two.yaml", other)
    run("one.yaml", output="one")
    run("two.yaml", output="two")
    labels = [entry["step"] for entry in read_jsonl(inside / "two" / "log.jsonl")]
    assert not [label for label in labels if "causal-lm" in label or "initialise" in label]
    assert any(label == "train mini-qa in en, seed 0" for label in labels)
    assert (inside / "two" / "adapters").is_dir()
    run("two.yaml", output="elsewhere/two", store="store")
    assert not (inside / "elsewhere" / "store").exists()


def test_adapters_are_found_through_a_link_to_the_run_folder(inside, data):
    (inside / "disk" / "deep").mkdir(parents=True)
    (inside / "link").symlink_to(inside / "disk" / "deep")
    write_experiment(inside / "e.yaml", experiment(data, methods=["source-ft"]))
    finished = run("e.yaml", output="link/run", store="store")
    for row in finished.rows:
        assert (finished.folder / row["adapter"] / "adapter_config.json").is_file()


@pytest.mark.slow  # test_resume.py kills a run of one worker
def test_a_killed_run_of_two_workers_goes_on_and_finds_what_one_worker_finds_at_once(cli, first, inside):
    shutil.copytree(first / "data", inside / "data")
    write_experiment(inside / "e.yaml", tuned("data", workers=2))

    def some_are_done():
        return len(list((inside / "cut").glob("store/adapter/*/step.json"))) >= 2

    killed = cli("run", "e.yaml", "--output", "cut/run", kill_when=some_are_done, with_signal=signal.SIGKILL)
    assert killed.code == -9
    assert not (inside / "cut" / "run" / "results.json").exists()
    kept = set((inside / "cut").glob("store/*/[!.]*/step.json"))
    again = cli("run", "e.yaml", "--output", "cut/run")
    assert again.code == 0, again.err
    assert timeless(inside / "cut" / "run") == timeless(first / "run")
    redone_keys = [
        entry["key"] for entry in read_jsonl(inside / "cut" / "run" / "log.jsonl") if entry["event"] == "end"
    ]
    assert len(redone_keys) == len(set(redone_keys))
    assert all(path.is_file() for path in kept)
    for adapter in (first / "store" / "adapter").glob("*/adapter_model.safetensors"):
        same = inside / "cut" / adapter.relative_to(first)
        assert same.read_bytes() == adapter.read_bytes()


def test_the_folder_of_another_experiment_is_not_taken(mine):
    write_experiment(mine / "other.yaml", tuned("data", seeds=[5]))
    before = {path: path.stat().st_mtime_ns for path in (mine / "run").rglob("*")}
    with refused("/run", "another experiment", mend="--replace"):
        run(mine / "other.yaml", output=mine / "run")
    with refused("/data", "not empty", mend="--output"):
        run(mine / "e.yaml", output=mine / "data")
    assert {path: path.stat().st_mtime_ns for path in (mine / "run").rglob("*")} == before
    assert run(mine / "other.yaml", output=mine / "run", replace=True).rows[0]["seed"] == 5
