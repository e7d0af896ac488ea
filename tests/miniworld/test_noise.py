"""Worse translations: what holds of any text, share and seed."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingualift.miniworld.noise import noisy

OTHERS = ["x0", "x1", "x2", "x3"]  # no text below has these
TEXTS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=30).map(" ".join)
SHARES = st.floats(0, 1)


@given(st.text().filter(str.strip), st.text())
def test_share_0_is_the_identity(text, seed):
    assert noisy(text, 0, seed, OTHERS) == text


@given(TEXTS, SHARES, st.text())
def test_words_are_kept_in_order_dropped_or_replaced_by_the_vocabulary(text, share, seed):
    words, left = text.split(), noisy(text, share, seed, OTHERS).split()
    assert left
    assert len(left) <= len(words)
    kept = [word for word in left if word not in OTHERS]
    rest = iter(words)
    assert all(word in rest for word in kept)
    hit = len(words) - len(kept)
    assert share * len(words) - 1 < hit < share * len(words) + 1
    dropped, replaced = len(words) - len(left), len(left) - len(kept)
    assert abs(dropped - replaced) <= 1 or (len(words) == 1 and not dropped)


@given(TEXTS, SHARES, st.text())
def test_the_seed_decides(text, share, seed):
    assert noisy(text, share, seed, OTHERS) == noisy(text, share, seed, OTHERS)


@given(TEXTS, st.text())
def test_share_1_leaves_no_word_as_it_was(text, seed):
    assert set(noisy(text, 1, seed, OTHERS).split()) <= set(OTHERS)


@given(st.sampled_from("abc"), st.text())
def test_a_word_is_never_replaced_by_itself(word, seed):
    assert noisy(word, 1, seed, ["a", "b", "c"]) in {"a", "b", "c"} - {word}


def test_the_shares_hold_over_rows():
    """Hits are drawn anew for each row: the mean is the share, also where a row has a third of a word to hit."""
    rows, counts = 4000, Counter()
    for row in range(rows):
        left = noisy("a b c d e", 0.3, f"0 {row}", OTHERS).split()
        new = sum(word in OTHERS for word in left)
        counts += Counter(dropped=5 - len(left), replaced=new, **dict.fromkeys(left, 1))
    hits = rows * 5 * 0.3
    assert counts["dropped"] == pytest.approx(hits / 2, rel=0.05)
    assert counts["replaced"] == pytest.approx(hits / 2, rel=0.05)
    assert all(counts[word] == pytest.approx(hits / 8, rel=0.15) for word in OTHERS)
    assert all(counts[word] == pytest.approx(rows * 0.7, rel=0.05) for word in "abcde")


@pytest.mark.parametrize(
    ("text", "share", "vocabulary"),
    [(" ", 0.5, OTHERS), ("a b", 1.5, OTHERS), ("a b", -0.1, OTHERS), ("a b", 0.5, ["x"])],
)
def test_what_has_no_meaning_is_refused(text, share, vocabulary):
    with pytest.raises(ValueError, match="words"):
        noisy(text, share, "0", vocabulary)
