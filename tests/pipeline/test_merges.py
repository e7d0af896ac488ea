"""What `lingualift merge` can do, the experiment file says by the same names, and it gives the same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import lingualift as ll
from builders.adapter_folders import updates
from builders.refusals import refused
from builders.worlds import experiment, read_jsonl, write_experiment
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.config import METHOD_SETTINGS, MergeMethod, dump_experiment, load_experiment, method_defaults
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.methods import METHODS

QUERY = {"q_proj": 0.5, ".*": 1.0}
MERGES = {
    "factors-rule=multiplicative-weight=0.5": {"method": "adamergex", "rule": "multiplicative"},
    "delta-rank=2-weight=0.5": {"method": "adamergex", "space": "delta", "rank": 2},
    "factors-module_weights=q_proj:0.5,.*:1-weight=0.5": {"method": "adamergex", "module_weights": QUERY},
    "factors-layer_weights=0:0,1:0.5-weight=0.5": {
        "method": "adamergex",
        "layer_weights": {"0": 0, "1": 0.5},
    },
    "factors-mean-weight=0.5": {"method": "arithmetic", "mean": True},
    "factors-density=0.3-weight=0.5": {"method": "ties", "density": 0.3},
    "core-density=0.3-weight=0.5": {"method": "ties", "space": "core", "density": 0.3},
    "delta-bottom=1-weight=0.5": {"method": "layer-swap", "space": "delta", "bottom": 1},
    "factors-density=0.3-seed=5-weight=0.5": {"method": "dare", "density": 0.3, "seed": 5},
}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of them all at a fixed weight, and of one whose weight is searched."""
    methods = [{**merge, "weight": 0.5} for merge in MERGES.values()]
    raw = experiment(data, methods=["source-ft", *methods, {"method": "ties", "density": 0.3}])
    raw["languages"]["targets"] = ["fr", "sw"]
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 0.5]}
    folder = tmp_path_factory.mktemp("run")
    return run(write_experiment(folder / "e.yaml", raw), output=folder / "run")


def options(merge):
    """The options of the command line that say what an entry of the file says."""
    found = []
    for name, value in merge.items():
        if name in ("module_weights", "layer_weights"):
            found += [f"--{name[:-1].replace('_', '-')}={key}={factor}" for key, factor in value.items()]
        else:
            found += [f"--{name}"] if value is True else [f"--{name.replace('_', '-')}={value}"]
    return found


@pytest.mark.parametrize("variant", MERGES)
def test_a_run_merges_as_the_command_does(finished, cli, inside, variant):
    rows = [row for row in finished.rows if row["variant"] == variant and row["language"] == "sw"]
    (adapter,) = {finished.folder / row["adapter"] for row in rows}
    recorded = json.loads((adapter / "provenance.json").read_text())["inputs"]
    if MERGES[variant]["method"] in ("adamergex", "layer-swap"):
        given = [f"--{one['role'].replace('_', '-')}={one['path']}" for one in recorded] + ["--weight=0.5"]
    else:
        given = [f"--adapter={one['path']}={weight}" for one, weight in zip(recorded, (1, 0.5), strict=True)]
    done = cli("merge", *given, *options(MERGES[variant]), "--output", "again")
    assert done.code == 0, done.err
    assert Path("again", WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()


@pytest.fixture(scope="module")
def in_thirds(data, tmp_path_factory):
    """A weight for each part of the blocks, of which there are two here."""
    how = {"method": "adamergex", "space": "delta", "thirds": True}
    raw = experiment(data, methods=["source-ft", how, {"method": "adamergex", "space": "delta"}])
    raw["languages"]["targets"] = ["fr", "sw"]
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 0.5, 1.0]}
    folder = tmp_path_factory.mktemp("thirds")
    return run(write_experiment(folder / "e.yaml", raw), output=folder / "run")


def sweeps_of(finished):
    steps = json.loads((finished.folder / "steps.json").read_text())["steps"]
    return {step["facts"]["variant"]: step["facts"] for step in steps if step["kind"] == "sweep"}


def test_a_weight_for_each_third_is_searched_on_its_share_of_the_rows(in_thirds, monkeypatch, tmp_path):
    found = sweeps_of(in_thirds)
    thirds, one = found["delta-thirds"], found["delta"]
    assert [(tried["blocks"], tried["weight"]) for tried in thirds["tried"]] == [
        (place, weight) for place in ("0-0", "1-1") for weight in (0.0, 0.5, 1.0)
    ]
    assert len(one["tried"]) == 3
    for place, weight in thirds["by_block"].items():
        scores = {tried["weight"]: tried["score"] for tried in thirds["tried"] if tried["blocks"] == place}
        assert scores[weight] == max(scores.values())
    assert thirds["chosen"] == sum(thirds["by_block"].values()) / 2


def test_as_many_rows_are_scored_for_thirds_as_for_one_weight(data, tmp_path, monkeypatch):
    from lingualift.evaluation import runner

    asked, real = [], runner.evaluate

    def counted(backbone, adapter, task, rows, *rest):
        asked.append([row.id for row in rows])
        return real(backbone, adapter, task, rows, *rest)

    monkeypatch.setattr(runner, "evaluate", counted)
    how = {"method": "arithmetic", "space": "delta", "thirds": True}
    raw = experiment(data, methods=[how], seeds=[0], workers=1, weights={"tune_on": "fr", "grid": [0.5, 1.0]})
    run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    validation = [row["id"] for row in read_jsonl(data / "sentiment/fr/validation.jsonl")]
    tried = [ids for ids in asked if set(ids) <= set(validation)]
    assert tried == [validation[::2], validation[::2], validation[1::2], validation[1::2]]


def test_a_merge_takes_the_weights_of_its_thirds(in_thirds, tmp_path):
    row = next(row for row in in_thirds.rows if row["variant"] == "delta-thirds" and row["language"] == "sw")
    by_block = row["weight_by_block"]
    assert by_block == sweeps_of(in_thirds)["delta-thirds"]["by_block"]
    adapter = in_thirds.folder / row["adapter"]
    recorded = {
        one["role"]: one["path"] for one in json.loads((adapter / "provenance.json").read_text())["inputs"]
    }
    again = ll.merge(
        method="adamergex",
        **recorded,
        space="delta",
        weight=1.0,
        layer_weights={place.split("-")[0]: weight for place, weight in by_block.items()},
        output=tmp_path / "again",
    )
    one, two = (updates(folder) for folder in (adapter, again.output))
    assert all(np.allclose(one[name], two[name], atol=1e-6) for name in one)
    page = (in_thirds.folder / "report.html").read_text()
    shown = "/".join(f"{weight:g}" for weight in by_block.values())
    assert shown in page
    assert shown in (in_thirds.folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("zones", "found", "expected"),
    [
        ({"bottom": 40}, "40 blocks at the bottom", "the 2 that there are"),
        ({"bottom": 0, "top": 0}, "every block to the task", "the target reference's"),
    ],
)
def test_zones_are_held_against_the_backbone_before_anything_runs(data, tmp_path, zones, found, expected):
    raw = experiment(data, methods=[{"method": "layer-swap", "weight": 1, **zones}])
    with refused("methods.0", found, expected, mend="`bottom`" if "task" in found else "bottom"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_the_part_of_a_block_is_searched_up_to_one(data, tmp_path):
    raw = experiment(
        data, methods=["layer-swap", "arithmetic"], weights={"tune_on": "fr", "grid": [0.5, 1.0, 1.5]}
    )
    plan, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw))
    grids = {step.how.method: step.grid for step in plan.steps if step.kind == "sweep"}
    assert grids == {"layer-swap": (0.5, 1.0), "arithmetic": (0.5, 1.0, 1.5)}
    raw["weights"]["grid"] = [1.5]
    with refused("weights.grid", "layer-swap", "0 to 1", mend="`weight`"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


@pytest.mark.parametrize("fixed", [{"weight": 0.5}, {"layer_weights": {"0": 0.5}}])
def test_thirds_are_searched_or_not(data, tmp_path, fixed):
    raw = experiment(data, methods=[{"method": "adamergex", "thirds": True, **fixed}])
    with refused("e.yaml", *fixed, "thirds") as told:
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
    assert "leave one of them out" in str(told.value)


def test_all_of_them_are_different_merges(finished):
    adapters = {row["adapter"] for row in finished.rows if row["weight"] == 0.5 and row["language"] == "sw"}
    assert len({(finished.folder / name / WEIGHTS_FILE).read_bytes() for name in adapters}) >= len(MERGES)


def test_the_weight_of_any_is_searched(finished):
    (weight,) = {row["weight"] for row in finished.rows if row["variant"] == "factors-density=0.3"}
    assert weight in (0.0, 0.5)
    steps = json.loads((finished.folder / "steps.json").read_text())["steps"]
    (sweep,) = [step["facts"] for step in steps if step["kind"] == "sweep"]
    assert (sweep["method"], sweep["variant"], sweep["chosen"]) == ("ties", "factors-density=0.3", weight)


@pytest.mark.parametrize(
    ("entry", "kind", "where", "found"),
    [
        ({"method": "ties", "space": "delta"}, "lora", "methods.0", "ties on LoRA, space delta"),
        ({"method": "ties", "rule": "multiplicative"}, "lora", "methods.0", "two references"),
        ({"method": "adamergex", "density": 0.3}, "lora", "methods.0.density", "adamergex"),
        ({"method": "adamergex", "rule": "unanchored"}, "lora", "methods.0", "rule unanchored"),
        ({"method": "adamergex", "rank": 2}, "lora", "methods.0.rank", "factor space"),
        ({"method": "adamergex", "rank": 2}, "ia3", "methods.0.rank", "(IA)³"),
        ({"method": "adamergex", "cutoff": 0.1}, "lora", "methods.0.cutoff", "pseudo-inverse"),
        ({"method": "dare", "density": 0}, "lora", "methods.0.density", "0"),
        ({"method": "adamergex", "layer_weights": {"0-3": 1, 2: 0}}, "lora", "methods.0", "block 2"),
        ({"method": "adamergex", "layer_weights": {"0-30": 1}}, "lora", "methods.0.layer_weights", "block"),
        ({"method": "adamergex", "module_weights": {"none": 1}}, "lora", "module_weights", "'none'"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_runs(data, tmp_path, entry, kind, where, found):
    raw = experiment(data, methods=[{**entry, "weight": 0.5}], adapter={"type": kind})
    with refused("", mend="") as told:
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
    assert where in str(told.value)
    assert found in str(told.value)


def test_every_method_with_settings_is_one_and_a_key_has_one_default():
    assert METHOD_SETTINGS.keys() <= METHODS.keys()
    defaults = method_defaults()
    for record in METHOD_SETTINGS.values():
        for name, field in record.model_fields.items():
            assert name == "method" or field.get_default() == defaults[name], (record, name)
    merging = {name for name, record in METHOD_SETTINGS.items() if issubclass(record, MergeMethod)}
    assert merging == {"adamergex", "arithmetic", "ties", "dare", "layer-swap"}


def test_run_folders_of_before_wrote_every_key_of_every_method(data, tmp_path):
    every = {"space": "factors", "combine": "sum", "modules": None, "ask": "vanilla", "weight": None}
    every |= {"fusion": "add_relu", "source_state": "block-input", "padding": "left", "answer_source": "last"}
    every |= {"layer": None, "ratio": 0.5}
    chosen = [
        {"method": "source-ft"},
        {"method": "xlt", "ask": "source-ft"},
        {"method": "arithmetic", "combine": "mean", "weight": 0.5},
        {"method": "flare", "padding": "right"},
        {"method": "x-mixup", "layer": 1},
    ]
    raw = experiment(data, methods=[{**every, **each} for each in chosen])
    found = load_experiment(write_experiment(tmp_path / "old.yaml", raw))
    raw["methods"] = [
        *chosen[:2],
        {"method": "arithmetic", "mean": True, "weight": 0.5},
        *chosen[3:],
    ]
    assert found == load_experiment(write_experiment(tmp_path / "new.yaml", raw))
    written = yaml.safe_load(dump_experiment(found))["methods"]
    assert written[0] == {"method": "source-ft"}
    assert [method.variant("lora") for method in found.methods] == [
        "",
        "source-ft",
        "factors-mean-weight=0.5",
        "add_relu-padding=right",
        "layer=1",
    ]
