"""What the user can mend: exit code 2, one message, no traceback, nothing half-written."""

import json
import shutil

import pytest

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
    ("changes", "said"),
    [
        ({"language": "swahilli"}, "language 'swahilli': is not known"),
        ({"language": "de"}, "of language 'de'"),
        ({"task": "mini-sentimant"}, "did you mean mini-sentiment?"),
        ({"task": "none.py"}, "none.py: is not there"),
        ({"backbone": "./none"}, "backbone './none': is no folder"),
        ({"backbone": "x" * 300}, "cannot be read (File name too long)"),
        ({"data": "x" * 300 + "{split}.jsonl"}, "cannot be read (File name too long)"),
        ({"data": "\udcff/{split}.jsonl"}, "is not UTF-8"),
        ({"backbone": "nobody/nothing"}, "cannot be fetched from the hub"),
        ({"data": "{lang}.jsonl"}, "did you mean language?"),
        ({"data": "{language}.jsonl"}, ".jsonl"),
        ({"dtype": "float8"}, "--dtype"),
        ({"max-length": "2"}, "max_length: "),
        ({"max-length": "0"}, "--max-length"),
        ({"output": "file/out.json"}, "cannot be written"),
        ({"output": "taken"}, "taken: exists already"),
    ],
)
def test_a_command_that_cannot_work_says_why(cli, data, inside, command, changes, said):
    (inside / "file").write_text("x")
    (inside / "taken").mkdir()
    before = files(inside)
    assert said in cli(*options(command, data, **changes)).message
    assert files(inside) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rank=0"], "--rank"),
        (["--rank=1000000000"], "--rank: is more than 16,384: no layer is so wide"),
        (["--batch-size=9223372036854775808"], "--batch-size: is more than 1,048,576"),
        (["--learning-rate=0"], "--learning-rate"),
        (["--adapter=lorra"], "--adapter"),
        (["--modules=qproj"], "adapter.modules"),
        (["--learning-rate=1e18", "--steps=8"], "lower `learning_rate`"),
        (["--steps=3", "--epochs=2"], "either `steps` or `epochs`"),
        (["--precision=int8"], "--precision"),
        (["--seed=-1"], "--seed"),
    ],
)
def test_train_refuses_wrong_settings(cli, data, inside, arguments, said):
    assert said in cli(*options("train", data), *arguments).message
    assert files(inside) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1, "text": "a", "label": "superb"}',
        '{"id": 1, "text": ""}',
        "{",
        '{"id": 1, "label": "positive"}',
    ],
)
def test_bad_rows_are_named_by_file_and_line(cli, data, inside, line):
    good = json.dumps({"id": "0", "text": "fine", "label": "positive"})
    for split in ("train", "test"):
        (inside / f"{split}.jsonl").write_text(f"{good}\n{line}\n")
    before = files(inside)
    for command in ("train", "evaluate"):
        split = "train" if command == "train" else "test"
        assert f"{split}.jsonl:2: " in cli(*options(command, data, data="{split}.jsonl")).message
    assert files(inside) == before


def test_an_adapter_of_another_backbone_is_refused(cli, data, inside, bpe):
    begin(bpe, inside / "adapter")
    before = files(inside)
    assert "was made for the backbone" in cli(*options("evaluate", data, adapter="adapter")).message
    (inside / "adapter" / "provenance.json").unlink()
    assert "does not fit the backbone" in cli(*options("evaluate", data, adapter="adapter")).message
    assert files(inside) == [name for name in before if "provenance" not in name]
    assert "none: " in cli(*options("evaluate", data, adapter="none")).message


def test_an_evaluation_that_exists_is_not_overwritten(cli, data, inside):
    (inside / "out.predictions.jsonl").write_text("mine")
    assert "out.predictions.jsonl: exists already" in cli(*options("evaluate", data)).message
    assert files(inside) == ["out.predictions.jsonl"]


def test_a_reference_task_cannot_be_evaluated(cli, data, inside):
    assert "has no labels to score" in cli(*options("evaluate", data, task="causal-lm")).message
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
    ("text", "said"), [("a: [1", "is not YAML"), ("- a", "holds list"), (None, "cannot be read")]
)
def test_a_file_that_is_no_experiment_is_refused(cli, inside, text, said):
    if text is not None:
        (inside / "e.yaml").write_text(text)
    before = files(inside)
    assert said in cli("run", "e.yaml").message
    assert files(inside) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "file/run"], "cannot be written"),
        (["--output", "full"], "is not empty and no run folder"),
        (["--store", "file"], "cannot be written"),
        (["--store", "file/store"], "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(cli, data, inside, arguments, said):
    (inside / "file").write_text("x")
    write_jsonl(inside / "full" / "mine.jsonl", [])
    write_experiment(inside / "e.yaml", experiment(data))
    assert said in cli("run", "e.yaml", *arguments).message
    assert not list(inside.rglob("results.json"))
    assert not list(inside.rglob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--output", "full"], "holds no demo"),
        (["--output", "file"], "holds no demo"),
    ],
)
def test_the_demo_does_not_take_other_folders(cli, inside, arguments, said):
    (inside / "file").write_text("x")
    write_jsonl(inside / "full" / "mine.jsonl", [])
    before = files(inside)
    assert said in cli("demo", *arguments).message
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
    "arguments", [["rnu"], ["run"], ["run", "--outptu", "x"], ["train"], ["evaluate", "--task", "x"]]
)
def test_a_mistyped_command_is_told_without_traceback(cli, inside, arguments):
    done = cli(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert done.err
