"""`lingualift store`: what there is, whether it is whole, what can go; and never what a run still needs."""

import json
import os
import shutil
import time

import pytest
from filelock import FileLock

from builders.runs import flip, lose, redone, states, tuned
from builders.worlds import write_experiment
from lingualift.pipeline import run
from lingualift.pipeline.store import Store


def age(folder, days):
    then = time.time() - days * 86400
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


@pytest.fixture
def littered(mine):
    """A store with an altered and a stale entry, scratch and a checkpoint of killed steps."""
    store = mine / "store"
    altered, stale = sorted((store / "evaluation").iterdir())[:2]
    flip(altered / "predictions.jsonl")
    recipe = json.loads((stale / "step.json").read_text())
    from lingualift.pipeline.store import seal

    (stale / "step.json").unlink()
    seal(stale, {key: recipe[key] for key in recipe if key not in ("files", "seal")} | {"code": "older"})
    scratch = store / "adapter" / ".0123456789abcdef0123.x.partial"
    scratch.mkdir()
    (scratch / "half").write_text("half")
    checkpoint = store / "work" / ("f" * 20) / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state").write_text("state")
    return mine, altered, stale, scratch, checkpoint.parent


def test_every_entry_is_told_with_its_state(littered, cli):
    folder, altered, stale, scratch, checkpoint = littered
    found = states(folder / "store")
    assert found.pop(altered.name) == "altered"
    assert found.pop(stale.name) == "stale"
    assert found.pop(scratch.name.strip(".")) == "unfinished"
    assert found.pop(checkpoint.name) == "unfinished"
    assert set(found.values()) == {"whole"}
    shown = cli("store", "list", folder / "store")
    assert shown.code == 0
    total = len(found) + 4
    assert f"{total} entries" in " ".join(shown.out.split())
    for entry in Store(folder / "store").entries():
        assert entry.size == sum(path.stat().st_size for path in entry.path.rglob("*") if path.is_file())
        assert entry.key[:12] in shown.out


def test_verify_names_what_was_altered_and_how(mine, cli):
    store = mine / "store"
    good = cli("store", "verify", store)
    assert (good.code, good.err) == (0, "")
    one, two = sorted((store / "adapter").iterdir())[:2]
    flip(one / "adapter_model.safetensors")
    lose(two / "adapter_config.json")
    bad = cli("store", "verify", store)
    assert bad.code == 2
    assert f"{one}: adapter_model.safetensors was altered" in bad.out
    assert f"{two}: adapter_config.json is missing" in bad.out
    assert "2 of" in bad.message


def test_prune_takes_what_no_run_will_read_and_nothing_else(littered, cli):
    folder, altered, stale, scratch, checkpoint = littered
    before = set((folder / "store").rglob("*"))
    dry = cli("store", "prune", folder / "store", "--dry-run")
    assert set((folder / "store").rglob("*")) >= before
    done = cli("store", "prune", folder / "store")
    for text in (dry, done):
        assert text.code == 0, text.err
        for path in (altered, stale, scratch):
            assert str(path) in text.out
    assert not any(path.exists() for path in (altered, stale, scratch))
    assert checkpoint.exists()  # a killed training goes on from it
    assert set(states(folder / "store").values()) == {"whole", "unfinished"}
    assert len(redone(folder)) == 2  # the two evaluations


def test_prune_keeps_what_the_named_experiments_need(mine, cli):
    kept = set(states(mine / "store"))
    write_experiment(mine / "other.yaml", tuned("data", seeds=[7]))
    run(mine / "other.yaml", output=mine / "other")
    assert set(states(mine / "store")) > kept
    assert cli("store", "prune", mine / "store", "--keep", mine / "e.yaml").code == 0
    assert set(states(mine / "store")) == kept
    assert redone(mine) == []
    for row in json.loads((mine / "other" / "results.json").read_text())["rows"]:  # the run stays whole
        if row["adapter"]:
            assert (mine / "other" / row["adapter"] / "adapter_model.safetensors").is_file()


def test_prune_takes_what_was_not_used_for_long(mine, cli):
    checkpoint = mine / "store" / "work" / ("f" * 20) / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state").write_text("state")
    age(mine / "store", 40)
    run(mine / "e.yaml", output=mine / "run")  # uses all of it
    assert cli("store", "prune", mine / "store", "--unused-for", "30").code == 0
    assert not checkpoint.exists()
    assert redone(mine) == []
    age(mine / "store", 40)
    assert cli("store", "prune", mine / "store", "--unused-for", "30").code == 0
    assert states(mine / "store") == {}


def test_prune_leaves_what_a_run_is_working_on(littered, cli):
    folder, altered, stale, _, _ = littered
    with FileLock(folder / "store" / "locks" / f"{altered.name}.lock"):
        done = cli("store", "prune", folder / "store")
    assert done.code == 0
    assert altered.exists()
    assert not stale.exists()
    assert "1 of them because a run that is going on needs them" in done.out


def test_a_folder_that_is_no_store_is_not_taken_for_one(inside, data, cli):
    (inside / "thesis").mkdir()
    (inside / "thesis" / "chapter.txt").write_text("words")
    for command in ("list", "verify", "prune"):
        assert "is no store" in cli("store", command, "thesis").message
    write_experiment(inside / "e.yaml", tuned(str(data)))
    message = cli("run", "e.yaml", "--store", "thesis", "--output", "run").message
    assert "no store of finished steps" in message
    assert [path.name for path in (inside / "thesis").iterdir()] == ["chapter.txt"]
    shutil.rmtree(inside / "thesis")
