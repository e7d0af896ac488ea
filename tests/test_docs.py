"""What the documents show is run: README commands and Python, the task of docs/your-own-task.md, the demo."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lingualift.checking import ROWS, findings, overlap, spelling
from lingualift.commands.demo import run_demo
from lingualift.config import Data, Reference, Scoring, TaskData, load_experiment, parse_experiment
from lingualift.data.hubsets import HUB_SETS, WIKIPEDIA
from lingualift.data.rows import load_examples
from lingualift.metrics.comparisons import Comparison
from lingualift.metrics.scores import METRICS
from lingualift.miniworld import write_data
from lingualift.miniworld.data import SIZES
from lingualift.tasks import TASKS, PromptedTask, Task, get_task
from lingualift.tasks.language_modelling import REFERENCE_TASKS
from lingualift.tasks.prompts import prompts_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(section):
    """The indented `lingualift` lines of a README section."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0].replace("\\\n", "")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    lingualift ")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([], marks=pytest.mark.slow, id="as shown"),
        pytest.param(["--steps", "2"], id="with fewer steps and rows"),
    ],
)
def folder(request, tmp_path_factory):
    """A folder in which the README's commands were run one after the other."""
    from lingualift.cli import app

    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setitem(SIZES, "test", 40)
        write_data(folder / "data")
    before = Path.cwd()
    os.chdir(folder)
    for line in commands("One step at a time"):
        more = request.param if line[0] == "train" else []
        result = CliRunner().invoke(app, [*line, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    yield folder
    os.chdir(before)


def test_the_readme_shows_the_two_commands_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert shown == ["demo", "test"]
    assert set(shown) <= set(targets)


def test_the_readme_commands_run_one_after_the_other(request, folder):
    lines = commands("One step at a time")
    assert [line[0] for line in lines] == ["train"] * 3 + ["merge", "evaluate", "predict", "inspect"]
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert scores["n"] == (40 if request.node.callspec.params["folder"] else 300)
    assert set(scores["scores"]) == {"exact_match"}
    read = [
        [json.loads(line)["prediction"] for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("predictions.jsonl", "scores.predictions.jsonl")
    ]
    assert read[0] == read[1]


@pytest.mark.slow  # test_init.py, test_check.py and test_cost.py do each
def test_the_readmes_experiment_is_made_checked_and_planned(tmp_path, monkeypatch):
    from lingualift.cli import app

    monkeypatch.chdir(tmp_path)
    text = README.split("## Your own experiment\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    lingualift (.*)$", text, re.MULTILINE)
    made, checked, planned, run = (shlex.split(line, comments=True) for line in lines)
    assert made[-2] == ">"
    assert {checked[1], planned[1], run[1]} == {made[-1]}
    written = CliRunner().invoke(app, made[:-2], catch_exceptions=False)
    Path(made[-1]).write_text(written.stdout, encoding="utf-8")
    write_data(tmp_path / "world")
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "world" / "sentiment").rename(tmp_path / "data" / "mini-sentiment")
    for language in ("en", "fr", "sw"):
        text_file = tmp_path / "world" / "reference" / language / "train.jsonl"
        text_file.rename(tmp_path / "data" / "text" / f"{language}.jsonl")
    for line in ([*checked, "--rows", "20"], planned):
        result = CliRunner().invoke(app, line, catch_exceptions=False)
        assert result.exit_code == 0, result.output


def test_the_table_of_findings_has_the_thresholds_that_count():
    text = (ROOT / "docs/check.md").read_text(encoding="utf-8")
    for share, words in (
        (spelling.LOST_NOTED, "loses over 1% of"),
        (spelling.LOST_REFUSED, "over 10% of the letters: error"),
        (findings.PIECES_NOTED, "over 10% of the tokens are less than a character"),
        (findings.CUT_NOTED, "over 1% of the prompts are cut"),
        (overlap.FOUND, "at least 80% of its 8-grams"),
    ):
        assert f"{100 * share:.0f}%" in words
        assert words in text
    assert f"over {findings.TOKENS_NOTED:g} times" in text
    assert f"less than {findings.HEADROOM_NOTED:g} points" in text
    assert (findings.OVERLAP_REFUSED, "a tenth of the items: error" in text) == (0.1, True)
    grams = f"{overlap.NGRAM_WORDS}-grams of words ({overlap.NGRAM_CHARACTERS}-grams of characters"
    assert grams in text
    assert f"`--rows`, {ROWS} per language and task" in text


def test_the_readme_python_runs(folder):
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    merging = block.split("run = ")[0]
    names = {}
    exec(compile(merging.replace("lifted", "lifted-again"), "README.md", "exec"), names)
    assert [set(one) for one in names["answers"]] == [
        {"id", "context", "question", "prediction", "generated"}
    ]
    assert names["scores"] == json.loads((folder / "scores.json").read_text(encoding="utf-8"))["scores"]
    again = (folder / "lifted-again" / "adapter_model.safetensors").read_bytes()
    assert again == (folder / "lifted" / "adapter_model.safetensors").read_bytes()
    assert Path(re.search(r'll\.run\("(.*?)"', block)[1]) == Path("lingualift-demo/demo.yaml")


LIFT = (ROOT / "docs/lift.md").read_text(encoding="utf-8")


@pytest.mark.slow  # test_lift.py
def test_the_lift_of_the_documents_runs(tmp_path, monkeypatch):
    """As shown, but for fewer steps."""
    from lingualift.cli import app

    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    train, lift = commands("Lift an adapter you have")
    assert f"    lingualift {shlex.join(lift)}".replace("'", '"') in LIFT
    for line in ([*train, "--steps", "2"], [*lift, "--steps", "2", "--max-length", "32", "--workers", "1"]):
        result = CliRunner().invoke(app, line, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "perplexity, sw (n 100)" in result.output
    assert "perplexity, sw (n 100)" in README
    numbers = json.loads((tmp_path / "my-adapter-sw" / "lift.json").read_text(encoding="utf-8"))
    assert [entry["what"] for entry in numbers["measures"]] == ["perplexity", "exact_match"]
    block = re.search(r"```python\n(.*?)```", LIFT, re.DOTALL)[1]
    quick = block.replace('output="my-adapter-sw"', 'output="again", steps=2, max_length=32')
    exec(compile(quick, "lift.md", "exec"), {})
    again, first = (tmp_path / name / "lift.json" for name in ("again", "my-adapter-sw"))
    assert json.loads(again.read_text())["measures"][0] == json.loads(first.read_text())["measures"][0]


def test_the_documented_task_is_the_example_and_reads_rows(tmp_path):
    shown = re.search(
        r"```python\n(.*?)```", (ROOT / "docs/your-own-task.md").read_text(encoding="utf-8"), re.DOTALL
    )
    source = (ROOT / "examples/topics.py").read_text(encoding="utf-8")
    assert shown[1] == source
    assert len(source.splitlines()) < 30
    task = get_task("topics.py", ROOT / "examples")
    assert isinstance(task, Task)
    row = {"id": 7, "text": "The match was won late.", "topic": "sports"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (example,) = load_examples(task, Data(files="{split}.jsonl"), "en", "test", tmp_path)
    assert (example.prompt, example.answer) == ("The match was won late.\nTopic:", "sports")


def test_the_documented_metrics_are_the_registered_ones_and_numbers_read_as_shown():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`[, ]*)+)\|", text, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(METRICS)
    listed = (
        (ROOT / "docs/your-own-task.md").read_text(encoding="utf-8").split("- Metrics: ")[1].split("\n")[0]
    )
    assert set(re.findall(r"`(\w+)`", listed)) == set(METRICS)
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "metrics.md", "exec"), {})


def test_the_documented_data_keys_are_the_models(tmp_path):
    text = (ROOT / "docs/experiment.md").read_text(encoding="utf-8")
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert Data(**block["data"]).aligned_on == "id"
    experiment = load_experiment(ROOT / "examples/nusax.yaml").model_dump()
    for name in re.findall(r"^\| `([a-z_.]+)`", text.split("## Data")[0], re.MULTILINE):
        place = experiment
        for part in name.split("."):
            place = place[part]


def test_the_documented_comparison_has_the_keys_of_a_comparison():
    text = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    shown = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert Comparison(**shown).verdict == "above"


@pytest.mark.slow  # test_examples.py plans it
def test_the_demo_ends_with_a_table_of_what_it_measured(tmp_path):
    finished = run_demo(tmp_path / "demo", seeds=1)
    results = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))
    assert results["schema"] == 1
    methods = {row["method"] for row in results["rows"]}
    assert methods == {method.method for method in finished.experiment.methods}
    table = (finished.folder / "table.md").read_text(encoding="utf-8")
    score = next(
        row["score"]
        for row in results["rows"]
        if (row["method"], row["language"], row["metric"]) == ("source-ft", "sw", "accuracy")
    )
    assert f"{score:.1f}" in table
    assert finished.page.is_file()
    again = run_demo(tmp_path / "demo", seeds=1)
    assert again.trained == 0
    assert again.rows == finished.rows


def split_names(rows):
    """Our names of the splits of a data set, and its own where they are others."""
    return [own if own == its else f"{own} (its {its})" for own, its in rows.splits.items()]


def row_note(cells, task, hub):
    """The last cell of a data set's row, which is in words."""
    return next(row[4] for row in cells if len(row) == 5 and row[:2] == [f"`{task}`", f"`{hub}`"])


def test_the_table_of_tasks_is_what_is_registered():
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in f"`{row}".split("|")] for row in rows]
    told = {row[0].strip("`"): row for row in cells if len(row) == 6}
    for name, task in TASKS.items():
        if isinstance(task, PromptedTask):
            _, asked, prompts, answered, metrics, source = told[name]
            question, answer = asked.split(" → ")
            assert re.findall(r"`(\w+)`", question) == [one for one in task.columns if one != "id"]
            assert re.findall(r"`(\w+)`", answer)[0] == task.gold_column
            numbers = re.findall(r"(\d) (\w+)", answer)
            assert [word for _, word in numbers] in ([], ["or"], list(task.labels))
            assert re.findall(r"`(\w+)`", prompts) == list(prompts_of(name))
            assert answered == ("ranking" if task.labels else f"{task.max_new_tokens} new tokens")
            assert metrics.split(", ") == list(task.metrics)
            assert f"({task.source})" in source
    assert [row for row in cells if len(row) == 5 and row[1]] == [
        [
            f"`{name}`",
            f"`{one.hub}`",
            f"`{one.config}`",
            ", ".join(split_names(one)),
            row_note(cells, name, one.hub),
        ]
        for name, offer in HUB_SETS.items()
        for one in offer.sets
    ]
    assert {row[0].strip("`") for row in cells if len(row) == 5} == set(HUB_SETS)
    assert set(HUB_SETS) - {WIKIPEDIA} == {
        name for name, task in TASKS.items() if isinstance(task, PromptedTask)
    }
    left = {name: offer.aside.rows for name, offer in HUB_SETS.items() if offer.aside}
    assert left == {"mgsm": 50, "xquad": 190, "tydiqa-goldp": 200}
    assert "50 of MGSM's test rows, 190 of XQuAD's, 200 of TyDiQA's train rows" in text
    assert set(REFERENCE_TASKS.values()) <= {row[0].strip("`") for row in cells if len(row) == 4}
    wikipedia, sampled, asked = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    )
    assert Reference(**wikipedia["reference"]).data.hub == "wikimedia/wikipedia"
    (entry,) = sampled["tasks"]
    assert TaskData(**entry).data.max_rows == {"test": 1000}
    (entry,) = asked["tasks"]
    assert TaskData(**entry).prompt in prompts_of(entry["task"])
    assert Scoring(**asked["scoring"]).max_length > TASKS[entry["task"]].max_new_tokens


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "study").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """To a file that is there, and in a page of ours to a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page)):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), target
            assert not anchor or anchor in headings(path), target


def outside_code(page):
    fenced = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(?: {4}|\t).*$", "", fenced, flags=re.MULTILINE))


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"\]\([^)]*\)", "", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def test_each_sentence_on_trust_names_a_test_that_is_there():
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    claims = [line for line in text.split("## Not covered")[0].splitlines() if line.startswith("- ")]
    assert [line for line in claims if "`tests/" not in line] == []


def test_the_three_examples_of_the_experiment_file_are_experiments():
    """One language; what stands in a table of tasks instead; and a grid over that."""
    text = (ROOT / "docs/experiment.md").read_text(encoding="utf-8")
    raw, points = {}, []
    for title in ("One language", "A table of tasks", "A grid"):
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        raw |= yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
        points.append(len(parse_experiment(raw).points()))
    assert points == [1, 2, 8]
