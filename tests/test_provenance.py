"""Fingerprints follow content and nothing else."""

import hashlib
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.provenance import (
    canonical_json,
    fingerprint,
    finite,
    library_versions,
    read_json,
    sha256_bytes,
    sha256_file,
    sha256_folder,
    write_json,
    write_jsonl,
    write_text,
)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def shuffled(value):
    if isinstance(value, dict):
        keys = list(value)
        random.Random(0).shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(values)
def test_the_order_of_keys_does_not_matter(value):
    assert fingerprint(shuffled(value)) == fingerprint(value)


@given(values)
def test_the_text_is_json_that_reads_back_without_spaces(value):
    assert json.loads(canonical_json(value)) == value
    assert canonical_json([value]) == f"[{canonical_json(value)}]"


@given(values, values)
def test_values_that_differ_as_json_have_other_fingerprints(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) == same


def test_the_order_of_lists_and_the_kind_of_number_matter():
    assert len({fingerprint(value) for value in ([1, 2], [2, 1], [1, 2.0], [True, 2], ["1", 2])}) == 5


def test_a_fingerprint_is_the_sha256_of_the_canonical_text():
    assert canonical_json({"b": 1, "a": ["ü", None]}) == '{"a":["ü",null],"b":1}'
    assert (
        fingerprint({"b": 1, "a": ["ü", None]})
        == hashlib.sha256('{"a":["ü",null],"b":1}'.encode()).hexdigest()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_or_turned_to_none(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"a": value})
    for write, content in ((write_json, value), (write_jsonl, [1, value])):
        with pytest.raises(ValueError, match="JSON"):
            write(tmp_path / "a.json", content)
    assert list(tmp_path.iterdir()) == []
    assert finite(value) is None
    assert finite(-1.5) == -1.5


@given(st.binary(max_size=300_000))
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()


def tree(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_the_hash_of_a_folder_follows_names_and_contents_however_deep(tmp_path):
    base = tree(tmp_path / "base", a_txt="1", deep__er__b_py="2")
    same = tree(tmp_path / "same", deep__er__b_py="2", a_txt="1")
    (same / "empty").mkdir()
    assert sha256_folder(base) == sha256_folder(same)
    others = [
        tree(tmp_path / "content", a_txt="1", deep__er__b_py="3"),
        tree(tmp_path / "name", a_txt="1", deep__er__c_py="2"),
        tree(tmp_path / "place", a_txt="1", deep__b_py="2"),
        tree(tmp_path / "swapped", a_txt="2", deep__er__b_py="1"),
        tree(tmp_path / "more", a_txt="1", deep__er__b_py="2", c_txt=""),
    ]
    assert len({sha256_folder(folder) for folder in (base, *others)}) == 6


def test_suffixes_narrow_the_hash_of_a_folder(tmp_path):
    one = tree(tmp_path / "one", a_py="1", b_txt="1", d__c_json="3")
    two = tree(tmp_path / "two", a_py="1", b_txt="2", d__c_json="3")
    assert sha256_folder(one) != sha256_folder(two)
    assert sha256_folder(one, suffixes=(".py", ".json")) == sha256_folder(two, suffixes=(".py", ".json"))
    assert sha256_folder(one, suffixes=(".py",)) != sha256_folder(one, suffixes=(".py", ".json"))


def test_versions_of_installed_libraries_and_of_no_others():
    import torch

    found = library_versions("torch", "no-such-library-anywhere", "lingualift")
    assert found["torch"] == torch.__version__
    assert list(found) == ["torch", "lingualift"]


@given(values)
def test_written_json_reads_back(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("\n")


@given(st.lists(values, max_size=5))
def test_written_rows_read_back_one_to_a_line(tmp_path, rows):
    write_jsonl(tmp_path / "a.jsonl", rows)
    content = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in content.split("\n")[:-1]] == rows
    assert content.endswith("\n") or not rows


def test_json_files_are_indented_and_keep_their_letters(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1]})
    write_jsonl(tmp_path / "a.jsonl", [{"é": 1}])
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": [\n    1\n  ]\n}\n'
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"é": 1}\n'


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ("is not JSON", "char 0")),
        (b"{", ("is not JSON", "char 1")),
        (b"\xff\xfe", ("is not JSON", "not UTF-8")),
        (b"[" * 200_000, ("nested deeper",)),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, content, facts):
    (tmp_path / "a.json").write_bytes(content)
    with refused("/a.json", *facts, "a JSON file", mend="restore or rewrite"):
        read_json(tmp_path / "a.json")


def test_a_json_file_that_is_not_there_is_refused(tmp_path):
    with refused("/none.json", "cannot be read (No such file", "a JSON file", mend="check the path"):
        read_json(tmp_path / "none.json")


def test_read_json_reads_utf_8(tmp_path):
    write_text(tmp_path / "a.json", '"日本語"')
    assert read_json(tmp_path / "a.json") == "日本語"
