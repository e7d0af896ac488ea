"""Experiment trackers: the loss arrives where people look for it, and changes nothing else."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from builders.refusals import check_refusal, refused
from builders.worlds import experiment, read_jsonl, write_experiment
from lingualift.pipeline import plan_of, run
from lingualift.training.trainer import check_trackers

TEN = {"steps": 10, "batch_size": 4, "learning_rate": 5e-3}


def losses(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def tracked(data, **changes):
    return experiment(
        data,
        methods=["source-ft", {"method": "adamergex", "weight": 1.0}],
        languages={"source": "en", "targets": ["sw"]},
        training={"task": TEN, "reference": TEN},
        **changes,
    )


def test_an_experiment_reports_the_loss_of_every_training(data, inside):
    write_experiment(inside / "e.yaml", tracked(data, report_to="tensorboard"))
    finished = run("e.yaml", output="out")
    assert finished.trained > 0
    logs = inside / "out" / "logs"
    names = {"mini-sentiment.en.seed0", "causal-lm.en.seed0", "causal-lm.sw.seed0"}
    assert {path.name for path in logs.iterdir()} == names
    for adapter in (inside / "store" / "adapter").iterdir():
        facts = json.loads((adapter / "provenance.json").read_text())
        shown = losses(logs / f"{facts['task']}.{facts['language']}.seed{facts['seed']}")
        written = {
            line["step"]: line["loss"]
            for line in read_jsonl(adapter / "training_log.jsonl")
            if "loss" in line
        }
        assert shown.keys() == written.keys() == {10}
        assert shown[10] == pytest.approx(written[10], rel=1e-6)
        assert not (adapter / "logs").exists()


def test_what_is_reported_is_no_part_of_a_step(data, inside):
    for name, report_to in (("plain", []), ("tracked", ["tensorboard"])):
        write_experiment(inside / f"{name}.yaml", tracked(data, report_to=report_to))
    plans = [plan_of(f"{name}.yaml", output=name)[0] for name in ("plain", "tracked")]
    assert [step.key for step in plans[0].steps] == [step.key for step in plans[1].steps]


def test_one_training_keeps_its_events_in_its_folder(cli, data, inside):
    template = f"{data}/sentiment/{{language}}/{{split}}.jsonl"
    options = ["--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw", "--data", template]
    done = cli("train", *options, "--steps", "10", "--output", "out", "--report-to", "tensorboard")
    assert done.code == 0, done.err
    written = {
        line["step"]: line["loss"]
        for line in read_jsonl(inside / "out" / "training_log.jsonl")
        if "loss" in line
    }
    assert losses(inside / "out" / "logs") == pytest.approx(written, rel=1e-6)
    assert [path.name for path in inside.iterdir()] == ["out"]


def test_a_tracker_that_is_not_there_is_told_before_anything_runs(data, inside, cli):
    write_experiment(inside / "e.yaml", tracked(data, report_to="trackio"))
    with refused("report_to", "trackio", mend="pip install trackio"):
        run("e.yaml", output="out")
    assert not (inside / "out").exists()
    write_experiment(inside / "e.yaml", tracked(data, report_to=["tensorbord"]))
    check_refusal(cli("plan", "e.yaml"), "e.yaml", "report_to.0", "'tensorbord'", "'trackio'")
    with refused("report_to", "'tensorbord'", mend="did you mean tensorboard"):
        check_trackers(["tensorbord"])
