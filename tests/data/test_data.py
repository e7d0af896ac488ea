"""Rows of local files: the same examples from every format, chosen alike in every language."""

import csv
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.config import Data
from lingualift.data.rows import check_aligned, data_fingerprint, fill_in, load_examples, load_texts
from lingualift.tasks import get_task

SENTIMENT, TEXT = get_task("mini-sentiment"), get_task("causal-lm")
# What a text file can hold; carriage returns apart, which universal newlines rewrite.
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\r\0"),
    min_size=1,
    max_size=20,
).filter(str.strip)
rows_of_text = st.lists(
    st.fixed_dictionaries({"id": words, "text": words, "label": st.sampled_from(["positive", "negative"])}),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row["id"],
)


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(path, task=SENTIMENT, language="en", split="train", **more):
    reader = load_texts if task is TEXT else load_examples
    return reader(task, Data(files=path.name, **more), language, split, path.parent)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
@given(rows=rows_of_text)
def test_rows_come_back_as_they_were_written(tmp_path, suffix, rows):
    examples = load(write(tmp_path / f"rows{suffix}", rows))
    assert [(example.id, example.gold) for example in examples] == [
        (row["id"], (row["label"],)) for row in rows
    ]
    for example, row in zip(examples, rows, strict=True):
        assert example.prompt == f"{row['text']} Rating:"


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
@pytest.mark.parametrize(
    "value",
    ["NA", "null", "nan", "007", "1", "1.0", "true", "2024-01-01", "2024-01-01T10:00:00Z", "a\nb", "1e5"],
)
def test_text_that_looks_like_something_else_stays_text(tmp_path, suffix, value):
    path = write(tmp_path / f"rows{suffix}", [{"id": value, "text": value, "label": "positive"}])
    assert [example.id for example in load(path)] == [value]
    assert load(path, TEXT) == [value]


def test_numbers_in_json_are_read_as_text(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"id": 7, "text": 3.5, "label": "negative"}])
    (example,) = load(path)
    assert (example.id, example.prompt) == ("7", "3.5 Rating:")


def test_an_answer_that_is_a_number_can_be_matched(tmp_path):
    row = {"id": 1, "context": "ann has 2 books .", "question": "how many ?", "answer": 2}
    (example,) = load(write(tmp_path / "rows.jsonl", [row]), get_task("mini-qa"))
    assert example.gold == ("2",)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfid,text,label\n1,fine,positive\n")
    assert [example.id for example in load(path)] == ["1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_changed_without_a_new_time_stamp_is_read_anew(tmp_path, suffix):
    path = write(tmp_path / f"rows{suffix}", [{"id": "1", "text": "old", "label": "positive"}])
    before = path.stat()
    assert load(path, TEXT) == ["old"]
    write(path, [{"id": "1", "text": "new", "label": "positive"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load(path, TEXT) == ["new"]


def test_columns_of_another_name_are_mapped(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"id": "1", "sentence": "fine", "label": "positive"}])
    assert load(path, columns={"text": "sentence"})[0].prompt == "fine Rating:"


def test_splits_of_another_name_are_mapped(tmp_path):
    write(tmp_path / "valid.jsonl", [{"id": "1", "text": "fine", "label": "positive"}])
    data = Data(files="{split}.jsonl", splits={"validation": "valid"})
    assert len(load_examples(SENTIMENT, data, "en", "validation", tmp_path)) == 1


@given(wanted=st.integers(1, 30), seed=st.integers(0, 5))
def test_a_sample_holds_the_same_rows_in_every_language_and_in_order(tmp_path, wanted, seed):
    for language in ("en", "sw"):
        rows = [{"id": f"{i:02}", "text": f"{language} {i}", "label": "positive"} for i in range(20)]
        write(tmp_path / f"{language}.jsonl", rows)
    data = Data(files="{language}.jsonl", max_rows={"train": wanted}, sample_seed=seed)
    en, sw = (
        [row.id for row in load_examples(SENTIMENT, data, code, "train", tmp_path)] for code in ("en", "sw")
    )
    assert en == sw == sorted(set(en))
    assert len(en) == min(wanted, 20)


def test_max_rows_of_one_split_leaves_the_others_whole(tmp_path):
    rows = [{"id": str(i), "text": "x", "label": "positive"} for i in range(9)]
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", rows)
    data = Data(files="{split}.jsonl", max_rows={"train": 4})
    assert len(load_examples(SENTIMENT, data, "en", "train", tmp_path)) == 4
    assert len(load_examples(SENTIMENT, data, "en", "test", tmp_path)) == 9


def test_the_sample_depends_on_its_seed(tmp_path):
    rows = [{"id": str(i), "text": "x", "label": "positive"} for i in range(200)]
    path = write(tmp_path / "rows.jsonl", rows)
    chosen = {
        tuple(row.id for row in load(path, max_rows={"train": 20}, sample_seed=seed)) for seed in range(5)
    }
    assert len(chosen) == 5


def test_templates_are_filled_with_every_name_of_a_language():
    assert (
        fill_in("{language} {iso639_3} {bcp47} {nllb} {split}", "swh", "test") == "swh swh sw swh_Latn test"
    )


def test_a_language_without_nllb_code_cannot_fill_its_place():
    with refused("{nllb}", "Ngaju (nij)", "NLLB code", mend="{language}"):
        fill_in("{nllb}", "nij", "test")


def test_aligned_data_passes_and_misaligned_data_names_both_lines(tmp_path):
    def put(language, ids):
        write(tmp_path / f"{language}.jsonl", [{"id": i, "text": "x", "label": "positive"} for i in ids])

    data = Data(files="{language}.jsonl", aligned_on="id")
    put("en", "abc")
    put("sw", "abc")
    check_aligned(data, ["en", "sw"], "train", tmp_path)
    put("sw", "acb")
    with refused("sw.jsonl:2", "'c'; 'b'", "en.jsonl:2", mend="`aligned_on`"):
        check_aligned(data, ["en", "sw"], "train", tmp_path)
    put("sw", "ab")
    with refused("sw.jsonl", "2 rows", "3 as in"):
        check_aligned(data, ["en", "sw"], "train", tmp_path)


def test_the_fingerprint_follows_content_columns_and_sample_but_not_the_place(tmp_path):
    def mark(folder="a", text="x", **more):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = write(tmp_path / folder / "rows.jsonl", [{"id": "1", "text": text}])
        return json.dumps(data_fingerprint(Data(files="rows.jsonl", **more), "en", "train", path.parent))

    base = mark()
    assert mark("b") == base
    assert mark(max_rows={"test": 5}) == base
    others = [mark(text="y"), mark(columns={"text": "id"}), mark(max_rows={"train": 5}), mark(sample_seed=1)]
    assert len({base, *others}) == 5


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
@given(texts=st.lists(words, min_size=1, max_size=8))
def test_plain_text_has_a_text_a_line(tmp_path, suffix, texts):
    lines = [line.replace("\n", " ") for line in texts]
    content = "\n\n".join(lines).encode()
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == ".txt.gz" else content)
    assert load(path, TEXT) == [line.strip() for line in lines]


def test_plain_text_has_no_labels(tmp_path):
    (tmp_path / "rows.txt").write_text("a review\n")
    with refused("rows.txt", "no column 'label'"):
        load(tmp_path / "rows.txt")
