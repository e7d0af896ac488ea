"""`lingualift translate` with a small NLLB of random weights: tags, batches, the cache, kills, refusals."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers

import lingualift as ll
from builders import tiny
from builders.commands import Commands
from builders.prefixing import write_rows
from builders.refusals import check_refusal, refused
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Data, Translation
from lingualift.encoding.text import language_tag
from lingualift.provenance import sha256_bytes
from lingualift.tasks import shipped_rows
from lingualift.translation.model import Model

FAST = Translation(beams=1, max_length=32)


def texts(count):
    words = " ".join(row["text"] for row in shipped_rows("nusax", "en")).replace(".", "").split()
    return [f"{' '.join(words[start % 20 : start % 20 + 2 + start % 7])} {start}." for start in range(count)]


@pytest.fixture
def world(inside):
    rows = [{"id": f"r{number}", "text": text, "label": number % 3} for number, text in enumerate(texts(12))]
    write_rows(inside / "data/en/train.jsonl", rows)
    write_rows(inside / "data/en/test.jsonl", rows[:4])
    return rows


def translate(nllb, output, **more):
    about = {"model": str(nllb), "source": "en", "target": "sw", "task": "nusax", "settings": FAST}
    return ll.translate(**about | {"data": "data/{language}/{split}.jsonl", "output": output} | more)


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "tags", "beams"),
    [
        pytest.param("nllb", ("eng_Latn", "swh_Latn"), 1, marks=pytest.mark.slow),
        ("nllb", ("eng_Latn", "swh_Latn"), 3),
        pytest.param("mbart", ("en_XX", "sw_KE"), 1, marks=pytest.mark.slow),
    ],
)
def test_each_translation_is_what_transformers_makes_of_the_sentence_alone(world, request, kind, tags, beams):
    """Tagged by the source language, told to begin with the target's tag, whatever shares its batch."""
    folder = request.getfixturevalue(kind)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, src_lang=tags[0], tgt_lang=tags[1])
    source, target = tokenizer.convert_tokens_to_ids(list(tags))
    translate(folder, "mt", settings=Translation(beams=beams, max_length=32, batch_size=5))
    lines = Path("mt/sw/train.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    for row, found in zip(world, written, strict=True):
        inputs = tokenizer(row["text"], return_tensors="pt")
        assert inputs["input_ids"][0, 0] == source != tokenizer.unk_token_id
        with torch.inference_mode():
            how = {
                "forced_bos_token_id": target,
                "max_new_tokens": 64,
                "num_beams": beams,
                "do_sample": False,
            }
            (ids,) = model.generate(**inputs, **how)
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert found == {**row, "text": text or row["text"]}
    changed = {row["text"] for row in written} - {row["text"] for row in world}
    assert len(changed) > 6


def test_the_target_language_decides_the_words(world, nllb):
    translate(nllb, "mt")
    translate(nllb, "mt", target="id")
    assert files("mt/sw")["test.jsonl"] != files("mt/id")["test.jsonl"]


MADURESE = {"mad": {"nllb": "ind_Latn"}}


def test_a_language_that_borrows_a_tag_is_written_as_the_near_one(world, nllb):
    """And it is said: in words, and in the provenance."""
    done = translate(nllb, "mt", target="mad", languages=MADURESE)
    near = translate(nllb, "mt", target="id")
    assert near.new == 0
    for name in ("train.jsonl", "test.jsonl"):
        assert files("mt/mad")[name] == files("mt/id")[name]
    about, plain = (json.loads(Path(f"mt/{code}/provenance.json").read_text()) for code in ("mad", "id"))
    assert about["tags"] == plain["tags"] == {"source": "eng_Latn", "target": "ind_Latn"}
    assert about["own_languages"] == {"mad": {"name": "Madurese", "script": "Latn", "nllb": "ind_Latn"}}
    assert "own_languages" not in plain
    assert done.lines()[0] == "Madurese (mad) is tagged ind_Latn"
    assert near.lines()[0].endswith("translated now")


def test_the_command_takes_languages_from_a_tsv(world, nllb, cli):
    Path("mine.tsv").write_text("code\tname\tscript\tnllb\nrej\tRejang\tLatn\tind_Latn\n", encoding="utf-8")
    command = ["rej" if part == "sw" else part for part in arguments(nllb, "mt")]
    assert "--languages" in cli(*command).message
    assert not Path("mt").exists()
    done = cli(*command, "--languages", "mine.tsv")
    assert done.code == 0, done.err
    assert done.out.startswith("Rejang (rej) is tagged ind_Latn")
    assert set(files("mt/rej")) == {"train.jsonl", "test.jsonl", "provenance.json"}


def test_provenance_tells_model_tags_settings_and_counts(world, nllb):
    done = translate(nllb, "mt", splits=["train"])
    about = json.loads(Path("mt/sw/provenance.json").read_text(encoding="utf-8"))
    assert about["model"]["fingerprint"] == find_backbone(Backbone(name=str(nllb))).fingerprint
    assert about["tags"] == {"source": "eng_Latn", "target": "swh_Latn"}
    assert (about["settings"]["beams"], about["settings"]["new_tokens"]) == (1, 64)
    assert list(about["splits"]) == ["train"]
    told = about["splits"]["train"]
    assert told["rows_sha256"] == sha256_bytes(Path("mt/sw/train.jsonl").read_bytes())
    assert told["data"]["sha256"] == sha256_bytes(Path("data/en/train.jsonl").read_bytes())
    assert (told["rows"], told["written"], done.new) == (12, 12, done.sentences)


def test_a_translation_that_runs_into_its_limit_is_counted(world, nllb):
    """The oracle: a translation is finished if its tokens, counted anew by transformers, end before the limit."""
    translate(nllb, "mt", splits=["train"])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(nllb)
    tokenizer = transformers.AutoTokenizer.from_pretrained(nllb, src_lang="eng_Latn")
    tag = tokenizer.convert_tokens_to_ids("swh_Latn")
    long = []
    for row in world:
        inputs = tokenizer(row["text"], return_tensors="pt")
        (ids,) = model.generate(**inputs, forced_bos_token_id=tag, max_new_tokens=64, do_sample=False)
        long += [row["id"]] if ids[-1] != tokenizer.eos_token_id else []
    assert json.loads(Path("mt/sw/provenance.json").read_text())["splits"]["train"]["unfinished"] == long
    assert 0 < len(long) < len(world)


def test_a_sentence_over_the_limit_is_cut_and_counted_not_truncated(world, nllb):
    """A change at the very end of a long sentence changes the translation."""
    long = " ".join(texts(12)).replace(".", "")
    for name, end in (("a", "good"), ("b", "bad")):
        write_rows(Path(f"{name}.jsonl"), [{"id": "1", "text": f"{long} {end}", "label": 0}])
        translate(nllb, name, data=f"{name}.jsonl", splits=["train"])
    assert json.loads(Path("a/sw/provenance.json").read_text())["splits"]["train"]["cut"] == ["1"]
    assert files("a")["train.jsonl"] != files("b")["train.jsonl"]


def test_the_size_of_batches_changes_nothing(world, nllb):
    for size in (1, 3, 16):
        settings = FAST.model_copy(update={"batch_size": size})
        translate(nllb, f"mt{size}", settings=settings, cache=f"{size}.sqlite")
    one, three, all_at_once = (files(f"mt{size}") for size in (1, 3, 16))
    for name in ("train.jsonl", "test.jsonl"):
        assert one[name] == three[name] == all_at_once[name]


def test_what_is_in_the_cache_is_not_translated_again(world, nllb, monkeypatch):
    first = translate(nllb, "one")
    load_backbone.cache_clear()
    monkeypatch.setattr("lingualift.translation.model.load_backbone", lambda ref: pytest.fail("was loaded"))
    again = translate(nllb, "two")
    assert (first.new, again.new) == (first.sentences, 0)
    assert files("one") == files("two")


@pytest.mark.parametrize("change", ["target", "beams", "model", "max_length"])
def test_the_cache_tells_languages_settings_and_models_apart(world, nllb, change, tmp_path_factory):
    translate(nllb, "one", splits=["test"])
    other = {"splits": ["test"], "output": "two"}
    if change == "target":
        other["target"] = "id"
    elif change == "model":
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(nllb)
        folder = tmp_path_factory.mktemp("other")
        torch.nn.init.zeros_(model.model.encoder.layers[0].fc1.weight)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(nllb).save_pretrained(folder)
        other["model"] = str(folder)
    else:
        other["settings"] = FAST.model_copy(update={change: 20 if change == "max_length" else 2})
    done = translate(nllb, **other)
    assert done.new == done.sentences == 4


def arguments(nllb, output):
    given = {"--model": nllb, "--source": "en", "--target": "sw", "--task": "nusax", "--output": output}
    given |= {"--data": "data/{language}/{split}.jsonl", "--beams": 1, "--max-length": 32, "--batch-size": 2}
    return ["translate", *(part for pair in given.items() for part in pair)]


def stored(cache="lingualift-translations.sqlite"):
    if not Path(cache).exists():
        return 0
    with sqlite3.connect(f"file:{cache}?mode=ro", uri=True, timeout=5) as file:
        try:
            return file.execute("SELECT count(*) FROM sentences").fetchone()[0]
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


@pytest.mark.slow  # what is in the cache is not translated again: above
def test_a_killed_command_goes_on_where_it_was_and_writes_the_same_files(inside, nllb, cli):
    rows = [{"id": str(number), "text": text, "label": 0} for number, text in enumerate(texts(60))]
    write_rows(inside / "data/en/train.jsonl", rows)
    whole = cli(*arguments(nllb, "whole"), "--cache", "other.sqlite")
    assert whole.code == 0, whole.err
    assert whole.out.startswith("60 sentences, 60 of them translated now")
    for more in (5, 20):  # sentences in the cache when it is killed
        killed = cli(*arguments(nllb, "mt"), kill_when=lambda more=more: stored() > more)
        assert killed.code == -9
        assert more < stored() < 60
        assert not Path("mt/sw").exists()
    before = stored()
    done = cli(*arguments(nllb, "mt"))
    assert f"60 sentences, {60 - before} of them translated now" in done.out
    assert files("mt") == files("whole")
    assert "next: " in done.err


@pytest.mark.slow  # the cache is tested above
def test_two_commands_at_once_share_the_cache_and_write_the_same_files(world, nllb, cli):
    def run(commands, output):
        return [commands(*arguments(nllb, name)) for name in (output, "both")]

    with Commands() as more, ThreadPoolExecutor(2) as both:
        (one, third), (two, fourth) = both.map(run, (cli, more), ("one", "two"))
    assert (one.code, two.code) == (0, 0), (one, two)
    assert files("one") == files("two") == files("both")
    assert stored() == 12
    loser, winner = sorted((third, fourth), key=lambda done: -done.code)
    assert winner.code == 0
    check_refusal(loser, "both/sw", "exists already")
    assert not list(Path().rglob("*.partial"))


def test_an_output_that_exists_is_left_as_it_is(world, nllb, cli):
    write_rows(Path("mt/sw/mine.jsonl"), [{"a": 1}])
    check_refusal(cli(*arguments(nllb, "mt")), "mt/sw", "exists already", mend="--output")
    assert list(files("mt")) == ["mine.jsonl"]
    assert not Path("lingualift-translations.sqlite").exists()


def test_compressed_rows_stay_compressed_and_splits_are_those_that_there_are(inside, nllb):
    import gzip

    Path("en").mkdir()
    line = json.dumps({"id": "1", "text": "The room was dirty.", "label": "negative"}) + "\n"
    Path("en/valid.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    data = Data(files="{language}/{split}.jsonl.gz", splits={"validation": "valid"}, columns={})
    done = translate(nllb, "mt", data=data)
    assert list(done.splits) == ["validation"]
    (row,) = gzip.decompress(Path("mt/sw/validation.jsonl.gz").read_bytes()).decode().splitlines()
    assert done.files == "mt/{language}/{split}.jsonl.gz"
    assert json.loads(row).keys() == {"id", "text", "label"}


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        ({"target": "xx"}, "'xx'", "not known"),
        ({"target": "ace"}, "'ace'", "no tag"),
        ({"target": "mad"}, "'mad'", "no tag"),
        ({"target": "mad", "languages": {"mad": {"nllb": "ace_Latn"}}}, "'mad'", "no tag"),
        ({"source": "ace", "splits": ["train"], "data": "data/en/train.jsonl"}, "'ace'", "no tag"),
        ({"target": "eng"}, "target", "'eng' is the language of the rows"),
        ({"model": "miniworld"}, "'miniworld'", "one of the decoders"),
        ({"model": "./nothing"}, "'./nothing'", "no folder"),
        ({"data": "other/{language}/{split}.jsonl"}, "other/en/train.jsonl", "not there"),
        ({"data": "data/en/train.jsonl"}, "data/en/train.jsonl", "which splits"),
        ({"data": "data/en/test.jsonl", "splits": ["test"]}, "data/en/test.jsonl", "test is asked for"),
        ({"splits": ["dev"]}, "'dev'", "train, validation, test"),
        ({"task": "xnli"}, "data/en/train.jsonl", "no column 'premise'"),
    ],
)
def test_what_cannot_be_right_is_refused_and_nothing_is_written(world, nllb, change, where, found):
    with refused(where, found):
        translate(nllb, "mt", **change)
    assert not Path("mt").exists()
    assert not Path("lingualift-translations.sqlite").exists()


def test_a_model_that_tags_no_languages_is_refused(world, tmp_path):
    with refused("/t5", "without language tags", "NLLB"):
        translate(tiny.build("t5", tmp_path / "t5"), "mt")


def test_a_file_that_is_no_cache_is_refused(world, nllb, cli):
    Path("notes.txt").write_text("my notes, no cache of translations at all\n" * 50, encoding="utf-8")
    before = Path("notes.txt").read_bytes()
    done = cli(*arguments(nllb, "mt"), "--cache", "notes.txt")
    check_refusal(done, "notes.txt", "a cache", "not a database", mend="--cache")
    assert Path("notes.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("tags", "code", "expected"),
    [
        (["en_XX", "sw_KE", "de_DE"], "swh", ("sw_KE", "sw_KE")),
        (["__en__", "__sw__"], "swh", ("__sw__", "sw")),
        (["eng_Latn", "swh_Latn"], "swh", ("swh_Latn", "swh_Latn")),
        (["eng_Latn", "mad_Latn"], "mad", ("mad_Latn", "mad_Latn")),  # which NLLB lacks, and users add
    ],
)
def test_tags_of_nllb_m2m100_and_mbart_are_found(tags, code, expected):
    class Tokenizer:
        all_special_tokens = tags

        def get_added_vocab(self):
            return {}

    assert language_tag(Tokenizer(), code) == expected


def test_a_mark_that_the_tokenizer_does_not_know_is_told(nllb):
    model = Model(find_backbone(Backbone(name=str(nllb))), "en", "sw", FAST)
    assert model.knows("The room")
    assert not model.knows("☃")
