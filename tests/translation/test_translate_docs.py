"""The commands of docs/translate.md, run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from builders.prefixing import write_rows
from lingualift.miniworld.data import SIZES, sentiment_rows
from lingualift.tasks import TASKS, PromptedTask, Task, shipped_rows
from lingualift.translation import Counts
from lingualift.translation.spans import MARKS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/translate.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow  # a training and a translation as users would do them
def test_the_documented_command_and_python_write_the_same_rows(inside, nllb, cli):
    """As shown, on shipped rows; a model of random weights finds no answer again, so the test split alone is there."""
    Path("nllb").symlink_to(nllb)
    rows = shipped_rows("tydiqa-goldp", "en")
    write_rows(Path("data/en/test.jsonl"), rows)
    (command,) = re.findall(r"^    lingualift (.*)$", TEXT, re.MULTILINE)
    done = cli(*shlex.split(command))
    assert done.code == 0, done.err
    assert f"test: {len(rows)} of {len(rows)} rows written" in done.out
    files = "translated/{language}/{split}.jsonl"
    assert f"the rows are --data '{files}'" in done.err
    assert f'`--data "{files}"`' in TEXT
    names = {}
    exec(compile(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], "translate.md", "exec"), names)
    assert names["done"].splits["test"].rows == len(rows)
    assert names["done"].new == 0
    one, two = (
        Path(name, "sw/test.jsonl").read_text(encoding="utf-8") for name in ("translated", "translated-again")
    )
    assert one == two
    written = [json.loads(line) for line in one.splitlines()]
    assert [row["answers"] for row in written] == [row["answers"] for row in rows]


@pytest.mark.slow  # a training and a translation as users would do them
def test_the_readme_translates_rows_and_plans_an_experiment_on_them(inside, nllb, cli):
    """With eight rows, and a small NLLB of random weights where the hub's name leads."""
    text = README.split("## With translated rows\n")[1].split("\n## ")[0].replace("\\\n", "")
    (command,) = re.findall(r"^    lingualift (.*)$", text, re.MULTILINE)
    for split in SIZES:
        for language in ("en", "sw"):
            rows = sentiment_rows(language, split, 8)
            write_rows(Path(f"data/sentiment/{language}/{split}.jsonl"), rows)
    Path("facebook").mkdir()
    Path("facebook/nllb-200-distilled-600M").symlink_to(nllb)
    done = cli(*shlex.split(command))
    assert done.code == 0, done.err
    Path("experiment.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    planned = cli("plan", "experiment.yaml")
    assert planned.code == 0, planned.err
    assert "with its translation" not in planned.out  # none is read when answering
    first = json.loads(Path("translated/sw/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first.keys() >= {"id", "text", "label"}


def test_what_is_counted_is_told():
    table = TEXT.split("Counted by row")[1].split("## Settings")[0]
    told = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert set(told) == set(Counts.__dataclass_fields__) - {"rows", "written"}
    assert ", ".join(f"`{' '.join(pair)}`" for pair in MARKS) in TEXT


def test_every_task_says_what_of_it_is_text():
    """Columns to translate are columns that a question is made of; spans name their passage."""
    shipped = {name: task for name, task in TASKS.items() if type(task).__module__.startswith("lingualift.")}
    for task in (task for task in shipped.values() if isinstance(task, Task)):
        assert set(task.text_columns or ()) <= set(task.columns)
        assert task.gold_column not in (task.text_columns or ())
        assert (task.passage_column in task.columns) == (task.encoder_head == "span")
    prompted = {
        name for name, task in shipped.items() if isinstance(task, PromptedTask) and task.written_columns
    }
    assert prompted == {"xlsum", "mgsm"}
