"""JSON and YAML of other hands: a value, or one reason; never another exception, whatever stands there."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.parsing import DEPTH, LONGEST, jsonable, parse_json, parse_yaml, to_yaml
from lingualift.provenance import read_json

texts = st.text(st.characters(codec="utf-8"))
numbers = st.one_of(st.integers(-(10**300), 10**300), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
TAGS = ["bool", "int", "float", "timestamp", "null", "binary", "set", "omap", "pairs", "map", "seq", "merge"]
HALF = '"\\ud83d"'
JSON = {
    "{": "is not JSON",
    "": "is not JSON",
    "\ufeff{}": "is not JSON",
    "NaN": "holds NaN, which JSON has no word for",
    '{"a": Infinity}': "holds Infinity, which JSON has no word for",
    "[-Infinity]": "holds -Infinity",
    "1e999": "holds infinity, or a number beyond",
    "9" * 309: "holds a number of 309 digits",
    f"-{'9' * 5000}": "digits, more than 308",
    HALF: "half of a character (\\ud83d",
    f"{{{HALF}: 1}}": "half of a character",
    f'{{"a": [{{"b": {HALF}}}]}}': "half of a character",
    "[" * (DEPTH + 1) + "]" * (DEPTH + 1): f"nested deeper than {DEPTH} levels",
    '{"a":' * 600 + "1" + "}" * 600: "nested deeper",
    "[" * 200_000: "nested deeper",
}
YAML = {
    "a: !!bool nope": "'nope' is no bool.*line 1",
    'b: 1\na: !!int ""': "'' is no int.*line 2",
    'a: !!float ""': "'' is no float",
    "a: !!timestamp nope": "is no timestamp",
    "a: 2024-99-99": "'2024-99-99' is no timestamp",
    'b: 1\na: "\\UFFFFFFFF"': "an escape.*in line 2",
    "a: !!set [1]": "a tag.*line 1",
    "!!map x": "is not YAML",
    "a: !!omap {a: 1}": "is not YAML",
    "a: !!binary é": "is no|base64|ascii",
    "a: !!python/object/apply:os.getcwd []": "is not YAML",
    f"a: 0x{'f' * 6000}": "more than 308 digits.*line 1",
    f"a: {'9' * 5000}": "is no int.*line 1",
    f"a: {'1:' * 400}1": "more than 308 digits",
    f"a: {'1:' * 400}1.5": "is no float",
    f"a: {HALF}": "half of a character.*line 1",
    f"{HALF}: a": "half of a character.*line 1",
    'a: "\\0"': "holds NUL",
    "\x01": "is not YAML",
    "a: &a [*a]": "stands within what it stands for",
    "a: &a {b: *a}": "stands within what it stands for",
    "[" * 2000: "nested deeper than 100 levels",
    "[" * 150 + "]" * 150: "nested deeper than 100 levels",
    "- " * 500: "nested deeper than 100 levels",
    "a: " + "x" * LONGEST: "characters, more than",
    "a: &a [" + "1, " * 9 + "1]\n"
    + "".join(f"{new}: &{new} [{f'*{old}, ' * 9}*{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)):
        "more than 100000 values.*line 5",
}  # fmt: skip


def reason(read, *given, **options):
    """What a reader says against its input; None if it takes it."""
    try:
        read(*given, **options)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:20])
def test_text_that_is_no_json_is_told(tmp_path, text):
    why = reason(parse_json, text)
    assert JSON[text] in why
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with refused("/a.json", why, "a JSON file"):
        read_json(tmp_path / "a.json")


@given(value=values)
def test_what_json_writes_is_read_back(value):
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False)) == value
    assert jsonable(value) == value


@given(text=st.one_of(st.text(), st.text('[]{}",:\\u0d8eE+-.9NaInfty', max_size=30)))
def test_any_text_is_json_or_told(text):
    for missing in (False, True):
        why = reason(parse_json, text, missing=missing)
        assert why is None or why.startswith(("is not JSON", "holds", "is nested"))
        if why is None:
            value = parse_json(text, missing=missing)
            assert jsonable(value) == value
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def test_a_value_as_deep_as_may_be_is_read():
    text = "[" * DEPTH + "]" * DEPTH
    assert json.dumps(parse_json(text)) == text
    assert parse_yaml(text) == parse_json(text)


def test_nan_is_nothing_where_values_may_be_missing():
    assert parse_json('{"a": NaN, "b": [NaN]}', missing=True) == {"a": None, "b": [None]}
    assert jsonable({"a": float("nan")}) == {"a": None}


@pytest.mark.parametrize(
    "value", [float("inf"), 10**309, "\ud800", {"\ud800": 1}, [{"a": ("\ud800",)}]], ids=ascii
)
def test_a_value_that_json_has_not_is_told(value):
    with pytest.raises(ValueError, match="holds"):
        jsonable(value)


def test_a_list_within_itself_is_told():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="nested deeper"):
        jsonable(value)


@pytest.mark.parametrize("text", YAML, ids=lambda text: text[:20])
def test_text_that_is_no_yaml_is_told_with_its_line(text):
    with pytest.raises(ValueError, match=YAML[text]):
        parse_yaml(text)


def test_merges_of_many_merges_are_not_made():
    text = "".join(f"m{i}: &m{i} {{<<: [{f'*m{i - 1}, ' * 9}]}}\n" for i in range(1, 12))
    begin = time.monotonic()
    assert "more than 100000 values" in reason(parse_yaml, "m0: &m0 {x: 1}\n" + text)
    assert time.monotonic() - begin < 10


@given(value=values)
@example(value={"\x85": ["\u2028a", "b\u2029", "\ufeff", "\x7f", "\r", "a\r\nb"]})
def test_what_yaml_writes_is_read_back(value):
    text = to_yaml(value)
    assert "\\0" in text or parse_yaml(text) == value


@given(
    text=st.one_of(
        st.text(),
        st.text("[]{}\",:\\ -?&*!|>'%@`#~=<\n\tabxU0189.eE_", max_size=30),
        st.builds("a: !!{} {}".format, st.sampled_from(TAGS), st.text('[]{}",:\\ -x019.eE_\n', max_size=12)),
    )
)
def test_any_text_is_yaml_or_told(text):
    why = reason(parse_yaml, text)
    assert why is None or why.startswith(("is not YAML", "is nested"))
