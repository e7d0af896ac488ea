"""Patterns of users and of files: what Python's engine matches, in a time that is bounded."""

import copy
import re
import time

import peft
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from builders.refusals import refused
from lingualift.adapters.patterns import Patterns, is_simple
from lingualift.adapters.targets import spelt_out
from lingualift.errors import UserError

NAMES = [
    f"model.layers.{layer}.{place}"
    for layer in range(12)
    for place in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.experts.3.w1")
] + ["lm_head", "model.embed_tokens", "q_proj", "xq_proj"]
ENDLESS = [
    "((.*)*)*[!?]",
    "(.*?)*?[!?]",
    "(.+)+[!?]",
    r"(\w+\.?)*[!?]",
    "(?:((.)|(..)|(...))*)*[!?]",
    "(?:(?:.?){50}){50}[!?]",
    "(?:(?:.?){5000}){5000}",
    "(?:a?){65000}" * 500,
    "(((((.?){100}){100}){100}){100}){100}",
    "(.*)" * 2000 + "[!?]",
    "(?:|.)" * 1500 + "!",
    "(" * 3000 + "a" + ")*" * 3000,
    "|".join(["xxxxxx"] * 25_000),
    "x" * 1_000_000,
]
PATTERNS = [
    "q_proj",
    "q_proj|v_proj",
    "layers.1.mlp.up_proj",
    re.escape("layers.1.mlp.up_proj"),
    r"(?:q_proj|layers\.1\.mlp\.up_proj)|lm_head",
    r".*\.(?:q|v)_proj",
    r"layers\.[0-9]\..*",
    r".*\.\d+\.(?:self_attn|mlp)\.\w+",
    r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp.*)",
    r"(?!.*experts).*\.w1",
    r".*(?<!x)q_proj$",
    r"(?i:Q_PROJ)",
    r".{0,9}_head",
    "[[a]",
    "",
]


@pytest.mark.parametrize("pattern", ENDLESS, ids=lambda pattern: pattern[:30])
def test_a_pattern_that_searches_for_ever_is_answered_or_refused(pattern):
    began, said = time.process_time(), ["file: "]
    for names in ("end", "whole"):
        try:
            getattr(Patterns("file", seconds=0.1), names)(pattern).among(NAMES)
        except UserError as error:
            said.append(str(error))
    assert all("file: " in text and len(text) < 500 for text in said)
    assert time.process_time() - began < 5


def test_patterns_of_one_place_share_its_time():
    def matched():
        bounded = Patterns("file", seconds=0.3)
        for number in range(1_000_000):
            bounded.end(rf".*(?:a|b|c|d)*_{number}").among(NAMES)

    began = time.process_time()
    with refused("file", "too long"):
        matched()
    assert time.process_time() - began < 5


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_what_matches_is_what_matches_for_python(pattern):
    whole = [name for name in NAMES if re.fullmatch(pattern, name)]
    assert Patterns("").whole(pattern).among(NAMES) == whole
    end = [name for name in NAMES if get_pattern_key([pattern], name) == pattern]
    if pattern not in NAMES:  # peft gives the name back where nothing matches
        assert Patterns("").end(pattern).among(NAMES) == end


@pytest.mark.parametrize(
    "pattern", ["(", "a)(b", "\\", "*", r"\p{L}", "(?R)", "(?:foo){e<=1}", "(?P<a>x)(?P<a>x)"]
)
def test_what_python_refuses_or_reads_otherwise_is_refused(pattern):
    with refused("file", repr(pattern), "a brace" if "{e" in pattern else "at position", mend="the pattern"):
        Patterns("file").end(pattern)


def test_what_only_names_things_is_simple():
    assert all(map(is_simple, PATTERNS[:5]))
    assert not any(map(is_simple, [*ENDLESS, *PATTERNS[5:-1]]))


@settings(max_examples=300, deadline=None)
@given(
    targets=st.sampled_from(PATTERNS[:-2]) | st.lists(st.sampled_from(PATTERNS[:4]), max_size=2),
    excluded=st.none() | st.sampled_from(PATTERNS[:-2]) | st.lists(st.sampled_from(PATTERNS[:3]), max_size=2),
    values=st.dictionaries(st.sampled_from(PATTERNS[:-2]), st.integers(1, 9), max_size=4),
    layers=st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    saved=st.none() | st.just(["lm_head"]),
)
def test_what_is_spelt_out_is_the_same_to_peft(targets, excluded, values, layers, saved):
    config = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "layers_to_transform": None if isinstance(targets, str) else layers,
        "layers_pattern": None,
        "rank_pattern": values,
    }
    given_, said = (copy.copy(peft.LoraConfig(target_modules=["x"], modules_to_save=saved)) for _ in range(2))
    for key, value in config.items():
        setattr(given_, key, value)
        setattr(said, key, value)
    for key, value in spelt_out(config, NAMES, "").items():
        setattr(said, key, value)
    for name in NAMES:
        reached = bool(check_target_module_exists(given_, name))
        assert bool(check_target_module_exists(said, name)) == reached
        ranks = [
            each.rank_pattern.get(get_pattern_key(each.rank_pattern.keys(), name), 0)
            for each in (given_, said)
        ]
        assert ranks[0] == ranks[1]
