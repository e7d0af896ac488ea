"""Every bad request: one clear message that names what was found and the mend, and nothing written."""

import hashlib
import json
import logging
from importlib.metadata import version

import numpy as np
import pytest
import torch

from builders.adapter_folders import (
    PREFIX,
    config_of,
    numbers,
    raw,
    same,
    three,
    updates,
    write_folder,
    write_lora,
    write_prefix,
    write_vectors,
)
from builders.refusals import refused as told
from lingualift.adapters import patterns
from lingualift.merging import merge


def roles(paths):
    return dict(zip(("task", "target_reference", "source_reference"), paths, strict=True))


def refused(output, where, *found, mend, **options):
    with told(where, *found, mend=mend):
        merge(output=output, **options)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "where", "found", "mend"),
    [
        ({"method": "adamergx"}, "'adamergx'", "known", "adamergex"),
        ({"space": "factor"}, "space", "'delta'", "factors"),
        ({"rule": "add"}, "rule", "'add'", "multiplicative"),
        ({"export": "vllm"}, "export", "serving", "peft"),
        ({"rank": 0, "space": "delta"}, "rank", "greater than 0", ""),
        ({"rank": 2.5, "space": "delta"}, "rank", "2.5", ""),
        ({"rank": 1}, "rank", "factor space", 'space="delta"'),
        ({"density": 0.2}, "density", "adamergex does not use it", ""),
        ({"seed": 1}, "seed", "adamergex does not use it", ""),
        ({"mean": True}, "mean", "adamergex does not use it", ""),
        ({"cutoff": 0}, "cutoff", "greater than 0", ""),
        ({"cutoff": 1}, "cutoff", "less than 1", ""),
        ({"cutoff": 0.5}, "cutoff", "pseudo-inverse", "remove"),
        ({"weight": float("nan")}, "weight", "nan", ""),
        ({"weight": True}, "weight", "True", ""),
        ({"weight": "1"}, "weight", "'1'", ""),
        ({"modules": "k_proj"}, "modules", "'k_proj'", "q_proj, v_proj"),
        ({"module_weights": {"k_proj": 1.0}}, "module_weights", "'k_proj'", "q_proj, v_proj"),
        ({"module_weights": {"q_proj": float("inf")}}, "module_weights", "q_proj: ", ""),
        ({"layer_weights": {"9": 1.0}}, "layer_weights", "block 9", ""),
        ({"layer_weights": {"3-2": 1.0}}, "layer_weights", "'3-2'", ""),
        ({"layer_weights": {"0": float("nan")}}, "layer_weights", "0: ", ""),
        ({"target_reference": None}, "target_reference", "adamergex", "target_reference"),
        ({"adapters": []}, "adamergex", "source_reference", "roles"),
        ({"rule": "unanchored"}, "rule unanchored", "virtual tokens", 'rule="multiplicative"'),
        ({"rule": "multiplicative", "space": "delta"}, "space delta", "low rank", 'space="factors"'),
    ],
)
def test_bad_options(tmp_path, options, where, found, mend):
    inputs = roles(three(tmp_path, write_lora))
    with told(where, found, mend=mend):
        merge(**{"method": "adamergex", **inputs, **options}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "where", "found"),
    [
        ({"density": 0}, "density", "greater than 0"),
        ({"density": 1.5}, "density", "less than or equal to 1"),
        ({"seed": -1}, "seed", "-1"),
        ({"rule": "multiplicative"}, "dare on LoRA", "two references"),
        ({"cutoff": 0.5}, "cutoff", "dare does not use it"),
    ],
)
def test_bad_options_of_other_methods(tmp_path, options, where, found):
    adapters = [(folder, 1.0) for folder in three(tmp_path, write_lora)]
    with told(where, found):
        merge(**{"method": "dare", "adapters": adapters, **options}, output=tmp_path / "out")


@pytest.mark.parametrize(("key", "value"), [("modules", "("), ("module_weights", {"(": 1.0})])
def test_a_pattern_that_is_no_regular_expression(tmp_path, key, value):
    inputs = {**roles(three(tmp_path, write_lora)), key: value}
    facts = ("'('", "no regular expression")
    refused(tmp_path / "out", key, *facts, mend="the pattern", method="adamergex", **inputs)


ENDLESS = "(.*?)*?[!?]"


@pytest.mark.parametrize(("key", "value"), [("modules", ENDLESS), ("module_weights", {ENDLESS: 1.0})])
def test_a_pattern_that_searches_for_ever(tmp_path, monkeypatch, key, value):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    long = {f"model.layers.{layer}.self_attn.q_proj": (6, 5) for layer in range(3)}
    adapters = [write_lora(tmp_path / str(seed), long, seed=seed) for seed in range(3)]
    inputs = dict(zip(("task", "target_reference", "source_reference"), adapters, strict=True))
    inputs |= {"method": "adamergex", key: value}
    refused(tmp_path / "out", key, repr(ENDLESS), "too long", "0.2 s", mend="the pattern", **inputs)


@pytest.mark.parametrize(
    ("weights", "options", "where", "facts", "mend"),
    [
        ((), {}, "arithmetic", ("no adapters", "adapters with their weights"), "its weight: adapters"),
        ((1.0,), {}, "arithmetic", ("one adapter with weight 1", "a merge"), "name another"),
        ((0.0, 0.0), {}, "arithmetic", ("all zero", "other than zero"), "the weights"),
        ((1.0, -1.0), {"mean": True}, "arithmetic", ("sum to zero", "other than zero"), "the weights"),
        ((1.0, float("inf")), {}, "weight of {root}/in1", ("is inf", "a finite number"), "the weight"),
        ((1.0, 1.0), {"task": "somewhere"}, "arithmetic", ("given task;", "adapters"), "adapters"),
        (
            (1.0, 1.0),
            {"task": "x", "source_reference": "y"},
            "arithmetic",
            ("given task, source_reference;", "adapters"),
            "adapters",
        ),
        (
            (1.0, 1.0),
            {"method": "ties", "space": "delta"},
            "ties on LoRA, space delta, rule additive",
            ("single elements of ΔW", "no low rank"),
            'space="factors" with rule="additive"; space="core" with rule="additive"',
        ),
    ],
)
def test_bad_lists(tmp_path, weights, options, where, facts, mend):
    listed = [(write_lora(tmp_path / f"in{i}", seed=i), weight) for i, weight in enumerate(weights)]
    inputs = {"method": "arithmetic", "adapters": listed, **options}
    refused(tmp_path / "out", where.replace("{root}", str(tmp_path)), *facts, mend=mend, **inputs)


STARTED, CONFIG = "path_initial_model_for_weight_conversion", "bad/adapter_config.json"


@pytest.mark.parametrize(
    ("change", "where", "facts", "mend"),
    [
        ({"use_dora": True}, "bad", ("use_dora", "the norm of backbone plus update"), "plain LoRA"),
        ({"use_qalora": True}, "bad", ("use_qalora", "pools its input"), "plain LoRA"),
        ({"target_parameters": ["experts"]}, "bad", ("target_parameters", "several experts"), "plain LoRA"),
        ({"init_lora_weights": "pissa"}, "bad", ("init_lora_weights is 'pissa'", "backbone"), STARTED),
        ({"init_lora_weights": "pissa_niter_16"}, "bad", ("'pissa_niter_16'", "backbone"), STARTED),
        ({"init_lora_weights": "olora"}, "bad", ("'olora'", "backbone"), STARTED),
        ({"init_lora_weights": "corda"}, "bad", ("'corda'", "backbone"), STARTED),
        ({"init_lora_weights": "loftq"}, "bad", ("'loftq'", "backbone"), STARTED),
        ({"init_lora_weights": "lora_ga"}, "bad", ("'lora_ga'", "backbone"), STARTED),
        ({"init_lora_weights": 1}, CONFIG, ("init_lora_weights is 1", "true, false or a name"), "the file"),
        ({"peft_type": "ADALORA"}, "bad", ("ADALORA", "pruned singular values"), "LORA, IA3"),
        ({"peft_type": "LOHA"}, "bad", ("LOHA", "product of products"), "LORA, IA3"),
        ({"peft_type": "FLARE"}, "bad", ("FLARE", "no operation"), "LORA, IA3"),
        ({"peft_type": "IA3"}, "bad", ("no ia3 tensors", "q_proj.lora_A.weight'"), "restore"),
        ({"r": 5}, "bad", ("'layers.0.q_proj'", "(4, 5) and (6, 4)", "(5, n)"), "restore"),
        ({"r": "4"}, CONFIG, ("r is '4'", "a whole number"), "the file"),
        ({"lora_alpha": 0}, "bad", ("lora_alpha is 0", "other than 0"), "the file"),
        ({"lora_alpha": 10**400}, CONFIG, ("401 digits", "308"), "rewrite"),
        ({"rank_pattern": {"q_proj": 3}}, "bad", ("'layers.0.q_proj'", "(3, n)"), "restore"),
        ({"rank_pattern": 3}, CONFIG, ("rank_pattern is 3", "numbers by module"), "the file"),
        ({"alpha_pattern": {"(": 3}}, "bad", ("'('", "no regular expression"), "the pattern"),
        ({"modules_to_save": 3}, CONFIG, ("modules_to_save is 3", "a list of names"), "the file"),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_adapters_that_cannot_be_merged(tmp_path, change, where, facts, mend, position):
    paths = three(tmp_path, write_lora)
    path = paths[position]
    paths[position] = write_folder(tmp_path / "bad", raw(path), {**config_of(path), **change})
    refused(tmp_path / "out", f"/{where}", *facts, mend=mend, method="adamergex", **roles(paths))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"base_model_name_or_path": "other"}, "'other'"), ({"revision": "abc"}, "'tiny' at revision abc")],
)
@pytest.mark.parametrize("position", [0, 1])
def test_adapters_of_two_backbones(tmp_path, change, name, position):
    paths = three(tmp_path, write_lora)
    path = paths[position]
    paths[position] = write_folder(tmp_path / "bad", raw(path), {**config_of(path), **change})
    found, expected = ("'tiny'", name) if position == 0 else (name, "'tiny'")
    facts, inputs = (f"backbone is {found}", f"{expected} as {paths[0]}"), roles(paths)
    refused(tmp_path / "out", str(paths[1]), *facts, mend="one backbone", method="adamergex", **inputs)


def test_plain_starts_are_taken(tmp_path):
    paths = [
        write_lora(tmp_path / f"in{i}", seed=i, init_lora_weights=start)
        for i, start in enumerate(("gaussian", False, "eva"))
    ]
    merge(method="adamergex", **roles(paths), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "facts", "mend"),
    [
        ("layers.0.q_proj.lora_C.weight", ("lora_C.weight'", "no known meaning"), "modules_to_save"),
        ("layers.0.k_proj.lora_A.weight", ("'layers.0.k_proj'", "no lora_B"), "restore"),
        ("layers.0.q_proj.lora_A.default.weight", ("default.weight'", "one adapter"), "save_pretrained"),
        ("classifier.weight", ("classifier.weight'", "no known meaning"), "modules_to_save"),
    ],
)
def test_tensors_that_would_stay_unmerged(tmp_path, name, facts, mend):
    paths = three(tmp_path, write_lora)
    tensors = {**raw(paths[1]), PREFIX + name: torch.ones(4, 5)}
    paths[1] = write_folder(tmp_path / "bad", tensors, config_of(paths[1]))
    refused(tmp_path / "out", "/bad", *facts, mend=mend, method="adamergex", **roles(paths))


def test_mixed_kinds_and_shapes(tmp_path):
    paths = three(tmp_path, write_lora)
    other = write_vectors(tmp_path / "ia3", 0)
    wide = write_lora(tmp_path / "wide", {"layers.0.q_proj": (6, 9), "layers.0.v_proj": (3, 5)})
    elsewhere = write_lora(tmp_path / "elsewhere", {"blocks.0.q": (6, 5)})
    for path, facts, mend in (
        (other, ("a ia3 adapter", "lora as"), "one kind"),
        (wide, ("'layers.0.q_proj'", "((4, 9), (6, 4))", "((4, 5), (6, 4))"), "one backbone"),
        (elsewhere, ("no module", "'blocks.0.q'", "'layers.0.q_proj'"), "the same modules"),
    ):
        inputs = roles([*paths[:2], path])
        refused(tmp_path / "out", str(path), *facts, mend=mend, method="adamergex", **inputs)


def test_fingerprints_decide_over_names(tmp_path):
    def facts(print_):
        return {"kind": "trained", "backbone": {"name": "x", "revision": None, "fingerprint": print_}}

    one = write_lora(tmp_path / "one", seed=0, provenance=facts("f" * 64), base_model_name_or_path="/a")
    two = write_lora(tmp_path / "two", seed=1, provenance=facts("f" * 64), base_model_name_or_path="/b")
    six = write_lora(tmp_path / "six", seed=2, provenance=facts("6" * 64), base_model_name_or_path="/a")
    merge(method="adamergex", **roles([one, two, two]), weight=0, output=tmp_path / "out")
    found = ("fingerprint 666666666666", "fingerprint ffffffffffff")
    inputs = {"method": "adamergex", **roles([one, two, six])}
    refused(tmp_path / "no", "/six", *found, mend="`fingerprint`", **inputs)


@pytest.mark.parametrize(
    ("write", "space"),
    [(write_lora, "factors"), (write_lora, "delta"), (write_vectors, "factors"), (write_prefix, "factors")],
)
def test_a_merge_that_changes_nothing(tmp_path, write, space):
    task, reference, _ = three(tmp_path, write)
    inputs = {"method": "adamergex", **roles([task, reference, reference]), "space": space}
    refused(tmp_path / "out", "adamergex", "no tensor", "a change", mend="differ", **inputs)


def test_references_that_share_nothing_with_the_choice(tmp_path):
    task = write_lora(tmp_path / "task")
    refs = [write_lora(tmp_path / f"ref{i}", {"layers.0.q_proj": (6, 5)}, seed=i) for i in (1, 2)]
    inputs = {"method": "adamergex", **roles([task, *refs])}
    facts = ("nothing would be merged", "missing in target_reference and source_reference")
    refused(tmp_path / "out", "adamergex", *facts, mend='space="delta"', **inputs, modules="v_proj")
    report = merge(**inputs, output=tmp_path / "fine")
    assert report.merged == ("layers.0.q_proj",)
    assert report.kept == {
        "layers.0.v_proj": "missing in target_reference and source_reference: the references' difference counts as zero"
    }


def test_a_module_that_one_reference_lacks(tmp_path):
    task = write_lora(tmp_path / "task")
    refs = [
        write_lora(tmp_path / "target", seed=1),
        write_lora(tmp_path / "source", {"layers.0.q_proj": (6, 5)}, seed=2),
    ]
    kept = merge(method="adamergex", **roles([task, *refs]), output=tmp_path / "factors").kept
    assert kept == {
        "layers.0.v_proj": "missing in source_reference: the references' difference counts as zero"
    }
    out = merge(
        method="adamergex", **roles([task, *refs]), weight=0.7, space="delta", output=tmp_path / "delta"
    ).output
    name = "layers.0.v_proj"
    expected = updates(task)[name] + 0.7 * updates(refs[0])[name]
    assert np.allclose(updates(out)[name], expected, rtol=0, atol=1e-5)


def test_a_module_that_the_task_lacks(tmp_path):
    task = write_lora(tmp_path / "task", {"layers.0.q_proj": (6, 5)})
    refs = [write_lora(tmp_path / f"ref{i}", seed=i) for i in (1, 2)]
    report = merge(method="adamergex", **roles([task, *refs]), output=tmp_path / "out")
    assert report.absent == {"layers.0.v_proj": "missing in task: the references' difference counts as zero"}
    assert set(updates(report.output)) == {"layers.0.q_proj"}


def test_modules_left_out_keep_the_task_adapter(tmp_path):
    paths = three(tmp_path, write_lora)
    for space in ("factors", "delta", "core"):
        out = merge(
            method="adamergex", **roles(paths), modules="v_proj", space=space, output=tmp_path / space
        ).output
        task, found = raw(paths[0]), raw(out)
        left = {name for name in task if "q_proj" in name}
        assert all(torch.equal(found[name], task[name]) for name in left)
        assert not torch.equal(
            found[PREFIX + "layers.0.v_proj.lora_B.weight"], task[PREFIX + "layers.0.v_proj.lora_B.weight"]
        )
        assert np.allclose(
            updates(out)["layers.0.q_proj"], updates(paths[0])["layers.0.q_proj"], rtol=1e-12, atol=0
        )


def test_weights_by_module_multiply_the_weight(tmp_path):
    paths = three(tmp_path, write_lora)
    factors = {"layers.0.q_proj": 0.5, ".*_proj": 0.0}
    out = merge(
        method="adamergex", **roles(paths), weight=0.8, module_weights=factors, output=tmp_path / "out"
    ).output
    task, target, source = map(numbers, paths)
    for name, value in numbers(out).items():
        factor = 0.4 if "q_proj" in name else 0.0
        assert np.allclose(value, task[name] + factor * (target[name] - source[name]), atol=1e-6)
    listed = [(paths[0], 1.0), (paths[1], 0.5)]
    out = merge(
        method="arithmetic", adapters=listed, module_weights={"q_proj": 2.0}, output=tmp_path / "sum"
    ).output
    for name, value in numbers(out).items():
        factor = 2 if "q_proj" in name else 1
        assert np.allclose(value, factor * (task[name] + 0.5 * target[name]), atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_adapters_of_different_draws_warn_in_factor_space_only(tmp_path, known, caplog):
    paths = []
    for number in range(3):
        random = torch.Generator().manual_seed(number)
        tensors = {
            name: torch.randn(x.shape, generator=random)
            for name, x in raw(write_lora(tmp_path / f"x{number}")).items()
        }
        facts = {"kind": "trained", "initialisation": f"draw {number}"} if known else None
        config = config_of(tmp_path / f"x{number}")
        paths.append(write_folder(tmp_path / f"in{number}", tensors, config, facts))
    with caplog.at_level(logging.WARNING, "lingualift.merging"):
        report = merge(method="adamergex", **roles(paths), output=tmp_path / "out")
    assert "not trained from one initialisation" in report.warnings[0]
    assert ("provenance" if known else "cosine") in report.warnings[0]
    mend = "Use space delta, or train all adapters from one recorded initialisation"
    assert report.warnings[0].endswith(f"mixes unrelated bases. {mend}")
    assert report.warnings[0] in caplog.text
    assert report.warnings[0] in (tmp_path / "out/README.md").read_text()
    assert not merge(method="adamergex", **roles(paths), space="delta", output=tmp_path / "delta").warnings


def test_adapters_of_one_draw_do_not_warn(tmp_path):
    assert not merge(
        method="adamergex", **roles(three(tmp_path, write_lora)), output=tmp_path / "out"
    ).warnings
    facts = {"kind": "trained", "initialisation": "one"}
    paths = [write_lora(tmp_path / f"known{i}", seed=i, provenance=facts) for i in range(3)]
    merge(method="adamergex", **roles(paths), output=tmp_path / "known")
    assert '"initialisation": "one"' in (tmp_path / "known/provenance.json").read_text()


def test_whole_values_come_from_the_task_adapter(tmp_path):
    paths = []
    for number in range(3):
        tensors = raw(write_lora(tmp_path / f"x{number}", seed=number))
        tensors[PREFIX + "classifier.weight"] = torch.full((2, 5), float(number))
        tensors[PREFIX + "layers.0.q_proj.base_layer.bias"] = torch.full((6,), float(number))
        config = {
            **config_of(tmp_path / f"x{number}"),
            "modules_to_save": ["classifier"],
            "bias": "lora_only",
        }
        paths.append(write_folder(tmp_path / f"in{number}", tensors, config))
    report = merge(method="adamergex", **roles(paths), output=tmp_path / "out")
    whole = {
        name: x
        for name, x in raw(report.output).items()
        if "lora_A" not in name and "lora_B.weight" not in name
    }
    assert len(whole) == 2
    assert all((x == 0).all() for x in whole.values())
    assert "biases and saved modules come from task" in report.notes
    inputs = {"method": "adamergex", **roles(paths), "export": "serving"}
    refused(tmp_path / "no", "/in0", "classifier.weight'", "servers refuse", mend='export="peft"', **inputs)


def test_serving_is_plain_lora_of_one_rank(tmp_path):
    paths = three(
        tmp_path, write_lora, use_rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 3}
    )
    factors = updates(merge(method="adamergex", **roles(paths), weight=0.7, output=tmp_path / "plain").output)
    delta = updates(
        merge(method="adamergex", **roles(paths), weight=0.7, space="delta", output=tmp_path / "d").output
    )
    for name, options, expected in (
        ("a", {}, factors),
        ("b", {"rank": 16}, factors),
        ("c", {"space": "delta"}, delta),
        ("d2", {"space": "delta", "rank": 16}, delta),
        (
            "e",
            {"space": "delta", "rank": 8},
            delta,
        ),  # less than the ranks together, more than the modules have
    ):
        out = merge(
            method="adamergex",
            **roles(paths),
            weight=0.7,
            export="serving",
            output=tmp_path / f"s{name}",
            **options,
        ).output
        config = config_of(out)
        rank = options.get("rank") or (12 if "space" in options else 4)
        assert (config["r"], config["lora_alpha"]) == (rank, rank)
        assert not any(config[key] for key in ("use_rslora", "rank_pattern", "alpha_pattern"))
        assert {min(x.shape) for x in raw(out).values()} <= {rank, 3, 5, 6}
        assert all(x.shape[0 if "lora_A" in key else 1] == rank for key, x in raw(out).items())
        assert all(np.allclose(value, expected[key], atol=1e-5) for key, value in updates(out).items())
    cut = merge(method="adamergex", **roles(paths), export="serving", rank=2, output=tmp_path / "cut")
    assert 0 < cut.energy_kept < 1
    inputs = {"method": "adamergex", **roles(three(tmp_path / "v", write_vectors)), "export": "serving"}
    refused(tmp_path / "no", "export", "for LoRA, not ia3", "peft", mend='export="peft"', **inputs)


PLAIN = {
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "init_lora_weights": True,
    "bias": "none",
}


@pytest.mark.parametrize(("use_rslora", "alpha"), [(True, 2), (False, 4)])
def test_a_served_configuration_says_nothing_that_servers_refuse(tmp_path, use_rslora, alpha):
    """Even where the base's own settings give rank 4 and scaling 1 in other words."""
    odd = {
        "use_rslora": use_rslora,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"v_proj": alpha},
        "init_lora_weights": "gaussian",
        "bias": "lora_only",
    }
    paths = three(tmp_path, write_lora, alpha=alpha, **odd)
    report = merge(method="adamergex", **roles(paths), export="serving", output=tmp_path / "out")
    plain = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **PLAIN}
    assert plain.items() <= config_of(report.output).items()


def test_weight_zero_can_be_served(tmp_path):
    paths = three(tmp_path, write_lora)
    out = merge(
        method="adamergex", **roles(paths), weight=0, export="serving", output=tmp_path / "out"
    ).output
    assert all(np.allclose(x, updates(paths[0])[name], atol=1e-6) for name, x in updates(out).items())


def test_arithmetic_over_different_modules(tmp_path):
    one = write_lora(tmp_path / "one", {"layers.0.q_proj": (6, 5)}, seed=1)
    two = write_lora(tmp_path / "two", {"layers.0.v_proj": (3, 5)} | {"layers.0.q_proj": (6, 5)}, seed=2)
    out = merge(
        method="arithmetic", adapters=[(one, 1.0), (two, 0.5)], space="delta", output=tmp_path / "out"
    ).output
    assert config_of(out)["target_modules"] == ["layers.0.q_proj", "layers.0.v_proj"]
    assert np.allclose(updates(out)["layers.0.v_proj"], 0.5 * updates(two)["layers.0.v_proj"], atol=1e-6)
    none = merge(method="arithmetic", adapters=[(two, 0.0), (one, 1.0)], output=tmp_path / "none")
    assert none.absent == {"layers.0.v_proj": "no adapter with a weight has it"}
    assert same(raw(none.output), raw(one))


@pytest.mark.parametrize("space", ["factors", "delta", "core"])
def test_modules_that_only_the_second_adapter_has(tmp_path, space):
    """The base keeps what it has; what is new enters with its weight."""
    one = write_lora(tmp_path / "one", {"layers.0.q_proj": (6, 5)}, seed=1)
    two = write_lora(tmp_path / "two", seed=2)
    listed, options = [(one, 1.0), (two, -1.0)], {"space": space, "modules": "v_proj"}
    report = merge(method="arithmetic", adapters=listed, **options, output=tmp_path / "out")
    assert report.merged == ("layers.0.v_proj",)
    # in factor space both factors change their sign, so that the update does not
    sign = 1 if space == "factors" else -1
    expected = {**updates(one), "layers.0.v_proj": sign * updates(two)["layers.0.v_proj"]}
    assert updates(report.output).keys() == expected.keys()
    assert all(np.allclose(x, expected[name], atol=1e-6) for name, x in updates(report.output).items())


@pytest.mark.parametrize("space", ["factors", "delta", "core"])
def test_a_base_of_weight_zero_lends_its_frame_only(tmp_path, space):
    """Names, number format and scaling are the first adapter's, the numbers are the second's."""
    one = write_lora(tmp_path / "one", seed=1, dtype=torch.bfloat16, alpha=16)
    two = write_lora(tmp_path / "two", seed=2)
    report = merge(
        method="arithmetic", adapters=[(one, 0.0), (two, 1.0)], space=space, output=tmp_path / "out"
    )
    assert {x.dtype for x in raw(report.output).values()} == {torch.bfloat16}
    assert config_of(report.output)["lora_alpha"] == 16
    for name, value in updates(report.output).items():
        assert np.allclose(value, updates(two)[name], atol=0.01 * np.abs(updates(two)[name]).max())


def test_terms_that_cancel_everywhere_change_nothing(tmp_path):
    one = write_lora(tmp_path / "one", {"layers.0.q_proj": (6, 5)}, seed=1)
    two = write_lora(tmp_path / "two", seed=2)
    listed = [(one, 1.0), (two, 0.5), (two, -0.5)]
    options = {"method": "arithmetic", "adapters": listed, "space": "delta"}
    refused(tmp_path / "out", "arithmetic", "no tensor", "a change", mend="differ", **options)


@pytest.mark.parametrize(
    ("write", "rule"),
    [(write_lora, "auto"), (write_vectors, "auto"), (write_vectors, "additive"), (write_prefix, "auto")],
)
def test_a_change_below_the_number_format_is_none(tmp_path, write, rule):
    paths = three(tmp_path, write, dtype=torch.bfloat16)
    options = {"method": "adamergex", **roles(paths), "rule": rule}
    refused(tmp_path / "out", "adamergex", "no tensor", mend="too small", **options, weight=1e-6)
    merge(**options, weight=0.1, output=tmp_path / "out")


def test_vectors_of_ones_change_nothing(tmp_path):
    """An (IA)³ adapter before training, some of its vectors new to the base."""
    base = write_vectors(tmp_path / "base", 1)
    tensors = {name: x for name, x in raw(base).items() if "k_proj" in name}
    less = {"target_modules": ["k_proj"], "feedforward_modules": []}
    one = write_folder(tmp_path / "one", tensors, {**config_of(base), **less})
    ones = {name: torch.ones_like(x) for name, x in raw(base).items()}
    two = write_folder(tmp_path / "two", ones, config_of(base))
    options = {"method": "arithmetic", "adapters": [(one, 1.0), (two, 1.0)]}
    refused(tmp_path / "out", "arithmetic", "no tensor", "a change", mend="differ", **options)


def test_every_tensor_lies_aligned_to_its_width(tmp_path):
    """Readers that map the file want float32 at multiples of 4: five bfloat16 numbers come last."""
    name, paths = PREFIX + "classifier.bias", []
    for number, path in enumerate(three(tmp_path, write_lora)):
        tensors = {**raw(path), name: torch.ones(5, dtype=torch.bfloat16)}
        paths.append(write_folder(tmp_path / f"saved{number}", tensors, config_of(path)))
    out = merge(method="adamergex", **roles(paths), output=tmp_path / "out").output
    data = (out / "adapter_model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    widths = {"F32": 4, "BF16": 2}
    facts = [value for key, value in header.items() if key != "__metadata__"]
    assert {fact["dtype"] for fact in facts} == widths.keys()
    assert all(fact["data_offsets"][0] % widths[fact["dtype"]] == 0 for fact in facts)


@pytest.mark.parametrize(("write", "key"), [(write_vectors, "ia3"), (write_prefix, "prefix")])
def test_saved_modules_of_other_kinds_come_from_the_task_adapter(tmp_path, write, key):
    paths = []
    for number, path in enumerate(three(tmp_path, write)):
        tensors = {**raw(path), PREFIX + "classifier.weight": torch.full((2, 5), float(number))}
        config = {**config_of(path), "modules_to_save": ["classifier"]}
        paths.append(write_folder(tmp_path / f"{key}{number}", tensors, config))
    out = merge(method="adamergex", **roles(paths), weight=0.7, output=tmp_path / "out").output
    assert torch.equal(raw(out)[PREFIX + "classifier.weight"], torch.zeros(2, 5))
    assert raw(out).keys() == raw(paths[0]).keys()


def test_provenance_and_card(tmp_path):
    paths = three(tmp_path, write_lora)
    report = merge(method="adamergex", **roles(paths), weight=0.7, modules="q_proj", output=tmp_path / "out")
    facts = json.loads((tmp_path / "out/provenance.json").read_text())
    for entry, path in zip(facts["inputs"], paths, strict=True):
        assert entry["path"] == str(path)
        assert (
            entry["weights_sha256"]
            == hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()
        )
        assert (
            entry["config_sha256"] == hashlib.sha256((path / "adapter_config.json").read_bytes()).hexdigest()
        )
    assert [entry["weight"] for entry in facts["inputs"]] == [1.0, 0.7, -0.7]
    assert [entry["role"] for entry in facts["inputs"]] == ["task", "target_reference", "source_reference"]
    own = hashlib.sha256((tmp_path / "out/adapter_model.safetensors").read_bytes()).hexdigest()
    expected = {
        "kind": "merged",
        "method": "adamergex",
        "space": "factors",
        "rule": "additive",
        "modules": ["layers.0.q_proj"],
        "weights_sha256": own,
        "module_pattern": "q_proj",
    }
    assert expected.items() <= facts.items()
    assert facts["backbone"]["name"] == "tiny"
    assert facts["versions"] == {name: version(name) for name in ("lingualift", "numpy", "ml_dtypes")}
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nbase_model: tiny\nbase_model_relation: adapter\nlibrary_name: peft\n")
    assert "| target_reference |" in card
    assert json.loads(json.dumps(report.to_dict()))["output"] == str(tmp_path / "out")


def test_serving_refuses_embeddings_by_name(tmp_path):
    shapes = {"embed_tokens": (6, 9), "layers.0.q_proj": (6, 5)}
    paths = [write_lora(tmp_path / str(i), shapes, seed=i, embedding=("embed_tokens",)) for i in range(3)]
    inputs = {"method": "adamergex", **roles(paths), "export": "serving"}
    facts = ("'embed_tokens'", "servers refuse", "LoRA on linear layers only")
    refused(tmp_path / "out", str(paths[0]), *facts, mend='export="peft"', **inputs)
