"""What people keep beside ours stays as it is: in run folders, in stores, in the demo."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from builders.refusals import refused
from builders.runs import redone, states, tuned
from builders.worlds import write_experiment
from lingualift.config import dump_experiment, load_experiment
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.store import Store
from lingualift.provenance import sha256_file
from lingualift.report import write_report
from lingualift.runs.claims import RECORD_FILE

MINE = (
    "my.txt",
    "adapters/my-merge/adapter_model.safetensors",
    "predictions/notes.txt",
    "logs-of-mine/a",
)


def hashes(folder):
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def put(folder, names=MINE):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} is mine")
    return {folder / name: sha256_file(folder / name) for name in names}


@pytest.fixture
def folder(mine):
    """A folder of the user's: a commented experiment and things of their own."""
    text = "# three days of edits\n" + (mine / "e.yaml").read_text()
    (mine / "experiment.yaml").write_text(text)
    shutil.move(mine / "e.yaml", mine / "kept.yaml")
    put(mine, (*MINE, "table.md", "report.html", "results.json"))
    return mine


def test_the_folder_of_the_experiment_is_no_run_folder(folder, cli, monkeypatch):
    monkeypatch.chdir(folder)
    before = hashes(folder)
    refused = cli("run", "experiment.yaml", "--output", ".")
    assert "holds an experiment.yaml that no run wrote" in refused.message
    assert "choose another --output" in refused.message
    assert hashes(folder) == before
    (folder / "experiment.yaml").write_text(dump_experiment(load_experiment(folder / "kept.yaml")))
    before = hashes(folder)  # a copy of what a run resolved makes no run folder either
    assert "that no run wrote" in cli("run", "kept.yaml", "--output", ".", "--replace").message
    assert hashes(folder) == before


def test_what_is_kept_in_a_run_folder_stays_over_later_runs(mine):
    into = json.loads((mine / "run" / "results.json").read_text())["rows"][0]["adapter"]
    kept = put(mine / "run", (*MINE, f"{into}/notes.md"))
    run(mine / "e.yaml", output=mine / "run")
    assert {path: sha256_file(path) for path in kept} == kept
    write_experiment(mine / "e.yaml", tuned("data", methods=["vanilla"]))
    run(mine / "e.yaml", output=mine / "run", replace=True)
    assert {path: sha256_file(path) for path in kept} == kept
    left = [path for path in (mine / "run" / "adapters").rglob("*") if path.is_file()]
    assert set(left) <= set(kept)  # what the run before had made is gone


def test_a_comment_in_the_experiment_of_a_run_folder_stays(mine):
    there = mine / "run" / "experiment.yaml"
    there.write_text("# noted\n" + there.read_text())
    before = there.read_bytes()
    run(mine / "e.yaml", output=mine / "run")
    assert there.read_bytes() == before
    write_experiment(mine / "e.yaml", tuned("data", methods=["vanilla"]))
    with refused("experiment.yaml", "was changed"):
        run(mine / "e.yaml", output=mine / "run", replace=True)
    assert there.read_bytes() == before


@pytest.mark.parametrize("name", ["table.md", "results.json", "predictions/{}"])
def test_a_file_of_ours_that_was_edited_is_told_before_anything_runs(mine, name):
    path = mine / "run" / name.format(next((mine / "run" / "predictions").iterdir()).name)
    path.write_text("edited for the paper")
    shutil.rmtree(mine / "store" / "evaluation")
    with refused(name.format(""), "was changed"):
        run(mine / "e.yaml", output=mine / "run")
    assert path.read_text() == "edited for the paper"
    assert not list((mine / "store" / "evaluation").glob("*"))
    path.unlink()
    run(mine / "e.yaml", output=mine / "run")


def test_a_file_of_somebodys_where_one_of_ours_goes_is_told_before_anything_runs(mine, tmp_path):
    write_experiment(mine / "e.yaml", tuned("data", methods=["vanilla", "source-ft"]))
    name = "predictions/mini-sentiment.fr.vanilla.jsonl"
    kept = put(mine / "run", (name,))
    with refused(name, "not of our making"):
        run(mine / "e.yaml", output=mine / "run", replace=True)
    assert {path: sha256_file(path) for path in kept} == kept


def test_a_run_folder_of_a_version_without_a_record_is_gone_on_with(mine):
    before = hashes(mine / "run" / "adapters")
    kept = put(mine / "run")
    (mine / "run" / RECORD_FILE).unlink()
    write_report(mine / "run")
    (mine / "run" / RECORD_FILE).unlink()
    assert run(mine / "e.yaml", output=mine / "run").trained == 0
    assert {path: sha256_file(path) for path in [*kept, *before]} == kept | before
    write_experiment(mine / "e.yaml", tuned("data", methods=["vanilla"]))
    run(mine / "e.yaml", output=mine / "run", replace=True)
    assert not any(path.exists() for path in before)
    assert {path: sha256_file(path) for path in kept} == kept


def test_prune_leaves_what_no_step_made(mine, cli, tmp_path):
    store = mine / "store"
    entry = sorted((store / "adapter").iterdir())[0]
    outside = put(tmp_path / "outside", ("a" * 20 + "/step.json", "x/y"))
    (store / "linked").symlink_to(tmp_path / "outside")
    (store / "merged" / ("a" * 20)).symlink_to(tmp_path / "outside" / ("a" * 20))
    kept = put(
        store,
        (
            "data/en/rows",
            "notes/2026/x",
            f"{entry.relative_to(store)}/mine.txt",
            "adapter/mine/x",
            f"adapter/{'b' * 20}/mine.txt",
            f"work/{'c' * 20}/mine.txt",
            f"work/{'d' * 20}/checkpoint-5/state",
            f"work/{'d' * 20}/mine.txt",
        ),
    )
    ours = kept.popitem(), kept.pop(store / "work" / ("d" * 20) / "checkpoint-5" / "state")
    kept[ours[0][0]] = ours[0][1]
    listed = cli("store", "list", store)
    assert listed.code == 0
    assert "bbbb" not in listed.out
    done = cli("store", "prune", store, "--unused-for", "0")
    assert done.code == 0, done.err
    assert states(store) == {}
    assert {path: sha256_file(path) for path in [*kept, *outside]} == kept | outside
    assert not (store / "work" / ("d" * 20) / "checkpoint-5").exists()
    assert not (entry / "adapter_model.safetensors").exists()
    run(mine / "e.yaml", output=mine / "run")  # the step is made again beside what lies there
    assert {path: sha256_file(path) for path in kept} == kept
    assert redone(mine) == []


@pytest.mark.parametrize("sign", ["store.json", "locks/x"])
def test_other_folders_are_no_stores(cli, tmp_path, sign):
    kept = put(tmp_path / "work", (".git/objects/aa/x", "thesis/chapters/1", sign))
    assert "is no store" in cli("store", "prune", tmp_path / "work").message
    assert {path: sha256_file(path) for path in kept} == kept


def test_prune_leaves_what_a_run_needs_that_goes_on(mine, cli):
    planned, store = plan_of(mine / "e.yaml", output=mine / "run")
    count = len(states(store.root))
    with store.needing(planned.steps):
        said = cli("store", "prune", store.root, "--unused-for", "0")
        assert f"{count} of them because a run that is going on needs them" in said.out
        assert len(states(store.root)) == count
    assert not list((store.root / "locks").glob("run-*"))
    (store.root / "locks" / "run-killed.json").write_text(
        json.dumps([step.key[:20] for step in planned.steps])
    )
    assert store.prune(unused_for=0).needed == 0
    assert states(store.root) == {}
    assert not list((store.root / "locks").glob("run-*"))


def test_a_run_waits_for_a_prune(mine):
    planned, store = plan_of(mine / "e.yaml", output=mine / "run")
    began, done = threading.Event(), threading.Event()

    def go_on():
        began.set()
        with store.needing(planned.steps):
            done.set()

    with store._lock("prune"):
        thread = threading.Thread(target=go_on)
        thread.start()
        began.wait()
        assert not done.wait(0.3)
    thread.join()
    assert done.is_set()


@pytest.mark.parametrize("what", ["run", "store"])
def test_a_folder_that_is_removed_meanwhile_is_told(mine, what):
    shutil.rmtree(mine / "store" / "evaluation")

    def remove(event):
        if event.what == "start" and (mine / what).is_dir():
            shutil.rmtree(mine / what)

    with refused(str(mine / what), "was removed", mend="run the same command again") as told:
        run(mine / "e.yaml", output=mine / "run", watch=remove)
    assert told.value.where == str(mine / what)
    assert "run the same command again" in told.value.mend
    run(mine / "e.yaml", output=mine / "run")


def test_an_experiment_that_was_replaced_meanwhile_keeps_its_folder(mine):
    shutil.rmtree(mine / "store" / "evaluation")
    write_experiment(mine / "other.yaml", tuned("data", methods=["vanilla"]))
    runs = []

    def replace(event):
        if event.what == "start" and not runs:
            runs.append(1)
            run(mine / "other.yaml", output=mine / "run", replace=True)

    with refused("/run", "another experiment"):
        run(mine / "e.yaml", output=mine / "run", watch=replace)
    rows = json.loads((mine / "run" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"vanilla"}


def test_runs_into_one_folder_at_once_end_well(mine):
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run, mine / "e.yaml", output=mine / "run") for _ in range(12)]
    assert [one.result().trained for one in runs] == [0] * 12
    assert redone(mine) == []


def test_a_store_that_is_refused_leaves_no_run_folder(mine, cli, tmp_path):
    put(tmp_path / "thesis", ("chapter.txt",))
    refused = cli("run", mine / "e.yaml", "--output", mine / "new", "--store", tmp_path / "thesis")
    assert "no store of finished steps" in refused.message
    assert not (mine / "new").exists()


def test_a_store_reads_no_record_that_leads_out_of_it(mine):
    from lingualift.pipeline.store import seal

    entry = sorted((mine / "store" / "adapter").iterdir())[0]
    recipe = json.loads((entry / "step.json").read_text())
    (entry / "step.json").unlink()
    seal(entry, {key: recipe[key] for key in recipe if key not in ("files", "seal")} | {"code": "older"})
    record = json.loads((entry / "step.json").read_text())
    record["files"] = {"../../../e.yaml": "0"}
    from lingualift.provenance import fingerprint

    record["seal"] = fingerprint({key: value for key, value in record.items() if key != "seal"})
    (entry / "step.json").write_text(json.dumps(record))
    Store(mine / "store").prune(unused_for=0)
    assert (mine / "e.yaml").is_file()
