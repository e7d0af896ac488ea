"""What a check of an experiment measures: one record per language, per task and language, and per pair of row sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lingualift.checking.overlap import Match
from lingualift.checking.spelling import LOST_NOTED, Spelling
from lingualift.provenance import finite


@dataclass(frozen=True)
class LanguageRecord:
    """A language's text, how the tokenizer spells a sample of it, and how well the backbone knows it.

    Attributes:
        language: Code as in the experiment.
        origin: Where the text comes from: "reference", or the task whose rows stand in for it.
        texts: Texts in all.
        spelling: Counts over the sample.
        spaced: Whether spaces part words in its script.
        relative: Tokens relative to the source language: of the same sentences if `parallel`, else per word. None where
            neither can be told, and for the source language itself.
        parallel: Whether `relative` compares translations.
        longest: Tokens of the longest text of the sample.
        nats: Mean negative log-likelihood of a token under the plain backbone, natural logarithm; NaN if it gives none,
            None if it is an encoder without a head for words.
    """

    language: str
    origin: str
    texts: int
    spelling: Spelling
    spaced: bool
    relative: float | None
    parallel: bool
    longest: int
    nats: float | None

    @property
    def tokens(self) -> int:
        """Tokens in all, estimated from the sample."""
        return round(self.spelling.tokens * self.texts / self.spelling.texts)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "language": self.language,
            "origin": self.origin,
            "texts": self.texts,
            "tokens": self.tokens,
            "tokens_per_word": self.spelling.per_word if self.spaced else None,
            "tokens_per_character": self.spelling.per_character,
            "relative_tokens": self.relative,
            "parallel": self.parallel,
            "unknown_share": self.spelling.unknown_share,
            "piece_share": self.spelling.piece_share,
            "lost_share": self.spelling.lost_share,
            "longest": self.longest,
            "perplexity": finite(self.perplexity),
            "bits_per_character": finite(self.bits_per_character),
            "bits_per_byte": finite(self.bits_per_byte),
            "sample": asdict(self.spelling),
        }

    @property
    def perplexity(self) -> float:
        """Of a token; comparable between models with one tokenizer, not between languages. NaN where there is none."""
        return math.nan if self.nats is None else math.exp(self.nats)

    @property
    def bits_per_character(self) -> float:
        """Perplexity without the tokenizer, for languages of one script; NaN where letters are lost."""
        return self._bits() / max(1, self.spelling.characters)

    @property
    def bits_per_byte(self) -> float:
        """As lm-evaluation-harness reports it; NaN where letters are lost."""
        return self._bits() / max(1, self.spelling.bytes)

    def _bits(self) -> float:
        """Of the whole sample. An unknown token is cheap to predict and says nothing, so its bits are no measure."""
        if self.nats is None or self.spelling.lost_share > LOST_NOTED:
            return math.nan
        return self.nats / math.log(2) * self.spelling.tokens


@dataclass(frozen=True)
class Vanilla:
    """The plain backbone on a sample of a task's rows.

    Attributes:
        split: Where the sample comes from.
        n: Rows.
        metric: The task's first metric.
        score: Percent.
        stderr: Standard error in points, None for a single row.
        chance: Percent that guessing scores.
        malformed: Answers that could not be read.
    """

    split: str
    n: int
    metric: str
    score: float
    stderr: float | None
    chance: float
    malformed: int

    @property
    def headroom(self) -> float:
        """Points up to 100."""
        return 100 - self.score


@dataclass(frozen=True)
class TaskRecord:
    """A task in a language.

    Attributes:
        task: Task.
        language: Code as in the experiment.
        rows: Split -> rows, for the splits that the experiment reads.
        labels: Split -> label -> rows, in the order of the choices; empty where answers are generated.
        limits: Split -> tokens that `max_length` allows there.
        cut: Split -> share of its rows, in a sample, that are longer.
        longest: Tokens of the longest prompt with its answer, uncut, in those samples.
        vanilla: The plain backbone's score; None for an encoder, which has no head to answer with.
    """

    task: str
    language: str
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    limits: Mapping[str, int]
    cut: Mapping[str, float]
    longest: int
    vanilla: Vanilla | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {**asdict(self), "headroom": self.vanilla.headroom if self.vanilla else None}


@dataclass(frozen=True)
class OverlapRecord:
    """A task's test items in a language against what adapters learn from.

    Attributes:
        task: Task.
        language: Language of the test items.
        against: "reference text", or a split of the task and its language.
        items: Test items.
        texts: Texts or rows they were looked for in.
        matches: Those that were found.
        aside: Whether the others were put aside out of the test rows, one by one.
    """

    task: str
    language: str
    against: str
    items: int
    texts: int
    matches: tuple[Match, ...]
    aside: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)
