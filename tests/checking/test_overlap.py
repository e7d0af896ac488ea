"""Test items in text: planted ones are found under another dress, neighbours that say something else are not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingualift.checking.overlap import Item, find_overlap
from lingualift.miniworld.data import qa_rows, reference_rows, sentiment_rows

TEXT = "The committee met on Monday, and it decided that the old bridge over the river must be closed."
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"


def items(*texts):
    return [
        Item(f"file:{number}", (text,) if isinstance(text, str) else text)
        for number, text in enumerate(texts, 1)
    ]


def found(test, *others, **more):
    return [
        (match.item, match.other, match.equal) for match in find_overlap(items(test), items(*others), **more)
    ]


@pytest.mark.parametrize(
    "other",
    [
        TEXT,
        TEXT.upper(),
        TEXT.replace(" ", "\n\t "),
        TEXT.replace(",", "").replace(".", " !"),
        TEXT.replace("old", "ｏｌｄ"),  # compatibility forms
    ],
)
def test_an_item_is_found_in_another_dress(other):
    assert found(TEXT, "something else altogether", other) == [("file:1", "file:2", True)]


def test_an_item_inside_a_longer_text_is_found():
    assert found(TEXT, f"He wrote: “{TEXT}” Nobody answered.") == [("file:1", "file:1", False)]


def test_an_item_cut_into_two_rows_is_found_where_it_begins():
    long = " ".join(f"word{number}" for number in range(60))
    first, second = long[: len(long) // 2], long[len(long) // 2 :]
    assert found(long, "nothing", first, second) == [("file:1", "file:2", False)]


def test_a_neighbour_that_says_something_else_is_not_found():
    assert found(TEXT, TEXT.replace("bridge", "road")) == []
    assert found(TEXT, " ".join(reversed(TEXT.split()))) == []


def test_three_of_four_ngrams_are_a_neighbours():
    words = [f"word{number}" for number in range(11)]
    assert found(" ".join(words), " ".join([*words[:-1], "other"])) == []
    assert found(" ".join([*words, "word11"]), " ".join([*words, "other"])) == [("file:1", "file:1", False)]


def test_short_items_are_compared_as_a_whole_only():
    assert found("very good", "it was very good indeed and I told everyone so") == []
    assert found("Very good!", "very good") == [("file:1", "file:1", True)]
    assert found("the bridge must be closed", "He said that the bridge must be closed.") == [
        ("file:1", "file:1", False)
    ]


@pytest.mark.parametrize("text", ["👍", "…", " "])
def test_rows_without_a_word_equal_nothing(text):
    assert found(text, text, "…") == []


def test_vowel_signs_are_letters_and_apostrophes_part_no_words():
    assert found("किताब", "कताब") == []
    assert found("n'est pas", "nest pas") == [("file:1", "file:1", True)]


def test_scripts_without_spaces_are_compared_by_characters():
    assert found(THAI, f"ข้อ ๑ {THAI} ต่างมี", spaced=False) == [("file:1", "file:1", False)]
    assert found(THAI, THAI[: len(THAI) // 2], spaced=False) == []
    assert found(THAI, f"ข้อ ๑ {THAI} ต่างมี") == []  # one word, as spaces have it


def test_a_rows_columns_count_together_and_one_of_them_may_be_elsewhere():
    row = (TEXT, "What was decided on Monday?")
    assert found(row, row) == [("file:1", "file:1", True)]
    assert found(row, TEXT) == [("file:1", "file:1", False)]  # the passage is 11 of its 12 n-grams
    assert found(row, row[1]) == []


def test_every_item_is_told_once_with_the_first_row_that_holds_it():
    test = items("a b c d e f g h", "other words stand in this one here", "a b c d e f g h")
    matches = find_overlap(test, items("x", "a b c d e f g h", "A b c d e f g h i"))
    assert [(match.item, match.other) for match in matches] == [("file:1", "file:2"), ("file:3", "file:2")]


def naive(test, others):
    """The rule in plain words, over strings."""
    told = []
    grams_of = [
        {tuple(other.split()[i : i + n]) for other in others for i in range(len(other.split()) - n + 1)}
        for n in range(9)
    ]
    for number, item in enumerate(test, 1):
        words = item.split()
        n = min(8, len(words))
        grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n >= 4 else set()
        inside = len(grams & grams_of[n])
        if item in others or (grams and inside / len(grams) >= 0.8):
            told.append(f"file:{number}")
    return told


sentences = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=14).map(" ".join), max_size=8)


@given(test=sentences, others=sentences)
def test_it_is_the_rule_in_plain_words(test, others):
    assert [match.item for match in find_overlap(items(*test), items(*others))] == naive(test, others)


@pytest.mark.parametrize("language", ["en", "fr", "sw"])
def test_meanings_that_were_held_out_are_not_taken_for_leaks(language):
    """Sentences of the mini-world differ by a word or two; no meaning is in two splits."""
    reference = [Item("reference", (row["text"],)) for row in reference_rows(language, 2000)]
    reviews = [Item("test", (row["text"],)) for row in sentiment_rows(language, "test", 300)]
    train, test = (
        [Item(split, (row["context"], row["question"])) for row in qa_rows(language, split, 300)]
        for split in ("train", "test")
    )
    assert (
        find_overlap(reviews, reference) == find_overlap(test, reference) == find_overlap(test, train) == []
    )
    assert len(find_overlap(reviews, [*reference, *reviews[:7]])) == 7


def test_time_grows_with_the_text_and_not_with_its_square():
    def seconds(count):
        rows = items(*(f"{TEXT} {number} {number + 1} {number + 2}" for number in range(count)))
        began = time.process_time()
        find_overlap(rows, rows)
        return time.process_time() - began

    seconds(100)
    assert seconds(4000) < 40 * max(seconds(400), 0.01)
