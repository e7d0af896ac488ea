"""Every experiment file of the repository is read, and planned where its data are there."""

from pathlib import Path

import pytest

from lingualift.config import dump_experiment, load_experiment
from lingualift.miniworld import write_data
from lingualift.pipeline import plan_of
from lingualift.pipeline.checks import check_methods
from lingualift.pipeline.methods import METHODS

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))  # run by tests/families/test_recipes.py
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
DEMO = ROOT / "src" / "lingualift" / "commands" / "demo.yaml"


def test_no_experiment_file_is_overlooked():
    skipped = {".venv", "node_modules", "mutants", "runs", "lingualift-demo", ".git"}
    found = {
        path
        for path in ROOT.rglob("*.yaml")
        if not path.name.startswith(".")
        and path.parent != ROOT / "src" / "lingualift" / "prompts"
        and not skipped & set(path.relative_to(ROOT).parts)
    }
    assert found == {*EXAMPLES, *RECIPES, DEMO}
    assert len(EXAMPLES) >= 1


@pytest.mark.parametrize("path", [*EXAMPLES, DEMO], ids=lambda path: path.name)
def test_it_is_a_valid_experiment_whose_methods_have_what_they_need(path):
    experiment = load_experiment(path)
    for point in experiment.points():
        check_methods(point)
    merges = {name for name, method in METHODS.items() if not (method.reads or method.trains_on_translations)}
    merges -= {"xlt"}  # their tasks have no such prompt
    merges -= {"ties", "dare", "layer-swap"} if path == DEMO else set()  # which has three minutes
    fuses = {"source-ft", "translate-test", "translate-train", "input-fusion", "x-mixup", "flare"}
    whole = fuses if "flare" in path.name else merges | fuses - {"input-fusion"} if path == DEMO else merges
    assert {method.method for method in experiment.methods} == whole
    assert dump_experiment(experiment)


@pytest.mark.slow  # reads the data sets; the demo is planned below
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_can_be_planned(path, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("its data and backbone lie in ../shared, which is not here")
    planned, store = plan_of(path, output=tmp_path / "run")
    assert len(planned.missing(store)) == len(planned.steps) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_demo_can_be_planned(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "demo.yaml").write_text(DEMO.read_text(encoding="utf-8"), encoding="utf-8")
    planned, _ = plan_of(tmp_path / "demo.yaml", output=tmp_path / "run")
    experiment = planned.experiment
    # one adapter of the task and of the source's text; per target one of text, of labels, and of each of the three
    # methods that train on translations; all per seed
    targets = len(experiment.languages.targets)
    trained = [step for step in planned.steps if step.kind == "adapter"]
    assert len(trained) == len(experiment.seeds) * (1 + 1 + targets * (1 + 1 + 3))
    assert len(experiment.seeds) >= 3
