"""The honesty of the data: parallel, disjoint, deterministic; reference text gives the tasks away nowhere."""

import difflib
import itertools
import json
import re

import pytest

from builders.refusals import refused
from lingualift.miniworld import (
    BACKBONE,
    LABEL_WORDS,
    LANGUAGES,
    QA_PROMPT,
    SENTIMENT_PROMPT,
    WEAK,
    write_data,
)
from lingualift.miniworld.data import SIZES, WRONG, qa_rows, reference_rows, sentiment_rows
from lingualift.miniworld.languages import GRAMMARS
from lingualift.miniworld.lexicon import PLACES, THINGS
from lingualift.miniworld.pretraining import LANGUAGE_SHARES, documents
from lingualift.miniworld.tokenizer import words
from lingualift.miniworld.world import meaning_id, split_of
from lingualift.provenance import sha256_folder

COLUMNS = {"sentiment": {"id", "text", "label"}, "qa": {"id", "context", "question", "answer"}}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def surface(row):
    """The sentence that says a row's meaning."""
    return row.get("text") or row["context"]


def meaning(row):
    """The id without the kind of question: the story or the review itself."""
    return "-".join(row["id"].split("-")[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mini") / "data"
    write_data(path)
    return path


@pytest.fixture(scope="module")
def pretraining():
    """The documents that the shipped backbone was pretrained on."""
    made = json.loads((BACKBONE / "provenance.json").read_text(encoding="utf-8"))
    return list(itertools.islice(documents(made["seed"]), made["recipe"]["batch"] * made["steps"]))


def test_the_folder_holds_what_it_says(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.jsonl")}
    tasks = {f"{task}/{code}/{split}.jsonl" for task in COLUMNS for code in LANGUAGES for split in SIZES}
    reference = {f"reference/{code}/train.jsonl" for code in LANGUAGES}
    poor = {f"into-english/sentiment/{code}/test.jsonl" for code in LANGUAGES if code != "en"}
    assert files == tasks | reference | poor
    for task, columns in COLUMNS.items():
        for code, (split, count) in itertools.product(LANGUAGES, SIZES.items()):
            rows = read(folder / task / code / f"{split}.jsonl")
            assert len(rows) == count
            assert all(row.keys() == columns for row in rows)
            assert len({row["id"] for row in rows}) == count
    assert all(
        row.keys() == {"id", "text"}
        for code in LANGUAGES
        for row in read(folder / "reference" / code / "train.jsonl")
    )


@pytest.mark.parametrize("code", [code for code in LANGUAGES if code != "en"])
def test_a_fifth_of_the_words_of_the_translations_are_wrong(folder, code):
    exact = read(folder / "sentiment" / "en" / "test.jsonl")
    poor = read(folder / "into-english" / "sentiment" / code / "test.jsonl")
    rows = read(folder / "sentiment" / code / "test.jsonl")
    assert [row["id"] for row in poor] == [row["id"] for row in rows] == [row["id"] for row in exact]
    assert all(row.keys() == {"id", "text"} for row in poor)
    said = [row["text"].split() for row in exact]
    pairs = [difflib.SequenceMatcher(None, a, row["text"].split()) for a, row in zip(said, poor, strict=True)]
    kept = [block.size for pair in pairs for block in pair.get_matching_blocks()]
    assert 1 - sum(kept) / sum(map(len, said)) == pytest.approx(WRONG, abs=0.01)


def test_sizes_are_large_enough():
    assert SIZES["train"] >= 2000
    assert SIZES["validation"] >= 200
    assert SIZES["test"] >= 300


def test_at_least_seven_languages_three_of_them_weak():
    assert len(LANGUAGES) >= 7
    assert LANGUAGES[0] == "en"
    assert len(WEAK) >= 3
    weakest_other = min(share for code, share in LANGUAGE_SHARES.items() if code not in WEAK)
    assert all(LANGUAGE_SHARES[code] < weakest_other / 2 for code in WEAK)
    assert max(LANGUAGE_SHARES, key=LANGUAGE_SHARES.get) == "en"
    assert sum(LANGUAGE_SHARES.values()) == pytest.approx(1)


def test_rows_are_parallel_over_languages(folder):
    for path in folder.rglob("en/*.jsonl"):
        english = read(path)
        for code in LANGUAGES[1:]:
            other = read(path.parent.parent / code / path.name)
            assert [row["id"] for row in other] == [row["id"] for row in english]
            assert [row.get("label") for row in other] == [row.get("label") for row in english]
            assert sum(surface(a) == surface(b) for a, b in zip(english, other, strict=True)) == 0


def test_labels_and_question_kinds_are_balanced(folder):
    for split, count in SIZES.items():
        labels = [row["label"] for row in read(folder / "sentiment" / "sw" / f"{split}.jsonl")]
        assert labels.count("positive") == labels.count("negative") == count // 2
        kinds = [row["id"].rsplit("-", 1)[1] for row in read(folder / "qa" / "sw" / f"{split}.jsonl")]
        assert max(map(kinds.count, set(kinds))) - min(map(kinds.count, set(kinds))) <= 1


def test_no_clue_of_the_label_outside_the_verdict():
    rows = sentiment_rows("en", "train", 2000)
    for pattern in (", but ", " and ", " not ", "ugly", "beautiful", "Ben"):
        labels = [row["label"] == "positive" for row in rows if pattern in row["text"]]
        assert 0.35 < sum(labels) / len(labels) < 0.65, pattern


@pytest.mark.parametrize("code", LANGUAGES)
def test_splits_are_disjoint_by_meaning_and_by_surface(folder, code):
    parts = {}
    for task in COLUMNS:
        for split in SIZES:
            parts[task, split] = read(folder / task / code / f"{split}.jsonl")
        make = sentiment_rows if task == "sentiment" else qa_rows
        parts[task, "probe"] = make(code, "probe", 300)
    parts["reference", "train"] = read(folder / "reference" / code / "train.jsonl")
    for (one, first), (two, second) in itertools.combinations(parts.items(), 2):
        assert not {meaning(row) for row in first} & {meaning(row) for row in second}, (one, two)
        assert not sentences(first) & sentences(second), (one, two)


def sentences(rows):
    """The first sentence of each row, which says its story or review (states repeat, and are no item)."""
    return {re.split(r"(?<=\.) ", surface(row))[0] for row in rows}


@pytest.mark.slow  # those of one seed are below
def test_splits_are_disjoint_across_seeds():
    for make in (sentiment_rows, qa_rows):
        test = {meaning(row) for row in make("en", "test", 300, seed=0)}
        for seed, split in itertools.product((1, 2), ("train", "validation")):
            assert not test & {meaning(row) for row in make("en", split, SIZES[split], seed=seed)}


@pytest.mark.slow  # reads all that the shipped backbone was pretrained on
def test_pretraining_has_no_meaning_of_another_split(pretraining, folder):
    assert {split_of(document.meaning) for document in pretraining} == {"pretraining"}
    seen = {meaning_id(document.meaning) for document in pretraining}
    held_out = [row for path in folder.rglob("en/*.jsonl") for row in read(path)]
    assert not seen & {meaning(row) for row in held_out}


@pytest.mark.slow  # reads all that the shipped backbone was pretrained on
def test_pretraining_has_no_sentence_of_another_split(pretraining, folder):
    said = {
        sentence
        for document in pretraining
        for side in document.text.split(" = ")
        for sentence in re.split(r"(?<=[.?]) ", side)
    }
    assert any(" ist " in sentence for sentence in said)
    for path in folder.glob(
        "*/*/*.jsonl"
    ):  # not the translations: a wrong word may make another sentence of one
        assert not said & sentences(read(path)), path


@pytest.mark.slow  # reads all that the shipped backbone was pretrained on
def test_pretraining_shows_the_task_formats_and_alignment_in_every_language(pretraining):
    texts = [document.text for document in pretraining]
    for grammar in GRAMMARS.values():
        asking = [
            text
            for text in texts
            if " Q: " in text and grammar.ask_colour("book", grammar.the("book")) in text
        ]
        assert asking
        rated = [text for text in texts if " Rating: " in text and grammar.subject("book") in text]
        assert rated
    pairs = [text for text in texts if " = " in text]
    assert 0.08 < len(pairs) / len(texts) < 0.12
    switched = [text for text in texts if " and " in text and set(words(text)) & {"ni", "si"}]
    assert len(switched) > 20


@pytest.mark.parametrize("code", LANGUAGES)
def test_reference_text_gives_no_task_away(code):
    for row in reference_rows(code, 2000):
        said = set(words(row["text"]))
        assert not said & set("?¿:=")
        assert not said & {"Q", "A", "Rating"}
        assert not said & {*LABEL_WORDS, *LABEL_WORDS.values()}
        for prompt in (SENTIMENT_PROMPT, QA_PROMPT):
            marks = set(words(re.sub(r"\{\w+\}", " ", prompt)))
            assert not said & marks


@pytest.mark.parametrize("code", LANGUAGES)
def test_reference_text_never_answers(code):
    """No sentence of it is a bare word, as an answer is; every sentence is a story, a state or an opinion."""
    grammar = GRAMMARS[code]
    answers = {grammar.thing_word(thing) for thing in THINGS} | {
        grammar.place_word(place) for place in PLACES
    }
    for row in reference_rows(code, 500):
        assert row["text"].endswith(".")
        for sentence in re.split(r"(?<=\.) ", row["text"]):
            assert sentence.strip(".") not in answers
            assert len(sentence.split()) >= 3


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_label_words_are_no_words_of_a_review(code):
    said = {word for row in sentiment_rows(code, "train", 2000) for word in words(row["text"])}
    assert not said & {*LABEL_WORDS.values(), *LABEL_WORDS}


@pytest.mark.slow  # writes all files twice more
def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    write_data(tmp_path / "again", seed=0)
    write_data(tmp_path / "other", seed=1)
    assert sha256_folder(tmp_path / "again") == sha256_folder(folder) != sha256_folder(tmp_path / "other")


def test_an_output_that_exists_is_refused_and_left_alone(tmp_path):
    kept = tmp_path / "data"
    kept.mkdir()
    (kept / "half.jsonl").write_text("{")
    with refused("/data", "exists already"):
        write_data(kept)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "half.jsonl"]


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("/file/data", "cannot be written", mend="output"):
        write_data(tmp_path / "file" / "data")


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lingualift.miniworld.data._write_rows", broken)
    with refused("/data", "space", mend="free some space"):
        write_data(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_rows_cannot_be_spoiled_by_their_reader():
    sentiment_rows("en", "test", 5)[0]["text"] = "spoiled"
    assert sentiment_rows("en", "test", 5)[0]["text"] != "spoiled"
