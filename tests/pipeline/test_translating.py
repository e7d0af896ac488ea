"""Translation as a step of the plan: what it makes, who shares it, and what it is refused for."""

import json
import re
import shutil
import sqlite3

import pytest
import safetensors
import transformers

import lingualift as ll
from builders import prefixing, tiny
from builders.refusals import refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.backbone.reference import find_backbone
from lingualift.cli.tables import show_plan
from lingualift.config import Backbone, Translation
from lingualift.metrics.scores import METRICS
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.cost import estimate
from lingualift.pipeline.machines import MACHINES
from lingualift.pipeline.store import Store
from lingualift.tasks import shipped_rows
from lingualift.terminal import Terminal
from lingualift.translation.model import Model

READING = ["source-ft", "translate-test", "translate-train", "input-fusion", "flare", "x-mixup"]


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    folder = tiny.build("nllb", tmp_path_factory.mktemp("nllb") / "model")
    return tiny.widened(folder, transformers.AutoConfig.from_pretrained(folder))


def translating(data, nllb, methods=READING, **changes):
    raw = experiment(data, methods=methods, languages={"source": "en", "targets": ["sw"]}, **changes)
    raw["tasks"][0]["translated"] = {"model": str(nllb), "beams": 1, "max_length": 16}
    return raw


@pytest.fixture(scope="module")
def finished(data, nllb, tmp_path_factory):
    folder = tmp_path_factory.mktemp("translating")
    return run(write_experiment(folder / "e.yaml", translating(data, nllb)), output=folder / "run")


def steps_of(finished):
    return json.loads((finished.folder / "steps.json").read_text())["steps"]


def translations(finished):
    return [step for step in steps_of(finished) if step["kind"] == "translation"]


def test_results_are_those_of_rows_that_lingualift_translate_writes(finished, data, nllb, tmp_path):
    files = f"{data}/sentiment/{{language}}/{{split}}.jsonl"
    about = {"model": str(nllb), "task": "mini-sentiment", "data": files}
    about["settings"] = Translation(beams=1, max_length=16)
    ll.translate(**about, source="en", target="sw", splits=["train"], output=tmp_path / "into")
    ll.translate(**about, source="sw", target="en", splits=["test"], output=tmp_path / "from")
    raw = translating(data, nllb)
    raw["tasks"][0]["translated"] = {
        "into_targets": {"files": f"{tmp_path}/into/{{language}}/{{split}}.jsonl"},
        "into_source": {"files": f"{tmp_path}/from/en/{{split}}.jsonl"},
    }
    other = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    assert len(other.rows) == len(finished.rows) == 2 * 7
    for file in (other.folder / "predictions").iterdir():
        assert file.read_bytes() == (finished.folder / "predictions" / file.name).read_bytes(), file.name


def test_a_finished_translation_says_what_it_made(finished, data):
    told = [step["facts"] for step in translations(finished)]
    found = {(one["split"], one["language"], one["into"]): one for one in told}
    assert set(found) == {("train", "en", "sw"), ("test", "sw", "en")}
    for (split, language, _), one in found.items():
        rows = len(read_jsonl(data / "sentiment" / language / f"{split}.jsonl"))
        assert one["rows"] == one["written"] == rows
    assert "translate: mini-sentiment" in finished.page.read_text(encoding="utf-8")


def test_each_direction_is_translated_once_for_all_methods_and_seeds(data, nllb, tmp_path):
    raw = translating(data, nllb, seeds=[0, 1])
    plan, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    made = [step for step in plan.steps if step.kind == "translation"]
    asked = [(step.split, step.language, step.into) for step in made]
    assert sorted(asked) == [("test", "sw", "en"), ("train", "en", "sw")]
    readers = [step for step in plan.steps if "translations" in step.inputs]
    assert {step.inputs["translations"] for step in readers} == set(made)
    assert len(readers) == 2 * (4 + 4)


def test_a_plan_counts_the_translations_before_a_row_of_them_is_there(data, nllb, tmp_path, capsys):
    path = write_experiment(tmp_path / "e.yaml", translating(data, nllb, ["translate-train"]))
    plan, store = plan_of(path, output=tmp_path / "run")
    (step,) = (step for step in plan.steps if step.kind == "translation")
    counted = estimate(plan, store, calibrate=False, machine=MACHINES["l4"])
    assert counted.costs[step].tokens > len(step.sentences)
    assert counted.costs[step].seconds > 0
    show_plan(plan.steps, counted, Terminal())
    told = " ".join(capsys.readouterr().out.split())
    assert f"48 rows to translate, {len(step.sentences)} different sentences" in told


@pytest.mark.slow  # it measures every kind of step
def test_a_plan_measures_how_long_translations_take(data, nllb, tmp_path, monkeypatch):
    path = write_experiment(tmp_path / "e.yaml", translating(data, nllb, ["translate-train"]))
    plan, store = plan_of(path, output=tmp_path / "run")
    (step,) = (step for step in plan.steps if step.kind == "translation")
    measured = estimate(plan, store, calibrate=True)
    assert measured.costs[step].seconds > 0
    raw, _ = asking(data, nllb, tmp_path)
    raw["methods"] = ["source-ft", "translate-test"]
    told, store = plan_of(write_experiment(path, raw), output=tmp_path / "run")
    monkeypatch.setattr("lingualift.pipeline.calibration._written", lambda *_: 1000.0)  # seconds a text
    costs = estimate(told, store, calibrate=True).costs
    back = {step.back is not None: cost.seconds for step, cost in costs.items() if step.kind == "evaluation"}
    assert back[False] < 1000 < back[True]  # what is answered in English is written again
    assert all(cost.seconds is not None for cost in measured.costs.values())


class Stopped(Exception):
    pass


def test_a_run_that_is_stopped_while_it_translates_goes_on_from_its_last_batch(data, nllb, tmp_path):
    raw = translating(data, nllb, ["translate-test"])
    raw["tasks"][0]["translated"]["batch_size"] = 4
    path = write_experiment(tmp_path / "e.yaml", raw)

    def stop(event):
        if event.what == "progress" and event.step.kind == "translation" and event.done > event.total / 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(path, output=tmp_path / "run", watch=stop)
    (cache,) = (tmp_path / "store/work").glob("*/*.sqlite")
    assert "checkpoint" in [entry.kind for entry in Store(tmp_path / "store").entries()]
    file = sqlite3.connect(cache)
    file.execute(
        "UPDATE sentences SET text = text || ' kept'"
    )  # so that it shows what is not translated again
    file.commit()
    file.close()
    again = run(path, output=tmp_path / "run")
    assert not cache.parent.exists()
    (told,) = translations(again)
    (file,) = (tmp_path / "store/translation" / told["key"][:20]).glob("*.jsonl")
    rows = read_jsonl(file)
    assert sum(" kept" in row["text"] for row in rows) > 0
    assert len(rows) == 16


def test_what_does_not_change_a_translation_makes_none_anew(data, nllb, tmp_path):
    def keys(translated=None, max_rows=None, **changes):
        raw = translating(data, nllb, **changes)
        raw["tasks"][0]["translated"] |= translated or {}
        raw["tasks"][0]["data"]["max_rows"] = max_rows or {}
        plan, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
        return {step.split: step.key for step in plan.steps if step.kind == "translation"}

    first = keys()
    assert first == keys(adapter={"rank": 4}) == keys(translated={"batch_size": 2}) == keys(seeds=[3])
    beams = keys(translated={"beams": 2})
    assert all(beams[split] != first[split] for split in first)
    sampled = keys(max_rows={"train": 9})
    assert sampled["train"] != first["train"]
    assert sampled["test"] == first["test"]


def test_a_sample_alone_is_translated_and_what_you_name_is_not(data, nllb, tmp_path):
    raw = translating(data, nllb, ["translate-train", "translate-test"])
    raw["tasks"][0]["data"]["max_rows"] = {"train": 9, "test": 5}
    rows = read_jsonl(data / "sentiment/en/test.jsonl")
    write_jsonl(tmp_path / "sw/test.jsonl", [{"id": row["id"], "text": row["text"]} for row in rows])
    raw["tasks"][0]["translated"]["into_source"] = {"files": f"{tmp_path}/{{language}}/{{split}}.jsonl"}
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    (told,) = translations(done)
    assert (told["facts"]["split"], told["facts"]["rows"]) == ("train", 9)
    assert {row["n_train"] for row in done.rows if row["method"] == "translate-train"} == {9}
    assert {row["n"] for row in done.rows} == {5}


@pytest.mark.parametrize(
    ("translated", "where", "found"),
    [
        ({"beams": 2}, "e.yaml", "no `model` translates"),
        ({"model": "miniworld"}, "miniworld", "decoder"),
        ({"model": "nowhere/nothing"}, "nowhere/nothing", ""),
    ],
)
def test_what_cannot_translate_is_told_before_anything_runs(data, nllb, tmp_path, translated, where, found):
    raw = translating(data, nllb)
    raw["tasks"][0]["translated"] = translated
    with refused(where, found):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_a_language_that_the_model_does_not_know_is_told_before_anything_runs(data, nllb, tmp_path):
    for code, split in (("en", "train"), ("en", "test"), ("bug", "test")):
        write_jsonl(tmp_path / code / f"{split}.jsonl", read_jsonl(data / f"sentiment/en/{split}.jsonl"))
    raw = translating(data, nllb)
    raw["languages"]["targets"] = ["bug"]
    raw["tasks"][0]["data"]["files"] = f"{tmp_path}/{{language}}/{{split}}.jsonl"
    with refused("bug", str(nllb), mend="translation model"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_a_tiny_run_translates_by_a_tiny_model(data, nllb, tmp_path):
    path = write_experiment(tmp_path / "e.yaml", translating(data, nllb))
    done = run(path, output=tmp_path / "tiny", tiny=True)
    told = [step["facts"] for step in translations(done)]
    assert {one["split"] for one in told} == {"train", "test"}
    assert all(one["model"].startswith("tiny-random-M2M100") for one in told)
    assert any("M2M100" in note for note in done.notes)
    assert {row["method"] for row in done.rows} == set(READING)


def test_a_tiny_run_of_spans_has_pairs_in_the_place_of_translated_training_rows(nllb, tmp_path):
    raw = translating(tmp_path, nllb, ["translate-test", "translate-train"])
    raw["languages"]["targets"] = ["de"]
    raw["tasks"][0] |= {"task": "xquad", "data": {"files": "{language}/{split}.jsonl"}}
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "tiny", tiny=True)
    assert [step["facts"]["split"] for step in translations(done)] == ["test"]
    assert any("no answer would be found" in note for note in done.notes)


def asking(data, nllb, folder, task="qa"):
    """An experiment of translate-test on translations that lie in a folder: the rows of the source."""
    raw = translating(data, nllb, ["translate-test"])
    name = {"qa": "mini-qa", "sentiment": "mini-sentiment"}[task]
    raw["tasks"][0] |= {"task": name, "data": {"files": f"{data}/{task}/{{language}}/{{split}}.jsonl"}}
    raw["tasks"][0]["translated"]["into_source"] = {"files": f"{data}/{task}/en/{{split}}.jsonl"}
    raw["training"]["task"] |= {"steps": 30, "learning_rate": 1e-2}
    return raw, folder / "e.yaml"


def test_answers_in_words_come_back_into_the_language_of_the_gold(data, nllb, tmp_path):
    raw, path = asking(data, nllb, tmp_path)
    done = run(write_experiment(path, raw), output=tmp_path / "run")
    row = done.rows[0]
    assert row["answer_language"] == "sw"
    answers = read_jsonl(tmp_path / "run" / row["predictions"])
    translator = Model(
        find_backbone(Backbone(name=str(nllb))), "en", "sw", Translation(beams=1, max_length=16)
    )
    gold = [(one["answer"],) for one in read_jsonl(data / "qa/sw/test.jsonl")]
    assert [tuple(one["gold"]) for one in answers] == gold
    assert len({one["text"] for one in answers}) > 1
    for one in answers:
        (alone,) = translator.translate([one["text"].strip()])
        assert one["prediction"] == (alone.text or one["text"].strip())
        assert one["correct"] == METRICS[row["metric"]].is_right(one["prediction"], tuple(one["gold"]), "sw")
    scored = METRICS[row["metric"]].score([one["prediction"] for one in answers], gold, "sw")
    assert row["score"] == pytest.approx(scored.value)
    assert any("answered back" in step["label"] for step in steps_of(done))


def test_answers_that_come_back_are_counted_for_other_machines(data, nllb, tmp_path):
    raw, path = asking(data, nllb, tmp_path)
    raw["methods"] = ["source-ft", "translate-test"]
    plan, store = plan_of(write_experiment(path, raw), output=tmp_path / "run")
    costs = estimate(plan, store, calibrate=False, machine=MACHINES["l4"]).costs
    tokens = {step.back is not None: cost.tokens for step, cost in costs.items() if step.kind == "evaluation"}
    seconds = {
        step.back is not None: cost.seconds for step, cost in costs.items() if step.kind == "evaluation"
    }
    assert tokens[True] > 0
    assert seconds[True] > seconds[False]


def test_answers_in_words_that_nothing_translates_back_are_refused(data, nllb, tmp_path):
    raw, path = asking(data, nllb, tmp_path)
    raw["tasks"][0]["translated"] = {"into_source": raw["tasks"][0]["translated"]["into_source"]}
    with refused("tasks.0.translated.model", "mini-qa", "'en'", "'sw'", mend="translate-test"):
        plan_of(write_experiment(path, raw))


def test_a_model_for_which_nothing_is_left_is_refused(data, nllb, tmp_path):
    raw, path = asking(data, nllb, tmp_path, "sentiment")
    plan, _ = plan_of(write_experiment(path, raw))
    assert all(step.back is None for step in plan.steps if step.kind == "evaluation")
    raw["tasks"][0]["translated"]["into_targets"] = {
        "files": f"{data}/sentiment/{{language}}/{{split}}.jsonl"
    }
    with refused("tasks.0.translated.model", "nothing", mend="remove"):
        plan_of(write_experiment(path, raw))


def test_several_translation_models_are_an_axis_of_a_grid(data, nllb, tmp_path):
    large = shutil.copytree(nllb, tmp_path / "large")
    tiny.widened(large, transformers.AutoConfig.from_pretrained(nllb, encoder_layers=5))
    axis = {"small": {"tasks.0.translated.model": str(nllb), "flare.source_encoder": str(nllb)}}
    axis["large"] = {key: str(large) for key in axis["small"]}
    raw = translating(data, nllb, ["source-ft", "translate-test", "flare-mt"], grid={"mt": axis})
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    labels = [step["label"] for step in steps_of(done)]
    assert labels.count("train mini-sentiment in en, seed 0") == 1
    assert sum(label.startswith("translate ") for label in labels) == 4
    sizes = {}
    for name, folder in (("small", nllb), ("large", large)):
        with safetensors.safe_open(folder / "model.safetensors", "np") as file:
            sizes[name] = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118
    rows = json.loads((done.folder / "results.json").read_text())["rows"]
    for row in rows:
        reads = row["method"] != "source-ft"
        assert row["translator_parameters"] == (sizes[row["grid"]["mt"]] if reads else None)
        assert bool(row["translator"]) == reads
    page = done.page.read_text(encoding="utf-8")
    section = page.partition('<section id="sizes"')[2].partition("</section>")[0]
    for method in ("translate-test", "flare-mt"):
        mine = [row for row in rows if row["method"] == method and row["metric"] == "accuracy"]
        by_size = {row["translator_parameters"]: row["score"] for row in mine}
        told = "; ".join(f"{size / 1e6:.3g}M: {by_size[size]:.1f}" for size in sorted(by_size))
        assert told in section
    assert "source-ft" not in section


def of_spans(folder, nllb):
    """An experiment on the rows of XQuAD that ship, by an encoder."""
    for code, split in (("en", "train"), ("en", "test"), ("de", "test")):
        write_jsonl(folder / code / f"{split}.jsonl", shipped_rows("xquad", code))
    tiny.build("xlmr", folder / "xlmr")
    raw = translating(folder, nllb, ["translate-train"])
    raw["backbone"], raw["languages"]["targets"] = {"name": "xlmr"}, ["de"]
    raw["tasks"][0] |= {"task": "xquad", "data": {"files": "{language}/{split}.jsonl"}}
    return raw


def test_spans_are_learnt_where_they_stand_in_the_translation_and_rows_without_are_left_out(
    nllb, tmp_path, monkeypatch
):
    """By a translator that is known to the letter, and loses the marks of one answer."""
    rows = shipped_rows("xquad", "en")
    lost = prefixing.foreign(rows[2]["answers"]["text"][0])

    def treat(text):
        marks = re.sub(r"[][<>\"]", "", text)
        return "elsewhere" if marks == lost else marks if lost in text else text

    class Known(prefixing.Prefixing):
        def __init__(self, *_):
            super().__init__(treat)

        limit = new_tokens = 1000
        tags = ("eng_Latn", "deu_Latn")

    monkeypatch.setattr("lingualift.translation.Model", Known)
    raw = of_spans(tmp_path, nllb)
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    (told,) = translations(done)
    assert told["facts"]["dropped"] == len(rows) - told["facts"]["written"]
    assert 0 < told["facts"]["dropped"] < len(rows)
    assert any("dropped" in warning for warning in told["warnings"])
    assert {row["n_train"] for row in done.rows} == {told["facts"]["written"]}


def test_a_translation_that_is_too_long_is_told_with_what_bounds_it(data, nllb, tmp_path):
    raw = translating(data, nllb, ["flare"], scoring={"max_length": 24})
    with refused("example '", "24", mend="`translated.max_length`"):
        run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")


def test_translations_in_which_no_answer_is_found_are_refused_with_their_step(nllb, tmp_path):
    raw = of_spans(tmp_path, nllb)
    with refused("translate xquad (train)", "none of the answers of its 8 rows", mend="translated already"):
        run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    assert not list((tmp_path / "store").glob("translation/*"))
