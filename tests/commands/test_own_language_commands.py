"""Languages of a user's own in train, evaluate, predict and lift: from the command line and from Python."""

import json
import shutil
from pathlib import Path

import pytest

import lingualift as ll
from builders import tiny
from builders.refusals import refused
from builders.worlds import read_jsonl, write_jsonl
from lingualift.commands.train import train_head, train_once
from lingualift.config import Adapter, Backbone, Data, Training
from lingualift.data.datasets import dataset_of

REJANG = {"rej": {"name": "Rejang", "script": "Latn", "nllb": "ind_Latn"}}
ONE_STEP = Training(steps=1, batch_size=2, max_length=32)


@pytest.fixture
def rejang(inside, world):
    """Rows and text of Rejang, which are those of Swahili, and a TSV that says what it is."""
    shutil.copytree(world / "data/sentiment/sw", "data/rej")
    shutil.copytree(world / "data/sentiment/sw", "data/sw")
    shutil.copy(world / "sw.txt", "rej.txt")
    shutil.copy(world / "en.txt", "en.txt")
    Path("mine.tsv").write_text("code\tname\tscript\tnllb\nrej\tRejang\tLatn\tind_Latn\n", encoding="utf-8")


def test_train_evaluate_and_predict_take_a_tsv(rejang, cli):
    asked = ["--backbone", "miniworld", "--task", "mini-sentiment", "--language", "rej"]
    data, own = ["--data", "data/{language}/{split}.jsonl"], ["--languages", "mine.tsv"]
    train = ["train", *asked, *data, "--steps", 1, "--batch-size", 4, "--rank", 2, "--output", "adapter"]
    message = cli(*train).message
    assert "language 'rej': is not known" in message
    assert "--languages" in message
    done = cli(*train, *own)
    assert done.code == 0, done.err
    told = json.loads(Path("adapter/provenance.json").read_text(encoding="utf-8"))
    assert told["own_languages"] == REJANG
    assert "tags" not in told  # of a model that tags no texts
    evaluate = ["evaluate", *asked, *data, "--adapter", "adapter", "--output", "scores.json"]
    assert cli(*evaluate).code == 2
    done = cli(*evaluate, *own)
    assert done.code == 0, done.err
    assert json.loads(Path("scores.json").read_text(encoding="utf-8"))["own_languages"] == REJANG
    predict = [
        "predict",
        *asked,
        "--adapter",
        "adapter",
        "--input",
        "data/rej/test.jsonl",
        "--output",
        "a.jsonl",
    ]
    assert cli(*predict).code == 2
    done = cli(*predict, *own)
    assert done.code == 0, done.err
    found = read_jsonl(Path("a.jsonl"))
    assert [row["prediction"] for row in found] == [
        row["prediction"] for row in read_jsonl(Path("scores.predictions.jsonl"))
    ]


def test_answers_from_python_are_those_of_the_same_rows_in_a_language_that_is_known(rejang):
    asked = {"backbone": "miniworld", "task": "mini-sentiment"}
    found = {
        code: (
            ll.evaluate(**asked, language=code, data="data/{language}/{split}.jsonl", languages=own).scores,
            ll.predict(**asked, language=code, rows=f"data/{code}/test.jsonl", languages=own),
        )
        for code, own in (("rej", REJANG), ("sw", None))
    }
    assert found["rej"] == found["sw"]
    with refused("'rej'", mend="languages"):
        ll.predict(**asked, language="rej", rows="data/rej/test.jsonl")


def test_an_adapter_is_lifted_into_it(rejang, users, cli):
    common = [
        "--backbone",
        "miniworld",
        "--adapter",
        users(),
        "--to",
        "rej",
        "--text",
        "rej.txt",
        "--source-text",
        "en.txt",
    ]
    fast = ["--steps", 1, "--batch-size", 2, "--max-length", 32, "--workers", 1]
    assert "--languages" in cli("lift", *common, *fast, "--output", "lifted").message
    done = cli("lift", *common, *fast, "--output", "lifted", "--languages", "mine.tsv")
    assert done.code == 0, done.err
    assert "--languages mine.tsv" in done.err
    told = json.loads(Path("lifted/provenance.json").read_text(encoding="utf-8"))
    assert told["own_languages"] == told["references"]["target"]["own_languages"] == REJANG
    assert "own_languages" not in told["references"]["source"]
    assert "lifted into Rejang" in Path("lifted/README.md").read_text(encoding="utf-8")


def test_a_backbone_that_tags_texts_is_told_the_near_languages_tag(inside, tmp_path):
    write_jsonl(Path("mad.jsonl"), [{"text": f"The room was dirty {number}."} for number in range(8)])
    backbone = Backbone(name=str(tiny.build("nllb", tmp_path / "nllb")))
    texts = dataset_of("prefix-lm", Data(files="{language}.jsonl"), Path())
    how = (backbone, texts, "mad", Adapter(rank=2), ONE_STEP)
    with refused("'mad'", "has no tag", mend="languages.own"):
        train_once(*how, output=Path("plain"))
    assert not Path("plain").exists()
    train_once(*how, output=Path("near"), languages={"mad": {"nllb": "ind_Latn"}})
    told = json.loads(Path("near/provenance.json").read_text(encoding="utf-8"))
    assert told["tags"] == ["ind_Latn"]
    assert told["own_languages"] == {"mad": {"name": "Madurese", "script": "Latn", "nllb": "ind_Latn"}}


def test_a_head_for_words_is_trained_on_its_text(inside, tmp_path):
    write_jsonl(Path("rej.jsonl"), [{"text": f"The room was dirty {number}."} for number in range(8)])
    backbone = Backbone(name=str(tiny.build("e5", tmp_path / "e5")))
    how = (backbone, Data(files="{language}.jsonl"), ["rej"], ONE_STEP)
    with refused("'rej'", "is not known"):
        train_head(*how, output=Path("head"))
    train_head(*how, output=Path("head"), own=REJANG)
    assert json.loads(Path("head/provenance.json").read_text(encoding="utf-8"))["own_languages"] == REJANG
