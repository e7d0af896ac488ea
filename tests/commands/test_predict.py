"""Predictions for rows without labels: the same as for the rows with labels, from every kind of input."""

import math

import datasets
import pandas
import pytest

import lingualift as ll
from builders.refusals import check_refusal, refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.backbone.loading import load_backbone
from lingualift.config import Data, Scoring
from lingualift.data.rows import load_examples
from lingualift.evaluation.runner import evaluate
from lingualift.evaluation.runner import predict as answer
from lingualift.miniworld.data import qa_rows, sentiment_rows
from lingualift.tasks import TASKS, get_task, shipped_languages, shipped_rows

GOLD = {"mini-sentiment": "label", "mini-qa": "answer"}
ROWS = {"mini-sentiment": sentiment_rows("sw", "test", 16), "mini-qa": qa_rows("sw", "test", 16)}


def unlabelled(task):
    return [{key: value for key, value in row.items() if key != GOLD[task]} for row in ROWS[task]]


def ask(task, rows, **more):
    return ll.predict(backbone="miniworld", task=task, language="sw", rows=rows, **more)


@pytest.fixture(scope="module")
def adapter(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    raw = experiment(data, methods=["source-ft"])
    raw["training"]["task"]["steps"] = 20
    done = ll.run(write_experiment(folder / "e.yaml", raw), output=folder / "run")
    return next(path.parent for path in done.folder.glob("adapters/*/adapter_config.json"))


@pytest.mark.parametrize("task", GOLD)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_rows_without_labels_get_the_answers_that_they_get_with_labels(
    mini, adapter, tmp_path, task, with_adapter
):
    folder = adapter if with_adapter else None
    write_jsonl(tmp_path / "test.jsonl", ROWS[task])
    data = Data(files="{split}.jsonl")
    examples = load_examples(get_task(task), data, "sw", "test", tmp_path)
    expected = evaluate(mini, folder, get_task(task), examples, Scoring()).predictions
    found = ask(task, unlabelled(task), adapter=folder)
    assert [one["prediction"] for one in found] == [one.prediction for one in expected]
    assert [one.get("scores") for one in found] == [one.scores for one in expected]
    assert [one.get("generated") for one in found] == [one.text for one in expected]
    if with_adapter and task == "mini-sentiment":
        assert [one["scores"] for one in found] != [one["scores"] for one in ask(task, unlabelled(task))]


def test_a_label_is_kept_and_makes_no_difference():
    lies = [{**row, "label": "no label at all"} for row in ROWS["mini-sentiment"]]
    found = ask("mini-sentiment", lies)
    assert [{**one, "label": 0} for one in found] == [
        {**one, "label": 0} for one in ask("mini-sentiment", unlabelled("mini-sentiment"))
    ]
    assert {one["label"] for one in found} == {"no label at all"}


def test_probabilities_are_the_softmax_of_the_scores():
    for one in ask("mini-sentiment", unlabelled("mini-sentiment")):
        scores, shares = one["scores"], one["probabilities"]
        assert one["prediction"] == max(shares, key=shares.get)
        assert math.log(shares["positive"] / shares["negative"]) == pytest.approx(
            scores["positive"] - scores["negative"]
        )
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_keeps_its_columns_and_a_row_without_id_is_called_by_its_line(tmp_path, suffix):
    rows = [{"text": row["text"], "source": f"web, {i}"} for i, row in enumerate(ROWS["mini-sentiment"][:3])]
    table = pandas.DataFrame(rows)
    path = tmp_path / f"rows{suffix}"
    writers = {".jsonl": "to_json", ".csv": "to_csv", ".parquet": "to_parquet"}
    more = {"orient": "records", "lines": True} if suffix == ".jsonl" else {"index": False}
    getattr(table, writers[suffix])(path, **more)
    found = ask("mini-sentiment", path)
    assert [{key: one[key] for key in ("text", "source")} for one in found] == rows
    assert [one["id"] for one in found] == {".csv": ["2", "3", "4"]}.get(suffix, ["1", "2", "3"])


def test_a_rows_own_id_stays_as_it_is():
    rows = [{"id": 7, "text": "well ."}, {"id": None, "text": "well ."}, {"id": "", "text": "bad ."}]
    assert [one["id"] for one in ask("mini-sentiment", rows)] == [7, None, ""]


def test_an_unreadable_answer_is_null_and_counted(mini, cli, inside):
    (inside / "mute.py").write_text(
        "from lingualift.tasks import shipped_languages, shipped_rows, TASKS\n"
        "from lingualift.tasks.miniworld import MiniQA\n"
        "class Mute(MiniQA):\n"
        "    def parse(self, text, example):\n"
        "        return None if len(text) % 2 else text\n"
        "TASKS.register('mute')(Mute())\n"
    )
    write_jsonl(inside / "rows.jsonl", unlabelled("mini-qa"))
    options = ["--backbone", "miniworld", "--task", "mute.py", "--language", "sw"]
    done = cli("predict", *options, "--input", "rows.jsonl", "--output", "out/found.jsonl")
    assert done.code == 0, done.err
    found = read_jsonl(inside / "out" / "found.jsonl")
    silent = [one for one in found if one["prediction"] is None]
    assert all(len(one["generated"]) % 2 == (one["prediction"] is None) for one in found)
    assert 0 < len(silent) < len(found) == 16
    assert f"16 rows answered, {len(silent)} of them malformed" in done.out
    assert len(pandas.read_json(inside / "out" / "found.jsonl", lines=True)) == 16
    again = cli("predict", *options, "--input", "rows.jsonl", "--output", "out/found.jsonl")
    check_refusal(again, "out/found.jsonl", "exists already", mend="--output")


def test_what_json_has_no_word_for_is_written_all_the_same(cli, inside):
    rows = {"text": ["well .", "bad ."], "when": pandas.to_datetime(["2024-01-01", "2024-01-02"])}
    datasets.Dataset.from_dict({**rows, "share": [float("nan"), 0.5], "tags": [["a"], []]}).to_parquet(
        "rows.parquet"
    )
    options = ["--backbone", "miniworld", "--task", "mini-sentiment", "--language", "sw"]
    done = cli("predict", *options, "--input", "rows.parquet", "--output", "out.jsonl")
    assert done.code == 0, done.err
    first, second = read_jsonl(inside / "out.jsonl")
    assert (first["share"], second["share"], first["tags"]) == (None, 0.5, ["a"])
    assert first["when"].startswith("2024-01-01")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"id": "1"}], "no column 'text'"),
        ([{"text": "well ."}, {"text": " "}], "rows:2: column 'text' is empty"),
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], "rows:2: id '1' stands in row 1"),
        ([], "no rows"),
        ([{"text": "a", "scores": 1}], "a column 'scores'"),
    ],
)
def test_rows_that_cannot_be_asked_are_refused(rows, found):
    with refused("rows", found) as caught:
        ask("mini-sentiment", rows)
    assert "`columns:`" not in str(caught.value)  # there is no experiment file


@pytest.mark.parametrize(
    ("changed", "where", "found", "mend"),
    [
        ({"--task": "causal-lm"}, "'causal-lm'", "no labels", "another task"),
        ({"--task": "mini-sentimnt"}, "'mini-sentimnt'", "not known", "mini-sentiment?"),
        ({"--language": "swahilli"}, "'swahilli'", "not known", "'sw'"),
        ({"--input": "none.jsonl"}, "none.jsonl", "not there", "rows.jsonl"),
        ({"--adapter": "."}, ".", "adapter_config.json", "path"),
        ({"--backbone": "./none"}, "'./none'", "no folder", "path"),
        ({"--input": "bad.jsonl"}, "bad.jsonl:2", "JSON", "that line"),
    ],
)
def test_what_a_user_can_mend_is_told_and_nothing_is_written(cli, inside, changed, where, found, mend):
    write_jsonl(inside / "rows.jsonl", [{"text": "well ."}])
    (inside / "bad.jsonl").write_text('{"text": "well ."}\n{"text"\n')
    before = set(inside.iterdir())
    options = {"--backbone": "miniworld", "--task": "mini-sentiment", "--language": "sw"}
    options |= {"--input": "rows.jsonl", "--output": "out.jsonl"} | changed
    done = cli("predict", *(part for pair in options.items() for part in pair))
    check_refusal(done, where, found, mend=mend)
    assert set(inside.iterdir()) == before


def test_an_adapter_of_another_backbone_is_refused(bpe_folder, adapter):
    with refused(".source-ft.", "'miniworld'", "backbone"):
        ll.predict(
            backbone=str(bpe_folder),
            adapter=adapter,
            task="nusax",
            language="sw",
            rows=[{"text": "well ."}],
        )


def test_cut_prompts_are_told():
    with pytest.warns(UserWarning, match="1 prompts were longer than"):
        ask("mini-sentiment", [{"text": "well ." * 20}, {"text": "well ."}], scoring=Scoring(max_length=9))


@pytest.mark.parametrize("name", GOLD)
def test_progress_goes_up_to_all_prompts(mini, name):
    model, tokenizer = load_backbone(mini)
    told = []
    task = get_task(name)
    examples = [task.example(row, "sw") for row in unlabelled(name)]
    answer(mini, model, tokenizer, task, examples, Scoring(batch_size=5), lambda *at: told.append(at))
    assert told == [(5, 16), (10, 16), (15, 16), (16, 16)]


def test_every_task_makes_an_example_without_a_label():
    ours = {n: task for n, task in TASKS.items() if type(task).__module__.startswith("lingualift.tasks.")}
    labelled = {name: task for name, task in ours.items() if hasattr(task, "gold_column")}
    assert len(labelled) >= 10
    for name, task in labelled.items():
        assert task.gold_column not in task.columns
        shipped = shipped_languages(name)
        row = shipped_rows(name, shipped[0])[0] if shipped else {}
        asked = {column: row.get(column, f"<{column}>") for column in ("id", *task.columns)}
        example = task.example(asked, "en")
        assert example.gold == ()
        for column in task.columns:
            assert str(asked[column]) in example.prompt + example.id
