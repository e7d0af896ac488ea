"""The command line, in processes of its own: what works, and what is written."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import lingualift as ll
from builders.commands import fresh
from builders.refusals import refused
from builders.worlds import TASK, experiment, read_jsonl, write_experiment
from lingualift import merging
from lingualift.cli.merging import merge
from lingualift.languages import all_languages
from lingualift.miniworld import BACKBONE
from lingualift.pipeline.methods import METHODS
from lingualift.tasks import TASKS

HEAVY = ("torch", "transformers", "peft", "datasets", "pydantic", "numpy", "sklearn", "jinja2", "yaml")
COMMANDS = (
    "demo",
    "run",
    "report",
    "init",
    "check",
    "plan",
    "store",
    "lift",
    "train-head",
    "train",
    "evaluate",
    "predict",
    "tasks",
    "methods",
    "languages",
    "merge",
    "push",
    "inspect",
)


def sentiment(data):
    return f"{data}/sentiment/{{language}}/{{split}}.jsonl"


def common(data):
    return [
        *("--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw"),
        *("--data", sentiment(data)),
    ]


@pytest.fixture(scope="module")
def adapter(cli, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    done = cli("train", *common(data), "--steps", 2, "--rank", 2, "--output", folder)
    assert done.code == 0, done.err
    return folder


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['lingualift', '--help']\n"
        "from lingualift.__main__ import main\n"
        "try: main()\n"
        f"finally: sys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Lift a task into languages" in done.stdout


def test_every_command_explains_itself_in_a_fresh_interpreter(cli):
    shown = fresh("--help")
    assert shown.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in shown.out
        assert cli(command, "--help").code == 0
    assert fresh().code in (0, 2)


def test_tasks_methods_and_languages_are_listed_with_sources(cli):
    tasks, methods, languages = (cli(name).out for name in ("tasks", "methods", "languages"))
    for name in ("mini-sentiment", "mini-qa", "nusax", "causal-lm"):
        assert TASKS[name].source.split("//")[-1][:20] in tasks
        assert name in tasks
    for name, method in METHODS.items():
        assert name in methods
        assert method.paper_name in methods
    for entry in all_languages():
        assert entry.name in languages


def test_the_help_and_the_docstring_of_merge_name_every_method():
    option = get_type_hints(merge, include_extras=True)["method"].__metadata__[0]
    assert set(re.findall(r"[\w-]+", option.help)) - {"or"} == set(merging.METHODS)
    told = re.search(r"\n +method: (.*?)\n +\w+: ", ll.merge.__doc__, re.DOTALL)[1]
    assert set(re.findall(r"`([\w-]+)`", told)) == set(merging.METHODS)


def test_train_writes_an_adapter_and_says_what_is_next(adapter):
    assert {path.name for path in adapter.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "provenance.json",
        "training_log.jsonl",
    }
    facts = json.loads((adapter / "provenance.json").read_text())
    assert (facts["task"], facts["language"], facts["rows"]) == ("mini-sentiment", "sw", 48)
    assert [path.name for path in adapter.parent.iterdir()] == ["adapter"]
    card = (adapter / "README.md").read_text()
    front = ModelCard(card).data
    assert tuple(map(front.to_dict().get, ("language", "library_name"))) == (["sw"], "peft")
    assert {"lingualift", "lora"} <= set(front.tags)
    assert "mini-sentiment in Swahili: lora adapter" in card
    assert "base_model" not in front.to_dict()  # a folder here is none on the hub
    assert str(adapter.parent) not in card
    assert str(BACKBONE) not in card


@pytest.mark.parametrize(
    "options",
    [
        ["--adapter", "ia3"],
        ["--modules", "q_proj,v_proj", "--precision", "bfloat16"],
        ["--task", "causal-lm", "--max-length", "32"],
        ["--epochs", "0.1", "--dtype", "bfloat16"],
    ],
)
def test_train_takes_its_options(cli, data, inside, options):
    steps = [] if "--epochs" in options else ["--steps", "1"]
    done = cli("train", *common(data), *steps, *options, "--output", "out")
    assert done.code == 0, done.err
    names = {name.split(".")[-2] for name in load_file(inside / "out" / "adapter_model.safetensors")}
    assert names
    if "--modules" in options:
        tensors = load_file(inside / "out" / "adapter_model.safetensors")
        assert all("q_proj" in name or "v_proj" in name for name in tensors)
    if "causal-lm" in options:
        assert json.loads((inside / "out" / "provenance.json").read_text())["segments"] < 48


@pytest.mark.parametrize("with_adapter", [False, True])
def test_evaluate_writes_scores_and_predictions(cli, data, inside, adapter, with_adapter):
    more = ["--adapter", adapter] if with_adapter else []
    done = cli("evaluate", *common(data), *more, "--output", "scores/sw.json")
    assert done.code == 0, done.err
    found = json.loads((inside / "scores" / "sw.json").read_text())
    predictions = read_jsonl(inside / "scores" / "sw.predictions.jsonl")
    assert (
        (found["n"], found["split"], found["language"])
        == (16, "test", "sw")
        == (len(predictions), "test", "sw")
    )
    share = 100 * sum(line["correct"] for line in predictions) / 16
    assert found["scores"]["accuracy"]["score"] == pytest.approx(share)
    assert f"accuracy {share:.1f}" in done.out
    asked = dict(zip(("backbone", "task", "language", "data"), common(data)[1::2], strict=True))
    assert_the_same_from_python(found, predictions, adapter=adapter if with_adapter else None, **asked)


def assert_the_same_from_python(written, predictions, **asked):
    before = sorted(Path().rglob("*"))
    found = ll.evaluate(**asked)
    assert {**written, **found.summary()} == written
    assert json.loads(json.dumps(found.rows())) == predictions
    assert sorted(Path().rglob("*")) == before
    ll.evaluate(**asked, output="again.json")
    assert json.loads(Path("again.json").read_text()) == written
    with refused("again.json", "exists already", mend="output"):
        ll.evaluate(**asked, output="again.json")


def test_plan_and_run_from_a_file(cli, data, inside):
    write_experiment(inside / "e.yaml", experiment(data))
    planned = cli("plan", "e.yaml")
    assert planned.code == 0, planned.err
    assert "train mini-sentiment" in planned.out
    assert "8 steps to do, 0 done" in " ".join(planned.out.split())
    assert [path.name for path in inside.iterdir()] == ["e.yaml"]
    done = cli("run", "e.yaml", "--set", "training.task.steps=2", "--set", "seeds=[4]")
    assert done.code == 0, done.err
    assert "source-ft" in done.out
    assert "mini-sentiment" in done.out
    kept = yaml.safe_load((inside / "runs" / "e" / "experiment.yaml").read_text())
    assert (kept["seeds"], kept["training"]["task"]["steps"]) == ([4], 2)
    planned = cli("plan", "e.yaml", "--set", "training.task.steps=2", "--set", "seeds=[4]")
    assert "All 8 steps are done" in planned.out


def test_a_task_of_ones_own_works_everywhere(cli, data, inside):
    (inside / "mine.py").write_text(TASK + "TASKS.register('mine-cli')(Mine())\n")
    raw = experiment(data)  # in workers: test_workers.py
    raw["tasks"][0]["task"] = "mine.py"
    write_experiment(inside / "e.yaml", raw)
    done = cli("run", "e.yaml")
    assert done.code == 0, done.err
    assert {row["task"] for row in json.loads((inside / "runs/e/results.json").read_text())["rows"]} == {
        "mine"
    }
    scored = cli("evaluate", *common(data), "--task", "mine.py", "--output", "out.json")
    assert scored.code == 0, scored.err


def test_an_interrupted_run_says_that_it_can_go_on(cli, data, inside):
    raw = experiment(data)
    raw["training"]["task"]["steps"] = 4000
    write_experiment(inside / "e.yaml", raw)
    log = inside / "runs" / "e" / "log.jsonl"
    stopped = cli(
        "run",
        "e.yaml",
        kill_when=lambda: log.is_file() and "train" in log.read_text(),
        with_signal=signal.SIGINT,
    )
    assert stopped.code == 130, stopped.err
    assert "stopped; the same command goes on where it was" in stopped.err
    assert "Traceback" not in stopped.err
    shutil.rmtree(inside / "runs")
