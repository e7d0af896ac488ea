"""What a merge says of itself: provenance that suffices to repeat it, a card that renders, notes that are true."""

import json
from itertools import pairwise

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from builders.adapter_folders import (
    PREFIX,
    config_of,
    raw,
    same,
    three,
    write_folder,
    write_lora,
    write_prefix,
    write_vectors,
)
from lingualift.merging import METHODS, merge

ONE = {"kind": "trained", "initialisation": "one"}
OTHER = {"kind": "trained", "initialisation": "other"}
UNNAMED = "an adapter does not name its backbone; that all have the same could not be checked"
LEFT_OUT = "biases and saved modules of the other adapters are whole values and were left out"


def provenance(path):
    return json.loads((path / "provenance.json").read_text())


def listed(facts):
    return {"adapters": [(entry["path"], entry["weight"]) for entry in facts["inputs"]]}


def by_role(facts):
    inputs = {entry["role"]: entry["path"] for entry in facts["inputs"]}
    return {**inputs, "weight": facts["inputs"][1]["weight"]}


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_lora, {"method": "adamergex", "modules": "q_proj", "module_weights": {".*q_proj": 0.5}}),
        (write_lora, {"method": "adamergex", "space": "delta", "rank": 2}),
        (write_lora, {"method": "arithmetic", "export": "serving", "rank": 3}),
        (write_lora, {"method": "dare", "density": 0.3, "seed": 5}),
        (write_lora, {"method": "ties", "density": 0.3}),
        (write_vectors, {"method": "adamergex", "rule": "additive"}),
        (write_prefix, {"method": "adamergex", "rule": "unanchored", "cutoff": 1e-3}),
    ],
)
def test_a_merge_can_be_repeated_from_its_provenance(tmp_path, write, options):
    task, target, source = three(tmp_path, write)
    if options["method"] == "adamergex":
        inputs = {"task": task, "target_reference": target, "source_reference": source, "weight": 0.7}
    else:
        inputs = {"adapters": [(task, 1.0), (target, 0.5)]}
    report = merge(**inputs, **options, output=tmp_path / "out")
    facts = provenance(tmp_path / "out")
    again = merge(
        method=facts["method"],
        output=tmp_path / "again",
        **(by_role if options["method"] == "adamergex" else listed)(facts),
        space=facts["space"],
        rule=facts["rule"],
        export=facts["export"],
        rank=facts["rank"],
        modules=facts["module_pattern"],
        module_weights=facts["module_weights"],
        **facts["options"],
    )
    assert same(raw(again.output), raw(report.output))
    assert config_of(again.output) == config_of(report.output)
    assert provenance(again.output) == facts
    assert facts["source"] == METHODS[report.method].source
    said = report.to_dict()
    repeated = ("method", "space", "rule", "export", "kept", "energy_kept")
    assert {key: facts[key] for key in repeated} == {key: said[key] for key in repeated}
    assert report.export == options.get("export", "peft")
    assert config_of(report.output)["inference_mode"] is True


def test_what_a_merge_passes_on(tmp_path):
    """Of the task's adapter how it was asked and answers; of all that have a weight, their languages, each once."""
    recorded = [
        {"kind": "trained", "language": "en", "chat_template": True, "labels": ["bad", "good"]},
        {"kind": "merged", "languages": ["sw", "en", "de"], "chat_template": False, "labels": ["a", "b"]},
        {"kind": "trained", "language": "id"},
        {"kind": "trained"},
    ]
    folders = [
        write_lora(tmp_path / str(seed), seed=seed, provenance=facts) for seed, facts in enumerate(recorded)
    ]
    weights = (1.0, 0.5, 0.0, 0.5)
    merge(
        method="arithmetic", space="delta", adapters=list(zip(folders, weights, strict=True)),
        output=tmp_path / "out",
    )  # fmt: skip
    facts = provenance(tmp_path / "out")
    assert facts["chat_template"] is True
    assert facts["labels"] == ["bad", "good"]
    assert facts["languages"] == ["en", "sw", "de"]
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == ["en", "sw", "de"]
    assert METHODS["arithmetic"].source in card
    write_lora(tmp_path / "bare", seed=9)
    merge(
        method="arithmetic", adapters=[(tmp_path / "bare", 1.0), (folders[3], 1.0)], output=tmp_path / "plain"
    )
    facts = provenance(tmp_path / "plain")
    assert (facts["chat_template"], facts["labels"], facts["languages"]) == (None, None, [])


@pytest.mark.parametrize(
    ("space", "recorded", "shared"),
    [
        ("factors", [ONE, ONE, ONE], "one"),
        ("delta", [ONE, ONE, ONE], "one"),
        ("factors", [ONE, OTHER, ONE], None),
        ("delta", [ONE, ONE, OTHER], None),
        ("delta", [ONE, ONE, None], None),
        ("delta", [None, None, None], None),
    ],
)
def test_the_initialisation_is_recorded_where_all_share_it(tmp_path, space, recorded, shared):
    task, target, source = (
        write_lora(tmp_path / str(seed), seed=seed, provenance=facts) for seed, facts in enumerate(recorded)
    )
    roles = {"task": task, "target_reference": target, "source_reference": source}
    report = merge(method="adamergex", **roles, space=space, output=tmp_path / "out")
    facts = provenance(tmp_path / "out")
    assert facts["initialisation"] == shared
    assert facts["warnings"] == list(report.warnings)
    assert bool(report.warnings) == (space == "factors" and not shared)


def test_an_adapter_that_does_not_enter_does_not_warn(tmp_path):
    one, same_start, other = (
        write_lora(tmp_path / f"{seed}", seed=seed, provenance=facts)
        for seed, facts in enumerate((ONE, ONE, OTHER))
    )

    def merged(name, *adapters, **options):
        return merge(method="arithmetic", adapters=adapters, output=tmp_path / name, **options)

    assert not merged("a", (one, 1.0), (other, 0.0), (same_start, 0.5)).warnings
    assert merged("b", (one, 1.0), (same_start, 0.0), (other, 0.5)).warnings
    frame = merged("c", (other, 0.0), (one, 1.0), (same_start, 0.5), space="delta")
    assert provenance(frame.output)["initialisation"] is None, "the base's is not what was merged"


def with_bias(path, output):
    config = {**config_of(path), "bias": "lora_only"}
    bias = {f"{PREFIX}layers.0.q_proj.base_layer.bias": torch.zeros(6)}
    return write_folder(output, {**raw(path), **bias}, config)


@pytest.mark.parametrize(
    ("biased", "unnamed", "weight", "notes"),
    [
        ((), (), 1, []),
        ((), (), 0, ["no other adapter has a weight: the result is task itself"]),
        ((0,), (), 1, ["biases and saved modules come from task"]),
        ((1,), (), 1, [LEFT_OUT]),
        ((2,), (), 1, [LEFT_OUT]),
        ((), (0,), 1, [UNNAMED]),
        ((), (2,), 1, [UNNAMED]),
        ((), (0, 1, 2), 1, [UNNAMED]),
    ],
)
def test_notes(tmp_path, biased, unnamed, weight, notes):
    paths = three(tmp_path, write_lora)
    for number in unnamed:
        config = {**config_of(paths[number]), "base_model_name_or_path": None}
        paths[number] = write_folder(tmp_path / f"unnamed{number}", raw(paths[number]), config)
    for number in biased:
        paths[number] = with_bias(paths[number], tmp_path / f"biased{number}")
    roles = dict(zip(("task", "target_reference", "source_reference"), paths, strict=True))
    report = merge(method="adamergex", **roles, weight=weight, output=tmp_path / "out")
    assert list(report.notes) == notes
    assert [line for line in report.lines() if line.startswith("note: ")] == [
        f"note: {note}" for note in notes
    ]


def test_an_update_of_zero_loses_no_energy(tmp_path):
    """As lora_B stands before training: nothing to truncate, so nothing is lost."""
    folders = []
    for number in range(2):
        path = write_lora(tmp_path / f"x{number}", seed=number)
        tensors = {name: x * 0 if "q_proj.lora_B" in name else x for name, x in raw(path).items()}
        folders.append(write_folder(tmp_path / f"in{number}", tensors, config_of(path)))
    adapters = [(folders[0], 1.0), (folders[1], 0.5)]
    report = merge(method="arithmetic", adapters=adapters, space="delta", rank=2, output=tmp_path / "out")
    assert report.energy["layers.0.q_proj"] == 1.0
    assert 0 < report.energy["layers.0.v_proj"] < 1
    assert report.energy_kept == report.energy["layers.0.v_proj"]


def test_the_report_for_people(tmp_path):
    one, two, _ = three(tmp_path, write_lora)
    options = {"space": "delta", "rank": 2, "module_weights": {"v_proj": 0.0}}
    report = merge(
        method="arithmetic", adapters=[(one, 1.0), (two, -0.5)], **options, output=tmp_path / "out"
    )
    assert report.lines() == [
        f"merged 1 modules into {tmp_path / 'out'}",
        "arithmetic, lora, space delta, rule additive, export peft",
        report.formula,
        "adapter 1: weight 1",
        "adapter 2: weight -0.5",
        "not merged: 1 modules (weight 0)",
        f"spectral energy kept: {report.energy_kept:.4%}",
    ]


@pytest.mark.parametrize("named", [True, False])
def test_the_card_renders(tmp_path, named):
    """Read as the hub reads it: YAML front matter, then Markdown."""
    name = {"base_model_name_or_path": "tiny" if named else None}
    paths = [
        write_lora(tmp_path / f"in{i}", seed=i, provenance=facts, **name)
        for i, facts in enumerate((ONE, OTHER))
    ]
    adapters = list(zip(paths, (1.0, -0.25), strict=True))
    report = merge(method="arithmetic", adapters=adapters, modules="q_proj", output=tmp_path / "out")
    start, front, body = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    expected = {"library_name": "peft", "tags": ["lingualift", "lora", "merge", "arithmetic"]}
    linked = {"base_model": "tiny", "base_model_relation": "adapter"}
    assert start == ""
    assert yaml.safe_load(front) == (expected | linked if named else expected)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    texts = [token.content for token in tokens if token.type == "inline"]
    assert texts[0] == "lora adapter, merged by arithmetic"
    assert METHODS["arithmetic"].source in texts[1]
    assert report.formula in texts[1]
    cells = [
        token.content
        for before, token in pairwise(tokens)
        if before.type in ("th_open", "td_open") and token.type == "inline"
    ]
    rows = ["adapter 1", f"`{paths[0].name}`", "1", "adapter 2", f"`{paths[1].name}`", "-0.25"]
    assert cells[:9] == ["role", "adapter", "weight", *rows]
    told = [text for text in texts if "modules merged" in text]
    assert [text.startswith("1 modules merged, 1 kept from adapter 1.") for text in told] == [True]
    for warning in report.warnings:
        assert f"Warning: {warning}" in texts
    for note in report.notes:
        assert note in texts
    assert str(tmp_path) not in body
    assert len(report.warnings) == 1
    assert len(report.notes) == (0 if named else 1)
