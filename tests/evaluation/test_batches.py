"""Batches: every item once and in order, and little padding where there is enough to do."""

from hypothesis import given
from hypothesis import strategies as st

from lingualift.evaluation.likelihood import in_batches

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=200)


def taken(lengths, size):
    batches = in_batches(range(len(lengths)), size, tuple, lengths.__getitem__)
    return [[lengths[index] for index in batch] for batch, _ in batches]


@given(LENGTHS, st.integers(1, 70))
def test_every_item_is_answered_once_and_in_order(lengths, size):
    batches = taken(lengths, size)
    assert [length for batch in batches for length in batch] == lengths
    assert all(1 <= len(batch) <= size for batch in batches)


@given(LENGTHS, st.integers(1, 70))
def test_a_batch_of_many_tokens_is_hardly_padded_and_any_other_ends_for_a_reason(lengths, size):
    lengths.sort()
    batches = taken(lengths, size)
    for batch, following in zip(batches, [*batches[1:], [None]], strict=True):
        padded = len(batch) * batch[-1]
        assert len(batch) == 1 or padded <= max(1024, 17 / 16 * sum(batch))
        longer = (len(batch) + 1) * (following[0] or 0)
        assert len(batch) == size or following == [None] or longer > 1024


def test_without_lengths_a_batch_is_as_large_as_asked():
    assert [batch for batch, _ in in_batches([1, 2000, 3], 2, tuple)] == [[1, 2000], [3]]
