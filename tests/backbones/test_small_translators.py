"""backbones/translator.py: what it trains on, and that the folders it leaves translate and encode."""

import dataclasses
import gzip
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lingualift as ll
from lingualift.miniworld import LANGUAGES
from lingualift.miniworld.data import SIZES, qa_rows, reference_rows, sentiment_rows

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "backbones" / "translator.py"
REAL = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(SCRIPT.parent))

import translator  # noqa: E402


def write(path, texts, key="id"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, text in texts.items():
            print(json.dumps({key: number, "text": text, "label": "neutral"}), file=file)


@pytest.fixture(scope="module")
def world(cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator") / "world"
    done = cli.script(SCRIPT, "--world", "--output", folder, "--steps", 2, "--rows", 1)
    assert done.code == 0, done.err
    return folder, done.out


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Parallel rows; some have texts of validation and test splits, in other letters and another set, too."""
    folder = tmp_path_factory.mktemp("texts")
    for code in translator.NUSA:
        for split, count in {"train": 6, "valid": 2, "test": 2}.items():
            rows = {f"{split}{n}": f"{code} says {split} {n}" for n in range(count)}
            write(folder / "nusax" / code / f"{split}.jsonl.gz", rows)
    for code in ("ind", "jav"):
        rows = {f"t{n}": f"{code} tweets {n}" for n in range(6)}
        if code == "ind":
            rows |= {"t1": "Ind  TWEETS held", "t2": "ind says test 1"}
        if code == "jav":
            rows |= {"t3": "jav says valid 0"}
        write(folder / "nusatranslation" / code / "train.jsonl.gz", rows)
        write(folder / "nusatranslation" / code / "test.jsonl.gz", {"x": f"{code} tweets held"})
    write(folder / "bible" / "en.jsonl.gz", {"GEN.1.1": "beginning", "MAT.1.1": "book"}, "verse_id")
    write(folder / "bible" / "id.jsonl.gz", {"MAT.1.1": "kitab"}, "verse_id")
    write(folder / "bible" / "de.jsonl.gz", {"MAT.1.1": "Buch"}, "verse_id")
    for code in ("en", "id", "vi"):
        write(folder / "ntrex" / f"{code}.jsonl.gz", {n: f"{code} news {n}" for n in range(3)})
    return folder


@pytest.mark.slow  # trains a translator
def test_a_translator_of_the_world_translates_and_encodes(cli, world, tmp_path):
    folder, out = world
    told = json.loads((folder / "provenance.json").read_text())
    assert {(row["task"], row["language"]) for row in told["scores"]} == {
        (task, code) for task in ("mini-sentiment", "mini-qa") for code in LANGUAGES if code != "en"
    }
    for row in told["scores"]:
        cells = [f"{value:.1f}" for way in ("into", "from") for value in row[way].values()]
        assert f"| {row['task']} | {row['language']} | {' | '.join(cells)} |" in out
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert (type(tokenizer).__name__, type(model).__name__) == (
        "NllbTokenizer",
        "M2M100ForConditionalGeneration",
    )
    known = [row["text"] for code in LANGUAGES for row in reference_rows(code, 300)]
    assert tokenizer.batch_decode(tokenizer(known)["input_ids"], skip_special_tokens=True) == known
    write(
        tmp_path / "de" / "test.jsonl.gz", {row["id"]: row["text"] for row in sentiment_rows("de", "test", 3)}
    )
    command = [
        *("translate", "--model", folder, "--source", "de", "--target", "en", "--task", "mini-sentiment"),
        *(
            "--data",
            tmp_path / "{language}/{split}.jsonl.gz",
            "--output",
            tmp_path / "out",
            "--max-length",
            32,
        ),
    ]
    done = cli(*command)
    assert done.code == 0, done.err
    assert "test: 3 of 3 rows written" in done.out
    backbone = AutoModelForSeq2SeqLM.from_config(model.config)
    config = ll.FlareConfig(target_modules=["q_proj"], source_encoder=str(folder))
    assert (
        ll.flare(backbone, config, source_encoder=model).source_encoder.config.d_model == model.config.d_model
    )


@pytest.mark.slow  # trains a translator
def test_what_is_trained_on_is_what_the_tokenizer_makes_of_a_pair(world):
    tokenizer = AutoTokenizer.from_pretrained(world[0])
    pairs = list(itertools.islice(translator.world_pairs(3), 50))
    for pair, (read, written) in zip(pairs, translator.sides(tokenizer, pairs), strict=True):
        tokenizer.src_lang, tokenizer.tgt_lang = map(translator.tag, (pair.source, pair.target))
        expected = tokenizer(pair.text, text_target=pair.written)
        assert (read, written) == (expected["input_ids"], expected["labels"])


@pytest.mark.slow  # trains a translator
def test_batches_hold_every_short_pair_once_and_no_padding_counts(world):
    tokenizer = AutoTokenizer.from_pretrained(world[0])
    pairs = list(itertools.islice(translator.world_pairs(4), 5 * translator.POOL))
    long = translator.Pair("en", "book " * 200, "de", "Buch")
    recipe = dataclasses.replace(translator.WORLD, batch=5)
    feed = translator.batches(tokenizer, iter([*pairs[:-1], long]), recipe, 0)
    seen = []
    for batch in itertools.islice(feed, translator.POOL):
        assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == tokenizer.pad_token_id)
        for read, mask, written in zip(*batch.values(), strict=True):
            seen.append((read[mask == 1].tolist(), written[written != -100].tolist()))
    assert sorted(seen) == sorted(translator.sides(tokenizer, pairs[:-1]))


def test_no_test_item_of_the_world_is_trained_on():
    """Neither at the backbone's seed nor at another; each pair is parallel and has English on one side."""
    held = {
        row[column]
        for code, seed in itertools.product(LANGUAGES, (0, 1))
        for split in ("validation", "test")
        for rows, column in ((sentiment_rows, "text"), (qa_rows, "context"))
        for row in rows(code, split, SIZES[split], seed)
    }
    pairs = list(itertools.islice(translator.world_pairs(0), 5000))
    assert {code for pair in pairs for code in (pair.source, pair.target)} == set(LANGUAGES)
    assert all("en" in (pair.source, pair.target) and pair.source != pair.target for pair in pairs)
    for pair in pairs:
        for text in (pair.text, pair.written):
            assert held.isdisjoint({text, text.split(". ")[0] + "."})
    asked = {row["question"] for row in qa_rows("en", "test", SIZES["test"])}
    assert not asked.isdisjoint(pair.text for pair in pairs)  # as in pretraining: a question tells no story


def test_rows_with_a_held_out_text_are_left_out_in_all_languages(texts):
    sets, left_out = translator.text_groups(texts)
    assert left_out == {"nusax": 0, "nusatranslation": 3, "bible": 0, "ntrex": 0}
    assert sets["nusatranslation"] == [
        {"ind": f"ind tweets {n}", "jav": f"jav tweets {n}"} for n in (0, 4, 5)
    ]
    assert sets["bible"] == [{"eng": "book", "ind": "kitab"}]
    assert sets["ntrex"] == [{"eng": f"en news {n}", "ind": f"id news {n}"} for n in range(3)]
    assert [len(group) for group in sets["nusax"]] == [10] * 6
    groups = [group for found in sets.values() for group in found]
    seen = set()
    for pair in itertools.islice(translator.text_pairs(sets, 0), 3000):
        (group,) = (group for group in groups if group.get(pair.target) == pair.written)
        mended = pair.source == pair.target
        assert mended or group[pair.source] == pair.text
        seen.add((pair.source, pair.target))
    assert seen >= set(itertools.product(translator.NUSA, translator.NUSA))


def test_a_translator_of_texts_translates_languages_that_nllb_lacks(texts, tmp_path, monkeypatch, capsys):
    """Three of the languages, and short texts: what is not trained writes until its limit."""
    monkeypatch.setattr(translator, "NUSA", ("eng", "jav", "mad"))
    monkeypatch.setattr(translator, "TEXTS", dataclasses.replace(translator.TEXTS, longest=16, hidden=16))
    command = ["--texts", str(texts), "--output", str(tmp_path / "nusa"), "--steps", "2", "--rows", "1"]
    monkeypatch.setattr(sys, "argv", ["translator.py", *command])
    translator.main()
    out = capsys.readouterr().out
    assert "left out: {'nusax': 0, 'nusatranslation': 0" in out  # Javanese alone is no pair
    assert all(f"| nusax | {code} |" in out for code in ("jav", "mad"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "nusa")
    assert {"eng_Latn", "jav_Latn", "mad_Latn"} <= set(tokenizer.all_special_tokens)


def test_no_held_out_text_of_nusax_is_trained_on():
    if not REAL.is_dir():
        pytest.skip("there are no real texts beside this checkout (../shared/data)")
    sets, left_out = translator.text_groups(REAL)
    held = set()
    for name, split in itertools.product(("nusax", "nusatranslation"), ("valid", "test")):
        for path in (REAL / name).glob(f"*/{split}.jsonl.gz"):
            held |= {" ".join(row["text"].lower().split()) for row in translator.rows(path)}
    assert len(held) > 10_000
    trained = {
        " ".join(text.lower().split())
        for groups in sets.values()
        for group in groups
        for text in group.values()
    }
    assert held.isdisjoint(trained)
    assert left_out["nusatranslation"] >= 35
    assert len(sets["nusax"]) == 500


@pytest.mark.parametrize(
    "arguments", [[], ["--world", "--texts", "x"], ["--texts", "nowhere"], ["--world", "--steps", "0"]]
)
def test_a_wrong_command_ends_before_anything_is_made(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["translator.py", "--output", str(tmp_path / "new"), *arguments])
    with pytest.raises(SystemExit, match="2"):
        translator.main()
    assert "usage" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
