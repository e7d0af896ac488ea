"""A bad row or file is a UserError that names the file and the line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from builders.refusals import refused
from lingualift.config import Data
from lingualift.data.rows import load_examples, load_texts
from lingualift.tasks import get_task

GOOD = {"id": "1", "text": "fine", "label": "positive"}


def check(path, *found, line="", task="mini-sentiment", split="train", mend="", **data):
    """The rows of a file are refused, by their line or row where it is given."""
    reader = load_texts if task == "causal-lm" else load_examples
    with refused(path.name, *found, mend=mend) as told:
        reader(get_task(task), Data(files=path.name, **data), "en", split, path.parent)
    assert f"{path.name}{line}: " in str(told.value)


def put(path, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({**GOOD, "id": "2", "label": "superb"}, "label is 'superb', which is none of positive, negative"),
        ({**GOOD, "id": "2", "label": ["positive"]}, "label is ['positive']"),
        ({**GOOD, "id": "2", "label": 1}, "label is 1"),
        ({**GOOD, "id": "2", "text": ""}, "'text' is empty"),
        ({**GOOD, "id": "2", "text": " \t "}, "'text' is empty"),
        ({**GOOD, "id": "2", "text": None}, "'text' is missing"),
        ({"id": "2", "label": "positive"}, "'text' is missing"),
        ({**GOOD, "id": "2", "text": ["a", "b"]}, "'text' holds a list"),
        ({**GOOD, "id": "2", "text": {"a": 1}}, "'text' holds a dict"),
        ({**GOOD, "id": "2", "text": True}, "'text' holds a bool"),
        ({**GOOD, "id": "2", "text": float("nan")}, "'text' is missing"),
        ({**GOOD, "id": "2", "label": float("nan")}, "'label' is missing"),
        ({**GOOD, "id": "2", "text": float("-inf")}, "-Infinity"),
        (GOOD, "id '1' stands in row 1"),
        ({**GOOD, "id": 1}, "id '1' stands in row 1"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_cause(tmp_path, bad, found):
    check(put(tmp_path / "rows.jsonl", GOOD, "\n", bad), found, line=":3")


@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
def test_reference_text_that_is_no_text_is_refused(tmp_path, value):
    path = put(tmp_path / "rows.jsonl", {"text": "fine"}, {"text": value})
    check(path, f"'text' holds a {type(value).__name__}", line=":2", task="causal-lm")


def test_nusax_names_a_text_that_is_no_text(tmp_path):
    path = put(tmp_path / "rows.jsonl", {**GOOD, "text": []}, GOOD)
    check(path, "'text' holds a list", line=":1", task="nusax")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"id": "2", "text": "x"', "column 24"),
        ("[1, 2]\n", "a list"),
        ('"text"\n', "a str"),
        ("id,text\n", "column 1"),
        ("3\n", "a int"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, found, packed):
    path = put(tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl"), GOOD, line)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    check(path, found, "JSON", line=":2", mend="that line")


def test_many_bad_rows_are_counted_and_the_first_five_shown(tmp_path):
    path = put(tmp_path / "rows.jsonl", *({**GOOD, "id": i, "text": ""} for i in range(8)))
    check(path, "8 bad rows", *(f"{path}:{n}: " for n in range(1, 6)), "and 3 more")


def test_rows_outside_the_sample_are_not_looked_at(tmp_path):
    path = put(tmp_path / "rows.jsonl", *({**GOOD, "id": i} for i in range(20)))
    data = Data(files=path.name, max_rows={"train": 5})
    chosen = {row.id for row in load_examples(get_task("mini-sentiment"), data, "en", "train", tmp_path)}
    bad = [{**GOOD, "id": i, "label": "positive" if str(i) in chosen else "?"} for i in range(20)]
    put(path, *bad)
    assert len(load_examples(get_task("mini-sentiment"), data, "en", "train", tmp_path)) == 5


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("id,text,label\n1,a,positive\n2,b\n", 3, "2 cells; 3"),
        ("id,text,label\n1,a,b,positive\n", 2, "4 cells; 3"),
        ('id,text,label\n1,"a\nb",positive\n2,c,bad\n', 4, "label is 'bad'"),
        ('id,text,label\n1,"a\nb,positive\n', 2, "CSV"),
        ("id,text,text\n1,a,b\n", 1, "a column twice"),
        ("id,text,label\n1,,positive\n", 2, "'text' is empty"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path, text, line, found):
    check(put(tmp_path / "rows.csv", text), found, line=f":{line}")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    check(put(tmp_path / f"rows{suffix}"), "is empty")


@pytest.mark.parametrize(("suffix", "text"), [(".jsonl", "\n\n"), (".csv", "id,text,label\n")])
def test_a_file_without_rows_is_refused(tmp_path, suffix, text):
    check(put(tmp_path / f"rows{suffix}", text), "no rows")


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({**GOOD, "id": i}) + "\n" for i in range(500)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    check(path, "Compressed file ended", mend="again")


@pytest.mark.parametrize(
    ("name", "content", "found", "mend"),
    [
        ("rows.jsonl.gz", b'{"id": 1}\n', "Not a gzipped file", "again"),
        ("rows.jsonl", gzip.compress(b'{"id": 1}\n', mtime=0), "compressed", "rows.jsonl.gz"),
        ("rows.parquet", b"PAR1 and then nothing", "not a parquet file", "again"),
    ],
)
def test_content_that_is_not_what_the_name_says_is_refused(tmp_path, name, content, found, mend):
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, found, mend=mend)


@pytest.mark.parametrize(
    ("name", "content", "line", "found"),
    [
        ("rows.jsonl", b'{"id": 1}\n{"id": "\xfc"}', 2, "byte 0xfc"),
        (
            "rows.csv",
            "id,text,label\n1,a,positive\n2,é,positive\n".encode("cp1252"),
            3,
            "byte 0xe9",
        ),
        ("rows.csv", "id,text\n1,a\n".encode("utf-16"), 1, "byte 0xff"),
        ("rows.jsonl.gz", gzip.compress(b"\n\xe9\n", mtime=0), 2, "byte 0xe9"),
        ("rows.jsonl", json.dumps(GOOD).encode("utf-16-le"), 1, "UTF-16"),
        ("rows.csv", "id,text,label\n".encode("utf-16-le"), 1, "UTF-16"),
        ("rows.jsonl", b'{"id": 1, "text": "a \\ud83d b"}', 1, "\\ud83d"),
    ],
)
def test_another_encoding_is_told_with_line_and_byte(tmp_path, name, content, line, found):
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, found, line=f":{line}")


def test_utf_16_without_a_mark_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_bytes("kitabu chekundu\n".encode("utf-16-le"))
    check(tmp_path / "text.txt", "NUL", line=":1", task="causal-lm")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_are_cut_as_the_header_has_the_columns(tmp_path, mark):
    path = tmp_path / "rows.csv"
    path.write_text(f'id{mark}text{mark}label\n1{mark}"a, b; c\td"{mark}positive\n', encoding="utf-8")
    (example,) = load_examples(get_task("mini-sentiment"), Data(files="rows.csv"), "en", "train", tmp_path)
    assert "a, b; c\td" in example.prompt
    path.write_text(f"id{mark}text{mark}label\n1{mark}a\n", encoding="utf-8")
    check(path, "2 cells; 3", line=":2", mend=f"quotes around a cell that holds {mark!r}")


def test_a_header_that_fits_no_way_of_cutting_is_told_as_it_stands(tmp_path):
    path = put(tmp_path / "rows.csv", "id|text|label\n1|a|positive\n")
    check(path, "no column 'text'", mend="id|text|label")


def test_escapes_and_long_cells_are_read(tmp_path):
    """Both halves of a character make one; a cell has no bound."""
    path = put(tmp_path / "rows.jsonl", '{"id": "1", "text": "a \\ud83d\\ude00", "label": "positive"}\n')
    (example,) = load_examples(get_task("mini-sentiment"), Data(files=path.name), "en", "train", tmp_path)
    assert "\U0001f600" in example.prompt
    long = "word " * 40_000
    put(tmp_path / "rows.csv", f'id,text,label\n1,"{long}",positive\n')
    (example,) = load_examples(get_task("mini-sentiment"), Data(files="rows.csv"), "en", "train", tmp_path)
    assert long.strip() in example.prompt


def test_a_missing_column_is_named_with_its_nearest(tmp_path):
    path = put(tmp_path / "rows.jsonl", {"id": "1", "texts": "a", "label": "positive"})
    check(path, "no column 'text'", mend="texts?")


def test_a_mapped_column_that_is_not_there_is_named(tmp_path):
    check(put(tmp_path / "rows.jsonl", GOOD), "no column 'sentence'", columns={"text": "sentence"})


def test_a_bad_parquet_row_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, {**GOOD, "id": "2", "text": None}]), path)
    check(path, "'text' is missing", line=" row 2")


def test_a_file_that_is_not_there_is_told_with_what_lies_nearby(tmp_path):
    (tmp_path / "en").mkdir()
    put(tmp_path / "en" / "training.jsonl", GOOD)
    data = Data(files="{language}/{split}.jsonl")
    with refused("/en/train.jsonl", "not there", "'en'", mend="training.jsonl"):
        load_examples(get_task("mini-sentiment"), data, "en", "train", tmp_path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_one_file_is_not_taken_for_every_split(tmp_path, split):
    path = put(tmp_path / "rows.jsonl", GOOD)
    check(path, f"{split} is asked for", "{split}", split=split, mend="{language}/{split}.jsonl")


def test_an_unknown_format_is_refused(tmp_path):
    check(put(tmp_path / "rows.tsv", GOOD), "(.tsv)", ".jsonl .jsonl.gz .csv")
