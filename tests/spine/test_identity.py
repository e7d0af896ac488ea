"""What makes two runs, two steps or two sets of rows the same."""

import ast
import threading
import time
from pathlib import Path

import pytest

import lingualift
from lingualift.config import Data, parse_experiment
from lingualift.pipeline import _claim
from lingualift.pipeline.steps import Evaluate, Sweep, Train
from lingualift.pipeline.store import Store
from lingualift.source import Source
from lingualift.tasks import TASKS

TASK = """
from helper_of_{name} import CUE
from lingualift.tasks import TASKS, Example, Task

class Cued(Task):
    columns = ("id", "text")
    gold_column = "answer"
    metrics = ("exact_match",)
    source = "here"
    def example(self, row, language):
        return Example(row["id"], row["text"] + CUE)

TASKS.register("{name}")(Cued())
"""


@pytest.mark.parametrize(("name", "cue", "same"), [("cue_a", "?", True), ("cue_b", "!", False)])
def test_rows_are_told_by_what_a_task_makes_of_them(tmp_path, monkeypatch, name, cue, same):
    """A changed helper that the task's file imports changes the rows, though no hashed file changed."""
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "text": "well", "answer": "yes"}\n', encoding="utf-8")
    (tmp_path / "task.py").write_text(TASK.format(name=name), encoding="utf-8")
    (tmp_path / f"helper_of_{name}.py").write_text('CUE = "?"', encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Source("task.py", Data(files="rows.jsonl"), tmp_path)
    before = source.identity("en", "train")
    TASKS[name].example.__globals__["CUE"] = cue
    monkeypatch.setattr("lingualift.source._rows", {})
    assert (source.identity("en", "train") == before) is same


def experiment(**changes):
    settings = {"steps": 2}
    return parse_experiment(
        {
            "backbone": {"name": "miniworld"},
            "languages": {"source": "en", "targets": ["sw"]},
            "tasks": [{"task": "mini-qa", "data": {"files": "{language}/{split}.jsonl"}}],
            "training": {"task": settings, "reference": settings},
            "methods": ["vanilla"],
            **changes,
        }
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 1},
        {"scoring": {"batch_size": 3}},
        {"training": {"task": {"steps": 2, "checkpoint_steps": 9}, "reference": {"steps": 2}}},
    ],
)
def test_a_run_goes_on_at_another_pace(tmp_path, changes):
    _claim(tmp_path / "run", experiment(), replace=False)
    _claim(tmp_path / "run", experiment(**changes), replace=False)


class Slow:
    """The part of a step that the store looks at."""

    kind, key = "slow", "0" * 64

    def description(self):
        return {"kind": self.kind}


def test_two_that_want_one_step_make_it_once(tmp_path):
    store, made = Store(tmp_path), []

    def want():
        with store.writing(Slow()) as output:
            if output is not None:
                time.sleep(0.3)
                (output / "made").write_text("x", encoding="utf-8")
                made.append(output)

    leftover = tmp_path / "slow" / f".{'0' * 20}.old.partial"
    leftover.mkdir(parents=True)
    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert store.has(Slow())
    assert not leftover.exists()
    assert [path.name for path in Path(store.folder(Slow())).iterdir()].count("made") == 1


PACKAGE = Path(lingualift.__file__).parent
NEVER_DECIDE = {  # settings are in recipes; the others change no number of an adapter
    *("config.py", "errors.py", "provenance.py", "registry.py", "devices.py", "activations.py"),
    "processes.py",
}
AS_ROWS = ("miniworld/", "tasks/", "evaluation/numbers.py")  # rows and backbones are told by their content
NAMES_ONLY = {"training/feed.py", "training/objectives.py"}  # of which evaluation takes the name of a type


def imported(start):
    """Files of the package that a file imports when it runs, and those that they import."""
    found, left = set(), [start]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lingualift":
                names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
                for name in names:
                    inner = name.removeprefix("lingualift").strip(".").replace(".", "/")
                    places = (f"{inner}.py", f"{inner}/__init__.py")
                    left += [place for place in places if inner and (PACKAGE / place).is_file()]
    return found


@pytest.mark.parametrize(
    ("step", "starts"),
    [
        (Train, ["training/trainer.py", "fusion/kinds.py"]),
        (Evaluate, ["evaluation/runner.py", "fusion/kinds.py"]),
        (Sweep, ["evaluation/runner.py", "merging/__init__.py"]),
    ],
)
def test_all_code_that_decides_what_a_step_makes_is_in_its_key(step, starts):
    covered = {
        str(path.relative_to(PACKAGE))
        for part in step.code
        for path in ([PACKAGE / part] if (PACKAGE / part).is_file() else (PACKAGE / part).rglob("*.py"))
    }
    missing = {path for start in starts for path in imported(start)} - covered - NEVER_DECIDE - NAMES_ONLY
    assert {path for path in missing if not path.startswith(AS_ROWS)} == set()
