"""A bad row or file is a UserError that names the file and the line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from lingualift.config import Data
from lingualift.data.rows import load_examples, load_texts
from lingualift.errors import UserError
from lingualift.tasks import get_task

GOOD = {"id": "1", "text": "fine", "label": "positive"}


def refused(path, task="mini-sentiment", split="train", **data):
    reader = load_texts if task == "causal-lm" else load_examples
    with pytest.raises(UserError) as caught:
        reader(get_task(task), Data(files=path.name, **data), "en", split, path.parent)
    return str(caught.value)


def put(path, *lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({**GOOD, "id": "2", "label": "superb"}, "'superb', which is none of positive, negative"),
        ({**GOOD, "id": "2", "label": ["positive"]}, "none of positive, negative"),
        ({**GOOD, "id": "2", "label": 1}, "none of positive, negative"),
        ({**GOOD, "id": "2", "text": ""}, "'text' is empty"),
        ({**GOOD, "id": "2", "text": " \t "}, "'text' is empty"),
        ({**GOOD, "id": "2", "text": None}, "'text' is missing"),
        ({"id": "2", "label": "positive"}, "'text' is missing"),
        ({**GOOD, "id": "2", "text": ["a", "b"]}, "'text' holds a list"),
        ({**GOOD, "id": "2", "text": {"a": 1}}, "'text' holds a dict"),
        ({**GOOD, "id": "2", "text": True}, "'text' holds a bool"),
        ({**GOOD, "id": "2", "text": float("nan")}, "'text' is missing"),
        ({**GOOD, "id": "2", "label": float("nan")}, "'label' is missing"),
        ({**GOOD, "id": "2", "text": float("-inf")}, "holds -Infinity, which JSON has no word for"),
        (GOOD, "id '1' stands in row 1 already"),
        ({**GOOD, "id": 1}, "id '1' stands in row 1 already"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_cause(tmp_path, bad, said):
    path = put(tmp_path / "rows.jsonl", GOOD, "\n", bad)
    message = refused(path)
    assert f"{path}:3: " in message
    assert said in message


@pytest.mark.parametrize("value", [["a"], {"a": 1}, True])
def test_reference_text_that_is_no_text_is_refused(tmp_path, value):
    path = put(tmp_path / "rows.jsonl", {"text": "fine"}, {"text": value})
    assert f"{path}:2: " in refused(path, "causal-lm")


def test_nusax_names_a_text_that_is_no_text(tmp_path):
    path = put(tmp_path / "rows.jsonl", {**GOOD, "text": []}, GOOD)
    assert f"{path}:1: column 'text' holds a list" in refused(path, "nusax")


@pytest.mark.parametrize("line", ['{"id": "2", "text": "x"', "[1, 2]\n", '"text"\n', "id,text\n", "3\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, packed):
    path = put(tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl"), GOOD, line)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert f"{path}:2: " in refused(path)


def test_many_bad_rows_are_counted_and_the_first_five_shown(tmp_path):
    path = put(tmp_path / "rows.jsonl", *({**GOOD, "id": i, "text": ""} for i in range(8)))
    message = refused(path)
    assert "8 bad rows" in message
    assert [f"{path}:{n}: " in message for n in (1, 5, 6)] == [True, True, False]
    assert "and 3 more" in message


def test_rows_outside_the_sample_are_not_looked_at(tmp_path):
    path = put(tmp_path / "rows.jsonl", *({**GOOD, "id": i} for i in range(20)))
    data = Data(files=path.name, max_rows={"train": 5})
    chosen = {row.id for row in load_examples(get_task("mini-sentiment"), data, "en", "train", tmp_path)}
    bad = [{**GOOD, "id": i, "label": "positive" if str(i) in chosen else "?"} for i in range(20)]
    put(path, *bad)
    assert len(load_examples(get_task("mini-sentiment"), data, "en", "train", tmp_path)) == 5


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("id,text,label\n1,a,positive\n2,b\n", 3, "has 2 cells; expected 3"),
        ("id,text,label\n1,a,b,positive\n", 2, "has 4 cells"),
        ('id,text,label\n1,"a\nb",positive\n2,c,bad\n', 4, "'bad', which is none of"),
        ('id,text,label\n1,"a\nb,positive\n', 2, "is not CSV"),
        ("id,text,text\n1,a,b\n", 1, "names a column twice"),
        ("id,text,label\n1,,positive\n", 2, "'text' is empty"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path, text, line, said):
    path = put(tmp_path / "rows.csv", text)
    message = refused(path)
    assert f"{path}:{line}: " in message
    assert said in message


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = put(tmp_path / f"rows{suffix}")
    assert f"{path}: is empty" in refused(path)


@pytest.mark.parametrize(("suffix", "text"), [(".jsonl", "\n\n"), (".csv", "id,text,label\n")])
def test_a_file_without_rows_is_refused(tmp_path, suffix, text):
    path = put(tmp_path / f"rows{suffix}", text)
    assert f"{path}: has no rows" in refused(path)


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({**GOOD, "id": i}) + "\n" for i in range(500)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path}: cannot be read" in refused(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", b'{"id": 1}\n'),
        ("rows.jsonl", gzip.compress(b'{"id": 1}\n', mtime=0)),
        ("rows.parquet", b"PAR1 and then nothing"),
    ],
)
def test_content_that_is_not_what_the_name_says_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}: cannot be read" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("rows.jsonl", b'{"id": 1}\n{"id": "\xfc"}', 2, "byte 0xfc is not UTF-8"),
        (
            "rows.csv",
            "id,text,label\n1,a,positive\n2,é,positive\n".encode("cp1252"),
            3,
            "byte 0xe9 is not UTF-8",
        ),
        ("rows.csv", "id,text\n1,a\n".encode("utf-16"), 1, "byte 0xff is not UTF-8"),
        ("rows.jsonl.gz", gzip.compress(b"\n\xe9\n", mtime=0), 2, "byte 0xe9 is not UTF-8"),
        ("rows.jsonl", json.dumps(GOOD).encode("utf-16-le"), 1, "holds NUL, as UTF-16 does"),
        ("rows.csv", "id,text,label\n".encode("utf-16-le"), 1, "holds NUL, as UTF-16 does"),
        ("rows.jsonl", b'{"id": 1, "text": "a \\ud83d b"}', 1, "half of a character (\\ud83d"),
    ],
)
def test_another_encoding_is_told_with_line_and_byte(tmp_path, name, content, line, said):
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert f"{tmp_path / name}:{line}: " in message
    assert said in message


def test_utf_16_without_a_mark_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_bytes("kitabu chekundu\n".encode("utf-16-le"))
    assert "text.txt:1: holds NUL" in refused(tmp_path / "text.txt", "causal-lm")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_are_cut_as_the_header_has_the_columns(tmp_path, mark):
    path = tmp_path / "rows.csv"
    path.write_text(f'id{mark}text{mark}label\n1{mark}"a, b; c\td"{mark}positive\n', encoding="utf-8")
    (example,) = load_examples(get_task("mini-sentiment"), Data(files="rows.csv"), "en", "train", tmp_path)
    assert "a, b; c\td" in example.prompt
    path.write_text(f"id{mark}text{mark}label\n1{mark}a\n", encoding="utf-8")
    assert (
        f"rows.csv:2: has 2 cells; expected 3 as in the header\n  mend: put quotes around a cell that holds {mark!r}"
        in refused(path)
    )


def test_a_header_that_fits_no_way_of_cutting_is_told_as_it_stands(tmp_path):
    assert "has no column 'text'" in refused(put(tmp_path / "rows.csv", "id|text|label\n1|a|positive\n"))


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
    message = refused(path)
    assert f"{path}: has no column 'text'" in message
    assert "did you mean texts?" in message


def test_a_mapped_column_that_is_not_there_is_named(tmp_path):
    message = refused(put(tmp_path / "rows.jsonl", GOOD), columns={"text": "sentence"})
    assert "has no column 'sentence'" in message


def test_a_bad_parquet_row_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, {**GOOD, "id": "2", "text": None}]), path)
    assert f"{path} row 2: column 'text' is missing" in refused(path)


def test_a_file_that_is_not_there_is_told_with_what_lies_nearby(tmp_path):
    (tmp_path / "en").mkdir()
    put(tmp_path / "en" / "training.jsonl", GOOD)
    with pytest.raises(UserError) as caught:
        load_examples(
            get_task("mini-sentiment"), Data(files="{language}/{split}.jsonl"), "en", "train", tmp_path
        )
    assert f"{tmp_path / 'en' / 'train.jsonl'}: is not there" in str(caught.value)
    assert "holds training.jsonl" in str(caught.value)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_one_file_is_not_taken_for_every_split(tmp_path, split):
    path = put(tmp_path / "rows.jsonl", GOOD)
    assert f"names one file for all splits, and {split} is asked for" in refused(path, split=split)


def test_an_unknown_format_is_refused(tmp_path):
    assert "unknown format (.tsv)" in refused(put(tmp_path / "rows.tsv", GOOD))
