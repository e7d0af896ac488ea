"""Whole experiments, from the file to the report, on backbones of every family, and the commands beside them."""

import json
import math

import pytest
import yaml
from typer.testing import CliRunner

import lingualift as ll
from builders import tiny
from builders.refusals import refused
from builders.shipped import LANGUAGES, write_experiment
from lingualift.checking import check
from lingualift.cli import app
from lingualift.commands.lift import lift
from lingualift.config import load_experiment
from lingualift.pipeline import plan_of
from lingualift.pipeline.cost import estimate

# The one that is not slow has an encoder; test_pipeline.py has a decoder, and test_matrix.py all classes and tasks.
CASES = [
    ("xlmr", "nusax", "lora", "masked-lm"),
    ("xlmr", "xcopa", "ia3", "masked-lm"),
    ("xlmr", "xquad", "prefix", "masked-lm"),
    ("bert", "nusax", "prefix", "masked-lm"),
    ("t5", "nusax", "lora", "span-corruption"),
    ("mt5", "xquad", "prefix", "span-corruption"),
    ("nllb", "xcopa", "ia3", "prefix-lm"),
    ("gemma2", "nusax", "lora", "causal-lm"),
]
QUICK = {("xlmr", "xquad")}


@pytest.mark.parametrize(
    ("name", "task", "kind", "reference"),
    [
        pytest.param(*case, id="-".join(case[:3]), marks=() if case[:2] in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_an_experiment_runs_on_every_family(backbone, tmp_path, name, task, kind, reference):
    path = write_experiment(
        tmp_path, "e", backbone(name).source, task, adapter={"type": kind, "rank": 2, "tokens": 3}
    )
    planned, store = plan_of(path, output=tmp_path / "out")
    found = estimate(planned, store, calibrate=True)
    assert found.seconds is not None
    assert math.isfinite(found.seconds)
    finished = ll.run(path, output=tmp_path / "out")
    results = json.loads((finished.folder / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} == {"source-ft", "arithmetic", "adamergex", "target-ft"}
    assert {row["reference_task"] for row in results["rows"] if row["method"] == "adamergex"} == {reference}
    assert all(row["n"] == 8 and 0 <= row["score"] <= 100 for row in results["rows"])
    accuracy = {round(row["chance"], 1) for row in results["rows"] if row["metric"] == "accuracy"}
    assert accuracy <= {50.0 if task == "xcopa" else 33.3}
    assert (finished.folder / "report.html").is_file()
    again = ll.run(path, output=tmp_path / "out")
    assert json.loads((again.folder / "results.json").read_text())["rows"] == results["rows"]


@pytest.mark.parametrize("name", tiny.quick(["xlmr", "t5", "llama"], "xlmr"))
def test_any_task_is_a_reference_as_in_table_5(backbone, tmp_path, name):
    path = write_experiment(
        tmp_path, "e", backbone(name).source, "nusax",
        reference={"task": "nusax", "data": {"files": "{language}/train.jsonl"}},
        methods=["adamergex"], weights={"grid": [1], "tune_on": "id"},
    )  # fmt: skip
    finished = ll.run(path, output=tmp_path / "out")
    rows = json.loads((finished.folder / "results.json").read_text())["rows"]
    assert {row["reference_task"] for row in rows} == {"nusax"}


TEXT, OUT = {"files": "{language}/text.txt"}, "leave `reference.task` out"
REFUSED = [
    ("xlmr", {"methods": ["vanilla"]}, "methods.0", ("vanilla asks", "not trained on the task"), "remove"),
    ("xlmr", {"methods": ["source-ft", "reference-only"]}, "methods.1", ("reference-only asks", "encoder"), "remove"),
    ("llama", {"adapter": {"type": "prefix"}}, "adapter.type", ("is prefix", "is a decoder", "lora or ia3"), "one of"),
    ("t5", {"reference": {"task": "causal-lm", "data": TEXT}}, "reference.task", ("causal", "encoder-decoders"), OUT),
    ("xlmr", {"reference": {"task": "span-corruption", "data": TEXT}}, "reference.task", ("span", "for encoders"), OUT),
    ("llama", {"reference": {"task": "masked-lm", "data": TEXT}}, "reference.task", ("masked", "for decoders"), OUT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "where", "facts", "mend"), REFUSED)
def test_what_a_family_cannot_do_is_refused_before_it_costs_anything(
    backbone, tmp_path, name, changes, where, facts, mend
):
    path = write_experiment(tmp_path, "e", backbone(name).source, "nusax", **changes)
    with refused(where, *facts, mend=mend):
        plan_of(path, output=tmp_path / "out")


def test_a_language_without_a_tag_is_refused(backbone, tmp_path):
    path = write_experiment(
        tmp_path, "e", backbone("nllb").source, "nusax", methods=["source-ft"], weights={}
    )
    raw = yaml.safe_load(path.read_text())
    raw["languages"]["targets"] = ["bug"]
    (tmp_path / "jv").rename(tmp_path / "bug")
    path.write_text(yaml.safe_dump(raw))
    with refused("language 'bug'", "no tag", "the backbone's tokenizer", mend="another model"):
        plan_of(path, output=tmp_path / "out")


def test_a_prefix_under_gradient_checkpointing_is_refused(backbone, tmp_path):
    path = write_experiment(tmp_path, "e", backbone("t5").source, "nusax", adapter={"type": "prefix"})
    raw = yaml.safe_load(path.read_text())
    raw["training"]["task"]["gradient_checkpointing"] = True
    path.write_text(yaml.safe_dump(raw))
    with refused("training.task.gradient_checkpointing", "prefix", "false"):
        plan_of(path, output=tmp_path / "out")


@pytest.mark.parametrize("task", ["mgsm", "xlsum", "mini-qa"])
def test_a_task_that_needs_text_of_its_own_is_not_for_encoders(backbone, tmp_path, task):
    path = write_experiment(tmp_path, "e", backbone("xlmr").source, "nusax")
    raw = yaml.safe_load(path.read_text())
    text = dict.fromkeys(("title", "text", "summary", "context", "answer"), "x")
    row = {**text, "id": "1", "question": "1+1?", "answer_number": 2}
    for code in LANGUAGES["nusax"]:
        for split in ("train", "validation", "test"):
            (tmp_path / code / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    raw["tasks"][0]["task"] = task
    path.write_text(yaml.safe_dump(raw))
    with refused(f"'{task}'", "an encoder", "classes, choices or spans", mend="decoder"):
        plan_of(path, output=tmp_path / "out")


@pytest.mark.parametrize("name", tiny.quick(["xlmr", "mt5", "nllb"], "xlmr"))
def test_check_looks_at_every_family(backbone, tmp_path, monkeypatch, name):
    look = check(write_experiment(tmp_path, "e", backbone(name).source, "nusax"))
    assert all(math.isfinite(one.nats) and one.nats > 0 for one in look.languages)
    assert all((one.vanilla is None) == (name == "xlmr") for one in look.tasks)
    monkeypatch.setattr("lingualift.checking.check", lambda *_, **__: look)  # it takes a while
    found = CliRunner().invoke(app, ["check", str(tmp_path / "e.yaml")])
    assert "nusax: rows" in found.output


@pytest.mark.parametrize(
    ("name", "task"),
    [pytest.param("xlmr", "nusax", marks=pytest.mark.slow), ("xlmr", "xquad"), ("t5", "nusax")],
)
def test_lift_and_predict_on_every_family(backbone, tmp_path, name, task):
    """The adapter of a classifier is lifted by masked words; its head comes along."""
    ref = backbone(name)
    source, target, _ = LANGUAGES[task]
    write_experiment(tmp_path, "e", ref.source, task)
    runner = CliRunner()
    data = str(tmp_path / "{language}" / "{split}.jsonl")
    told = runner.invoke(
        app, ["train", "--backbone", ref.source, "--task", task, "--language", source, "--data", data, "--steps", "2",
              "--rank", "2", "--output", str(tmp_path / "task"), "--max-length", "128"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    lifted = lift(
        backbone=ref.source, adapter=tmp_path / "task", to=target, text=tmp_path / target / "text.txt",
        source_text=tmp_path / source / "text.txt", output=tmp_path / "lifted", source_language=source, task=task,
        data=data, steps=2, max_length=64, batch_size=2, learning_rate=1e-2,
        workers=1,
    )  # fmt: skip
    assert lifted.measures[0].what == "perplexity"
    assert lifted.measures[0].after != lifted.measures[0].before
    rows = tmp_path / target / "test.jsonl"
    told = runner.invoke(
        app, ["predict", "--backbone", ref.source, "--adapter", str(tmp_path / "lifted"), "--task", task,
              "--language", target, "--input", str(rows), "--output", str(tmp_path / "p.jsonl")],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert len((tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()) == 8


def test_the_experiment_of_a_decoder_reads_the_same_file(tmp_path):
    """An experiment says nothing of families: the reference task follows from the backbone."""
    path = write_experiment(tmp_path, "e", "miniworld", "nusax")
    assert load_experiment(path).reference.task is None
    assert set(tiny.ENCODERS) == {"xlmr", "bert"}
