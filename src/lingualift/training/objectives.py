"""What encoders and encoder-decoders learn from raw text: masks, corrupted spans, continuations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingualift.encoding.text import IGNORED
from lingualift.errors import UserError

MASKED, CORRUPTED, SPAN_TOKENS, CONTINUED = 0.15, 0.15, 3, 0.2
"""Share of tokens that are masked, or cut out as spans; mean tokens of a span; share of a segment to be continued."""

Row = dict[str, list[int]]
Noise = Callable[[list[int], np.random.Generator], Row]


class Noised(Sequence[Row]):
    """Segments with fresh noise in every epoch, which follows from seed, epoch and place: a resumed epoch has it too.

    Args:
        segments: Token ids.
        noise: Makes a row of a segment by a random generator.
        seed: Seed of the noise.
    """

    def __init__(self, segments: Sequence[list[int]], noise: Noise, seed: int) -> None:
        self.segments, self.noise, self.seed, self.epoch = segments, noise, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, the first is 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: Any) -> Any:
        """The row of a segment, in the epoch that is set."""
        place = range(len(self))[index]
        return self.noise(self.segments[place], np.random.default_rng((self.seed, self.epoch, place)))


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, *, target: bool = False) -> Frame:
        """Told from an example: what stands around `a`, read by the encoder or, as target, written by the decoder."""
        word = tokenizer("a", add_special_tokens=False)["input_ids"]
        ids = tokenizer(text_target="a")["input_ids"] if target else tokenizer("a")["input_ids"]
        start = next(place for place in range(len(ids)) if ids[place : place + len(word)] == word)
        return cls(tuple(ids[:start]), tuple(ids[start + len(word) :]))

    def around(self, ids: Iterable[int]) -> list[int]:
        """The ids with the special tokens around them."""
        return [*self.before, *ids, *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def segments(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """Lay texts end to end, the end-of-text id between them, and cut the tape: all of `tokens` ids but the last.

    A last piece of fewer than two ids, of which nothing can be left out, is dropped.

    Raises:
        UserError: the tokenizer has neither an end-of-text nor a separator token.
    """
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "the backbone's tokenizer",
            "has neither an end-of-text nor a separator token, which stands between texts",
            "one of them",
            "name one in its tokenizer_config.json (`eos_token`)",
        )
    tape: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        tape += ([end] if tape else []) + list(ids)
    cut = [tape[start : start + tokens] for start in range(0, len(tape), tokens)]
    return [piece for piece in cut if len(piece) > 1] or cut


def masked(tokenizer: Any, texts: Sequence[str], tokens: int, seed: int) -> Noised:
    """Segments in which 15% of the tokens are to be filled in: 80% of them masked, 10% another token, 10% as they were.

    https://arxiv.org/abs/1810.04805, section 3.1. Special tokens are never among them.

    Args:
        tokenizer: Has a mask token.
        texts: At least one.
        tokens: Tokens per segment, special ones included.
        seed: Seed of the masks.

    Raises:
        UserError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "reference.task",
            "is masked-lm, and the tokenizer has no mask token",
            "one",
            "set `mask_token` in the tokenizer_config.json of the backbone, if it was pretrained with one",
        )
    frame, special, size = Frame.of(tokenizer), np.array(tokenizer.all_special_ids), len(tokenizer)

    def noise(segment: list[int], random: np.random.Generator) -> Row:
        ids = np.array(frame.around(segment))
        free = np.flatnonzero(~np.isin(ids, special))
        if not len(free):
            free = np.arange(len(frame.before), len(frame.before) + len(segment))
        chosen = free[random.random(len(free)) < MASKED]
        if not len(chosen):
            chosen = random.choice(free, 1)
        labels = np.full(len(ids), IGNORED)
        labels[chosen] = ids[chosen]
        kind = random.random(len(chosen))
        ids[chosen[kind < 0.8]] = tokenizer.mask_token_id
        other = chosen[(kind >= 0.8) & (kind < 0.9)]
        ids[other] = random.integers(size, size=len(other))
        return {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels.tolist()}

    return Noised(segments(tokenizer, texts, tokens - len(frame)), noise, seed)


def span_corruption(tokenizer: Any, texts: Sequence[str], tokens: int, seed: int) -> Noised:
    """Segments with spans cut out, each replaced by a sentinel; the target is the spans behind their sentinels.

    15% of the tokens, in spans of three on average (https://arxiv.org/abs/1910.10683, section 3.3.4).

    Raises:
        UserError: the tokenizer has no sentinels.
    """
    frame, target = Frame.of(tokenizer), Frame.of(tokenizer, target=True)
    sentinels = _sentinels(tokenizer)

    def noise(segment: list[int], random: np.random.Generator) -> Row:
        left: list[int] = []
        cut: list[int] = []
        place = 0
        spans = _spans(len(segment), random)
        for sentinel, (start, end) in zip(sentinels, spans, strict=False):
            left += [*segment[place:start], sentinel]
            cut += [sentinel, *segment[start:end]]
            place = end
        ids = frame.around([*left, *segment[place:]])
        closing = sentinels[len(spans) : len(spans) + 1]
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": target.around([*cut, *closing]),
        }

    return Noised(segments(tokenizer, texts, tokens - len(frame)), noise, seed)


def _spans(count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Places of a share of tokens in spans that never touch, drawn evenly among all ways to do so."""
    noisy = min(max(1, round(count * CORRUPTED)), count - 1)
    spans = min(max(1, round(noisy / SPAN_TOKENS)), count - noisy)
    lengths = _parts(noisy, spans, random)
    gaps = _parts(count - noisy, spans, random)
    ends = np.cumsum(gaps + lengths)
    return [(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Cut a whole number into so many parts of at least 1, all ways equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False) + 1)
    return np.diff([0, *cuts, total])


def _sentinels(tokenizer: Any) -> list[int]:
    """Ids of T5's sentinels, `<extra_id_0>` and so on.

    Raises:
        UserError: there is none.
    """
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while f"<extra_id_{len(found)}>" in vocabulary:
        found.append(vocabulary[f"<extra_id_{len(found)}>"])
    if not found:
        raise UserError(
            "reference.task",
            "span-corruption needs sentinels, which the tokenizer has not",
            "a T5 or mT5 tokenizer, with `<extra_id_0>`",
            "set `reference.task: prefix-lm`",
        )
    return found


def continued(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[Row]:
    """Segments to be continued: the encoder reads all but the last fifth, the decoder writes that."""
    frame, target = Frame.of(tokenizer), Frame.of(tokenizer, target=True)

    def rows() -> Iterator[Row]:
        for segment in segments(tokenizer, texts, tokens - len(frame)):
            split = len(segment) - max(1, round(len(segment) * CONTINUED))
            ids = frame.around(segment[:split])
            yield {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": target.around(segment[split:]),
            }

    return list(rows())
