"""A whole run on a small experiment: what stands in the run folder, and that it is what the method says."""

import json
import statistics

import pytest
import torch
import yaml
from safetensors.torch import load_file

from builders.worlds import experiment, read_jsonl, write_experiment
from lingualift.config import load_experiment
from lingualift.metrics.scores import METRICS
from lingualift.pipeline import run

METHODS = [
    "vanilla",
    "source-ft",
    "reference-only",
    {"method": "arithmetic", "combine": "sum", "space": "delta"},
    {"method": "adamergex"},
    {"method": "adamergex", "space": "delta"},
    {"method": "adamergex", "weight": 0},
    {"method": "adamergex", "weight": 0, "space": "delta"},
    "target-ft",
]
KEYS = {
    *(
        "method",
        "variant",
        "task",
        "language",
        "split",
        "backbone",
        "source_language",
        "reference_task",
        "answer_language",
        "metric",
    ),
    *("score", "n", "n_train", "malformed", "stderr", "chance", "seed", "weight", "adapter", "seconds"),
    "predictions",
}


def whole(data, **changes):
    raw = experiment(data, methods=METHODS, seeds=[0, 1])
    raw["tasks"].append({"task": "mini-qa", "data": {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}})
    raw["languages"]["groups"] = {"weak": ["sw"]}
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 1.0]}
    return raw | changes


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(write_experiment(folder / "e.yaml", whole(data)), output=folder / "run")


@pytest.fixture(scope="module")
def rows(finished):
    return json.loads((finished.folder / "results.json").read_text())["rows"]


def select(rows, **facts):
    return [row for row in rows if all(row[key] == value for key, value in facts.items())]


def test_results_have_the_public_schema(finished, rows):
    results = json.loads((finished.folder / "results.json").read_text())
    assert (set(results), results["schema"]) == ({"schema", "rows", "comparisons"}, 1)
    assert rows == finished.rows
    for row in rows:
        assert set(row) >= KEYS
        assert 0 <= row["score"] <= 100
        assert 0 <= row["stderr"] <= 100
        assert row["split"] == "test"
        assert row["n"] == 16
        assert row["malformed"] >= 0
        assert row["seconds"] >= 0
        assert (row["backbone"], row["source_language"]) == ("miniworld", "en")


def test_there_is_a_row_for_every_cell_and_metric(rows):
    cells = {
        (row["method"], row["variant"], row["task"], row["language"], row["metric"], row["seed"])
        for row in rows
    }
    assert len(cells) == len(rows)
    # per metric: vanilla in three languages; source-ft in three, seven others in two, with two seeds
    assert len(rows) == (3 + 3 * 2 + 7 * 2 * 2) * (2 + 1)
    assert {row["language"] for row in select(rows, method="source-ft")} == {"en", "fr", "sw"}
    assert {row["language"] for row in select(rows, method="adamergex")} == {"fr", "sw"}
    assert {row["seed"] for row in select(rows, method="vanilla")} == {None}
    assert {row["seed"] for row in select(rows, method="target-ft")} == {0, 1}


def test_rows_say_what_they_were_made_with(rows):
    for row in rows:
        merged = row["method"] in ("arithmetic", "adamergex")
        assert (row["weight"] is None) == (not merged)
        assert (row["adapter"] is None) == (row["method"] == "vanilla")
        assert row["reference_task"] == ("causal-lm" if merged or row["method"] == "reference-only" else None)
        expected = {"vanilla": None, "reference-only": 60}.get(row["method"], 48)
        assert row["n_train"] == expected
    assert {row["variant"] for row in select(rows, method="adamergex")} == {
        "factors",
        "delta",
        "factors-weight=0",
        "delta-weight=0",
    }
    assert {row["variant"] for row in select(rows, method="arithmetic")} == {"delta-sum"}
    assert {row["chance"] for row in select(rows, task="mini-sentiment", metric="accuracy")} == {50}


def predictions(finished, row):
    return read_jsonl(finished.folder / row["predictions"])


def test_predictions_are_named_after_their_cell(rows):
    for row in rows:
        seed = "" if row["seed"] is None else f"seed{row['seed']}"
        parts = [row["task"], row["language"], row["method"], row["variant"], seed]
        assert row["predictions"] == f"predictions/{'.'.join(filter(None, parts))}.jsonl"


def test_there_is_a_comparison_for_every_method_metric_and_place(finished, rows):
    found = json.loads((finished.folder / "results.json").read_text())["comparisons"]
    assert found == [vars(one) for one in finished.comparisons]
    places = [(one["metric"], one["method"], one["variant"], one["where"]) for one in found]
    assert len(set(places)) == len(places) == 3 * (5 + 7 * 4)  # vanilla has en too; fr, sw, average, weak
    for one in found:
        assert one["low"] <= one["gain"] <= one["high"]
        assert (one["seeds"], one["n"]) == (2, 16)
        if "weight=0" in one["variant"]:  # the task adapter bit for bit
            assert (one["gain"], one["low"], one["high"]) == (0, 0, 0)
        language = "sw" if one["where"] in ("average", "weak") else one["where"]
        facts = {"metric": one["metric"], "task": one["task"], "language": language}
        mine, base = (
            statistics.fmean(row["score"] for row in select(rows, method=method, variant=variant, **facts))
            for method, variant in ((one["method"], one["variant"]), ("source-ft", ""))
        )
        assert one["gain"] == pytest.approx(mine - base, abs=1e-5)


def test_scores_follow_from_the_predictions(finished, rows, data):
    for row in rows:
        folder = {"mini-sentiment": "sentiment", "mini-qa": "qa"}[row["task"]]
        source = read_jsonl(data / folder / row["language"] / "test.jsonl")
        found = predictions(finished, row)
        golds = [line.get("label", line.get("answer")) for line in source]
        assert [line["id"] for line in found] == [str(line["id"]) for line in source]
        assert [line["gold"] for line in found] == [[gold] for gold in golds]
        assert [line["correct"] for line in found] == [
            line["prediction"] == gold for line, gold in zip(found, golds, strict=True)
        ]
        value = METRICS[row["metric"]].score(
            [line["prediction"] for line in found], [(gold,) for gold in golds], row["language"]
        )
        assert row["score"] == pytest.approx(value.value)
        assert row["stderr"] == pytest.approx(value.stderr)
        assert row["malformed"] == sum(line["prediction"] is None for line in found)


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_weight_nought_is_the_task_adapter_bit_for_bit(finished, rows, space):
    for row in select(rows, method="adamergex", variant=f"{space}-weight=0"):
        keys = ("task", "language", "metric", "seed")
        (plain,) = select(rows, method="source-ft", **{key: row[key] for key in keys})
        assert row["score"] == plain["score"]
        assert predictions(finished, row) == predictions(finished, plain)
        merged, task = (
            load_file(finished.folder / one["adapter"] / "adapter_model.safetensors") for one in (row, plain)
        )
        assert merged.keys() == task.keys()
        assert all(torch.equal(merged[name], task[name]) for name in task)


def test_a_merge_is_the_formula_over_the_adapters_of_the_run(finished, rows):
    """Factor space: X + λ·(X' − X''), from the files that the provenance of the merged adapter names."""
    store = finished.folder.parent / "store"
    trained = {}
    for folder in (store / "adapter").iterdir():
        facts = json.loads((folder / "provenance.json").read_text())
        trained[facts["task"], facts["language"], facts["seed"]] = load_file(
            folder / "adapter_model.safetensors"
        )
    assert len(trained) == (2 * 3 + 3) * 2
    checked = 0
    for row in select(rows, method="adamergex", variant="factors"):
        merged = load_file(finished.folder / row["adapter"] / "adapter_model.safetensors")
        task = trained[row["task"], "en", row["seed"]]
        target, source = (trained["causal-lm", code, row["seed"]] for code in (row["language"], "en"))
        for name, tensor in merged.items():
            expected = task[name] + row["weight"] * (target[name] - source[name])
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
            checked += 1
    assert checked


def test_all_adapters_of_a_seed_share_one_initialisation(finished):
    starts = {}
    for folder in (finished.folder.parent / "store" / "adapter").iterdir():
        facts = json.loads((folder / "provenance.json").read_text())
        starts.setdefault(facts["seed"], set()).add(facts["initialisation"])
    assert {len(found) for found in starts.values()} == {1}
    assert starts[0] != starts[1]


def test_the_tuned_weight_is_the_best_of_its_sweep_and_one_for_all_languages(finished, rows):
    sweeps = [
        json.loads((f / "sweep.json").read_text())
        for f in (finished.folder.parent / "store" / "sweep").iterdir()
    ]
    assert len(sweeps) == 3 * 2 * 2  # variants that are tuned, tasks, seeds
    for sweep in sweeps:
        assert (sweep["language"], sweep["n"]) == ("fr", 12)
        best = max(tried["score"] for tried in sweep["tried"])
        tied = [tried["weight"] for tried in sweep["tried"] if tried["score"] == best]
        assert sweep["chosen"] == min(tied, key=lambda weight: (abs(weight - 1), weight))
    for row in rows:
        if row["weight"] is not None:
            mates = select(rows, **{key: row[key] for key in ("method", "variant", "task", "seed")})
            assert {mate["weight"] for mate in mates} == {row["weight"]}


def cells(finished):
    """The Markdown tables, read as a reader does: task -> method -> column -> text."""
    tables, task = {}, None
    for line in (finished.folder / "table.md").read_text().splitlines():
        if line.startswith("**"):
            task = line.split("**")[1]
            tables[task] = {}
        elif line.startswith("| method"):
            head = [cell.strip() for cell in line.strip("|").split("|")]
        elif line.startswith("| ") and not line.startswith("| -"):
            values = [cell.strip() for cell in line.strip("|").split("|")]
            tables[task][values[0]] = dict(zip(head, values, strict=True))
    return tables


def test_the_table_follows_from_the_results_and_leaves_the_tuning_language_out_of_averages(finished, rows):
    shown = cells(finished)
    for task, metric in (("mini-sentiment", "accuracy"), ("mini-qa", "exact_match")):
        mine = select(rows, task=task, metric=metric)
        assert set(shown[task]) == {f"{row['method']} {row['variant']}".strip() for row in mine}
        for name, line in shown[task].items():
            of_method = [row for row in mine if f"{row['method']} {row['variant']}".strip() == name]
            for column, languages in {
                "en": ["en"],
                "fr*": ["fr"],  # chose λ
                "sw": ["sw"],
                "average": ["sw"],
                "weak": ["sw"],
            }.items():
                scores = [row["score"] for row in of_method if row["language"] in languages]
                if not scores:
                    assert line[column] == "–"
                    continue
                deviation = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
                assert line[column] == f"{statistics.fmean(scores):.1f}{deviation}"
            assert line["malformed"] == str(sum(row["malformed"] for row in of_method))


def test_the_resolved_experiment_is_kept_and_means_the_same(finished, data):
    kept = finished.folder / "experiment.yaml"
    assert load_experiment(kept) == load_experiment(finished.folder.parent / "e.yaml")
    assert yaml.safe_load(kept.read_text())["scoring"]["batch_size"] == 64


def test_the_log_tells_every_step_once_in_order(finished):
    log = read_jsonl(finished.folder / "log.jsonl")
    ended = [entry["key"] for entry in log if entry["event"] == "end"]
    assert len(ended) == len(set(ended)) == finished.trained
    times = [entry["time"] for entry in log]
    assert times == sorted(times)
