"""Exporting rows of the hub, against a stand-in that talks HTTP: what is written, what goes on, what is refused."""

import gzip
import hashlib
import json
import random
import re
import shlex
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import lingualift as ll
from builders.commands import fresh
from builders.data_hub import CONVERTED, DataHub, jsonl, parquet
from builders.refusals import refused
from lingualift.cli import app
from lingualift.config import Reference, TaskData
from lingualift.data.hub import DRAWN, Part, Snapshot, drawn
from lingualift.data.hubsets import HUB_SETS, WIKIPEDIA
from lingualift.data.rows import fill_in, load_examples, load_texts
from lingualift.languages import language as find_language
from lingualift.tasks import TASKS, shipped_languages, shipped_rows

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with DataHub() as hub:
        hub.use(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A folder to work in, and the output that is named from there."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Path("data")


def read(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def record(out, task):
    return json.loads((out / task / "source.json").read_text())


def examples(exported, task, language, split):
    """What an experiment reads by the lines that the export ends with."""
    (entry,) = [one for one in yaml.safe_load(exported.entries())["tasks"] if one["task"] == task]
    data = TaskData(**entry).data.model_copy(update={"validation": None})  # nothing put aside
    return load_examples(TASKS[task], data, language, split, Path())


@pytest.mark.parametrize("task", HUB_SETS)
def test_what_is_known_of_the_hub_fits_together(task):
    """Codes are the registry's, each called by one name, and no two data sets hold the same split of a language."""
    offer = HUB_SETS[task]
    held = [(code, split) for one in offer.sets for code in one.languages for split in one.splits]
    assert len(held) == len(set(held))
    assert [code for code, _ in held if find_language(code).code != code] == []
    assert bool(offer.sets) != bool(offer.missing)
    for one in offer.sets:
        assert len(set(one.languages.values())) == len(one.languages)
        for code in one.languages or ("de",):
            assert "{" not in fill_in(one.config, code, "", one.languages)
    splits = {split for one in offer.sets for split in one.splits}
    assert not offer.aside or (offer.aside.of in splits and "validation" not in splits)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ("de/train-00000-of-00002.parquet de/train-00001-of-00002.parquet de/validation.parquet", 2),
        ("data/de/train-00000-of-00001-0a1b2c3d4e5f6a7b.parquet", 1),
        (
            "de/train/0000.parquet de/train/0001.parquet de/train/index.duckdb de/partial-train/0000.parquet",
            2,
        ),
        ("de/set-train.parquet de/set-test.parquet", 1),
        ("de/train/0000.parquet de/set-train.parquet", 1),
        ("de/train.csv de/train.txt", 1),
        ("de/train.parquet de/train.csv", 1),
        ("de/partial-train/0000.parquet ude/train.parquet de/train.py train.parquet", 0),
    ],
)
def test_files_of_a_split_are_found_in_every_layout_of_the_hub(files, found):
    names = files.split()
    snapshot = Snapshot("a/b", "main", "0" * 40, None, dict.fromkeys(reversed(names), 1))
    assert snapshot.files("de", "train") == names[:found]


LABELS = {
    "xnli": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    "nusax": datasets.ClassLabel(names=["negative", "neutral", "positive"]),
}


def with_classes(task, rows):
    """A parquet file of rows, their labels as classes where the data set has them so."""
    table = datasets.Dataset.from_list(rows)
    if task in LABELS:
        table = table.cast(datasets.Features({**table.features, "label": LABELS[task]}))
    return parquet(list(table), table.features)


def put(hub, task, branch="main"):
    """The eight rows that ship, as the data sets of a task would have them; returns the rows by language."""
    names = {find_language(code).code: code for code in shipped_languages(task)}
    rows = {code: shipped_rows(task, code) for code in names.values()}
    for one in HUB_SETS[task].sets:
        files = {}
        for code, called in one.languages.items():
            if code not in names:
                continue
            fill = {"language": called, "iso639_3": find_language(code).iso639_3}
            mine = [dict(row) for row in rows[names[code]]]
            if one.beginning:
                mine = [{**row, "id": f"{called}--{row['id']}"} for row in mine]
            if one.hub == "openai/gsm8k":
                mine = [{"question": row["question"], "answer": gsm8k(row)} for row in mine]
            for split in one.splits.values():
                stem = f"{one.config.format(**fill)}/{split}"
                stem += "/0000" if branch == CONVERTED else "-00000-of-00001"
                files.setdefault(f"{stem}.parquet", []).extend(mine)
        packed = {name: with_classes(task, content) for name, content in files.items()}
        if branch == CONVERTED:
            hub.put(
                one.hub,
                {f"{one.hub.split('/')[1]}.py": b"raise SystemExit('a script was run')"},
                licence="mit",
            )
        hub.put(one.hub, packed, branch, licence=None if branch == CONVERTED else "mit")
    return {code: rows[code] for code in sorted(rows)}


def gsm8k(row):
    """A worked answer as GSM8K writes it."""
    steps = row["answer"].split(": ", 1)[1].rsplit(" The answer is", 1)[0]
    return f"{steps} <<3+4=7>>\n#### {row['answer_number']:,}"


TASKS_WITH_DATA = sorted(name for name, offer in HUB_SETS.items() if offer.sets and name != WIKIPEDIA)


@pytest.mark.parametrize("branch", ["main", CONVERTED])
@pytest.mark.parametrize("task", TASKS_WITH_DATA)
def test_exported_rows_are_those_of_the_hub(hub, out, task, branch):
    """In the experiment they are the same examples; where the main branch has a script, as the hub converted them."""
    rows = put(hub, task, branch)
    done = ll.export_data([task], languages=list(rows), output=out)
    assert done.written
    for path in done.written:
        language, split = path.parent.name, path.name.split(".")[0]
        found = examples(done, task, language, split)
        asked = [TASKS[task].example({**row, "id": "0"}, language) for row in rows[language]]
        assert [one.prompt for one in found] == [one.prompt for one in asked]
        golds = [TASKS[task].gold(row, one) for row, one in zip(rows[language], asked, strict=True)]
        assert [one.gold for one in found] == golds
        about = record(out, task)["files"][f"{language}/{split}.jsonl.gz"]
        assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["rows"] == len(rows[language]) == len(read(path))
        assert about["commit"] == hub.branches[about["hub"], branch]
        assert about["revision"] == branch
        assert about["licence"] == "mit"
        assert all(name in hub.commits[about["hub"], about["commit"]][0] for name in about["files"])
    assert record(out, task)["files"].keys() == {str(path.relative_to(out / task)) for path in done.written}


def test_classes_are_written_by_name_and_ids_are_the_data_sets_own_or_places(hub, out):
    put(hub, "xcopa")
    put(hub, "xnli")
    ll.export_data(["xcopa", "xnli"], languages=["id", "en"], output=out)
    first = read(out / "xcopa/id/test.jsonl.gz")[0]
    assert list(first) == ["id", "premise", "question", "choice1", "choice2", "label"]
    assert (first["id"], first["label"]) == (0, "choice1")
    assert [row["id"] for row in read(out / "xnli/en/test.jsonl.gz")] == list(range(1, 9))


def test_rows_of_all_languages_stay_in_line(hub, out):
    put(hub, "xnli")
    ll.export_data(["xnli"], languages=["de", "en", "es"], splits=["test"], output=out)
    ids = [[row["id"] for row in read(out / f"xnli/{code}/test.jsonl.gz")] for code in ("de", "en", "es")]
    assert ids[0] == ids[1] == ids[2]
    assert not (out / "xnli/de/train.jsonl.gz").exists()


def test_gsm8k_trains_mgsm_with_its_steps(hub, out):
    """The calculator's notes go; the text ends with the number, which the prompt's way of reading answers finds."""
    answer = "She sold 48/2 = <<48/2=24>>24 clips.\nThat is <<24*50=1200>>1200 cents.\n#### 1,200"
    hub.put("openai/gsm8k", {"main/train.jsonl": jsonl([{"question": "How much?", "answer": answer}])})
    done = ll.export_data(["mgsm"], languages=["en"], splits=["train"], output=out)
    (row,) = read(out / "mgsm/en/train.jsonl.gz")
    steps = "She sold 48/2 = 24 clips.\nThat is 1200 cents.\nThe answer is 1200."
    assert row == {"id": 1, "question": "How much?", "answer_number": "1200", "answer": steps}
    (example,) = examples(done, "mgsm", "en", "train")
    assert TASKS["mgsm"].parse(example.answer, example) == "1200"
    hub.put("openai/gsm8k", {"main/train.jsonl": jsonl([{"question": "?", "answer": "It is 4."}])})
    with refused("openai/gsm8k main train row 1", "####", mend="revision"):
        ll.export_data(["mgsm"], languages=["en"], splits=["train"], output=Path("other"))
    assert not list(Path("other").rglob("*.gz"))


def test_a_folder_is_named_as_the_language_was_asked_for(hub, out):
    put(hub, "nusax")
    ll.export_data(["nusax"], languages=["ind", "jv"], splits=["test"], output=out)
    assert {path.parent.name for path in out.rglob("*.gz")} == {"ind", "jv"}
    assert record(out, "nusax")["files"]["ind/test.jsonl.gz"]["config"] == "ind"


def test_several_tasks_each_have_the_languages_they_know(hub, out):
    put(hub, "xnli")
    put(hub, "xcopa")
    done = ll.export_data(["xnli", "xcopa"], languages=["de", "id", "en"], splits=["test"], output=out)
    assert {str(path.relative_to(out)) for path in done.written} == {
        "xnli/de/test.jsonl.gz", "xnli/en/test.jsonl.gz", "xcopa/id/test.jsonl.gz",
    }  # fmt: skip
    assert [note.split(", but in ")[0] for note in done.notes] == [
        "xnli has no rows in id", "xcopa has no rows in de", "xcopa has no test split in en",
    ]  # fmt: skip
    assert "de, el, en" in done.notes[0]


def test_equal_rows_give_equal_files(hub, out):
    put(hub, "xquad")
    for folder in (out, Path("again")):
        ll.export_data(["xquad"], languages=["de"], output=folder)
    assert (out / "xquad/de/test.jsonl.gz").read_bytes() == Path("again/xquad/de/test.jsonl.gz").read_bytes()


def test_an_export_that_stopped_goes_on_at_the_commit_that_it_read(hub, out):
    """Though the branch went on meanwhile; the finished file is not touched."""
    put(hub, "xnli")
    before = hub.branches["facebook/xnli", "main"]
    hub.refused = "es/test"
    with refused("facebook/xnli", "cannot be read", mend="goes on"):
        ll.export_data(["xnli"], languages=["de", "es"], splits=["test"], output=out)
    assert sorted(path.name for path in (out / "xnli").rglob("*") if path.is_file()) == [
        ".source.json.lock", "source.json", "test.jsonl.gz",
    ]  # fmt: skip
    first = (out / "xnli/de/test.jsonl.gz").stat().st_mtime_ns
    files, _ = hub.commits["facebook/xnli", before]
    hub.put("facebook/xnli", {**files, "new.txt": b""})
    hub.refused = None
    done = ll.export_data(["xnli"], languages=["de", "es"], splits=["test"], output=out)
    assert ([path.parent.name for path in done.kept], [path.parent.name for path in done.written]) == (
        ["de"],
        ["es"],
    )
    assert (out / "xnli/de/test.jsonl.gz").stat().st_mtime_ns == first
    assert {one["commit"] for one in record(out, "xnli")["files"].values()} == {before}
    calls = len(hub.calls)
    assert not ll.export_data(["xnli"], languages=["de", "es"], splits=["test"], output=out).written
    assert len(hub.calls) == calls  # what is there needs no hub
    with refused("facebook/xnli", before, mend="output"):
        ll.export_data(["xnli"], languages=["de"], splits=["test"], revision="main", output=out)


def test_an_export_that_is_killed_goes_on_and_leaves_nothing_behind(hub, out, cli, tmp_path):
    put(hub, "xnli")
    hub.held = "es/test"
    command = ("data", "export", "xnli", "--languages", "de,es", "--split", "test", "--output", out)
    waits = (out / "xnli/es").exists
    killed = cli(*command, kill_when=waits, before=hub.code(tmp_path / "cache"))
    hub.held = None
    assert killed.code < 0
    first = (out / "xnli/de/test.jsonl.gz").read_bytes()
    assert not (out / "xnli/es/test.jsonl.gz").exists()
    done = cli(*command, before=hub.code(tmp_path / "cache"))
    assert "1 files written, 1 were there already" in done.out, done.err
    assert (out / "xnli/de/test.jsonl.gz").read_bytes() == first
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "xnli/.source.json.lock", "xnli/de/test.jsonl.gz", "xnli/es/test.jsonl.gz", "xnli/source.json",
    ]  # fmt: skip


def test_a_file_that_no_export_wrote_is_not_touched(hub, out):
    put(hub, "xnli")
    path = out / "xnli/de/test.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with refused("de/test.jsonl.gz", "no export", mend="move it away"):
        ll.export_data(["xnli"], languages=["de"], output=out)
    assert path.read_bytes() == b"mine"
    path.unlink()
    ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out)
    path.write_bytes(gzip.compress(b"{}"))
    with refused("de/test.jsonl.gz", "changed", mend="move it away"):
        ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out)
    (out / "xnli/source.json").write_text("{}")
    with refused("source.json", "not written by an export", mend="move it away"):
        ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out)


def test_a_file_that_was_noted_and_not_written_is_written(hub, out):
    """As after a kill between the two."""
    put(hub, "xnli")
    ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out)
    (out / "xnli/de/test.jsonl.gz").unlink()
    assert ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out).written


@pytest.mark.parametrize(
    ("asked", "where", "found", "mend"),
    [
        ({"tasks": ["xnly"]}, "'xnly'", "no data set", "xnli"),
        ({"tasks": ["causal-lm"]}, "'causal-lm'", "no data set", "known"),
        ({"tasks": ["nusatranslation"]}, "'nusatranslation'", "script", "data/nusatranslation/{language}"),
        ({"languages": ["ta"]}, "'ta'", "xnli", "leave"),
        ({"languages": ["xx-yy"]}, "'xx-yy'", "not known", None),
        ({"languages": []}, "languages", "none", "leave"),
        ({"splits": ["dev"]}, "split", "'dev'", "known"),
        ({"tasks": ["mgsm"], "splits": ["validation"]}, "mgsm", "validation", "leave"),
        (
            {"tasks": ["mgsm"], "splits": ["train"], "languages": ["de"]},
            "'de'",
            "no train split in de",
            "leave",
        ),
        ({"tasks": ["wikipedia"]}, "languages", "hundreds", "name"),
        ({"tasks": ["wikipedia"], "languages": ["de"], "max_rows": 0}, "max_rows", "0", "leave"),
        ({"max_rows": 5}, "max_rows", "wikipedia", "experiment file"),
        ({"tasks": []}, "tasks", "none", "name one"),
        ({"tasks": ["mgsm"], "revision": "0" * 40}, "revision", "openai/gsm8k", "one by one"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_hub_is_asked(hub, out, asked, where, found, mend):
    with refused(where, found, mend=mend):
        ll.export_data(**{"tasks": ["xnli"], "output": out, **asked})
    assert not hub.calls
    assert not out.exists()


@pytest.mark.parametrize(
    ("asked", "found", "mend"),
    [
        ({"revision": "v9"}, "'v9'", "leave"),
        ({"revision": "0" * 40}, "0" * 40, "leave"),
        ({"languages": ["bg"]}, "parquet, CSV or JSON Lines, in a folder bg", "bg"),
    ],
)
def test_what_the_hub_lacks_is_refused(hub, out, asked, found, mend):
    put(hub, "xnli")
    with refused("facebook/xnli", found, mend=mend if "languages" not in asked else ""):
        ll.export_data(**{"tasks": ["xnli"], "languages": ["de"], "output": out, **asked})
    assert not out.exists()


def test_a_hub_that_lets_nobody_in_knows_nothing_or_is_not_there(hub, out, monkeypatch):
    with refused("facebook/xnli", "is not on the hub", mend="hf auth login"):
        ll.export_data(["xnli"], output=out)
    put(hub, "xnli")
    hub.gated.add("facebook/xnli")
    with refused("facebook/xnli", "let in", mend="https://huggingface.co/datasets/facebook/xnli"):
        ll.export_data(["xnli"], output=out)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("facebook/xnli", "cannot be read", mend="HF_HUB_OFFLINE"):
        ll.export_data(["xnli"], output=out)
    assert not out.exists()


def test_rows_without_a_column_or_a_label_are_refused(hub, out):
    for number, row in enumerate(
        ({"premise": "a", "label": 0}, {"premise": "a", "hypothesis": "b", "label": -1})
    ):
        hub.put("facebook/xnli", {"de/test.jsonl": jsonl([row])})
        with refused("facebook/xnli de test row 1", ("hypothesis", "-1")[number], mend="revision"):
            ll.export_data(["xnli"], languages=["de"], splits=["test"], output=out)
        assert not list(out.rglob("*.gz"))


def articles(count, seed):
    draw = random.Random(seed)
    return [
        {"id": f"{seed}-{place}", "title": "t", "text": draw.randbytes(20_000).hex()}
        for place in range(count)
    ]


def test_reference_text_is_a_sample_of_which_only_parts_are_fetched(hub, out):
    rows = [articles(40, seed) for seed in range(4)]
    names = [f"20231101.de/train-0000{place}-of-00004.parquet" for place in range(4)]
    files = dict(zip(names, map(parquet, rows), strict=True))
    hub.put("wikimedia/wikipedia", files, licence="cc-by-sa-3.0")
    told = []
    done = ll.export_data(
        [WIKIPEDIA], languages=["de"], output=out, max_rows=2, progress=lambda *far: told.append(far)
    )
    found = read(out / "wikipedia/de/train.jsonl.gz")
    order = {row["id"]: place for place, row in enumerate(row for part in rows for row in part)}
    assert len(found) == 2
    assert [order[row["id"]] for row in found] == sorted(order[row["id"]] for row in found)
    assert all(row.keys() == {"id", "text"} for row in found)
    assert hub.served < sum(map(len, files.values())) / 2
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0
    assert all(before[0] <= after[0] for before, after in pairwise(told))
    data = Reference(**yaml.safe_load(done.entries())["reference"]).data
    assert load_texts(TASKS["causal-lm"], data, "de", "train", Path()) == [row["text"] for row in found]
    ll.export_data([WIKIPEDIA], languages=["de"], output=Path("again"), max_rows=2)
    assert read(Path("again/wikipedia/de/train.jsonl.gz")) == found
    with refused("de/train.jsonl.gz", "max_rows 2", "max_rows 3", mend="output"):
        ll.export_data([WIKIPEDIA], languages=["de"], output=out, max_rows=3)
    ll.export_data([WIKIPEDIA], languages=["de"], output=Path("all"), max_rows=1000)
    assert [row["id"] for row in read(Path("all/wikipedia/de/train.jsonl.gz"))] == list(order)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60), st.integers())
def test_a_sample_has_as_many_rows_as_are_wanted_in_order(sizes, rows, seed):
    parts = [Part("f", place, size, size) for place, size in enumerate(sizes)]
    found = drawn(parts, rows, seed)
    places = [(part.group, place) for part in found for place in part.chosen]
    assert len(places) == min(rows, sum(sizes))
    assert places == sorted(set(places))
    assert all(place < sizes[group] for group, place in places)
    assert sum(part.rows for part in found) <= DRAWN * rows + max(sizes)


REAL = [
    ("xnli", "xnli/{}/test", "de", "test"),
    ("xnli", "xnli/{}/dev", "th", "validation"),
    ("xcopa", "xcopa/{}/val", "sw", "validation"),
    ("xcopa", "xcopa/{}/test", "id", "test"),
    ("mgsm", "mgsm/{}/test", "zh", "test"),
    ("xquad", "xquad/{}/test", "ru", "test"),
    ("tydiqa-goldp", "tydiqa_goldp/{}/dev", "sw", "test"),
    ("nusax", "nusax/{}/train", "min", "train"),
]
WITHOUT_IDS = {"xnli", "mgsm"}  # on the hub; ours have them


@pytest.mark.parametrize(("task", "place", "language", "split"), REAL)
def test_real_rows_are_exported_as_they_are(hub, out, task, place, language, split):
    """Files with the columns of the hub; those of all languages in one where the data set has them so."""
    if not SHARED.is_dir():
        pytest.skip("real data lies in ../shared/data, which is not here")
    (one,) = [one for one in HUB_SETS[task].sets if one.knows(language) and split in one.splits]
    codes = ["en", "fi", "sw"] if one.beginning else [language]
    rows = {code: read(SHARED / f"{place.format(code)}.jsonl.gz") for code in codes}
    drop = {"id"} if task in WITHOUT_IDS else set()
    served = [{name: row[name] for name in row if name not in drop} for code in codes for row in rows[code]]
    config = one.config.format(language=one.languages[language], iso639_3=find_language(language).iso639_3)
    hub.put(one.hub, {f"{config}/{one.splits[split]}.jsonl.gz": gzip.compress(jsonl(served))})
    done = ll.export_data([task], languages=[language], splits=[split], output=out)
    found = examples(done, task, language, split)
    asked = [TASKS[task].example({"id": "0", **row}, language) for row in rows[language]]
    assert [row.prompt for row in found] == [row.prompt for row in asked]
    golds = [TASKS[task].gold(row, one) for row, one in zip(rows[language], asked, strict=True)]
    assert [row.gold for row in found] == golds


def test_the_command_ends_with_the_lines_to_paste(hub, out):
    put(hub, "xnli")
    put(hub, "mgsm")
    command = ("data", "export", "xnli", "mgsm", "--languages", "de, en", "--split", "test", "--output", out)
    done = fresh(*command, **hub.env(), HF_HUB_CACHE=str(out.absolute() / "cache"))
    assert done.code == 0, done.err
    assert "data/xnli: 2 files, 16 rows of facebook/xnli at " in done.out
    assert "(licence: mit)" in done.out
    pasted = yaml.safe_load(done.err.split("next: ")[1].split("\n", 1)[1])
    assert [TaskData(**entry).task for entry in pasted["tasks"]] == ["xnli", "mgsm"]
    assert pasted["tasks"][0]["data"] == {"files": "data/xnli/{language}/{split}.jsonl.gz"}
    assert pasted["tasks"][1]["data"]["validation"] == {"of": "test", "rows": 50}


def test_the_command_says_in_one_message_what_it_cannot_do(cli, out):
    done = cli("data", "export", "xnli", "--languages", "de", "--output", out)
    assert "HF_HUB_OFFLINE" in done.message  # as all tests are
    assert "--revision" in cli("data", "export", "mgsm", "--revision", "0" * 40, "--output", out).message
    assert not out.exists()


def test_the_commands_of_the_documents_write_what_the_documents_say(hub, out):
    text = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
    lines = [
        shlex.split(line)[1:] for line in re.findall(r"^    (lingualift data export .*)$", text, re.MULTILINE)
    ]
    for task in ("xnli", "mgsm"):
        put(hub, task)
    packed = parquet(articles(2, 0))
    codes = ("en", "de", "fr")
    hub.put(
        "wikimedia/wikipedia", {f"20231101.{code}/train-00000-of-00001.parquet": packed for code in codes}
    )
    hub.put("facebook/xnli", {f"{code}/test.jsonl": jsonl(shipped_rows("xnli", "en")) for code in codes})
    files = {f"{code}/test/0000.parquet": parquet(shipped_rows("mgsm", "en")) for code in codes}
    hub.put("juletxara/mgsm", files, CONVERTED)
    for line in lines:
        more = ["--split", "test"] if "mgsm" in line else []
        result = CliRunner().invoke(app, [*line, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"xnli", "mgsm", "wikipedia"}
    assert all((out / "wikipedia" / code / "train.jsonl.gz").is_file() for code in codes)


def test_the_commands_of_the_recipes_name_what_is_there(hub, out):
    """All that is missing is an answer of the hub."""
    lines = [
        shlex.split(line)
        for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")
        for line in re.findall(
            r"^#   lingualift data export (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert len(lines) >= 9
    for line in lines:
        place = line.index("--languages")
        assert line[place + 2 :] in ([], ["--max-rows", "10000"])
        with refused("/", "is not on the hub"):
            ll.export_data(line[:place], languages=line[place + 1].split(","), output=out)
