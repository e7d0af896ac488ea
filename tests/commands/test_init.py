"""The experiment file to start from: every key is in it, explained, and it plans once its data are there."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from pydantic import BaseModel

from builders.refusals import refused
from builders.worlds import write_jsonl
from lingualift.commands.template import experiment_template
from lingualift.config import METHOD_SETTINGS, Data, Experiment, MethodSettings, Training, load_experiment
from lingualift.data.hubsets import HUB_SETS
from lingualift.miniworld.data import sentiment_rows
from lingualift.pipeline import plan_of
from lingualift.tasks import TASKS, Task

LABELLED = [name for name, task in TASKS.items() if isinstance(task, Task) and "/" not in name]


def models(model=Experiment):
    """The experiment's model and all that it is made of."""
    found = {model}
    for field in model.model_fields.values():
        for name in re.findall(r"lingualift\.config\.(\w+)", repr(field.annotation)):
            inner = getattr(sys.modules["lingualift.config"], name)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= models(inner)
    return found | {*METHOD_SETTINGS.values()}


def place(data, folder, task):
    """Put data where the template says that they are."""
    rows = {"mini-sentiment": "sentiment", "mini-qa": "qa"}
    for language in ("en", "fr", "sw"):
        if task in rows:
            shutil.copytree(data / rows[task] / language, folder / "data" / task / language)
        else:
            for split, count in (("train", 6), ("validation", 4), ("test", 4)):
                write_jsonl(
                    folder / f"data/{task}/{language}/{split}.jsonl", sentiment_rows(language, split, count)
                )
        text = folder / "data" / "text" / f"{language}.jsonl"
        text.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "reference" / language / "train.jsonl", text)


@pytest.mark.parametrize("task", ["mini-sentiment", "mini-qa", "nusax"])
def test_the_file_plans_as_it_is_once_its_data_lie_where_it_says(cli, data, inside, task):
    made = cli("init", "--task", task)
    assert made.code == 0, made.err
    (inside / "experiment.yaml").write_text(made.out, encoding="utf-8")
    place(data, inside, task)
    planned = cli("plan", "experiment.yaml", "--no-calibrate")
    assert planned.code == 0, planned.err
    assert f"train {task} " in planned.out
    assert "lingualift check experiment.yaml" in made.err


@pytest.mark.parametrize("task", LABELLED)
def test_every_task_has_a_valid_file_that_names_its_columns(tmp_path, task):
    text = experiment_template(task)
    (tmp_path / "e.yaml").write_text(text, encoding="utf-8")
    loaded = load_experiment(tmp_path / "e.yaml")
    assert [entry.task for entry in loaded.tasks] == [task]
    comments = "\n".join(line for line in text.splitlines() if line.strip().startswith("#"))
    for column in (*TASKS[task].columns, TASKS[task].gold_column):
        assert f'"{column}"' in comments
    on_hub = task in HUB_SETS and bool(HUB_SETS[task].sets)
    assert (f"`lingualift data export {task}`" in comments) == on_hub


def test_the_labels_and_the_prompt_of_a_ranked_task_are_told():
    text = experiment_template("nusax")
    assert "label is one of negative, neutral, positive." in text
    assert "The model is asked: '{text}\\nSentiment:'" in text


def test_every_key_is_there_with_the_default_and_the_comment_of_its_model():
    text = experiment_template()
    assert {Experiment, Data, Training, MethodSettings} < models()
    for model in models():
        for name, field in model.model_fields.items():
            lines = re.findall(rf"^[ #-]*{name}:.*$", text, re.MULTILINE)
            assert lines, f"{model.__name__}.{name}"
            nested = {inner for inner in models() if inner.__name__ in repr(field.annotation)}
            if nested:
                continue
            assert field.description, f"{model.__name__}.{name} has no docstring"
            assert " ".join(field.description.split()) in " ".join(text.replace("#", "").split())
            if not field.is_required() and not isinstance(field.default, tuple):
                default = yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
                shown = [f"{name}: {default}" in line for line in lines]
                changed = (model.__name__, name) in {
                    ("Data", "files"),
                    ("Training", "epochs"),
                    ("Weights", "tune_on"),
                }
                assert not all(shown) if changed else any(shown)


def test_a_task_of_ones_own_gets_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(
        "from lingualift.tasks import TASKS, Example, Task\n"
        "class Odd(Task):\n"
        "    columns, gold_column, metrics, source = ('id', 'number'), 'half', ('exact_match',), 'here'\n"
        "    def example(self, row, language):\n"
        "        return Example(str(row['id']), str(int(row['number']) * 2))\n"
        "TASKS.register('odd')(Odd())\n"
    )
    text = experiment_template("odd.py")
    assert '{"id": "…", "number": "…", "half": "…"}' in text
    assert "data/odd/{language}/{split}.jsonl" in text
    assert "The model is asked" not in text  # its prompt cannot be shown without a number


@pytest.mark.parametrize(
    ("task", "found", "mend"),
    [
        ("mini-sentimnt", "not known", "mini-sentiment?"),
        ("causal-lm", "no labels", "another task"),
        ("no.py", "not there", "path"),
    ],
)
def test_what_is_no_labelled_task_is_refused(task, found, mend):
    with refused(task, found, mend=mend):
        experiment_template(task)


def test_standard_output_holds_the_file_and_nothing_else(inside, data):
    with (inside / "experiment.yaml").open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "lingualift", "init"], stdout=file, stderr=subprocess.PIPE, check=True
        )
    assert (inside / "experiment.yaml").read_text(encoding="utf-8") == experiment_template()
    place(data, inside, "mini-sentiment")
    assert plan_of("experiment.yaml")[0].steps
