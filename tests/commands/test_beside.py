"""Rows with their source side in predict and evaluate: the answers of a run with FLARE, from files and from Python."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

import lingualift as ll
from builders.refusals import check_refusal, refused
from builders.worlds import experiment, read_jsonl, write_experiment, write_jsonl
from lingualift.commands.train import train_once
from lingualift.config import Backbone, Data, Scoring, Training
from lingualift.data.datasets import Beside, Examples
from lingualift.data.rows import load_unlabelled
from lingualift.encoding.parallel import source_language
from lingualift.tasks import get_task

DOCUMENT = Path(__file__).parents[2] / "docs/fusing.md"
ASKED = {"--backbone": "miniworld", "--task": "mini-sentiment", "--language": "sw"}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """The folder of a run; beside it the translations, which are the rows of the source in another order."""
    folder = tmp_path_factory.mktemp("beside")
    for split, where in (("train", "targets"), ("test", "source")):
        rows = read_jsonl(data / "sentiment" / ("sw" if split == "train" else "en") / f"{split}.jsonl")
        write_jsonl(folder / where / "sw" / f"{split}.jsonl", reversed(rows) if split == "test" else rows)
    raw = experiment(data, languages={"source": "en", "targets": ["sw"]}, seeds=[0])
    raw["methods"] = ["source-ft", "x-mixup", {"method": "flare", "fusion": "add_relu"}]
    raw["training"]["task"]["steps"] = 15
    raw["tasks"][0]["translated"] = {
        "into_targets": {"files": f"{folder}/targets/{{language}}/{{split}}.jsonl"},
        "into_source": {"files": f"{folder}/source/{{language}}/{{split}}.jsonl"},
    }
    return ll.run(write_experiment(folder / "e.yaml", raw), output=folder / "run").folder


@pytest.fixture(scope="module")
def flare(run):
    return run / "adapters" / "mini-sentiment.sw.flare.add_relu.seed0"


@pytest.fixture(scope="module")
def plain(run):
    return run / "adapters" / "mini-sentiment.sw.source-ft.seed0"


@pytest.fixture(scope="module")
def english(run):
    """Rows that the run read beside those in Swahili: without their labels."""
    rows = read_jsonl(run.parent / "source/sw/test.jsonl")
    return [{"id": row["id"], "text": row["text"]} for row in rows]


@pytest.fixture(scope="module")
def swahili(data):
    return [{"id": row["id"], "text": row["text"]} for row in read_jsonl(data / "sentiment/sw/test.jsonl")]


@pytest.fixture(scope="module")
def expected(run):
    """What the run's evaluation answered."""
    return read_jsonl(run / "predictions" / "mini-sentiment.sw.flare.add_relu.seed0.jsonl")


def ask(rows, adapter, **more):
    return ll.predict(
        backbone="miniworld", task="mini-sentiment", language="sw", rows=rows, adapter=adapter, **more
    )


def answers(rows):
    return {row["id"]: (row["prediction"], row["scores"]) for row in rows}


def command(name, **changed):
    options = {**ASKED, **{f"--{key.replace('_', '-')}": value for key, value in changed.items()}}
    return [name, *(str(part) for pair in options.items() if pair[1] is not None for part in pair)]


def test_answers_are_those_of_the_run_from_python_and_the_command_line(
    cli, inside, flare, swahili, english, expected
):
    found = ask(swahili, flare, beside=english)
    assert [one["id"] for one in found] == [one["id"] for one in expected] == [row["id"] for row in swahili]
    assert answers(found) == answers(expected)
    write_jsonl(inside / "sw.jsonl", swahili)
    write_jsonl(inside / "en.jsonl", english)
    files = {"adapter": flare, "input": "sw.jsonl", "beside": "en.jsonl", "output": "out.jsonl"}
    done = cli(*command("predict", **files, beside_language="en"))
    assert done.code == 0, done.err
    assert read_jsonl(inside / "out.jsonl") == found == ask("sw.jsonl", str(flare), beside="en.jsonl")


def test_x_mixup_reads_them_too(run, swahili, english):
    name = "mini-sentiment.sw.x-mixup.seed0"
    found = ask(swahili, run / "adapters" / name, beside=english)
    assert answers(found) == answers(read_jsonl(run / "predictions" / f"{name}.jsonl"))
    with refused(".x-mixup.", "translation", mend="`beside` (--beside)"):
        ask(swahili, run / "adapters" / name)


def test_evaluate_gives_the_scores_and_predictions_of_the_run(cli, inside, run, data, flare, expected):
    where = {"data": f"{data}/sentiment/{{language}}/{{split}}.jsonl"}
    where["beside"] = f"{run.parent}/source/{{language}}/{{split}}.jsonl"
    done = cli(*command("evaluate", adapter=flare, output="scores.json", **where))
    assert done.code == 0, done.err
    assert read_jsonl(inside / "scores.predictions.jsonl") == expected
    found = json.loads((inside / "scores.json").read_text())
    rows = json.loads((run / "results.json").read_text())["rows"]
    cells = {
        row["metric"]: row["score"] for row in rows if (row["method"], row["language"]) == ("flare", "sw")
    }
    assert cells == {name: values["score"] for name, values in found["scores"].items()}
    assert found["activations"]
    assert (found["beside"], found["beside_language"]) == (where["beside"], "en")


def test_rows_pair_by_id_whatever_their_order_and_no_label_is_read(flare, swahili, english, expected):
    more = [{"id": "further", "text": "well ."}]
    lies = [{**row, "label": "no label at all"} for row in sorted(english, key=lambda row: row["text"])]
    found = ask(swahili[::-1], flare, beside=more + lies)
    assert [one["id"] for one in found] == [row["id"] for row in swahili[::-1]]
    assert answers(found) == answers(expected)


@pytest.mark.parametrize("as_files", [False, True])
def test_rows_without_ids_pair_by_their_lines(tmp_path, flare, swahili, english, expected, as_files):
    place = {row["id"]: number for number, row in enumerate(swahili)}
    sides = [swahili, sorted(english, key=lambda row: place[row["id"]])]
    bare = [[{"text": row["text"]} for row in side] for side in sides]
    if as_files:
        bare = [write_jsonl(tmp_path / f"{number}.jsonl", side) for number, side in enumerate(bare)]
    found = ask(bare[0], flare, beside=bare[1])
    assert [one["scores"] for one in found] == [one["scores"] for one in expected]


def test_other_translations_change_the_answers(flare, swahili, english, expected):
    turned = [
        {**row, "text": other["text"]} for row, other in zip(english, english[1:] + english[:1], strict=True)
    ]
    found = answers(ask(swahili, flare, beside=turned))
    same = [row["id"] for row in expected if found[row["id"]][1] == row["scores"]]
    changed = {row["id"] for row, other in zip(english, turned, strict=True) if row["text"] != other["text"]}
    assert len(changed) > 10
    assert not changed & set(same)


def test_the_language_is_that_of_the_training_unless_it_is_told(flare, plain, swahili, english):
    assert source_language(flare, "rows", None) == "en"
    assert source_language(flare, "rows", "fr") == "fr"
    assert source_language(plain, None, None) is None
    assert source_language(None, None, None) is None
    rows = load_unlabelled(get_task("mini-sentiment"), swahili, "sw", (english, "fr"))
    assert {(row.language, row.source.language) for _, row in rows} == {("sw", "fr")}
    assert {row.source.prompt for _, row in rows} == {
        get_task("mini-sentiment").example(row, "fr").prompt for row in english
    }


def test_an_adapter_that_does_not_say_its_language_is_told_it(tmp_path, flare, swahili, english, expected):
    silent = Path(shutil.copytree(flare, tmp_path / "silent"))
    (silent / "provenance.json").unlink()
    with refused("/silent", "which language", mend="`beside_language` (--beside-language)"):
        ask(swahili, silent, beside=english)
    found = ask(swahili, silent, beside=english, beside_language="en")
    assert answers(found) == answers(expected)


def test_the_card_tells_what_the_adapter_reads(flare, plain):
    told = "| source side | English (en): the same rows in it, `lingualift predict --beside`"
    assert told in (flare / "README.md").read_text()
    assert "source side" not in (plain / "README.md").read_text()


REFUSED = [
    ({"beside": None}, ".flare.add_relu.seed0", "translation", "`beside` (--beside)"),
    ({"adapter": "PLAIN"}, "--beside", "PLAIN reads no source side", "leave it out"),
    ({"adapter": None}, "--beside", "plain backbone", "leave it out"),
    ({"adapter": "MT"}, "--beside", "MT makes the source side", "leave it out"),
    ({"beside": None, "beside_language": "en"}, "--beside-language", "'en'", "`beside` (--beside)"),
    ({"beside_language": "swahilli"}, "'swahilli'", "not known", "'sw'"),
    ({"max_length": 9}, "source of example", "at most 9", "max_length"),
]


@pytest.fixture
def placed(inside, flare, plain, swahili, english):
    """A working folder with rows, and adapters by the names that the cases call them by."""
    write_jsonl(inside / "rows" / "sw" / "test.jsonl", [{**row, "label": "positive"} for row in swahili])
    write_jsonl(inside / "beside" / "sw" / "test.jsonl", english)
    shutil.copytree(plain, inside / "PLAIN")
    shutil.copytree(flare, inside / "MT")
    config = json.loads((inside / "MT/adapter_config.json").read_text())
    (inside / "MT/adapter_config.json").write_text(json.dumps({**config, "source_encoder": "some/encoder"}))
    return inside


def check_command(cli, placed, name, given, where, found, mend=""):
    before = set(placed.rglob("*"))
    check_refusal(cli(*command(name, **given)), where, found, mend=mend)
    assert set(placed.rglob("*")) == before


@pytest.mark.parametrize(("changed", "where", "found", "mend"), REFUSED)
def test_predict_refuses_what_cannot_be_meant(cli, placed, flare, changed, where, found, mend):
    files = {"input": "rows/sw/test.jsonl", "beside": "beside/sw/test.jsonl", "output": "out.jsonl"}
    check_command(cli, placed, "predict", {"adapter": flare, **files, **changed}, where, found, mend)


@pytest.mark.parametrize(
    ("changed", "where", "found", "mend"),
    [*REFUSED, ({"beside": "beside/sw/test.jsonl"}, "beside/sw/test.jsonl", "{split}", "{language}/{split}")],
)
def test_evaluate_refuses_what_cannot_be_meant(cli, placed, flare, changed, where, found, mend):
    files = {"data": "rows/{language}/{split}.jsonl", "beside": "beside/{language}/{split}.jsonl"}
    given = {"adapter": flare, "output": "out.json", **files, **changed}
    check_command(cli, placed, "evaluate", given, where, found, mend)


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        (lambda rows: rows[1:], "sw/test.jsonl", "no row with id"),
        (lambda rows: [{**rows[0], "text": " "}, *rows[1:]], "sw/test.jsonl", ":1: column 'text' is empty"),
        (lambda rows: [rows[0], *rows], "sw/test.jsonl", "stands in row 1"),
        (lambda rows: [{"id": row["id"]} for row in rows], "sw/test.jsonl", "no column 'text'"),
        (lambda rows: [], "sw/test.jsonl", "at least one row"),
        (lambda rows: [{**rows[0], "text": "well . " * 700}, *rows[1:]], "source of example", "1403 tokens"),
    ],
)
@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_source_side_that_does_not_fit_is_refused(cli, placed, flare, english, name, change, where, found):
    write_jsonl(placed / "beside/sw/test.jsonl", change(english))
    given = {"input": "rows/sw/test.jsonl", "beside": "beside/sw/test.jsonl", "output": "out.jsonl"}
    if name == "evaluate":
        given = {"data": "rows/{language}/{split}.jsonl", "beside": "beside/{language}/{split}.jsonl"}
        given["output"] = "out.json"
    check_command(cli, placed, name, {"adapter": flare, **given}, where, found)


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_the_source_side_is_asked_in_its_own_language(cli, placed, flare, name):
    """By a prompt that there is in Swahili, and not in Indonesian."""
    for side in ("rows", "beside"):
        write_jsonl(placed / side / "sw/test.jsonl", [{"question": "1 + 1 ?", "answer_number": 2}])
    given = {"input": "rows/sw/test.jsonl", "beside": "beside/sw/test.jsonl", "output": "out.jsonl"}
    if name == "evaluate":
        given = {"data": "rows/{language}/{split}.jsonl", "beside": "beside/{language}/{split}.jsonl"}
        given["output"] = "out.json"
    given |= {"adapter": flare, "task": "mgsm", "prompt": "native", "prompt_language": "target"}
    check_command(cli, placed, name, {**given, "beside_language": "id"}, "prompt 'native'", "'id'")


def test_a_file_that_is_not_there_is_refused(cli, placed, flare):
    files = {"input": "rows/sw/test.jsonl", "beside": "none.jsonl", "output": "out.jsonl"}
    check_command(cli, placed, "predict", {"adapter": flare, **files}, "none.jsonl", "not there")


def test_sides_without_ids_that_are_not_equally_long_are_refused(flare):
    rows = [{"text": "well ."}]
    with refused("beside", "2 rows", "1 as in rows"):
        ask(rows, flare, beside=rows * 2)
    with refused("beside", "no row", "'2'"):
        ask(rows * 2, flare, beside=rows)
    with refused("beside", ":1: column 'text' is empty"):
        ask(rows, flare, beside=[{"text": " "}])


def test_a_long_translation_is_refused_by_its_id(flare):
    with refused("source of example 'a'", "23 tokens", "at most 20", mend="max_length"):
        ask(
            [{"id": "a", "text": "well ."}],
            flare,
            beside=[{"id": "a", "text": "well . " * 10}],
            scoring=Scoring(max_length=20),
        )


def test_the_commands_of_the_document_run(cli, placed, flare):
    """With this test's files in the place of the document's."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Answers for new rows")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    lingualift ")]
    found = {shlex.split(line)[1]: shlex.split(line)[2:] for line in lines}
    assert set(found) == {"translate", "predict", "evaluate"}
    ours = {
        **ASKED,
        "--adapter": flare,
        "--input": "rows/sw/test.jsonl",
        "--data": "rows/{language}/{split}.jsonl",
        "--output": "out.json",
    }
    for name, beside in (
        ("predict", "beside/sw/test.jsonl"),
        ("evaluate", "beside/{language}/{split}.jsonl"),
    ):
        options = dict(zip(found[name][::2], found[name][1::2], strict=True))
        chosen = {key: {**ours, "--beside": beside}.get(key, value) for key, value in options.items()}
        assert {"--beside", "--adapter"} <= set(chosen)
        done = cli(name, *(str(part) for pair in chosen.items() for part in pair))
        assert done.code == 0, done.err
        Path("out.json").unlink()


def test_the_commands_of_the_document_train(cli, inside, run, data, plain):
    """With this test's files in the place of the document's."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## One adapter at a time")[1].split("\n## ")[0]
    lines = [shlex.split(line) for line in section.splitlines() if line.startswith("    lingualift ")]
    ours = {"--backbone": "miniworld", "--task": "mini-sentiment"}
    ours |= {
        "jav": "sw",
        "eng": "en",
        "data/{language}/{split}.jsonl": f"{data}/sentiment/{{language}}/{{split}}.jsonl",
    }
    ours |= {"data/eng/{split}.jsonl": f"{data}/sentiment/en/{{split}}.jsonl"}
    ours |= {"into-targets/{language}/{split}.jsonl": f"{run.parent}/targets/{{language}}/{{split}}.jsonl"}
    assert [line[1] for line in lines] == ["train", "train"]
    for _, name, *options in lines:
        pairs = zip(options[::2], options[1::2], strict=True)
        chosen = [part for key, value in pairs for part in (key, ours.get(key, ours.get(value, value)))]
        done = cli(name, *chosen, "--steps", "2", "--batch-size", "4")
        assert done.code == 0, done.err
    assert "--beside" in done.err.splitlines()[-1]


SETTINGS = {"rank": 2, "alpha": 4, "steps": 15, "batch-size": 8, "learning-rate": 5e-3}


def training(run, data, plain, kind, output, **options):
    """The command that trains what the run trained."""
    files = {
        "data": run.parent / "targets/{language}/{split}.jsonl",
        "beside": data / "sentiment/en/{split}.jsonl",
    }
    asked = {"backbone": "miniworld", "task": "mini-sentiment", "language": "sw", "adapter": kind}
    every = asked | SETTINGS | files | {"first-stage": plain, "output": output} | options
    return ["train", *(f"--{name}={value}" for name, value in every.items() if value is not None)]


@pytest.mark.parametrize(("kind", "options"), [("flare", {"fusion": "add_relu"}), ("x-mixup", {})])
def test_train_makes_the_adapter_of_an_experiment(cli, run, data, plain, inside, kind, options):
    done = cli(*training(run, data, plain, kind, "mine", **options))
    assert done.code == 0, done.err
    name = ".".join(["mini-sentiment.sw", kind, *options.values(), "seed0"])
    theirs, mine = run / "adapters" / name, inside / "mine"
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (mine / file).read_bytes() == (theirs / file).read_bytes()
    told = json.loads((mine / "provenance.json").read_text())
    assert told["beside_language"] == "en"


def test_train_makes_a_flare_adapter_from_python(run, data, plain, flare, tmp_path):
    beside = Beside(Data(files=f"{data}/sentiment/en/{{split}}.jsonl"), "en")
    where = Data(files=f"{run.parent}/targets/{{language}}/{{split}}.jsonl")
    rows = Examples("mini-sentiment", where, Path(), beside=beside)
    config = ll.FlareConfig.from_folder(flare)
    settings = Training(steps=15, batch_size=8, learning_rate=5e-3)
    train_once(
        Backbone(name="miniworld"), rows, "sw", config, settings, output=tmp_path / "mine", first_stage=plain
    )
    file = "adapter_model.safetensors"
    assert (tmp_path / "mine" / file).read_bytes() == (flare / file).read_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("flare", {"first-stage": None}, "--first-stage: is missing"),
        ("flare", {"beside": None}, "--beside: is missing"),
        ("flare", {"ratio": 0.5}, "--ratio: is set, and flare has no such setting"),
        ("x-mixup", {"fusion": "add"}, "--fusion: is set, and x-mixup has no such setting"),
        ("x-mixup", {"cache-sources": ""}, "--cache-sources"),
        ("lora", {"beside": None}, "--first-stage: is given"),
        ("lora", {"first-stage": None, "beside-language": "en"}, "beside"),
        ("lora", {"first-stage": None, "beside": None, "fusion": "add"}, "--fusion: is set, and lora"),
        ("flare", {"fusion": "add_rellu"}, "add_relu"),
        ("flare", {"source-encoder": "miniworld"}, "--beside: is given"),
    ],
)
def test_train_refuses_what_an_adapter_does_not_read_or_lacks(
    cli, run, data, plain, inside, kind, options, said
):
    command = training(run, data, plain, kind, "mine", **options)
    done = cli(*(part.rstrip("=") for part in command))
    assert done.code == 2
    assert said in done.err
    assert not any(inside.iterdir())
