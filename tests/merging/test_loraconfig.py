"""Configurations for modules of many ranks and scalings, read back by peft's own lookup."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from builders.adapter_folders import scaling_of
from lingualift.merging.loraconfig import lora_config

BASE = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
}


def read(config, module):
    ranks = config.get("rank_pattern", {})
    return ranks.get(get_pattern_key(ranks.keys(), module), config["r"]), scaling_of(config, module)


def test_what_is_right_already_stays():
    modules = {"layers.0.q_proj": (4, 2.0), "layers.0.v_proj": (4, 2.0)}
    assert lora_config(BASE, modules, same_modules=True) == BASE
    stabilised = {**BASE, "use_rslora": True}
    same = lora_config(stabilised, dict.fromkeys(modules, (4, 4.0)), same_modules=True)
    assert same == stabilised


def test_one_new_rank_needs_no_pattern():
    found = lora_config(
        {**BASE, "use_rslora": True}, {"a.q_proj": (12, 2.0), "a.v_proj": (12, 2.0)}, same_modules=True
    )
    expected = {"r": 12, "lora_alpha": 24, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    assert expected.items() <= found.items()
    assert type(found["lora_alpha"]) is int
    assert found["target_modules"] == BASE["target_modules"]


def test_a_last_name_stands_for_its_modules_where_they_agree():
    modules = {f"layers.{i}.q_proj": (12, 2.0) for i in range(3)} | {
        f"layers.{i}.v_proj": (4, 2.0) for i in range(2)
    }
    found = lora_config(BASE, modules, same_modules=True)
    assert (found["r"], found["rank_pattern"]) == (12, {"v_proj": 4})
    assert (found["lora_alpha"], found["alpha_pattern"]) == (24, {"v_proj": 8})


def test_modules_that_differ_are_named_the_longest_first():
    modules = {"b.q": (2, 2.0), "z.b.q": (3, 2.0), "c.q": (4, 2.0), "d.q": (4, 2.0)}
    found = lora_config(BASE, modules, same_modules=True)
    assert (found["r"], list(found["rank_pattern"].items())) == (4, [("z.b.q", 3), ("b.q", 2)])
    assert all(read(found, name) == value for name, value in modules.items())


@pytest.mark.parametrize(
    "modules",
    [
        {"q": (1, 2.0), "c.q": (3, 2.0), "d.q": (3, 2.0)},
        {"a.b.q": (1, 2.0), "aXb.q": (2, 2.0), "c.q": (3, 2.0), "d.q": (3, 2.0)},
    ],
)
def test_names_that_short_patterns_would_confuse_are_all_quoted(modules):
    found = lora_config(BASE, modules, same_modules=True)
    assert len(found["rank_pattern"]) == len(modules)
    assert "c\\.q" in found["rank_pattern"]
    assert all(read(found, name) == value for name, value in modules.items())


def test_other_modules_are_named_one_by_one():
    odd = {**BASE, "layers_to_transform": [0], "layers_pattern": "layers", "exclude_modules": ["x"]}
    found = lora_config(odd, {"b.v": (4, 2.0), "a.q": (4, 2.0)}, same_modules=False)
    assert found["target_modules"] == ["a.q", "b.v"]
    assert [found[key] for key in ("layers_to_transform", "layers_pattern", "exclude_modules")] == [None] * 3
    assert odd["layers_to_transform"] == [0], "the base's own configuration is left alone"


@pytest.mark.parametrize("scaling", [8 / math.sqrt(3), 1 / 3, -2.0, 1e-6])
def test_scalings_that_no_whole_alpha_gives(scaling):
    found = lora_config(BASE, {"a.q": (3, scaling)}, same_modules=True)
    assert read(found, "a.q") == (3, pytest.approx(scaling, rel=1e-12))
    assert found["lora_alpha"] == pytest.approx(3 * scaling, rel=1e-12)


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "layers", "0", "1", "q", "xq"]), min_size=1, max_size=4).map(
            ".".join
        ),
        st.tuples(st.integers(1, 4), st.sampled_from([0.5, 2.0, 8 / math.sqrt(3)])),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_peft_reads_what_was_meant(modules):
    found = lora_config(BASE, modules, same_modules=False)
    for name, (rank, scaling) in modules.items():
        assert read(found, name) == (rank, pytest.approx(scaling, rel=1e-12))
