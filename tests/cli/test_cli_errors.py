"""What the user can mend: exit code 2, one message, no traceback, nothing half-written."""

import json
import shutil

import pytest

from builders.refusals import check_refusal
from builders.trainings import begin
from builders.worlds import experiment, write_experiment, write_jsonl


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def options(command, folder, **changes):
    found = {
        "backbone": "miniworld",
        "task": "mini-sentiment",
        "language": "sw",
        "data": f"{folder}/sentiment/{{language}}/{{split}}.jsonl",
        "output": "out" if command == "train" else "out.json",
        **({"steps": 1} if command == "train" else {}),
        **changes,
    }
    return [command, *(f"--{name}={value}" for name, value in found.items())]


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("changes", "where", "found", "mend"),
    [
        ({"language": "swahilli"}, "'swahilli'", "not known", "'sw'"),
        ({"language": "de"}, "/de/", "'de'", "en, fr, sw"),
        ({"task": "mini-sentimant"}, "'mini-sentimant'", "not known", "mini-sentiment?"),
        ({"task": "none.py"}, "/none.py", "not there", "path"),
        ({"backbone": "./none"}, "'./none'", "no folder", "path"),
        ({"backbone": "x" * 300}, "xxx", "too long", "shorter"),
        ({"data": "x" * 300 + "{split}.jsonl"}, ".jsonl", "too long", "shorter"),
        ({"data": "\udcff/{split}.jsonl"}, "--data=", "UTF-8", "rename"),
        ({"backbone": "nobody/nothing"}, "'nobody/nothing'", "the hub", "check"),
        ({"data": "{lang}.jsonl"}, "--data", "{lang}", ""),
        ({"dtype": "float8"}, "--dtype", "'float8'", ""),
        ({"max-length": "2"}, "max_length", "no prompt", "`max_length`"),
        ({"max-length": "0"}, "--max-length", "(found 0)", ""),
        ({"output": "file/out.json"}, "file/out.json", "cannot be written", "output"),
        ({"output": "taken"}, "taken", "exists already", "--output"),
    ],
)
def test_a_command_that_cannot_work_says_why(cli, data, inside, command, changes, where, found, mend):
    (inside / "file").write_text("x")
    (inside / "taken").mkdir()
    before = files(inside)
    check_refusal(cli(*options(command, data, **changes)), where, found, mend=mend)
    assert files(inside) == before


@pytest.mark.parametrize(
    ("arguments", "where", "found", "mend"),
    [
        (["--rank=0"], "--rank", "(found 0)", ""),
        (["--rank=1000000000"], "--rank", "16,384", ""),
        (["--batch-size=9223372036854775808"], "--batch-size", "1,048,576", ""),
        (["--learning-rate=0"], "--learning-rate", "(found 0.0)", ""),
        (["--adapter=lorra"], "--adapter", "'lorra'", None),
        (["--modules=qproj"], "adapter.modules", "'qproj'", ""),
        (["--learning-rate=1e18", "--steps=8"], "training", "lora_A", "`learning_rate`"),
        (["--steps=3", "--epochs=2"], "training", "`steps` or `epochs`", ""),
        (["--precision=int8"], "--precision", "'int8'", ""),
        (["--seed=-1"], "--seed", "0", None),
    ],
)
def test_train_refuses_wrong_settings(cli, data, inside, arguments, where, found, mend):
    check_refusal(cli(*options("train", data), *arguments), where, found, mend=mend)
    assert files(inside) == []


@pytest.mark.parametrize(
    ("line", "where", "found"),
    [
        ('{"id": 1, "text": "a", "label": "superb"}', ".jsonl", ".jsonl:2: label is 'superb'"),
        ('{"id": 1, "text": ""}', ".jsonl", ".jsonl:2: column 'text' is empty"),
        ("{", ".jsonl:2", "JSON"),
        ('{"id": 1, "label": "positive"}', ".jsonl", ".jsonl:2: column 'text' is missing"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(cli, data, inside, line, where, found):
    good = json.dumps({"id": "0", "text": "fine", "label": "positive"})
    for split in ("train", "test"):
        (inside / f"{split}.jsonl").write_text(f"{good}\n{line}\n")
    before = files(inside)
    for command in ("train", "evaluate"):
        split = "train" if command == "train" else "test"
        check_refusal(cli(*options(command, data, data="{split}.jsonl")), f"{split}{where}", found)
    assert files(inside) == before


def test_an_adapter_of_another_backbone_is_refused(cli, data, inside, bpe):
    begin(bpe, inside / "adapter")
    before = files(inside)
    check_refusal(cli(*options("evaluate", data, adapter="adapter")), "adapter", "'miniworld'", "fingerprint")
    (inside / "adapter" / "provenance.json").unlink()
    check_refusal(cli(*options("evaluate", data, adapter="adapter")), "adapter", "[2, 32]", "[2, 96]")
    assert files(inside) == [name for name in before if "provenance" not in name]
    check_refusal(cli(*options("evaluate", data, adapter="none")), "none", "no such folder")


def test_an_evaluation_that_exists_is_not_overwritten(cli, data, inside):
    (inside / "out.predictions.jsonl").write_text("mine")
    done = cli(*options("evaluate", data))
    check_refusal(done, "out.predictions.jsonl", "exists already", mend="--output")
    assert files(inside) == ["out.predictions.jsonl"]


def test_a_reference_task_cannot_be_evaluated(cli, data, inside):
    check_refusal(cli(*options("evaluate", data, task="causal-lm")), "'causal-lm'", "no labels")
    assert files(inside) == []


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seeds"], "has no `=`"),
        (["seed=[1]"], "did you mean seeds?"),
        (["training.task.stepps=1"], "did you mean steps?"),
        (["languages.targets=[xx]"], "is no known language"),
        (["languages.targets=[fr,de]"], "of language 'de'"),
        (["tasks.0.task=mini-sentimant"], "did you mean mini-sentiment?"),
        (["methods=[adamergx]"], "did you mean adamergex?"),
        (["methods=[adamergex]"], "has no merge weight"),
        (["backbone.name=./none"], "is no folder"),
        (["adapter.rank=1e12"], "adapter.rank: is more than 16,384"),
        (["scoring.batch_size=9223372036854775808"], "scoring.batch_size: is more than 1,048,576"),
        (["tasks.0.data.aligned_on=text"], "since the data is aligned on 'text'"),
        (["tasks.0.data.columns={label: lable}"], "has no column 'lable'"),
    ],
)
def test_an_experiment_that_cannot_work_says_why(cli, data, inside, command, overrides, said):
    write_experiment(inside / "e.yaml", experiment(data))
    assert said in cli(command, "e.yaml", *(f"--set={override}" for override in overrides)).message
    assert files(inside) == ["e.yaml"]


@pytest.mark.parametrize(
    ("text", "found"), [("a: [1", "line 1, column 6"), ("- a", "holds list"), (None, "No such file")]
)
def test_a_file_that_is_no_experiment_is_refused(cli, inside, text, found):
    if text is not None:
        (inside / "e.yaml").write_text(text)
    before = files(inside)
    check_refusal(cli("run", "e.yaml"), "e.yaml", found)
    assert files(inside) == before


@pytest.mark.parametrize(
    ("arguments", "where", "found"),
    [
        (["--output", "file/run"], "file/", "cannot be written"),
        (["--output", "full"], "full", "no run folder"),
        (["--store", "file"], "file", "cannot be written"),
        (["--store", "file/store"], "file/store", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(cli, data, inside, arguments, where, found):
    (inside / "file").write_text("x")
    write_jsonl(inside / "full" / "mine.jsonl", [])
    write_experiment(inside / "e.yaml", experiment(data))
    check_refusal(cli("run", "e.yaml", *arguments), where, found, mend="output")
    assert not list(inside.rglob("results.json"))
    assert not list(inside.rglob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "where", "found"),
    [
        (["--seeds", "0"], "--seeds", "at least 1"),
        (["--output", "full"], "full", "no demo"),
        (["--output", "file"], "file", "no demo"),
    ],
)
def test_the_demo_does_not_take_other_folders(cli, inside, arguments, where, found):
    (inside / "file").write_text("x")
    write_jsonl(inside / "full" / "mine.jsonl", [])
    before = files(inside)
    check_refusal(cli("demo", *arguments), where, found)
    assert files(inside) == before


def test_a_run_folder_of_another_experiment_needs_replace(cli, data, inside):
    write_experiment(inside / "e.yaml", experiment(data, methods=["vanilla"]))
    assert cli("run", "e.yaml").code == 0
    shutil.copytree("runs", "before")
    assert "--replace" in cli("run", "e.yaml", "--set", "scoring.length_normalization=tokens").message
    assert files(inside / "runs") == files(inside / "before")
    changed = cli("run", "e.yaml", "--set", "scoring.length_normalization=tokens", "--replace")
    assert changed.code == 0, changed.err


@pytest.mark.parametrize(
    ("arguments", "where", "found"),
    [
        (["rnu"], "'rnu'", ""),
        (["run"], "experiment", ""),
        (["run", "--outptu", "x"], "option", "--outptu"),
        (["evaluate", "--task", "x"], "--backbone", ""),
    ],
)
def test_a_mistyped_command_is_told_without_traceback(cli, inside, arguments, where, found):
    check_refusal(cli(*arguments), where, found, mend=None)
