"""Batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from lingualift.backbone.devices import clear_memory, out_of_memory
from lingualift.errors import UserError
from lingualift.fusion.layer import tentative

Item = TypeVar("Item")
Result = TypeVar("Result")
_LOG = logging.getLogger("lingualift.evaluation")
_FULL = 1024  # tokens that keep a device busy: with so many, a batch may end before rows that would pad it
_PADDED = 1 + 1 / 16  # how many times its own tokens such a batch may have with its padding


def in_batches(
    items: Sequence[Item],
    size: int,
    answer: Callable[[Sequence[Item]], Result],
    length: Callable[[Item], int] | None = None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Answer items in batches, from there on half as many at once where memory runs out.

    Args:
        items: In the order in which they are answered.
        size: Items per batch, at most.
        answer: Called with each batch.
        length: Tokens of an item, where items are padded to the longest of their batch: a batch of many tokens ends
            before padding costs more than a further batch.

    Yields:
        Each batch and what `answer` made of it.

    Raises:
        UserError: a single item does not fit.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        if length is not None:
            batch = batch[: _unpadded([length(item) for item in batch])]
        try:
            with tentative():
                result = answer(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
        else:
            yield batch, result
            start += len(batch)
            continue
        if len(batch) == 1:  # out of the handler, whose traceback holds on to tensors
            mend = "lower `max_length`, or take a smaller backbone"
            raise UserError("scoring", "ran out of memory with a single row", mend=mend)
        size = len(batch) // 2
        _LOG.warning("out of memory with %d rows at once: goes on with %d", len(batch), size)
        clear_memory()


def _unpadded(lengths: Sequence[int]) -> int:
    """How many of the items to take at once."""
    longest = tokens = 0
    for count, length in enumerate(lengths):
        longest, tokens = max(longest, length), tokens + length
        padded = longest * (count + 1)
        if count and padded > max(_FULL, _PADDED * tokens):
            return count
    return len(lengths)
