"""Splits that lie elsewhere than the others, rows that are put aside, and what data call a language."""

from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.config import Data
from lingualift.data.rows import data_fingerprint, load_rows
from lingualift.pipeline import plan_of


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


def passages(folder, kind):
    """Forty rows on a few passages, in two languages, those of a passage not all in a row."""
    for language in ("en", "sw"):
        rows = [
            {"id": f"{n}", "passage": f"{language} {n * n % 7}", "text": f"{language} {n}"} for n in range(40)
        ]
        if kind == "jsonl":
            write_jsonl(folder / language / "test.jsonl", rows)
        elif kind == "parquet":
            (folder / language).mkdir(exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / language / "test.parquet")
    return Data(
        files=f"{{language}}/{{split}}.{kind}",
        columns={"context": "passage"},
        validation={"of": "test", "rows": 10, "group_by": "context"},
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("keep", [{}, {"id": "*1*"}])
def test_rows_of_one_group_are_put_aside_together(tmp_path, kind, keep):
    data = passages(tmp_path, kind).model_copy(update={"where": keep})
    rows = {}
    for language in ("en", "sw"):
        for split in ("validation", "test"):
            read = load_rows(data, language, split, tmp_path, ("text",))
            rows[language, split] = [read.row(index) for index in read.chosen]
    whole = [n for n in range(40) if not keep or "1" in str(n)]
    for language in ("en", "sw"):
        kept, left = rows[language, "validation"], rows[language, "test"]
        assert sorted(int(row["id"]) for row in kept + left) == whole
        assert {row["passage"] for row in kept}.isdisjoint(row["passage"] for row in left)
        assert len(kept) >= 10
    ids = [[row["id"] for row in rows[language, "validation"]] for language in ("en", "sw")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_without_a_value_are_groups_of_their_own(tmp_path, kind):
    rows = [{"id": str(n), "passage": None if n < 20 else f"p{n % 4}", "text": f"t{n}"} for n in range(40)]
    (tmp_path / "en").mkdir()
    if kind == "jsonl":
        write_jsonl(tmp_path / "en/test.jsonl", rows)
    elif kind == "csv":
        lines = ["id,passage,text", *(f"{row['id']},{row['passage'] or ''},{row['text']}" for row in rows)]
        (tmp_path / "en/test.csv").write_text("\n".join(lines))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "en/test.parquet")
    for seed in range(8):
        data = Data(
            files=f"{{language}}/{{split}}.{kind}",
            sample_seed=seed,
            validation={"of": "test", "rows": 4, "group_by": "passage"},
        )
        assert 4 <= len(chosen(data, "en", "validation", tmp_path)) <= 8


def test_a_group_needs_its_column_and_another_group(tmp_path):
    data = passages(tmp_path, "jsonl")
    for aside, place, found, mend in (
        ({"group_by": "pasage"}, "test.jsonl", "no column 'pasage'", "passage"),
        ({"rows": 39}, "data.validation.rows", "39 rows of test aside, of 40", "fewer"),
    ):
        few = data.model_copy(update={"validation": data.validation.model_copy(update=aside)})
        with refused(place, found, mend=mend):
            chosen(few, "en", "test", tmp_path)
    (plain, grouped) = (
        data.model_copy(update={"validation": data.validation.model_copy(update={"group_by": by})})
        for by in (None, "context")
    )
    known = [data_fingerprint(one, "en", "test", tmp_path)["aside"] for one in (plain, grouped)]
    assert known == [[10, False], [10, False, "context"]]  # earlier runs know their rows by the first


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


NAMES = {"en": "english", "fi": "finnish", "sw": "swahili"}
TOGETHER = Data(files="all.{split}", names=NAMES, where={"id": "{language}-*"})


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """One file for all languages, as TyDiQA-GoldP's, whose ids begin with the language."""
    folder = tmp_path_factory.mktemp("together")
    rows = [{"id": f"{list(NAMES.values())[n % 3]}--{n}-0", "text": f"text {n}"} for n in range(30)]
    write_jsonl(folder / "all.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "all.parquet")
    lines = ["id,text", *(f"{row['id']},{row['text']}" for row in rows)]
    (folder / "all.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("most", [None, 4])
def test_languages_of_one_file_are_told_apart_by_a_column(together, kind, most):
    data = TOGETHER.model_copy(update={"splits": {"test": kind}, "max_rows": {"test": most} if most else {}})
    found, places = {}, []
    for place, (code, name) in enumerate(NAMES.items()):
        rows = load_rows(data, code, "test", together, ("id", "text"))
        read = [rows.row(index) for index in rows.chosen]
        assert {row["id"].split("-")[0] for row in read} == {name}
        assert len(rows.table) == 10
        first = {"jsonl": 1, "csv": 2, "parquet": 1}[kind]
        numbers = [int(row["text"].split()[1]) for row in read]
        assert [rows.number(index) for index in rows.chosen] == [first + number for number in numbers]
        assert {number % 3 for number in numbers} == {place}
        found[code] = numbers
        places.append(list(rows.chosen))
    assert places[0] == places[1] == places[2]  # a sample is the same rows in every language
    assert len({number for numbers in found.values() for number in numbers}) == (12 if most else 30)


def test_a_data_set_of_the_hub_is_told_apart_alike(monkeypatch):
    features = {"id": datasets.Value("string"), "lang": datasets.ClassLabel(names=["english", "swahili"])}
    rows = {"id": list("abcd"), "lang": [0, 1, 1, 0]}
    built = datasets.Dataset.from_dict(rows, datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: built)
    data = Data(hub="some/set", revision="0" * 40, names=NAMES, where={"lang": "{language}"})
    read = load_rows(data, "sw", "test", Path(), ("id",))
    assert [(read.row(index)["id"], read.number(index)) for index in read.chosen] == [("b", 2), ("c", 3)]
    with refused("some/set", "'finnish'", "'english'", mend="where"):
        load_rows(data, "fi", "test", Path(), ("id",))


def test_what_is_read_of_a_file_is_part_of_what_rows_are_known_by(together):
    data = TOGETHER.model_copy(update={"splits": {"test": "jsonl"}})
    known = [data_fingerprint(data, code, "test", together) for code in ("en", "sw")]
    known.append(data_fingerprint(data.model_copy(update={"where": {}}), "en", "test", together))
    assert len({str(one) for one in known}) == 3
    assert "where" not in known[2]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("where", "found", "mend"),
    [
        ({"id": "{bcp47}-*"}, ("'en-*'", "'english--0-0'"), "names"),
        ({"lang": "{language}"}, ("no column 'lang'",), "where"),
    ],
)
def test_a_file_without_rows_of_a_language_is_told_with_what_it_has(together, kind, where, found, mend):
    data = TOGETHER.model_copy(update={"where": where, "splits": {"test": kind}})
    with refused(f"all.{kind}", *found, mend=mend):
        chosen(data, "en", "test", together)


def test_a_split_that_lies_elsewhere_has_rows_of_its_own_choice(together, folder):
    elsewhere = {"files": str(folder / "squad.jsonl"), "where": {}}
    data = Data(**{**TOGETHER.model_dump(exclude_unset=True), "train": elsewhere})
    assert len(chosen(data, "en", "train", together)) == 25


def test_one_file_for_all_languages_needs_a_column_that_tells_them_apart(data, tmp_path):
    rows = [
        {**row, "id": f"{code}-{row['id']}"}
        for code in ("en", "fr", "sw")
        for row in read_jsonl(data / f"sentiment/{code}/test.jsonl")
    ]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    raw = experiment(data)
    raw["tasks"][0]["data"] = {"files": "{split}.jsonl"}
    with refused("{split}.jsonl", "{language}", "where"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
    raw["tasks"][0]["data"]["where"] = {"id": "{language}-*"}
    plan, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw))
    asked = {
        part.language: part.dataset.rows(part.language, part.split)
        for step in plan.steps
        for part in step.reads
    }
    assert {code: {row.id[:2] for row in found} for code, found in asked.items()} == {
        c: {c} for c in ("en", "fr", "sw")
    }
