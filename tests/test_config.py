"""The experiment file: what is refused, and how the message helps."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builders import refusals
from builders.worlds import experiment, write_experiment
from lingualift.config import load_experiment, parse_experiment


def full():
    """A valid experiment that names a key at every level."""
    raw = experiment(Path("data"))
    raw["languages"] |= {"groups": {"weak": ["sw"]}, "own": {"rej": {"name": "Rejang", "script": "Latn"}}}
    raw["tasks"][0]["data"] |= {"splits": {"train": "train"}, "max_rows": {"train": 5}, "sample_seed": 1}
    raw["reference"] |= {"task": "causal-lm"}
    raw["methods"] = ["vanilla", {"method": "adamergex", "space": "delta"}]
    raw["weights"] = {"grid": [0.0, 1.0], "tune_on": "fr"}
    raw |= {"seeds": [0, 1], "scoring": {"batch_size": 4}}
    return raw


def places(value, path=()):
    """Paths of every mapping whose keys are fixed."""
    if isinstance(value, dict):
        if path[-1:] not in (("groups",), ("own",), ("columns",), ("splits",), ("max_rows",)):
            yield path
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def at(raw, path):
    for part in path:
        raw = raw[part]
    return raw


PLACES = list(places(full()))


def refused(raw, *facts):
    with refusals.refused("file.yaml", "is not a valid experiment:", *facts, mend="the keys") as told:
        parse_experiment(raw, "file.yaml")
    return told.value.found


def test_the_experiment_that_the_refusals_start_from_is_valid():
    parse_experiment(full())
    assert len(PLACES) == 15


@given(data=st.data())
def test_a_misspelt_key_at_any_level_is_refused_with_the_right_one(data):
    raw = full()
    place = data.draw(st.sampled_from(PLACES))
    mapping = at(raw, place)
    key = data.draw(st.sampled_from([key for key in mapping if len(key) > 3]))
    position = data.draw(st.integers(1, len(key) - 1))
    misspelt = data.draw(
        st.sampled_from([key[:position] + key[position + 1 :], key[:position] + "x" + key[position:]])
    )
    if misspelt in mapping:
        return
    mapping[misspelt] = mapping[key]
    dotted = ".".join(str(part) for part in (*place, misspelt))
    found = refused(raw, f"{dotted}: is not a known key; did you mean")
    assert key in found.split("did you mean")[1]


@pytest.mark.parametrize("key", ["splits", "max_rows"])
def test_a_misspelt_split_is_refused_with_the_right_ones(key):
    raw = full()
    raw["tasks"][0]["data"][key] = {"valid": "x" if key == "splits" else 5}
    refused(raw, f"tasks.0.data.{key}.valid: ", "'validation'")


def with_value(place, value):
    raw = full()
    *parents, last = place.split(".")
    at(raw, [int(part) if part.isdigit() else part for part in parents])[
        int(last) if last.isdigit() else last
    ] = value
    return raw


@pytest.mark.parametrize(
    ("place", "value", "key", "found"),
    [
        ("languages.source", "xx", "", "no known language"),
        ("adapter.rank", True, "", "a truth value, not a number (found True)"),
        ("training.task.learning_rate", True, "", "a truth value, not a number"),
        ("seeds", [1, True], "seeds.1", "a truth value, not a number"),
        ("tasks.0.data.max_rows", {"train": True}, "tasks.0.data.max_rows.train", "a truth value"),
        ("tasks.0.data.sample_seed", 2**63, "", str(2**63)),
        ("adapter.rank", 1e12, "", "more than 16,384: no layer"),
        ("adapter.alpha", 10**400, "", "more than 65,536: half precision"),
        ("adapter.tokens", 10**9, "", "more than 16,384: "),
        ("adapter.init_seed", 2**62, "", str(2**62)),
        ("training.task.steps", 2**31, "", "more than 2,147,483,647: steps and rows"),
        ("training.task.batch_size", 2**63, "", "more than 1,048,576: no device"),
        ("training.task.accumulation", 2**63, "", "more than 1,048,576: "),
        ("training.task.max_length", 10**9, "", "more than 16,777,216: no model"),
        ("training.task.learning_rate", 1e308, "", "more than 1e+36: float32"),
        ("training.task.weight_decay", 1e308, "", "more than 1,000,000: half precision"),
        ("training.task.max_grad_norm", 1e308, "", "more than 1e+36: float32"),
        ("training.task.epochs", 1e308, "", "more than 1,000,000: no training"),
        ("reference.segment_tokens", 2**63, "", "more than 16,777,216: "),
        ("weights.grid", [0.5, 1e300], "weights.grid.1", "more than 1,000,000: "),
        ("methods.1.rank", 10**9, "", "more than 16,384: no layer"),
        ("methods.1", {"method": "x-mixup", "layer": 10**9}, "methods.1.layer", "more than 16,384: "),
        ("scoring.batch_size", 2**63, "", "more than 1,048,576: "),
        ("scoring.max_new_tokens", 2**63, "", "more than 16,777,216: "),
        ("workers", 10**9, "", "more than 1,024: each is a process"),
        ("backbone.dtype", "x" * 10**6, "", "xxx…)"),
        ("languages.targets", [], "", "at least 1"),
        ("languages.targets", ["fr", "sw", "fr"], "languages: targets", "fr named twice"),
        ("languages.targets", ["fr", "en"], "languages: targets", "en is the source language"),
        ("languages.targets", ["sw"], "weights.tune_on", "fr is not among the target languages"),
        ("languages.groups", {"weak": ["de"]}, "languages: groups.weak", "de is not among the targets"),
        ("languages.groups", {"weak": []}, "languages: groups.weak", "nothing"),
        ("languages.groups", {"sw": ["fr"]}, "languages: groups.sw", "a column of that name"),
        ("languages.groups", {"average": ["fr"]}, "languages: groups.average", "a column of that name"),
        ("languages", "en", "", "'en'"),
        ("backbone.name", "", "", "at least 1"),
        ("backbone.dtype", "float8", "", "'float8'"),
        ("tasks", [], "", "at least 1"),
        ("tasks.0.data.files", "{lang}.jsonl", "", "{lang} is not known; did you mean language?"),
        ("tasks.0.data.files", "{.jsonl", "", "'{.jsonl' is no template"),
        ("tasks.0.data.files", "{}.jsonl", "", "{} is not known"),
        ("tasks.0.data.files", "{language!x}.jsonl", "", "'{language!x}.jsonl' is no template"),
        ("tasks.0.data.files", "{language:{x}}.jsonl", "", "'{language:{x}}.jsonl' is no template"),
        ("tasks.0.data", {}, "", "either `files` or `hub`"),
        ("tasks.0.data", {"files": "a.csv", "hub": "a/b"}, "", "either `files` or `hub`"),
        ("tasks.0.data", {"hub": "a/b"}, "", "full commit"),
        ("tasks.0.data", {"hub": "a/b", "revision": "main"}, "", "full commit"),
        ("tasks.0.data", {"files": "a.csv", "revision": "0" * 40}, "", "belong to `hub`"),
        ("tasks.0.data.max_rows", {"train": 0}, "tasks.0.data.max_rows.train", "greater than 0"),
        ("reference.segment_tokens", 0, "", "greater than 0"),
        ("adapter.rank", 0, "", "greater than 0"),
        ("adapter.rank", 2.5, "", "2.5"),
        ("adapter.type", "lorra", "", "'lora', 'ia3', 'prefix' or 'bottleneck'"),
        ("adapter.dropout", 1.0, "", "less than 1"),
        ("training.task.steps", None, "training.task", "either `steps` or `epochs`"),
        ("training.task.epochs", 2, "training.task", "either `steps` or `epochs`"),
        ("training.task.learning_rate", 0, "", "greater than 0"),
        ("training.task.learning_rate", "fast", "", "'fast'"),
        ("training.task.learning_rate", float("inf"), "", "finite number (found inf)"),
        ("training.task.learning_rate", float("nan"), "", "finite number (found nan)"),
        ("training.task.warmup", 1.0, "", "less than 1"),
        ("training.task.weight_decay", -1, "", "greater than or equal to 0"),
        ("weights.grid", [], "weights: grid", "at least one weight"),
        ("weights.grid", [1, 1.0], "weights: grid", "each once"),
        ("weights.grid", [-0.5], "weights.grid.0", "greater than or equal to 0"),
        ("weights.tune_on", "de", "", "de is not among the target languages"),
        ("weights.tune_on", "en", "", "en is not among the target languages"),
        ("seeds", [], "", "at least 1"),
        ("seeds", [1, 1], "", "1 is named twice"),
        ("seeds", [-1], "seeds.0", "greater than or equal to 0"),
        ("seeds", 3, "", "found 3"),
        ("methods", ["vanilla", "vanilla"], "", "vanilla is named twice"),
        ("methods.1.space", "delta-space", "", "'factors', 'delta' or 'core'"),
        ("methods.1.weight", -1, "", "greater than or equal to 0"),
        ("scoring.batch_size", 0, "", "greater than 0"),
        ("workers", 0, "", "greater than 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(place, value, key, found):
    refused(with_value(place, value), f"experiment:\n  {key or place}: ", found)


def test_one_task_twice_is_refused():
    raw = full()
    raw["tasks"].append(copy.deepcopy(raw["tasks"][0]))
    refused(raw, "tasks: mini-sentiment is named twice")


def test_two_codes_of_one_language_are_refused():
    refused(with_value("languages.targets", ["fr", "sw", "swh"]), "targets: ", "sw and swh")
    refused(with_value("languages.targets", ["fr", "sw", "eng"]), "targets: ", "eng is the source language")


def test_a_missing_key_is_named():
    raw = full()
    del raw["training"]["task"]
    refused(raw, "training.task: is missing")


def test_three_problems_are_told_at_once():
    found = refused(full() | {"seed": [0], "method": [], "workers": 0}, "seeds?", "methods?", "workers: ")
    assert found.count("\n  ") == 3


def load(tmp_path, text, *overrides):
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, list(overrides))


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seeds: [0]\nseeds: [1]\n", "seeds", 2),
        ("backbone: {name: a, name: b}\n", "name", 1),
        ("tasks:\n  - {task: a, data: {files: x, files: y}}\n", "files", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, key, line):
    with refusals.refused("/experiment.yaml", f"'{key}' stands twice", f"line {line}"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a: [1", ("YAML", "',' or ']'")),
        ("a: !!python/object/apply:os.getcwd []", ("YAML", "os.getcwd")),
        ("- a\n- b\n", ("holds list",)),
        ("", ("holds NoneType",)),
        ("just words", ("holds str",)),
        ("? [a]\n: b\n", ("YAML", "unhashable")),
        ("a: 2024-99-99\n", ("YAML", "'2024-99-99'", "line 1")),
    ],
)
def test_a_file_that_holds_no_experiment_is_refused(tmp_path, text, facts):
    with refusals.refused("/experiment.yaml", *facts):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with refusals.refused("/none.yaml", "No such file"):
        load_experiment(tmp_path / "none.yaml")
    with refusals.refused(str(tmp_path), "directory", mend="name a file"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: ü".encode("latin-1"))
    with refusals.refused("latin.yaml", "not UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.0e-3", "0.001", "+1e-03", ".1e-2"])
def test_every_way_to_write_a_number_is_a_number(tmp_path, number):
    text = yaml.safe_dump(full()).replace("learning_rate: 0.005", f"learning_rate: {number}")
    assert number in text
    assert load(tmp_path, text).training.task.learning_rate == 0.001


def test_norwegian_is_a_language_and_not_a_truth_value(tmp_path):
    text = yaml.safe_dump(full()).replace("- fr", "- no").replace("tune_on: fr", "tune_on: no")
    found = load(tmp_path, text)
    assert found.languages.targets == ("no", "sw")
    assert found.weights.tune_on == "no"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seeds=[3,4]", lambda e: e.seeds == (3, 4)),
        ("languages.targets=[no, fr]", lambda e: e.languages.targets == ("no", "fr")),
        ("languages.targets.1=de", lambda e: e.languages.targets == ("fr", "de")),
        ("tasks.0.data.max_rows.train=9", lambda e: e.tasks[0].data.max_rows["train"] == 9),
        ("methods.1.space=factors", lambda e: e.methods[1].space == "factors"),
        ("training.task.learning_rate=2e-4", lambda e: e.training.task.learning_rate == 2e-4),
        ("scoring.max_length=77", lambda e: e.scoring.max_length == 77),
        ("backbone.name=a=b/c", lambda e: e.backbone.name == "a=b/c"),
        ("adapter={rank: 3}", lambda e: (e.adapter.rank, e.adapter.alpha) == (3, 16)),
    ],
)
def test_an_override_replaces_one_key(tmp_path, override, read):
    raw = full()
    raw["languages"].pop("groups")
    raw["weights"].pop("tune_on")
    assert read(load(tmp_path, yaml.safe_dump(raw), override))


def test_an_override_makes_the_mapping_that_it_needs(tmp_path):
    raw = full()
    del raw["scoring"]
    assert load(tmp_path, yaml.safe_dump(raw), "scoring.batch_size=3").scoring.batch_size == 3


def test_later_overrides_win(tmp_path):
    assert load(tmp_path, yaml.safe_dump(full()), "seeds=[1]", "seeds=[2]").seeds == (2,)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seeds", "no `=`"),
        ("=3", "no `=`"),
        ("seeds=[1", "YAML"),
        (f"seeds.{'9' * 5000}=1", "no index of a list of 2"),
        ("seeds=2024-99-99", "'2024-99-99'"),
        ('seeds=!!int ""', "''"),
        (f"seeds={'[' * 2000}", "100 levels"),
        ('adapter.modules=["\\ud83d"]', "(\\ud83d"),
        ("seeds.7=1", "'7' is no index of a list of 2"),
        ("seeds.first=1", "'first' is no index of a list of 2"),
        ("tasks.-1.task=x", "'-1' is no index of a list of 1"),
        ("workers.count=1", "'workers' holds 1"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path, override, found):
    with refusals.refused(f"--set {override[:100]}", found):
        load(tmp_path, yaml.safe_dump(full()), override)


@pytest.mark.parametrize(
    ("override", "found"),
    [("adaptor.rank=1", "adapter?"), ("adapter.rnk=1", "adapter.rnk"), ("seeds=[a]", "seeds.0")],
)
def test_an_override_that_makes_no_experiment_is_refused(tmp_path, override, found):
    with refusals.refused("/experiment.yaml", found):
        load(tmp_path, yaml.safe_dump(full()), override)


def test_an_experiment_cannot_be_changed_in_memory():
    found = parse_experiment(full())
    with pytest.raises(ValueError, match="frozen"):
        found.adapter.rank = 3


def test_a_written_experiment_is_read_back(tmp_path):
    path = write_experiment(tmp_path / "e.yaml", full())
    assert load_experiment(path) == parse_experiment(full())
