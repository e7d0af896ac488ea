"""Each method against a baseline, with the uncertainty of the difference: a paired bootstrap. Pure: numpy only.

A draw takes the test items of a language with replacement, the same ones for both methods and all seeds, and takes
one seed fewer than there are, with replacement, the same ones for both methods and all languages. The metric is
computed anew on every draw; the interval holds the middle 95% of the differences.

One seed fewer, because S draws of S seeds understate the variance over seeds by the factor (S - 1) / S, half of it for
two seeds (Rao and Wu 1988, https://doi.org/10.1080/01621459.1988.10478591). What is particular to an item and a seed
is counted twice, which errs on the safe side (Owen 2007, https://doi.org/10.1214/07-AOAS122).
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lingualift.metrics.scores import METRICS

Row = Mapping[str, Any]
Answers = Sequence[Mapping[str, Any]]
BASELINE = "source-ft"
_DRAWS = 2000
_BLOCK = 2**23  # counts in memory at once: 64 MiB
_DIGITS = 6  # of a percent point: what is equal is equal, whatever the order of the sums


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline.

    Attributes:
        task: Task.
        metric: Metric, one of the task's.
        method: Method.
        variant: Its variant.
        where: A language, or the name of an average of languages.
        gain: Mean difference over seeds, in percent points.
        low: Lower end of its 95% interval.
        high: Upper end.
        seeds: Seeds of adapters; for one seed, the interval says nothing about how much training varies.
        n: Test items, those of all languages of an average together.
        grid: Where on the experiment's grid both stand: axis -> name of its value.
    """

    task: str
    metric: str
    method: str
    variant: str
    where: str
    gain: float
    low: float
    high: float
    seeds: int
    n: int
    grid: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def verdict(self) -> Literal["above", "level with", "below"]:
        """Where the method stands, level with the baseline if the interval holds 0."""
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "level with"


def compare(
    rows: Sequence[Row],
    answers: Callable[[Row], Answers],
    averages: Mapping[str, Sequence[str]],
    baseline: str = BASELINE,
) -> list[Comparison]:
    """Every method against a baseline, by every metric, in every language and average that both have.

    An average is compared over the seeds that have all of its languages. Rows without a seed, those of the plain
    backbone, stand beside every seed.

    Args:
        rows: Rows of `results.json`.
        answers: A row's predictions, with `id`, `gold` and `prediction` each.
        averages: Name -> languages.
        baseline: A method that has no variants.

    Returns:
        Comparisons in the order of the rows' metrics and methods, languages before averages.
    """
    found: list[Comparison] = []
    everything = _scored(rows, answers)
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        scored = {cell[2:]: one for cell, one in everything.items() if cell[:2] == (task, metric)}
        places = {language: (language,) for language in dict.fromkeys(row["language"] for row in mine)}
        for method, variant in dict.fromkeys((row["method"], row["variant"]) for row in mine):
            if method == baseline:
                continue
            for where, languages in {**places, **averages}.items():
                pairs = _pairs(scored, (method, variant), baseline, languages)
                if pairs:
                    found.append(Comparison(task, metric, method, variant, where, *_difference(pairs)))
    return found


def with_rows(averages: Mapping[str, Sequence[str]], rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """Averages over those of their languages that any row is in; those of none are left out."""
    there = {row["language"] for row in rows}
    found = {name: tuple(code for code in members if code in there) for name, members in averages.items()}
    return {name: members for name, members in found.items() if members}


def paired(metric: str, language: str, before: Answers, after: Answers) -> tuple[float, float, float]:
    """Gain of one set of answers over another to the same items, and its 95% interval over items: gain, low, high."""
    ids = tuple(answer["id"] for answer in before)
    scored = []
    for answers in (after, before):
        golds = [tuple(answer["gold"]) for answer in answers]
        score = METRICS[metric].score([answer["prediction"] for answer in answers], golds, language).value
        draws = [_resampled(metric, language, answers, counts) for counts in item_draws(ids)]
        scored.append(_Scored(tuple(answer["id"] for answer in answers), score, np.concatenate(draws)))
    return _difference([[(scored[0], scored[1])]])[:3]


def intervals(
    rows: Sequence[Row], answers: Callable[[Row], Answers], places: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, float, float]]:
    """Mean scores of one method on one task by one metric, and their 95% intervals, as `compare` has those of gains.

    Args:
        rows: Its rows of `results.json`.
        answers: A row's predictions, with `id`, `gold` and `prediction` each.
        places: Name -> languages of which the mean is taken.

    Returns:
        Name -> mean over the seeds that have all of the languages, and the ends of its interval; none without a seed.
    """
    scored = {cell[-2:]: one for cell, one in _scored(rows, answers).items()}
    found = {}
    for name, languages in places.items():
        by_seed = [
            [scored[code, seed] for code in languages]
            for seed in dict.fromkeys(seed for _, seed in scored)
            if all((code, seed) in scored for code in languages)
        ]
        if by_seed:
            found[name] = _spread(by_seed)[:3]
    return found


_Cell = tuple[str, str, str, int | None]  # method, variant, language, seed


@dataclass(frozen=True)
class _Scored:
    """A row's score, on its test items and on each resample of them (draws,)."""

    ids: tuple[str, ...]
    score: float
    draws: np.ndarray


def _scored(rows: Sequence[Row], answers: Callable[[Row], Answers]) -> dict[tuple[Any, ...], _Scored]:
    """Task, metric and cell -> scores; rows with the same items share their draws."""
    by_items: dict[tuple[str, ...], list[tuple[Row, Answers]]] = {}
    for row in rows:
        found = answers(row)
        by_items.setdefault(tuple(answer["id"] for answer in found), []).append((row, found))
    scored = {}
    for ids, members in by_items.items():
        blocks = [
            [_resampled(row["metric"], _spoken(row), found, counts) for row, found in members]
            for counts in item_draws(ids)
        ]
        for (row, _), draws in zip(members, np.concatenate(blocks, axis=1), strict=True):
            names = ("task", "metric", "method", "variant", "language", "seed")
            scored[tuple(row[name] for name in names)] = _Scored(ids, row["score"], draws)
    return scored


def _spoken(row: Row) -> str:
    """The language that answers are in, by which metrics read them: of translations, another than the row's."""
    return str(row.get("answer_language", row["language"]))


def _resampled(metric: str, language: str, answers: Answers, counts: np.ndarray) -> np.ndarray:
    golds = [tuple(answer["gold"]) for answer in answers]
    return METRICS[metric].resampled([answer["prediction"] for answer in answers], golds, language, counts)


def _pairs(
    scored: Mapping[_Cell, _Scored], method: tuple[str, str], baseline: str, languages: Iterable[str]
) -> list[list[tuple[_Scored, _Scored]]]:
    """Seed -> language -> the method's and the baseline's scores, for seeds that have all languages."""
    chosen = tuple(languages)
    seeds = dict.fromkeys(seed for name, _, _, seed in scored if name == baseline)
    found = []
    for seed in seeds:
        cells = [
            (_one(scored, (*method, code), seed), _one(scored, (baseline, "", code), seed)) for code in chosen
        ]
        whole = [(one, base) for one, base in cells if one is not None and base is not None]
        if len(whole) == len(chosen):
            found.append(whole)
    return found


def _one(scored: Mapping[_Cell, _Scored], cell: tuple[str, str, str], seed: int | None) -> _Scored | None:
    return scored.get((*cell, seed)) or scored.get((*cell, None))


def _difference(pairs: list[list[tuple[_Scored, _Scored]]]) -> tuple[float, float, float, int, int]:
    """Gain, low, high, seeds and n of pairs by seed and language."""
    for one, base in (pair for of_seed in pairs for pair in of_seed):
        if one.ids != base.ids:
            raise ValueError("two methods were scored on different items of one language")
    return _spread(
        [
            [_Scored(one.ids, one.score - base.score, one.draws - base.draws) for one, base in of_seed]
            for of_seed in pairs
        ]
    )


def _spread(found: list[list[_Scored]]) -> tuple[float, float, float, int, int]:
    """Mean, low, high, seeds and n of scores by seed and language."""
    mean = statistics.fmean(one.score for of_seed in found for one in of_seed)
    by_seed = np.array([np.mean([one.draws for one in of_seed], axis=0) for of_seed in found])
    drawn = np.einsum("sd,ds->d", by_seed, seed_draws(len(found)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _rounded(mean), _rounded(low), _rounded(high), len(found), sum(len(one.ids) for one in found[0])


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # no -0.0


def item_draws(ids: Sequence[str]) -> Iterator[np.ndarray]:
    """How often each item is drawn: blocks of shape (draws, n), 2000 draws in all.

    The draws follow from the ids alone. Parallel languages, which share ids, are therefore resampled together, and
    languages with ids of their own apart.
    """
    n = len(ids)
    seed = hashlib.sha256("\0".join(ids).encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))
    size = max(1, min(_DRAWS, _BLOCK // n))
    for start in range(0, _DRAWS, size):
        draws = min(size, _DRAWS - start)
        items = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
        yield np.bincount(items.ravel(), minlength=draws * n).reshape(draws, n).astype(float)


def seed_draws(seeds: int) -> np.ndarray:
    """The weight of each seed in each draw, of shape (2000, seeds): shares of `seeds - 1` drawn with replacement."""
    if seeds == 1:
        return np.ones((_DRAWS, 1))
    drawn = np.random.default_rng(seeds).multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=_DRAWS)
    return np.asarray(drawn / (seeds - 1))
