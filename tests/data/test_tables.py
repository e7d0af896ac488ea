"""Files of rows within bounds: what unpacks to more than text does, what no disk opens, and parquet as it stands."""

import contextlib
import datetime
import gzip
import json
import os
import tracemalloc
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from builders.refusals import refused
from lingualift.config import Data, load_experiment
from lingualift.data.datasets import Texts
from lingualift.data.rows import (
    check_aligned,
    data_file,
    load_examples,
    load_rows,
    load_texts,
    load_unlabelled,
)
from lingualift.data.tables import read_table
from lingualift.errors import UserError
from lingualift.tasks import get_task

GOOD = {"id": "1", "text": "fine", "label": "positive"}
TASK, TEXT = get_task("mini-sentiment"), get_task("causal-lm")
MIB = 1 << 20


def packed(path, chunk, times):
    """A file of one chunk, many times, which is not held to be packed."""
    packer = zlib.compressobj(wbits=31)
    with path.open("wb") as file:
        for _ in range(times):
            file.write(packer.compress(chunk))
        file.write(packer.flush())
    return path


def check(where, *found, path, mend=""):
    """A table is refused."""
    with refused(where, *found, mend=mend):
        read_table(path, ("text",), None)


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def examples(path, task=TASK, **data):
    return load_examples(task, Data(files=path.name, **data), "en", "train", path.parent)


@pytest.mark.parametrize("name", ["rows.txt.gz", "rows.jsonl.gz"])
def test_what_unpacks_to_gigabytes_is_refused_before_it_is_held(tmp_path, name):
    """Rows of a kilobyte, two hundred megabytes of them in a few hundred kilobytes."""
    row = ("x" * 1000 if name == "rows.txt.gz" else json.dumps({"text": "x" * 1000})).encode() + b"\n"
    path = packed(tmp_path / name, row * 1024, 200)
    tracemalloc.start()
    try:
        check(f"/{name}", "more than 100 times", path=path, mend="LINGUALIFT_UNPACK_RATIO")
        assert tracemalloc.get_traced_memory()[1] < 80 * MIB
    finally:
        tracemalloc.stop()


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch):
    path = packed(tmp_path / "rows.jsonl.gz", b"\n" + b" " * MIB, 1)
    (tmp_path / "long.txt").write_bytes(b"a\n" + b"x" * (65 * MIB))
    check("/long.txt:2", "more than 64 MiB", path=tmp_path / "long.txt", mend="LINGUALIFT_LINE_MIB")
    monkeypatch.setenv("LINGUALIFT_LINE_MIB", "66")
    assert len(read_table(tmp_path / "long.txt", (), None)[0]) == 2
    monkeypatch.setenv("LINGUALIFT_LINE_MIB", "1")
    assert len(read_table(path, (), None)[0]) == 0
    path = packed(tmp_path / "rows.csv", b"", 1)
    path.write_text('text\n"' + "a\n" * MIB + '"\n')
    check("/rows.csv:2", "field limit (1048576)", path=path)


def test_the_bound_of_what_is_packed_can_be_raised(tmp_path, monkeypatch):
    path = packed(tmp_path / "rows.txt.gz", b"x" * 1023 + b"\n", 40 * 1024)
    check("/rows.txt.gz", "more than 100 times", path=path, mend="LINGUALIFT_UNPACK_RATIO")
    monkeypatch.setenv("LINGUALIFT_UNPACK_RATIO", "2000")
    assert len(read_table(path, (), None)[0]) == 40 * 1024
    for wrong in ("0", "-1", "many", "1e3", "9" * 20):
        monkeypatch.setenv("LINGUALIFT_UNPACK_RATIO", wrong)
        check("LINGUALIFT_UNPACK_RATIO", f"'{wrong}'", "a whole number", path=path, mend="unset")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv", ".parquet"])
def test_rows_outside_the_sample_are_not_held(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    ids = [str(number) for number in range(5000)]
    if suffix == ".parquet":
        parquet(path, id=ids, text=ids)
    elif suffix == ".csv":
        path.write_text("id,text\n" + "".join(f"{name},{name}\n" for name in ids))
    else:
        path.write_bytes(gzip.compress("\n\n".join(f'{{"id": "{n}", "text": "{n}"}}' for n in ids).encode()))
    whole = load_rows(Data(files=path.name), "en", "train", tmp_path, ("text",))
    some = load_rows(Data(files=path.name, max_rows={"train": 7}), "en", "train", tmp_path, ("text",))
    assert len(whole.table) == len(some.table) == 5000
    assert len(some) == 7
    assert [some.row(index) for index in some.chosen] == [whole.row(index) for index in some.chosen]
    assert [some.locate(index) for index in some.chosen] == [whole.locate(index) for index in some.chosen]
    held = some.table.content if suffix == ".parquet" else some.table.rows
    assert len(held) == 7


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_alignment_is_of_all_rows_whatever_the_sample(tmp_path, suffix):
    for language, ids in (("en", "abcdef"), ("sw", "abcdfe")):
        path = tmp_path / f"{language}{suffix}"
        rows = [{"id": name, "text": "x"} for name in ids]
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(files="{language}" + suffix, aligned_on="id", max_rows={"train": 1})
    with refused(f"/sw{suffix}{':' if suffix == '.jsonl' else ' row '}5", "'f'; 'e'", mend="`aligned_on`"):
        check_aligned(data, ["en", "sw"], "train", tmp_path)


def not_utf8(*rows):
    """A column of text whose bytes are any."""
    data = b"".join(rows)
    ends = [sum(map(len, rows[:count])) for count in range(len(rows) + 1)]
    offsets = pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in ends))
    return pyarrow.Array.from_buffers(pyarrow.string(), len(rows), [None, offsets, pyarrow.py_buffer(data)])


IDS, FINE, LABELS = ["1", "2"], ["fine", "good"], ["positive", "negative"]


@pytest.mark.parametrize(
    ("columns", "place", "found"),
    [
        ({"text": not_utf8(b"fine", b"\xff\xfe")}, "row 2: column 'text'", "UTF-8"),
        ({"note": not_utf8(b"\x80", b"ok")}, "row 1: column 'note'", "UTF-8"),
        ({"text": [1.5, float("nan")]}, "row 2: column 'text'", "missing"),
        ({"text": [1.5, float("inf")]}, "row 2: column 'text'", "inf"),
        ({"time": pyarrow.array([0, 2**62], pyarrow.timestamp("us"))}, "row 2: column 'time'", "range"),
        ({"day": pyarrow.array([0, 2**31 - 1], pyarrow.date32())}, "row 2: column 'day'", "2147483647"),
    ],
)
def test_a_value_of_parquet_that_is_none_is_named_with_its_row(tmp_path, columns, place, found):
    path = parquet(tmp_path / "rows.parquet", **{"id": IDS, "text": FINE, "label": LABELS, **columns})
    with refused("/rows.parquet", f"/rows.parquet {place}", found):
        examples(path)


def test_a_damaged_parquet_file_is_told(tmp_path):
    """Any byte flipped: rows, or one message."""
    path = parquet(tmp_path / "rows.parquet", id=IDS, text=FINE, label=LABELS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with contextlib.suppress(UserError):
            examples(path)


def test_parquet_names_its_classes_and_fetches_no_image(tmp_path):
    image = {"bytes": None, "path": "http://localhost:1/image.png"}
    features = {
        "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
        "image": {"_type": "Image"},
    }
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table(
        {"id": IDS, "text": FINE, "label": [1, 0], "image": pyarrow.array([image, None], kind)}
    )
    about = json.dumps({"info": {"features": features}})
    path = tmp_path / "a[1]*" / "rows.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": about}), path)
    assert [row.gold for row in examples(path)] == [("positive",), ("negative",)]
    (first, _), _ = load_unlabelled(TASK, path, "en")
    assert first["image"] == image
    for names in (["negative"], "none", None, [1, 2]):
        features["label"]["names"] = names
        about = json.dumps({"info": {"features": features}})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": about}), path)
        with refused("/rows.parquet", "row 1: ", "is 1, which is none of"):
            examples(path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(FINE)] * 2, ["text", "text"]), path)
    check("/rows.parquet", "a column twice", path=path)


GIVEN = {
    "column 'text' holds half of a character": {"text": "cut \ud83d"},
    "column 'note' holds half of a character": {"text": "fine", "note": ["\ud83d"]},
    "column 'note' is nested deeper": {"text": "fine", "note": json.loads("[" * 600 + "]" * 600)},
    "column 'note' holds infinity": {"text": "fine", "note": float("inf")},
    "column 'note' holds infinity, or a number": {"text": "fine", "note": 10**5000},
    "column 'text' is missing": {"text": float("nan")},
}


@pytest.mark.parametrize("said", GIVEN)
def test_rows_that_cannot_be_written_are_told_before_they_are_answered(said):
    with refused("rows", said) as caught:
        load_unlabelled(TASK, [{"text": "good"}, GIVEN[said]], "en")
    assert "rows:2: " in str(caught.value)
    with refused("beside", said) as caught:
        load_unlabelled(TASK, [{"text": "good"}], "en", ([GIVEN[said]], "fr"))
    assert "beside:1: " in str(caught.value)


def test_what_pandas_has_not_is_missing(tmp_path):
    """NaN, NA and NaT of a table's rows; in files NaN too."""
    import pandas

    table = pandas.DataFrame({"text": ["fine"], "note": [None], "count": [float("nan")]})
    ((row, _),) = load_unlabelled(TASK, table.to_dict("records"), "en")
    assert row == {"text": "fine", "note": None, "count": None}
    ((row, _),) = load_unlabelled(TASK, [{"text": "fine", "a": pandas.NA, "b": pandas.NaT}], "en")
    assert row == {"text": "fine", "a": None, "b": None}
    day = datetime.date(2024, 1, 1)
    ((row, _),) = load_unlabelled(TASK, [{"id": float("nan"), "text": "fine", "day": day}], "en")
    assert row == {"id": None, "text": "fine", "day": "2024-01-01"}
    (tmp_path / "rows.jsonl").write_text('{"id": NaN, "text": "fine", "n": NaN}\n')
    ((row, example),) = load_unlabelled(TASK, tmp_path / "rows.jsonl", "en")
    assert (row, example.id) == ({"id": None, "text": "fine", "n": None}, "1")


@contextlib.contextmanager
def nobody():
    """Without the right of the superuser to read everything."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def ask(place):
    return load_unlabelled(TASK, place, "en")


def learn(place):
    return load_texts(TEXT, Data(files=str(place)), "en", "train", place.parent)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt.gz", "rows.parquet"])
def test_a_file_that_may_not_be_read_is_told(tmp_path, name):
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir()
    for folder in (tmp_path, closed):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0)
    closed.chmod(0)
    with nobody():
        for read in (ask, learn, load_experiment):
            for folder in (tmp_path, closed):
                with refused(str(folder / name), "Permission denied", mend="the right to read"):
                    read(folder / name)
    closed.chmod(0o755)


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "round.jsonl").symlink_to("round.jsonl")
    (tmp_path / "file").write_text("x")
    for name, found, mend in (
        ("folder.jsonl", "a folder; the train data of language 'en'", "name a file"),
        ("round.jsonl", "", ""),
        ("file/rows.jsonl", "not there", "folder.jsonl"),
        (f"{'x' * 300}.jsonl", "too long", "a shorter name"),
        ("{language}/{split}.jsonl", "not there", "folder.jsonl"),
    ):
        where = name.format(language="en", split="train")
        with refused(f"/{where}", found, mend=mend):
            data_file(Data(files=name), "en", "train", tmp_path)
    with refused("/folder.jsonl", "directory", "an experiment file", mend="name a file"):
        load_experiment(tmp_path / "folder.jsonl")
    with refused("folder.jsonl", "is a folder", "a file of rows"):
        load_unlabelled(TASK, tmp_path / "folder.jsonl", "en")


def test_the_same_bytes_under_another_format_are_read_anew(tmp_path):
    for name in ("{split}.txt", "{split}.txt.gz"):
        (tmp_path / name.format(split="train")).write_bytes(b"a text\n")
    texts = [Texts("causal-lm", Data(files=name), tmp_path) for name in ("{split}.txt", "{split}.txt.gz")]
    assert texts[0].rows("en", "train") == ["a text"]
    with refused("train.txt.gz", "gzip"):
        texts[1].rows("en", "train")
