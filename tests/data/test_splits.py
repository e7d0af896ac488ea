"""Splits that lie elsewhere than the others, rows that are put aside, and what data call a language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from builders.worlds import write_jsonl
from lingualift.config import Data
from lingualift.data.rows import data_fingerprint, load_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    for name, rows in (("english/test", 40), ("sw/test", 40), ("squad", 25)):
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(rows)])
    write_jsonl(folder / "other.jsonl", [{"said": "other"}])
    return folder


def chosen(data, language, split, folder):
    return list(load_rows(data, language, split, folder, ("text",)).chosen)


@given(aside=st.integers(1, 39), most=st.integers(1, 50), seed=st.integers(0, 5))
def test_rows_that_are_put_aside_are_read_once_and_alike_in_every_language(aside, most, seed, folder):
    data = Data(
        files="{language}/{split}.jsonl",
        names={"en": "english"},
        sample_seed=seed,
        validation={"of": "test", "rows": aside},
        max_rows={"test": most},
    )
    kept, left = (chosen(data, "en", split, folder) for split in ("validation", "test"))
    assert len(kept) == aside
    assert len(left) == min(most, 40 - aside)
    assert not set(kept) & set(left)
    assert (kept, left) == tuple(chosen(data, "sw", split, folder) for split in ("validation", "test"))
    whole = data.model_copy(update={"max_rows": {}})
    assert sorted(kept + chosen(whole, "en", "test", folder)) == list(range(40))


def test_a_split_lies_elsewhere_under_columns_of_its_own(folder):
    data = Data(
        files="{language}/{split}.jsonl",
        names={"eng": "english"},
        train={"files": "squad.jsonl"},
        validation={"files": "other.jsonl", "columns": {"text": "said"}},
    )
    assert load_rows(data, "en", "train", folder, ("text",)).where.endswith("squad.jsonl")
    assert load_rows(data, "en", "test", folder, ("text",)).where.endswith("english/test.jsonl")
    rows = load_rows(data, "en", "validation", folder, ("text",))
    assert rows.row(0)["said"] == "other"
    assert rows.columns == {"text": "said"}


def test_what_is_put_aside_is_part_of_what_rows_are_known_by(folder):
    plain = Data(files="{language}/{split}.jsonl", names={"en": "english"})
    few = plain.model_copy(
        update={"validation": Data(files="a", validation={"of": "test", "rows": 3}).validation}
    )
    known = [data_fingerprint(data, "en", "test", folder) for data in (plain, few)]
    known.append(data_fingerprint(few, "en", "validation", folder))
    assert len({str(one) for one in known}) == 3


def test_more_rows_are_put_aside_than_there_are(folder):
    data = Data(
        files="{language}/{split}.jsonl", names={"en": "english"}, validation={"of": "test", "rows": 40}
    )
    with refused("data.validation.rows", "40 rows of test aside, of 40"):
        chosen(data, "en", "validation", folder)
