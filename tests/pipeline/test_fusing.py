"""FLARE, X-Mixup and the baselines that read translations, as methods of an experiment."""

import json
import shutil

import pytest
import yaml

from builders.refusals import refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.adapters.config import FIRST_STAGE
from lingualift.config import Data, load_experiment, method_defaults
from lingualift.data.rows import load_examples, load_joined
from lingualift.fusion import FlareConfig, MixupConfig
from lingualift.pipeline import plan_of, run
from lingualift.pipeline.cost import estimate
from lingualift.pipeline.methods import METHODS
from lingualift.provenance import sha256_file
from lingualift.tasks import TASKS

READING = [
    "source-ft",
    "translate-test",
    "translate-train",
    "input-fusion",
    "flare",
    {"method": "flare", "fusion": "cross_attention", "source_state": "block-output"},
    "x-mixup",
    {"method": "x-mixup", "layer": 0, "ratio": 0.75},
]
FUSED = ["flare.add_relu", "flare.cross_attention-source_state=block-output"]
FUSED += ["x-mixup", "x-mixup.layer=0-ratio=0.75"]


def translating(data, folder, **changes):
    """An experiment whose translations lie in `folder`: the rows of the other language, in another order."""
    raw = experiment(data, methods=list(READING), **changes)
    for language in raw["languages"]["targets"]:
        for split, where in (("train", "targets"), ("test", "source")):
            read = language if split == "train" else "en"
            rows = read_jsonl(data / "sentiment" / read / f"{split}.jsonl")
            if split == "test":  # a translation of test rows has no label that could be read
                rows = [{"id": row["id"], "text": row["text"]} for row in reversed(rows)]
            write_jsonl(folder / where / language / f"{split}.jsonl", rows)
    raw["tasks"][0]["translated"] = {
        "into_targets": {"files": f"{folder}/targets/{{language}}/{{split}}.jsonl"},
        "into_source": {"files": f"{folder}/source/{{language}}/{{split}}.jsonl"},
    }
    return raw


def one_target(data, folder, **changes):
    return translating(data, folder, languages={"source": "en", "targets": ["sw"]}, **changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fusing")
    return run(write_experiment(folder / "e.yaml", translating(data, folder)), output=folder / "run")


@pytest.fixture(scope="module")
def rows(finished):
    return json.loads((finished.folder / "results.json").read_text())["rows"]


def answers(finished, name):
    return read_jsonl(finished.folder / "predictions" / f"mini-sentiment.{name}.seed0.jsonl")


def test_every_method_fills_its_cells_and_no_test_row_is_left_out(rows, data):
    found = {(row["method"], row["variant"], row["language"]) for row in rows}
    methods = {("translate-test", ""), ("translate-train", ""), ("input-fusion", "")}
    methods |= {tuple([*name.split(".", 1), ""][:2]) for name in FUSED}
    expected = {(*method, language) for method in methods for language in ("fr", "sw")}
    assert found - expected == {("source-ft", "", language) for language in ("en", "fr", "sw")}
    assert expected <= found
    assert {row["n"] for row in rows} == {len(read_jsonl(data / "sentiment/sw/test.jsonl"))}


def test_the_adapters_of_stage_2_are_trained_on_top_of_the_one_of_stage_1(finished):
    first = finished.folder / "adapters" / "mini-sentiment.sw.source-ft.seed0" / "adapter_model.safetensors"
    for name in FUSED:
        folder = finished.folder / "adapters" / f"mini-sentiment.sw.{name}.seed0"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config[FIRST_STAGE] == sha256_file(folder / FIRST_STAGE / "adapter_model.safetensors")
        assert config[FIRST_STAGE] == sha256_file(first)
    steps = json.loads((finished.folder / "steps.json").read_text())["steps"]
    keys = {step["label"]: step["key"] for step in steps}
    told = {step["label"]: step["inputs"] for step in steps}
    stage_1 = keys["train mini-sentiment in en, seed 0"]
    for what in ("on translations", "joined with its translation"):
        assert told[f"train mini-sentiment {what} in sw, seed 0"] == {"start": stage_1}
    for what in ("flare add_relu", "x-mixup"):
        assert told[f"initialise {what}, seed 0"] == {"first": stage_1}


def test_the_report_tells_trainings_of_one_task_apart(finished):
    """A line of a loss plot is a seed: what learns in another way has a plot, and lines of sizes, of its own."""
    told = json.loads((finished.folder / "steps.json").read_text())["steps"]
    found = {}
    for step in told:
        if step["kind"] == "adapter":
            facts = step["facts"]
            found.setdefault((facts["name"], facts["language"]), []).append(facts["seed"])
    assert all(len(seeds) == len(set(seeds)) for seeds in found.values())
    names = {name for name, _ in found}
    assert names == {
        "mini-sentiment",
        "mini-sentiment on translations",
        "mini-sentiment joined with its translation",
        "mini-sentiment by flare add_relu",
        "mini-sentiment by flare cross_attention source_state=block-output",
        "mini-sentiment by x-mixup",
        "mini-sentiment by x-mixup layer=0 ratio=0.75",
    }
    labels = [step["label"] for step in told if step["kind"] != "evaluation"]
    assert len(labels) == len(set(labels))
    page = finished.page.read_text(encoding="utf-8")
    section = page.partition('<section id="training"')[2].partition("</section>")[0]
    for name in names:  # over its sizes, and over its losses if there are any
        assert section.count(f"<bdi>{name}</bdi>") in (1, 2), name


def test_the_settings_of_x_mixup_reach_its_adapter(finished):
    found = []
    for name in FUSED[2:]:
        folder = finished.folder / "adapters" / f"mini-sentiment.sw.{name}.seed0"
        config = json.loads((folder / "adapter_config.json").read_text())
        found.append(tuple(config[key] for key in ("peft_type", "layer", "ratio")))
    assert found == [("X-MIXUP", None, 0.5), ("X-MIXUP", 0, 0.75)]


def test_translate_test_reads_the_translation_and_the_labels_of_the_original_rows(finished, data):
    """As the source language's own rows, which stand for perfect translations here, in the order of the target's."""
    asked = {row["id"]: row for row in answers(finished, "sw.translate-test")}
    english = {row["id"]: row for row in answers(finished, "en.source-ft")}
    swahili = read_jsonl(data / "sentiment/sw/test.jsonl")
    assert [row["id"] for row in answers(finished, "sw.translate-test")] == [row["id"] for row in swahili]
    assert {name: row["prediction"] for name, row in asked.items()} == {
        name: row["prediction"] for name, row in english.items()
    }
    for row in swahili:
        assert asked[row["id"]]["gold"] == [row["label"]]


def test_translations_are_answered_in_the_source_language(rows):
    for row in rows:
        spoken = "en" if row["method"] == "translate-test" else row["language"]
        assert row["answer_language"] == spoken


def test_translate_test_scores_against_labels_of_the_target_and_not_of_the_translation(data, tmp_path):
    raw = one_target(data, tmp_path, seeds=[0])
    raw["methods"] = ["translate-test"]
    path = tmp_path / "source/sw/test.jsonl"
    write_jsonl(path, [{**row, "label": "positive"} for row in read_jsonl(path)])
    done = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    gold = [row["gold"] for row in answers(done, "sw.translate-test")]
    assert gold == [[row["label"]] for row in read_jsonl(data / "sentiment/sw/test.jsonl")]


def test_other_translations_change_the_answers_of_all_that_read_them_and_of_nothing_else(data, tmp_path):
    raw = one_target(data, tmp_path)
    path = write_experiment(tmp_path / "e.yaml", raw)
    keys = {}
    for when in ("before", "after"):
        found = {planned.cell.method: planned.evaluation.key for planned in plan_of(path)[0].cells}
        keys[when] = found
        rows = read_jsonl(tmp_path / "source/sw/test.jsonl")
        write_jsonl(
            tmp_path / "source/sw/test.jsonl", [{**row, "text": "the bread was good ."} for row in rows]
        )
    changed = {method.method for method in keys["before"] if keys["before"][method] != keys["after"][method]}
    assert changed == {
        name
        for name, method in METHODS.items()
        if method.reads and name in {"translate-test", "input-fusion", "flare", "x-mixup"}
    }


@pytest.mark.parametrize("of_another_split", [{}, {"test": 3}])
def test_a_sample_of_the_training_rows_is_the_same_in_every_language(data, tmp_path, of_another_split):
    raw = one_target(data, tmp_path)
    raw["tasks"][0]["translated"]["into_targets"]["max_rows"] = of_another_split
    raw["tasks"][0]["data"]["max_rows"] = {"train": 7}
    planned = plan_of(write_experiment(tmp_path / "e.yaml", raw))[0]
    read = {}
    for step in planned.steps:
        if step.kind == "adapter":
            read[step.what()] = [row.id for row in step.dataset.rows(step.language, step.split)]
    assert len(read) == 7
    assert len(set(map(tuple, read.values()))) == 1
    assert len(next(iter(read.values()))) == 7


def test_joined_texts_hold_both_the_rows_own_first_and_marked_answers_stay_in_their_place(tmp_path):
    passage = {"id": "1", "context": "Rumah itu biru.", "question": "Apa warnanya?"}
    passage["answers"] = {"text": ["biru"], "answer_start": [10]}
    english = {"id": "1", "context": "The house is blue.", "question": "What colour is it?"}
    write_jsonl(tmp_path / "id/test.jsonl", [passage])
    write_jsonl(tmp_path / "en/test.jsonl", [english])
    where = Data(files=f"{tmp_path}/{{language}}/{{split}}.jsonl")
    (row,) = load_joined(TASKS["tydiqa-goldp"], where, where, "id", "test", tmp_path, "en")
    (alone,) = load_examples(TASKS["tydiqa-goldp"], where, "id", "test", tmp_path)
    assert row.parts == ("Apa warnanya?\nWhat colour is it?", "Rumah itu biru.\nThe house is blue.")
    assert row.starts == alone.starts == (10,)
    assert row.parts[1][10:14] == "biru"
    assert row.gold == alone.gold
    assert "The house is blue." in row.prompt


def test_x_mixup_reads_the_answer_of_the_original_where_it_is_written_and_no_answer_of_a_test_row(
    data, tmp_path
):
    """Classes are the row's own; what an answer in another language says, only the original knows."""
    raw = one_target(data, tmp_path)
    raw["methods"] = ["flare", "x-mixup"]
    original = {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}
    where = {"into_targets": original, "into_source": {"files": f"{data}/qa/en/{{split}}.jsonl"}}
    raw["tasks"].append({"task": "mini-qa", "data": original, "translated": where})
    found = {}
    for step in plan_of(write_experiment(tmp_path / "e.yaml", raw))[0].steps:
        if hasattr(step, "dataset") and step.dataset.beside:
            rows = step.dataset.rows(step.language, step.split)
            found[step.split, step.dataset.task, step.dataset.beside.labelled] = [row.source for row in rows]
    told = {key: {bool(row.gold) for row in rows} for key, rows in found.items()}
    assert told == {
        ("train", "mini-sentiment", False): {False},
        ("train", "mini-sentiment", True): {False},
        ("train", "mini-qa", False): {False},
        ("train", "mini-qa", True): {True},
        ("test", "mini-sentiment", False): {False},
        ("test", "mini-qa", False): {False},
    }
    english = {row["id"]: row["answer"] for row in read_jsonl(data / "qa/en/train.jsonl")}
    assert {row.id: row.gold[0] for row in found["train", "mini-qa", True]} == english


def test_an_original_that_leaves_no_room_for_its_answer_is_told_before_anything_runs(data, tmp_path):
    raw = one_target(data, tmp_path)
    raw["training"]["task"]["max_length"] = 16  # the longest prompt has 16 tokens
    raw["methods"] = ["flare"]
    assert plan_of(write_experiment(tmp_path / "e.yaml", raw))
    raw["methods"] = ["x-mixup"]
    with refused("source of example '", "18 tokens", "at most 16", mend="max_length"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_a_second_run_does_nothing(finished, data):
    again = run(finished.folder.parent / "e.yaml", output=finished.folder.parent / "again")
    assert again.trained == 0


def test_defaults_are_those_of_the_adapter():
    for config, names in (
        (FlareConfig, ("fusion", "source_state", "padding", "answer_source")),
        (MixupConfig, ("layer", "ratio")),
    ):
        for name in names:
            assert method_defaults()[name] == config.__dataclass_fields__[name].default


@pytest.mark.slow  # measures every kind of step
def test_plan_measures_what_fusing_costs(data, tmp_path):
    path = write_experiment(tmp_path / "e.yaml", one_target(data, tmp_path))
    told = estimate(*plan_of(path), calibrate=True)
    assert told.seconds is not None
    assert {step.kind for step in told.costs} == {
        "initialisation",
        "fused-initialisation",
        "adapter",
        "evaluation",
    }


def change(raw, path, value):
    *parents, last = path.split(".")
    place = raw
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    key = int(last) if isinstance(place, list) else last
    if value is None:
        del place[key]
    else:
        place[key] = value


def rewrite(path, change_rows):
    write_jsonl(path, change_rows(read_jsonl(path)))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("tasks.0.translated.into_targets", None, "tasks.0.translated.into_targets: is not set"),
        (
            "tasks.0.translated.into_source",
            None,
            "the test rows translated into 'en', which translate-test reads",
        ),
        ("adapter.type", "ia3", "adapter.type: is ia3, and flare fuses in LoRA"),
        ("flare.fusion_modules", ["q_prj"], "did you mean q_proj"),
        ("flare.fusion_modules", [], "flare.fusion_modules"),
        ("methods.4", {"method": "flare", "fusion": "addrelu"}, "did you mean add_relu"),
        ("methods.4", {"method": "flare", "weight": 1.0}, "methods.4.weight: flare does not use it"),
        (
            "methods.4",
            {"method": "translate-train", "fusion": "mul"},
            "methods.4.fusion: translate-train does not",
        ),
        ("methods.4", "flare-mt", "flare.source_encoder: is not set, and flare-mt reads by it (methods.4)"),
        ("scoring.max_length", 9, "has 13 tokens; expected at most 9"),
        ("methods.6", {"method": "x-mixup", "layer": 9}, "layer: is 9; expected 0 to 1, a block"),
        ("methods.6", {"method": "x-mixup", "ratio": 0.0}, "methods.6.ratio"),
        ("methods.6", {"method": "x-mixup", "fusion": "mul"}, "methods.6.fusion: x-mixup does not use it"),
        ("methods.4", {"method": "flare", "layer": 1}, "methods.4.layer: flare does not use it"),
    ],
)
def test_a_setting_that_cannot_be_right_is_told_before_anything_runs(cli, data, inside, path, value, said):
    raw = one_target(data, inside)
    change(raw, path, value)
    write_experiment(inside / "e.yaml", raw)
    message = cli("run", "e.yaml", "-o", "run").message
    assert said in " ".join(message.split()), message
    assert not (inside / "run").exists()
    assert not (inside / "store").exists() or not any((inside / "store").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "flare", [{"cache_sources": True}, {"source_encoder": "nllb"}, {"fusion_modules": ["q_proj"]}]
)
def test_settings_that_no_method_uses_are_refused(data, tmp_path, flare):
    raw = one_target(data, tmp_path, flare=flare)
    raw["methods"] = ["source-ft", "x-mixup"]
    with refused(f"flare.{next(iter(flare))}", "is set", "no method here uses it", mend="remove"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_a_sample_of_the_source_side_is_refused(data, tmp_path):
    raw = one_target(data, tmp_path)
    raw["tasks"][0]["translated"]["into_source"]["max_rows"] = {"test": 3}
    with refused("into_source.max_rows", "not used"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_one_file_is_no_translation_of_several_languages_but_the_sources_own_rows(data, tmp_path):
    raw = translating(data, tmp_path)
    raw["tasks"][0]["translated"]["into_source"] = {"files": f"{data}/sentiment/en/{{split}}.jsonl"}
    assert plan_of(write_experiment(tmp_path / "e.yaml", raw))
    raw["tasks"][0]["translated"]["into_source"] = {"files": f"{tmp_path}/source/fr/{{split}}.jsonl"}
    with refused("source/fr/{split}.jsonl", "'mini-sentiment'", "2 languages"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
    hub = {"hub": "a/b", "revision": 40 * "0", "config": "fr"}
    raw["tasks"][0]["translated"]["into_source"] = hub
    with refused("a/b", "one configuration", "'mini-sentiment'"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_a_sample_by_places_needs_equally_many_translations(data, tmp_path):
    raw = one_target(data, tmp_path)
    raw["tasks"][0]["data"]["max_rows"] = {"train": 7}
    rewrite(tmp_path / "targets/sw/train.jsonl", lambda rows: rows[1:])
    with refused("targets/sw/train.jsonl", "47 rows", "48 as in") as caught:
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
    assert "give tasks.0.translated.into_targets a `max_rows` of its own" in str(caught.value)
    raw["tasks"][0]["translated"]["into_targets"]["max_rows"] = {"train": 7}
    assert plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_states_of_sources_that_answer_anew_are_not_kept(data, tmp_path):
    raw = one_target(data, tmp_path, flare={"cache_sources": True})
    raw["methods"] = [{"method": "flare", "answer_source": "generate"}]
    with refused("flare.cache_sources", "answer anew", "methods.0"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))


def test_kept_states_are_another_training(data, tmp_path):
    keys = set()
    for cached in (False, True):
        raw = one_target(data, tmp_path, flare={"cache_sources": cached})
        planned, _ = plan_of(write_experiment(tmp_path / "e.yaml", raw))
        trained = [step for step in planned.steps if step.kind == "adapter"]
        keys |= {step.key for step in trained}
        assert {step.cache_sources for step in trained if "flare" in step.what()} == {cached}
    assert len(keys) == len(trained) + 2  # the two FLARE adapters


@pytest.mark.parametrize(
    ("change_rows", "said"),
    [
        (lambda rows: rows[1:], "has no row with id"),
        (lambda rows: [{**rows[0], "text": "  "}, *rows[1:]], "column 'text' is empty"),
        (lambda rows: [rows[0], *rows], "stands in row 1 already"),
        (lambda rows: [{"id": row["id"]} for row in rows], "has no column 'text'"),
    ],
)
@pytest.mark.parametrize("where", ["source/sw/test.jsonl"])
def test_translations_that_do_not_fit_are_told_with_their_file(cli, data, inside, where, change_rows, said):
    write_experiment(inside / "e.yaml", one_target(data, inside))
    rewrite(inside / where, change_rows)
    message = cli("run", "e.yaml", "-o", "run").message
    assert said in " ".join(message.split()), message
    assert where in message
    assert not (inside / "run").exists()


def test_missing_translations_are_told_with_the_command_that_writes_them(cli, data, inside):
    write_experiment(inside / "e.yaml", one_target(data, inside))
    shutil.rmtree(inside / "source")
    message = cli("run", "e.yaml", "-o", "run").message
    assert "the test data of language 'sw'" in " ".join(message.split())


def test_the_resolved_experiment_means_the_same(finished, data):
    written = finished.folder / "experiment.yaml"
    again = load_experiment(written)
    assert again.tasks[0].translated.into_source is not None
    assert yaml.safe_load(written.read_text())["methods"][4]["fusion"] == "add_relu"
    assert [method.given() for method in again.methods][4] == {"method"}


def test_stage_2_is_trained_by_settings_of_its_own(data, tmp_path):
    raw = one_target(data, tmp_path)
    second = {**raw["training"]["task"], "steps": 5, "learning_rate": 1e-4}

    def trainings(**roles):
        changed = raw | {"training": raw["training"] | roles}
        plan, _ = plan_of(write_experiment(tmp_path / "e.yaml", changed), output=tmp_path / "run")
        return {step.label(): step for step in plan.steps if step.kind == "adapter"}

    before, after = trainings(), trainings(translated=second)
    assert before.keys() == after.keys()
    first = "train mini-sentiment in en, seed 0"
    assert before[first].key == after[first].key
    for label in before.keys() - {first}:
        assert before[label].settings.steps == 3
        assert (after[label].settings.steps, after[label].settings.learning_rate) == (5, 1e-4)
    same = trainings(translated=raw["training"]["task"])
    assert {label: step.key for label, step in same.items()} == {
        label: step.key for label, step in before.items()
    }


def test_settings_of_a_stage_2_that_nothing_has_are_refused(data, tmp_path):
    raw = experiment(data)
    raw["training"]["translated"] = {"steps": 2}
    with refused("training.translated", "no method", mend="remove"):
        plan_of(write_experiment(tmp_path / "e.yaml", raw))
