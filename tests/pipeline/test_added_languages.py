"""An experiment into a language that it adds: what it says is kept, decides steps, reaches workers and nobody else."""

import json
import shutil

import pytest
import yaml

from builders import tiny
from builders.refusals import refused
from builders.runs import timeless
from builders.worlds import experiment, read_jsonl, small_data, write_experiment, write_jsonl
from lingualift.checking import check
from lingualift.config import Data, load_experiment
from lingualift.data.datasets import Examples
from lingualift.languages import all_languages, knowing, language, own_languages
from lingualift.pipeline import make_plan, plan_of, run, run_plan
from lingualift.pipeline.store import Store
from lingualift.report import write_report

REJANG = {"name": "Rejang", "script": "Latn", "nllb": "ind_Latn"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Rows of Rejang, which are those of Swahili, and a line of French."""
    folder = small_data(tmp_path_factory.mktemp("added") / "data")
    for kind in ("sentiment", "reference"):
        shutil.copytree(folder / kind / "sw", folder / kind / "rej")
    return folder


def asked(data, rejang=REJANG, **changes):
    languages = {"source": "en", "targets": ["rej", "fr"], "own": {"rej": rejang}}
    methods = ["source-ft", {"method": "adamergex", "weight": 1}, "target-ft"]
    return experiment(data, languages=languages, methods=methods, **changes)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rejang")
    return run(write_experiment(folder / "e.yaml", asked(world)), output=folder / "run")


def test_the_run_folder_tells_what_was_said(finished):
    kept = yaml.safe_load((finished.folder / "experiment.yaml").read_text(encoding="utf-8"))
    assert kept["languages"]["own"] == {"rej": REJANG}
    assert {row["language"] for row in finished.rows} == {"en", "rej", "fr"}
    told = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")).get("own_languages")
        for path in finished.folder.glob("adapters/*/provenance.json")
    }
    assert told["mini-sentiment.rej.target-ft.seed0"] == {"rej": REJANG}
    assert told["mini-sentiment.fr.target-ft.seed0"] is None
    card = finished.folder / "adapters/mini-sentiment.rej.target-ft.seed0/README.md"
    assert "Rejang (rej)" in card.read_text(encoding="utf-8")
    (note,) = [
        entry["text"] for entry in read_jsonl(finished.folder / "log.jsonl") if entry["event"] == "note"
    ]
    assert "Rejang (rej) is tagged ind_Latn, as Indonesian" in note
    assert finished.notes == (note,)
    page = finished.page.read_text(encoding="utf-8")
    assert "Rejang (rej), Latn, tagged ind_Latn" in page


def test_a_language_that_is_said_to_be_another_scores_the_same(finished, world, tmp_path):
    """The oracle: the same rows as Swahili, which is known."""
    raw = asked(world)
    raw["languages"] = {"source": "en", "targets": ["sw", "fr"]}
    known = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")

    def scores(found):
        return [
            (row["method"], row["language"].replace("rej", "sw"), row["score"])
            for row in timeless(found.folder)
        ]

    assert scores(finished) == scores(known)


def test_a_finished_run_is_not_done_again_and_is_reported_anew(finished):
    again = run(finished.folder.parent / "e.yaml", output=finished.folder)
    assert again.trained == 0
    assert "Rejang" in write_report(finished.folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change", [{"name": "Redjang"}, {"script": "Arab"}, {"nllb": "jav_Latn"}, {"nllb": None}]
)
def test_what_is_said_decides_the_steps_in_that_language_and_no_others(finished, tmp_path, change, world):
    path = write_experiment(tmp_path / "e.yaml", asked(world, REJANG | change))
    planned, store = plan_of(path, store=finished.folder.parent / "store")
    missing = [step.label() for step in planned.missing(store)]
    assert [label for label in missing if "rej" not in label] == []
    assert "evaluate mini-sentiment in rej" in missing
    assert "train causal-lm in rej, seed 0" in missing
    assert "evaluate mini-sentiment in fr" not in missing


def test_two_experiments_of_one_process_do_not_see_each_others(finished, world, tmp_path):
    """Though rows are kept in the process: the one says Arab, the other Latn, a third nothing."""
    before = all_languages()
    other = asked(world, REJANG | {"script": "Arab"})
    first = make_plan(_read(tmp_path, asked(world)), tmp_path)
    second = make_plan(_read(tmp_path, other), tmp_path)
    assert {step.key for step in first.steps} != {step.key for step in second.steps}
    assert all_languages() == before
    with refused("'rej'"):
        language("rej")
    del other["languages"]["own"]
    unknown = ("/some.yaml", "languages.targets.0: is no known language", "'rej'")
    with refused(*unknown, mend="the keys"):
        _read(tmp_path, other)
    with knowing(own_languages({"mad": {"nllb": "ind_Latn"}})), refused(*unknown, mend="the keys"):
        _read(tmp_path, other)
    ran = run_plan(first, finished.folder, Store(finished.folder.parent / "store"))
    assert ran.trained == 0


def _read(folder, raw):
    return load_experiment(write_experiment(folder / "some.yaml", raw))


def test_a_check_looks_at_it_in_its_script(world, tmp_path):
    languages = asked(world, REJANG | {"script": "Thai"})
    found = check(write_experiment(tmp_path / "e.yaml", languages), rows=4)
    assert {one.language: one.spaced for one in found.languages} == {"en": True, "rej": False, "fr": True}


def test_a_tiny_run_takes_it_along(world, tmp_path):
    raw = asked(world) | {"grid": {"rank": {"low": {}, "high": {"adapter.rank": 4}}}}
    small = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "tiny", tiny=True)
    kept = yaml.safe_load((small.folder / "experiment.yaml").read_text(encoding="utf-8"))
    assert kept["languages"]["own"] == {"rej": REJANG}
    assert {row["language"] for row in small.rows} == {"en", "rej", "fr"}


@pytest.mark.slow  # a server and two workers; that what a run knows goes to them: the initializer of `_run`
def test_workers_know_it(finished, world, tmp_path):
    raw = asked(world, workers=2)
    raw["methods"] = ["source-ft"]
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    rows = [row for row in timeless(finished.folder) if row["method"] == "source-ft"]
    assert [row["score"] for row in timeless(done.folder)] == [row["score"] for row in rows]


def test_a_prompt_holds_its_name(tmp_path):
    """XLT asks in the language that it names; rows that are kept in the process are told apart by it."""
    write_jsonl(tmp_path / "rej.jsonl", [{"premise": "a", "hypothesis": "b", "label": 0}])
    found = {}
    for name in ("Rejang", "Redjang"):
        with knowing(own_languages({"rej": {"name": name, "script": "Latn"}})):
            rows = Examples("xnli", Data(files="{language}.jsonl"), tmp_path, prompt="xlt")
            found[name] = rows.rows("rej", "train")[0].prompt
    assert found["Rejang"].replace("Rejang", "Redjang") == found["Redjang"] != found["Rejang"]


def test_a_source_encoder_is_told_the_near_languages_tag(world, tmp_path):
    """Refused without, before anything runs; with it, the adapter's provenance has the tag."""
    raw = asked(world, REJANG | {"nllb": None}, flare={"source_encoder": "nllb"})
    tiny.build("nllb", tmp_path / "nllb")
    raw["languages"]["targets"] = ["rej"]
    raw["methods"] = ["flare-mt"]
    raw["training"] = {"task": {"steps": 1, "batch_size": 4}}
    del raw["reference"]
    raw["tasks"][0]["translated"] = {"into_targets": raw["tasks"][0]["data"]}
    path = write_experiment(tmp_path / "e.yaml", raw)
    with refused("'rej'", "no tag in the tokenizer of the source encoder", mend="languages.own"):
        plan_of(path)
    raw["languages"]["own"]["rej"] = REJANG
    done = run(write_experiment(path, raw), output=tmp_path / "run")
    (told,) = (
        json.loads(file.read_text()) for file in done.folder.glob("adapters/*rej.flare-mt*/provenance.json")
    )
    assert (told["own_languages"], told["tags"]) == ({"rej": REJANG}, ["ind_Latn"])
