"""The study: its experiments are valid, its comparisons are of rows that are run, its arithmetic is right."""

import gzip
import json
import re
from pathlib import Path

import effects
import experiments as study
import figures
import methods
import numpy as np
import pytest
import questions
import real_effects
import yaml

import lingualift as ll
import real
from lingualift.commands.demo import SHOWN
from lingualift.config import METHOD_SETTINGS, load_experiment
from lingualift.miniworld import write_data
from lingualift.pipeline import plan_of
from lingualift.pipeline.checks import check_methods
from lingualift.pipeline.methods import METHODS
from lingualift.pipeline.steps import InitialiseFused, Merge, Train

STUDY = Path(__file__).parent
SHARED = STUDY.parents[1] / "shared"


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """The study's own methods are there for its tests, and for no others in this process."""
    methods.register()
    yield
    for name in ("adamergex-own-start", "flare-on-merged"):
        del METHODS[name], METHOD_SETTINGS[name]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    work = tmp_path_factory.mktemp("study")
    write_data(work / "data", seed=study.WORLD_DATA)
    return study.Places(SHARED, work)


@pytest.fixture(scope="module")
def every(places):
    if not SHARED.is_dir():
        pytest.skip("the data sets are not here")
    return {one.name: one for one in study.experiments(places)}


def loaded(one, folder):
    path = folder / f"{one.name}.yaml"
    path.write_text(yaml.safe_dump(one.raw))
    return load_experiment(path)


@pytest.mark.slow  # writes the data of the study
def test_every_experiment_is_valid_and_every_comparison_is_of_rows_that_it_runs(every, tmp_path):
    rows = {}
    for one in every.values():
        experiment = loaded(one, tmp_path)
        for point in experiment.points():
            check_methods(point)
        tasks = [task.task for task in experiment.tasks]
        names = {(method.method, method.variant(experiment.adapter.type)) for method in experiment.methods}
        rows[one.name] = {(task, *name) for task in tasks for name in names}
        assert set(effects.REPORTED[one.name.split("-")[0].rstrip("123")]) & set(experiment.languages.targets)
    runs = effects.Runs(Path("runs"))
    for question in questions.questions():
        for row in (question.one, question.base):
            for folder in runs.names(question.setting, row.part).values():
                assert row[1:] in rows[folder.name], (question, folder.name)


@pytest.mark.slow
def test_every_experiment_can_be_planned(every, tmp_path):
    """With the shipped backbone in place of the rebuilt ones, and without FLARE-MT, which needs a translator."""
    for name, one in every.items():
        if name.startswith(("world2", "world3")) or name.endswith(("noise0.1", "noise0.4", "text500")):
            continue  # as others
        raw = dict(one.raw)
        if name.startswith("world"):
            raw["backbone"] = {"name": "miniworld"}
        raw.pop("flare", None)
        raw["methods"] = [method for method in raw["methods"] if method != "flare-mt"]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        assert plan_of(path)[0].steps


def test_a_folder_without_the_data_sets_is_refused_before_anything_is_made(cli, tmp_path):
    done = cli.script(STUDY / "run.py", "--shared", tmp_path, "--work", tmp_path / "work")
    assert done.code == 2
    assert "holds no data/nusax" in done.err
    assert not (tmp_path / "work").exists()


@pytest.mark.slow  # writes the data of the study
def test_the_tuning_language_is_in_no_average(every, tmp_path):
    for one in every.values():
        tuned = loaded(one, tmp_path).weights.tune_on
        if tuned:
            assert tuned not in effects.REPORTED[one.name.split("-")[0].rstrip("123")]


def test_there_are_28_named_comparisons():
    named = [question for question in questions.questions() if question.named]
    assert [sum(one.question == name for one in named) for name in ("M1", "F1")] == [12, 16]
    assert "all 28" in (STUDY / "PROTOCOL.md").read_text()


def test_holm_on_a_case_worked_by_hand():
    assert effects.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert effects.holm([]) == []


def test_a_draw_takes_backbones_and_within_them_seeds():
    pairs = [(backbone, seed) for backbone in (1, 2, 3) for seed in (40, 41, 42)]
    drawn = effects.shares(pairs)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(len(drawn)))
    assert drawn.mean(axis=0) == pytest.approx(np.full(9, 1 / 9), abs=0.02)
    of_backbone = drawn.reshape(-1, 3, 3).sum(axis=2)
    assert set(np.unique(of_backbone)) == {0.0, 0.5, 1.0}  # two of three
    assert np.var(of_backbone[:, 0]) == pytest.approx(1 / 9, rel=0.1)  # of means of two: (1/3)(2/3)/2
    assert effects.shares([(0, 40)]) == pytest.approx(np.ones((len(drawn), 1)))


@pytest.fixture
def runs(tmp_path):
    """Three backbones, two seeds, 40 items: `better` is right on 8 items more than `base`, `same` is as it."""
    for backbone in study.BACKBONES:
        folder = tmp_path / f"world{backbone}-main"
        (folder / "predictions").mkdir(parents=True)
        rows = []
        for method, right in (("base", 20), ("same", 20), ("better", 28)):
            for seed in (40, 41):
                for code in ("fr", "sw", "id", "ht"):
                    name = f"{method}.{code}.{seed}.jsonl"
                    answers = [
                        {"id": str(item), "gold": ["a"], "prediction": "a" if item < right else "b"}
                        for item in range(40)
                    ]
                    path = folder / "predictions" / name
                    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
                    row = {"task": "t", "method": method, "variant": "", "language": code, "seed": seed}
                    score = {
                        "metric": "accuracy",
                        "score": 100 * right / 40 if code != "fr" else 0.0,
                        "answer_language": code,
                    }
                    rows.append({**row, **score, "predictions": f"predictions/{name}"})
        (folder / "results.json").write_text(json.dumps({"rows": rows}))
    return effects.Runs(tmp_path)


def ask(one, base="base"):
    return questions.Question(
        "Q", "world", "", questions.Row("main", "t", one), questions.Row("main", "t", base)
    )


def test_an_effect_is_the_mean_difference_in_the_reported_languages_with_its_interval(runs):
    found = runs.effect(ask("better"))
    assert found.gain == pytest.approx(20)
    assert found.languages == pytest.approx({"sw": 20, "id": 20, "ht": 20})  # not fr
    assert (found.score, found.base_score) == pytest.approx((70, 50))
    assert (found.n, found.backbones, found.seeds) == (40, 3, 2)
    assert found.parts == pytest.approx((20, 20, 20))
    assert found.p_parts == 0
    # Of 40 items 8 differ, the same ones everywhere, so only items vary: a binomial share's 95% interval.
    expected = 196 * np.sqrt(0.2 * 0.8 / 40)
    assert (found.low, found.high) == pytest.approx((20 - expected, 20 + expected), abs=1.5)
    assert found.p == pytest.approx(2 / 2001)


def test_the_t_test_on_three_numbers_worked_by_hand():
    """With two degrees of freedom the p-value is 1 - |t| / sqrt(2 + t²)."""
    t = 2.0 / (1.0 / np.sqrt(3))
    assert effects.t_test((1.0, 2.0, 3.0)) == pytest.approx(1 - t / np.sqrt(2 + t**2))
    assert (effects.t_test((0.0, 0.0, 0.0)), effects.t_test((2.0, 2.0))) == (1, 0)


def test_rows_that_are_equal_differ_by_nothing(runs):
    found = runs.effect(ask("same"))
    assert (found.gain, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_row_that_was_not_run_is_refused(runs):
    with pytest.raises(ValueError, match="has no"):
        runs.effect(ask("other"))


@pytest.mark.slow  # trains
def test_the_methods_of_the_study_begin_where_they_say(places, tmp_path):
    """References drawn otherwise; FLARE beside the merged adapter. Both run."""
    raw = study.world(places, 1)
    rows = f"{places.work}/data/sentiment/{{language}}/{{split}}.jsonl"
    some = {"train": 16, "validation": 8, "test": 8}
    task = {
        "task": "mini-sentiment",
        "data": {"files": rows, "max_rows": some},
        "translated": {
            "into_targets": {"files": rows},
            "into_source": {"files": rows.replace("{language}", "en")},
        },
    }
    raw |= {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["sw"]},
        "tasks": [task],
    }
    names = ("adamergex", "adamergex-own-start", "flare-on-merged")
    raw["methods"] = [{"method": name, "space": "delta", "weight": 0.5} for name in names]
    raw |= {"weights": {}, "seeds": [0], "workers": 1}
    raw["training"] = {role: {**one, "steps": 2} for role, one in raw["training"].items()}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(raw))
    plan, _ = plan_of(path)
    merged, own, fused = (planned.evaluation.adapter for planned in plan.cells)
    seeds = [{role: step.start.recipe()["seed"] for role, step in one.adapters} for one in (merged, own)]
    assert len(set(seeds[0].values())) == 1
    other = seeds[0]["task"] + methods.OWN_START
    assert seeds[1] == {**seeds[0], "target": other, "source": other}
    assert isinstance(fused, Train)
    assert isinstance(fused.start, InitialiseFused)
    assert isinstance(fused.start.first, Merge)
    assert fused.start.first == merged
    done = ll.run(path, output=tmp_path / "run")
    assert {row["method"] for row in done.rows} == set(names)


@pytest.fixture(scope="module")
def numbers():
    return json.loads(effects.NUMBERS.read_text(encoding="utf-8"))


PAGE = STUDY / "README.md"
FORESTS = tuple(name for name in figures.TITLES if name != "F1-source")
"""Figures that show effects one by one."""
LINES = ("F1-source", "M5-curves", "languages")


def effects_in(text):
    """Every `+1.2 [+0.3, +2.0]`."""
    return set(re.findall(r"[+-]\d+\.\d \[[^\]]*\]", text))


def test_the_tables_of_the_page_are_those_of_the_numbers(numbers):
    page = PAGE.read_text(encoding="utf-8")
    assert figures.filled(page, numbers) == page
    shown = set(re.findall(r"<!-- table (\S+) -->", page))
    assert shown == {one["question"] for one in numbers["effects"]} == set(figures.TITLES)


def test_every_effect_that_the_page_tells_is_among_the_numbers(numbers):
    """In its sentences as in its tables: `+1.2 [+0.3, +2.0]`."""
    known = {figures.told(one) for one in numbers["effects"]}
    told = effects_in(PAGE.read_text(encoding="utf-8"))
    assert told
    assert told <= known


def test_what_the_demo_tells_is_among_the_numbers(numbers):
    told = effects_in(SHOWN)
    assert told
    assert told <= {figures.told(one) for one in numbers["effects"]}


def test_every_comparison_of_the_protocol_has_its_number(numbers):
    asked = [(one.question, one.setting, one.label, one.named) for one in questions.questions()]
    found = [
        tuple(one[key] for key in ("question", "setting", "label", "named")) for one in numbers["effects"]
    ]
    assert found == asked


def test_the_page_counts_what_was_run(numbers):
    counts = "about {hours} hours on two cores, resumable; {experiments} experiments, {configurations:,} configurations"
    page = PAGE.read_text(encoding="utf-8")
    assert counts.format(**numbers) in page
    assert f"{numbers['scores']:,} scores" in page


def test_the_corrected_p_values_are_holms(numbers):
    named = [one for one in numbers["effects"] if one["named"]]
    assert len(named) == 28
    assert [one["p_holm"] for one in named] == pytest.approx(
        [min(1, value) for value in effects.holm([one["p"] for one in named])], abs=28 * 1e-4
    )
    assert all(one["clear"] == (max(one["p_holm"], one["p_parts"]) <= effects.LEVEL) for one in named)


@pytest.mark.slow  # draws every figure of the study
def test_the_figures_show_the_numbers(cli, numbers, tmp_path):
    """Drawn anew, every figure tells the effects that the one on the page tells."""
    (tmp_path / "README.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    done = cli.script(STUDY / "figures.py", "--pages", tmp_path)
    assert done.code == 0, done.err
    for name in (*FORESTS, *LINES):
        drawn, kept = ((folder / "figures" / f"{name}.svg").read_text() for folder in (tmp_path, PAGE.parent))
        assert words(drawn) == words(kept)
        if name in FORESTS:
            for one in effects.of_question(numbers["effects"], name):
                assert figures.told(one).replace("-", "\N{MINUS SIGN}") in kept or figures.told(one) in kept
        assert f"figures/{name}.svg" in PAGE.read_text(encoding="utf-8")


def words(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_experiments_on_pretrained_models_are_valid(tmp_path):
    places = real.Places(SHARED, tmp_path / "real", tmp_path / "work")
    names = []
    for name, raw in real.experiments(places):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        asked = load_experiment(path)
        rows = [(method.method, method.variant("lora")) for method in asked.methods]
        assert len(set(rows)) == len(rows)
        names.append(name)
    assert len(set(names)) == len(names)


def test_what_an_experiment_on_pretrained_models_leaves_is_enough_to_score_it_again(tmp_path):
    """A small one, on the bundled backbone; machines go, and the rows stay."""
    from lingualift.metrics.scores import METRICS

    write_data(tmp_path / "data", seed=study.WORLD_DATA)
    raw = {
        "backbone": {"name": "miniworld"},
        "languages": {"source": "en", "targets": ["sw"]},
        "tasks": [
            {
                "task": "mini-sentiment",
                "data": {
                    "files": f"{tmp_path}/data/sentiment/{{language}}/{{split}}.jsonl",
                    "max_rows": {"train": 16, "test": 20},
                },
            }
        ],
        "training": {"task": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}},
        "methods": ["vanilla", "source-ft"],
        "seeds": [real.DEVELOPMENT],
        "workers": 1,
    }
    places = real.Places(tmp_path / "data", tmp_path / "real", tmp_path / "work")
    real.run("small", raw, places, tmp_path / "rows")
    kept = json.loads(gzip.decompress((tmp_path / "rows/small.json.gz").read_bytes()))
    assert str(tmp_path) not in json.dumps(kept)
    for row in kept["rows"]:
        given = kept["answers"][row["predictions"]]
        golds = [tuple(gold) for gold in kept["items"][f"{row['task']}/{row['language']}"]["gold"]]
        found = METRICS[row["metric"]].score(given, golds, row["answer_language"])
        assert found.value == pytest.approx(row["score"])
    (logged,) = (tmp_path / "rows/log.jsonl").read_text().splitlines()
    assert json.loads(logged)["configurations"] == 2


def test_every_named_comparison_on_pretrained_models_is_of_rows_that_are_run(tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the data sets are not here")
    places = real.Places(SHARED, tmp_path / "real", tmp_path / "work")
    run = {}
    for name, raw in real.experiments(places):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(raw))
        run[name] = {(one.method, one.variant("lora")) for one in load_experiment(path).methods}
    asked = list(real_effects.questions())
    assert len(asked) == 10
    for one in asked:
        for row in (one.one, one.base):
            seeds = real.SEEDS[:2] if one.setting == "nusax-gemma-fused" else real.SEEDS
            for seed in seeds:
                name = "-".join(filter(None, (one.setting, str(seed), row.part)))
                assert (row.method, row.variant) in run[name], (name, row)


def test_rows_that_are_kept_give_the_effects_that_are_in_them(tmp_path):
    """Of two rows of which one is right where the other is wrong by a known number of items."""
    labels = ["positive", "negative"] * 10
    for seed in real.SEEDS[:2]:
        kept = {"rows": [], "answers": {}, "items": {}}
        for language in real.FUSED:
            kept["items"][f"nusax/{language}"] = {
                "ids": [str(i) for i in range(20)],
                "gold": [[x] for x in labels],
            }
            for method, how, wrong in (
                ("flare", "add_relu", 0),
                ("translate-test", "", 4),
                ("translate-train", "", 2),
            ):
                given = [labels[1 - i % 2] if i < wrong else label for i, label in enumerate(labels)]
                key = f"{method}-{language}"
                kept["answers"][key] = given
                row = {"task": "nusax", "method": method, "variant": how, "language": language, "seed": seed}
                score = 100 * (20 - wrong) / 20
                row |= {"metric": "macro_f1", "score": score, "answer_language": language, "predictions": key}
                kept["rows"].append(row)
        file = tmp_path / f"nusax-e5-{seed}.json.gz"
        file.write_bytes(gzip.compress(json.dumps(kept).encode()))
    runs = real_effects.Kept(tmp_path)
    exact, _, train = (one for one in real_effects.questions() if one.setting == "nusax-e5")
    assert runs.effect(exact).gain == pytest.approx(20)
    assert runs.effect(train).gain == pytest.approx(10)
    assert runs.effect(exact).seeds == 2
    assert runs.effect(exact).low > 0
    assert not runs.cells("nusax-e5", real_effects.Row("test", "nusax", "flare", "add_relu"))
