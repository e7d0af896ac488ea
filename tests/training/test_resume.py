"""A training that is killed goes on where it was and ends with the same bits."""

import shutil

import pytest

from builders.refusals import check_refusal
from builders.trainings import begin, equal, facts, tensors, trained
from builders.worlds import experiment, learn, write_experiment, write_jsonl
from lingualift.commands.train import train_once
from lingualift.config import Adapter, Backbone, Data, Training
from lingualift.data.datasets import Examples, dataset_of
from lingualift.training import trainer

ROW = {"task": "mini-sentiment", "language": "en"}


def arguments(data, output, **more):
    options = {
        "backbone": "miniworld",
        **ROW,
        "data": f"{data}/sentiment/{{language}}/{{split}}.jsonl",
        "output": output,
        "rank": 2,
        "steps": 40,
        "batch_size": 4,
        **more,
    }
    return ["train", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


@pytest.mark.parametrize(
    ("adapter", "settings"),
    [({"dropout": 0.3}, {"accumulation": 2}), ({}, {"scheduler": "cosine"}), ({"type": "ia3"}, {})],
)
def test_a_training_cut_at_a_checkpoint_ends_with_the_same_bits(mini, data, tmp_path, adapter, settings):
    rows = Examples("mini-sentiment", Data(files="sentiment/{language}/{split}.jsonl"), data).rows(
        "en", "train"
    )
    start = begin(mini, tmp_path / "start", **adapter)
    settings = {"steps": 12, "batch_size": 5, "learning_rate": 5e-3, "checkpoint_steps": 5, **settings}
    whole = trained(mini, rows, start, tmp_path / "whole", **settings)

    class KilledError(Exception):
        pass

    def die(done, _):
        if done == 8:
            raise KilledError

    def go(output, progress):
        output.mkdir()
        record = Training(**settings)
        learn(
            mini, rows, record, start=start, seed=0, output=output, work=tmp_path / "work", progress=progress
        )

    with pytest.raises(KilledError):
        go(tmp_path / "cut", die)
    assert [folder.name for folder in (tmp_path / "work").glob("checkpoint-*")] == ["checkpoint-5"]
    half = shutil.copytree(tmp_path / "work" / "checkpoint-5", tmp_path / "work" / "checkpoint-7")
    (half / "trainer_state.json").write_text('{"half')  # as a kill in the middle of writing leaves it
    altered = shutil.copytree(tmp_path / "work" / "checkpoint-5", tmp_path / "work" / "checkpoint-6")
    shutil.copy(tmp_path / "work" / "seal-5.json", tmp_path / "work" / "seal-6.json")
    weights = altered / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")  # as a bad disk leaves it
    seen = []
    go(tmp_path / "resumed", lambda done, _: seen.append(done))
    assert seen == list(range(6, 13))
    assert equal(tensors(tmp_path / "resumed"), whole)
    assert facts(tmp_path / "resumed") == facts(tmp_path / "whole")
    assert not (tmp_path / "work").exists()


def checkpoints(folder):
    return sorted(folder.rglob("checkpoint-*/trainer_state.json"))


def test_a_run_that_is_killed_in_the_middle_of_a_training_ends_with_the_same_bits(cli, data, inside):
    raw = experiment(data, methods=["source-ft"], adapter={"rank": 2, "alpha": 4, "dropout": 0.2})
    raw["training"]["task"] |= {"steps": 40, "checkpoint_steps": 3}
    write_experiment(inside / "e.yaml", raw)
    assert cli("run", "e.yaml", "--output", "whole/run").code == 0
    killed = cli("run", "e.yaml", "--output", "cut/run", kill_when=lambda: checkpoints(inside / "cut"))
    assert killed.code == -9
    assert not list((inside / "cut" / "store").glob("adapter/*/step.json"))
    again = cli("run", "e.yaml", "--output", "cut/run")
    assert again.code == 0, again.err
    assert checkpoints(inside) == []
    folders = [next((inside / run / "store" / "adapter").glob("[!.]*")) for run in ("whole", "cut")]
    assert folders[0].name == folders[1].name
    assert equal(*map(tensors, folders))


@pytest.mark.parametrize(
    ("accumulation", "text"),
    [
        (2, False),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],
)
def test_a_kill_in_any_epoch_changes_no_bit(mini, data, tmp_path, text, accumulation):
    """Eight steps an epoch (four with accumulation): some checkpoints lie within the second and the third."""
    kind = ("causal-lm", "reference") if text else ("mini-sentiment", "sentiment")
    split = "train" if text else "{split}"
    source = dataset_of(kind[0], Data(files=f"{kind[1]}/{{language}}/{split}.jsonl"), data)
    rows = source.rows("en", "train")[:48]
    start = begin(mini, tmp_path / "start", dropout=0.2)
    batch = {"batch_size": 6, "accumulation": accumulation} if not text else {"batch_size": 3}
    settings = {
        "steps": 22 if accumulation == 1 else 11,
        "checkpoint_steps": 3,
        "learning_rate": 5e-3,
        **batch,
    }

    class KilledError(Exception):
        pass

    def go(name, deaths):
        (tmp_path / name).mkdir(exist_ok=True)

        def die(done, _):
            if done in deaths:
                deaths.remove(done)
                raise KilledError

        record = Training(**settings)
        where = {"start": start, "seed": 0, "output": tmp_path / name, "work": tmp_path / "kept" / name}
        while True:
            try:
                learn(mini, rows, record, segment_tokens=24, progress=die, **where)
                return tensors(tmp_path / name)
            except KilledError:
                continue

    whole = go("whole", [])
    for death in (4, 7, 10, 11) if accumulation == 2 else (8, 11, 14, 17, 21):
        assert equal(go(f"cut{death}", [death]), whole), death
    assert equal(go("often", [4, 8, 11]), whole)


@pytest.mark.parametrize("scheduler", ["linear", pytest.param("constant", marks=pytest.mark.slow)])
@pytest.mark.parametrize("every", [2, pytest.param(3, marks=pytest.mark.slow), 6, 200])
def test_a_kill_after_the_last_step_adds_no_step(mini, data, tmp_path, monkeypatch, scheduler, every):
    rows = Examples("mini-sentiment", Data(files="sentiment/{language}/{split}.jsonl"), data).rows(
        "en", "train"
    )
    start = begin(mini, tmp_path / "start")
    settings = {"steps": 6, "batch_size": 5, "checkpoint_steps": every, "scheduler": scheduler}
    whole = trained(mini, rows, start, tmp_path / "whole", **settings)

    class KilledError(Exception):
        pass

    def die(model):
        raise KilledError

    (tmp_path / "cut").mkdir()
    where = {"start": start, "seed": 0, "output": tmp_path / "cut", "work": tmp_path / "kept"}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_check_finite", die)
        with pytest.raises(KilledError):
            learn(mini, rows, Training(**{"learning_rate": 5e-3, **settings}), **where)
    learn(mini, rows, Training(**{"learning_rate": 5e-3, **settings}), **where)
    assert equal(tensors(tmp_path / "cut"), whole)
    assert facts(tmp_path / "cut")["steps"] == 6


def test_another_training_under_the_same_name_starts_at_the_beginning(data, tmp_path):
    class KilledError(Exception):
        pass

    def go(name, rate, progress=lambda done, total: None):
        source = Examples("mini-sentiment", Data(files="sentiment/{language}/{split}.jsonl"), data)
        settings = Training(steps=6, batch_size=4, learning_rate=rate, checkpoint_steps=2)
        output = tmp_path / name
        train_once(
            Backbone(name="miniworld"), source, "en", Adapter(), settings, output=output, progress=progress
        )

    def die(done, _):
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        go("out", 1e-3, die)
    left = checkpoints(tmp_path)
    assert left
    go("fresh", 1e-2)
    go("out", 1e-2)
    assert equal(tensors(tmp_path / "out"), tensors(tmp_path / "fresh"))
    assert checkpoints(tmp_path) == left  # still there, should anyone go on with the first


def test_a_training_goes_on_from_an_adapter_that_peft_wrote(cli, data, inside, mini):
    start = begin(mini, inside / "start")
    (start / "provenance.json").unlink()
    done = cli(*arguments(data, "adapter", steps=2), "--start", start)
    assert done.code == 0, done.err
    assert not equal(tensors(inside / "adapter"), tensors(start))


@pytest.mark.parametrize(
    ("broken", "found"),
    [("none", "no such folder"), ("other backbone", "for 'miniworld'"), ("no adapter", "adapter_config")],
)
def test_a_start_that_is_none_is_refused_before_training(cli, data, inside, bpe, broken, found):
    if broken == "other backbone":
        begin(bpe, inside / "start")
    elif broken == "no adapter":
        write_jsonl(inside / "start" / "file.jsonl", [])
    before = sorted(inside.rglob("*"))
    check_refusal(cli(*arguments(data, "adapter"), "--start", "start"), "start", found)
    assert sorted(inside.rglob("*")) == before
