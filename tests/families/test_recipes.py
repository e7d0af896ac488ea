"""The papers' tables as experiment files: their numbers are the papers', and each file is checked and runs."""

import gzip
import json
import re
import statistics
from pathlib import Path

import pytest

import lingualift as ll
from builders import tiny
from builders.worlds import unmeasured
from lingualift.checking import check
from lingualift.config import load_experiment
from lingualift.languages import all_languages, knowing
from lingualift.tasks import shipped_languages, shipped_rows

ROOT = Path(__file__).parents[2]
PAPERS = ROOT.parent / "shared" / "papers"
FAMILIES = {
    "adamergex-table-2.yaml": "llama",
    "adamergex-table-3.yaml": "xlmr",
    "adamergex-table-4.yaml": "llama",
    "adamergex-table-5.yaml": "llama",
    "adamergex-table-6.yaml": "mt5",
    "adamergex-table-10.yaml": "llama",
    "adamergex-appendix-6.yaml": "llama",
    "flare-main.yaml": "xlmr",
    "flare-fusions.yaml": "xlmr",
}
SPLITS = {"train": slice(3), "reference": slice(3), "validation": slice(3, 5), "test": slice(5, 8)}
TWO = (
    "adamergex-table-10.yaml",
    "adamergex-table-3.yaml",
)  # measured, and run at once; the others by `make test-all`


def entries(name):
    """What a recipe says of the papers: entry, task, method -> column -> percent."""
    for entry in load_experiment(ROOT / "recipes" / name).published:
        for task, methods in entry.scores.items():
            for method, scores in methods.items():
                yield entry, task, method, scores


def lines(name):
    if not PAPERS.is_dir():
        pytest.skip("the papers' texts lie in ../shared, which is not here")
    text = (PAPERS / name).read_text(encoding="utf-8")
    return [[float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)] for line in text.splitlines()]


def within(numbers, line):
    """Whether numbers stand in a line in their order, others between them."""
    rest = iter(line)
    return all(number in rest for number in numbers)


def test_every_recipe_is_held_here():
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} == {*FAMILIES}
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert {*re.findall(r"\(([\w.-]+\.yaml)\)", text)} == {*FAMILIES}


def test_every_table_with_numbers_has_a_recipe():
    found = {(entry.paper, entry.table) for name in FAMILIES for entry, *_ in entries(name)}
    text = lines("adamergex.txt") and (PAPERS / "adamergex.txt").read_text(encoding="utf-8")
    named = {f"Table {number}" for number in re.findall(r"\bTable (\d+)", text)}
    named |= {"Table 8"} if "Table 7 and 8" in text else set()
    without = {"Table 1", "Table 9"}  # prompts; numbers that the text lost
    adamergex = {table for paper, table in found if paper.endswith("2402.18913")}
    assert {f"Table {table}" for table in adamergex if table.isdigit()} == named - without
    assert {table for table in adamergex if not table.isdigit()} == {"A.6, first", "A.6, second"}
    assert {table for paper, table in found if paper.endswith("2501.06892")} == {
        "main results",
        "fusion ablation",
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_every_published_number_stands_in_a_row_of_the_paper(name):
    told = lines("notes.md" if name.startswith("flare") else "adamergex.txt")
    for entry, task, method, scores in entries(name):
        assert any(within(scores.values(), line) for line in told), (entry.table, task, method, scores)


def test_averages_of_table_2_are_those_of_the_languages():
    averages = {
        (entry.grid["adapter"], task, method): scores["average"]
        for entry, task, method, scores in entries("adamergex-table-2.yaml")
        if entry.table == "2"
    }
    unlike = set()
    for entry, task, method, scores in entries("adamergex-table-2.yaml"):
        if entry.table != "2":
            mean = statistics.fmean(scores.values())
            same = mean == pytest.approx(averages[entry.grid["adapter"], task, method], abs=0.06)
            unlike |= set() if same else {(entry.table, task, method)}
    paper = {("7", "xnli", "adamergex"), ("7", "mgsm", "xlt vanilla"), ("8", "mgsm", "xlt vanilla")}
    assert unlike == paper  # as the recipe's notes say


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """Folder of a small NLLB that has the tags of the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "NLLB_TAGS", [one.nllb for one in all_languages() if one.nllb])
        return str(tiny.build("nllb", tmp_path_factory.mktemp("translator") / "nllb"))


def stand_in(backbone, encoder, name):
    """Overrides that put small stand-ins in the place of the models."""
    models = [f"backbone.name={backbone(FAMILIES[name]).source}"]
    if not name.startswith("flare"):
        return models
    models += [f"tasks.{index}.translated.model={encoder}" for index in range(3)]
    models += [f"tasks.{index}.translated.dtype=float32" for index in range(3)]
    return models + ([f"flare.source_encoder={encoder}"] if name == "flare-main.yaml" else [])


def four(name):
    """Overrides that put small models of their classes in the place of the four backbones."""
    return [] if name != "flare-main.yaml" else ["grid={}", "published=[]"]


def put(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_data(folder, experiment):
    """Rows of every split and language that an experiment may read, no row in two splits of it."""
    for point in experiment.points():
        task, languages = point.task.task, point.experiment.languages
        own = shipped_languages(task)
        for code in (languages.source, *languages.targets):
            rows = shipped_rows(task, code if code in own else own[0])
            for split, places in SPLITS.items():
                some = rows[4:] if split == "test" and point.task.data.aside else rows[places]
                put(folder / "data" / task / code / f"{split}.jsonl.gz", some)
            put(
                folder / "data" / "wikipedia" / code / "train.jsonl.gz",
                [
                    {"text": f"{number} texts in {code} that a model may read, one after another"}
                    for number in range(8)
                ],
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_passes_check(backbone, translator, tmp_path, name, monkeypatch):
    path = tmp_path / "recipes" / name
    path.parent.mkdir()
    path.write_bytes((ROOT / "recipes" / name).read_bytes())
    asides = [
        f"tasks.{index}.data.validation.rows=2"
        for index, entry in enumerate(load_experiment(path).tasks)
        if entry.data.aside
    ]
    overrides = [*stand_in(backbone, translator, name), *four(name), *asides]
    experiment = load_experiment(path, overrides)
    with knowing(experiment.languages.added()):
        write_data(tmp_path, experiment)
    if name not in TWO:
        monkeypatch.setattr("lingualift.checking.estimate", unmeasured)
    found = check(path, overrides=overrides)
    assert [one for one in found.findings if one.grade == "error"] == []


@pytest.mark.parametrize("name", tiny.quick(FAMILIES, *TWO))
def test_a_recipe_runs(backbone, translator, tmp_path, name):
    path = ROOT / "recipes" / name
    overrides = [*stand_in(backbone, translator, name), *four(name), "workers=1"]
    finished = ll.run(path, output=tmp_path / "run", overrides=overrides, tiny=True)
    asked = load_experiment(path)
    assert {row["task"] for row in finished.rows} == {entry.task for entry in asked.tasks}
    assert {row["method"] for row in finished.rows} == {method.method for method in asked.methods}
    assert not (ROOT / "recipes" / "runs").exists()
