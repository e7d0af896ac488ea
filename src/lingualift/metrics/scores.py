"""Scores of predictions, with their standard error and the score of guessing. Pure: no model, no tokenizer.

Every metric takes `predictions` (None is a malformed answer, which is wrong) and `golds` (the accepted answers of each
item) of equal length n, with the code of the language they are in, and returns percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lingualift.metrics.numbers import number_match
from lingualift.metrics.rouge import rouge_l
from lingualift.metrics.squad import squad_em, squad_f1
from lingualift.registry import Registry

Predictions = Sequence[str | None]
Golds = Sequence[tuple[str, ...]]
Worth = Callable[[str, tuple[str, ...], str], float]
_RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A metric's value.

    Attributes:
        value: Percent, 0 to 100.
        stderr: Standard error over items, in percent points; NaN for a single item.
    """

    value: float
    stderr: float


@dataclass(frozen=True)
class Metric:
    """A metric and what guessing scores on it.

    Attributes:
        worth: A well-formed prediction, its item's accepted answers and the language -> what it is worth, 0 to 1.
        score: Predictions, golds and the language -> value and standard error.
        resampled: Predictions, golds, the language and how often each item was drawn, of shape (draws, n) -> the value
            on each of these samples, in percent, of shape (draws,).
        chance: Golds and the number of choices (0: free text) -> expected percent of uniform guessing.
        source: Where the metric is defined.
    """

    worth: Worth
    score: Callable[[Predictions, Golds, str], Score]
    resampled: Callable[[Predictions, Golds, str, np.ndarray], np.ndarray]
    chance: Callable[[Golds, int], float]
    source: str

    def is_right(self, prediction: str | None, gold: tuple[str, ...], language: str) -> bool:
        """Whether an answer is worth all there is to have; a malformed one (None) is not."""
        return prediction is not None and self.worth(prediction, gold, language) == 1


METRICS: Registry[Metric] = Registry("metric")


def same(prediction: str, gold: tuple[str, ...], language: str) -> float:
    """1 if the prediction is one of the accepted answers, letter by letter, in any language; else 0."""
    return float(prediction in gold)


def mean_of(worth: Worth, source: str) -> Metric:
    """The metric that is the mean of what each answer is worth; a malformed answer is worth nothing.

    The standard error is that of a mean, s / sqrt(n), with n - 1 under s.
    """

    def values(predictions: Predictions, golds: Golds, language: str) -> np.ndarray:
        _check(predictions, golds)
        pairs = zip(predictions, golds, strict=True)
        return np.array([0.0 if one is None else worth(one, gold, language) for one, gold in pairs])

    def score(predictions: Predictions, golds: Golds, language: str) -> Score:
        found = values(predictions, golds, language)
        n = len(found)
        stderr = float(found.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return Score(100 * float(found.mean()), 100 * stderr)

    def resampled(predictions: Predictions, golds: Golds, language: str, counts: np.ndarray) -> np.ndarray:
        return np.asarray(100 * (counts @ values(predictions, golds, language) / counts.sum(axis=1)))

    return Metric(worth, score, resampled, _guess_right, source)


def macro_f1(predictions: Predictions, golds: Golds, language: str) -> Score:
    """Unweighted mean of the classes' F1; its standard error by the bootstrap over items (1000 draws, fixed seed).

    Classes are those that occur among golds and predictions, as in scikit-learn's `f1_score(average="macro")`;
    a malformed answer belongs to none of them. The language is of no matter.
    """
    _check(predictions, golds)
    given, true = _classes(predictions, golds)
    n, k = len(golds), int(max(given.max(), true.max())) + 1
    confusion = np.zeros((k, k + 1))  # rows: gold; columns: predicted, the last one malformed
    np.add.at(confusion, (true, given), 1)  # malformed is -1, the last column
    draws = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, size=_RESAMPLES)
    spread = _of_confusions(draws.reshape(_RESAMPLES, k, k + 1)).std(ddof=1) if n > 1 else math.nan
    return Score(100 * float(_of_confusions(confusion[None])[0]), 100 * float(spread))


def resampled_macro_f1(
    predictions: Predictions, golds: Golds, language: str, counts: np.ndarray
) -> np.ndarray:
    """Macro-F1 on each resample; `counts` has shape (draws, n). A class absent from a draw is left out of its mean."""
    _check(predictions, golds)
    given, true = _classes(predictions, golds)
    classes = np.arange(max(given.max(), true.max()) + 1)
    is_given, is_true = (found[:, None] == classes for found in (given, true))  # one-hot, (n, k)
    hits, total = counts @ (is_given & is_true).astype(float), counts @ (is_given.astype(float) + is_true)
    return 100 * _mean_f1(hits, total)


def _classes(predictions: Predictions, golds: Golds) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the given and the true class of each item, in the order of the labels; -1 is a malformed answer."""
    true = [gold[0] for gold in golds]
    labels = sorted({*true, *(name for name in predictions if name is not None)})
    place: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    place[None] = -1
    return np.array([place[name] for name in predictions]), np.array([place[name] for name in true])


def _of_confusions(confusions: np.ndarray) -> np.ndarray:
    """Macro-F1 of confusion matrices of shape (draws, k, k + 1)."""
    known = confusions[:, :, :-1]
    return _mean_f1(np.einsum("bii->bi", known), confusions.sum(axis=2) + known.sum(axis=1))


def _mean_f1(hits: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of 2 · hits / (times true + times given); both of shape (draws, k)."""
    f1 = np.divide(2 * hits, total, out=np.zeros(hits.shape), where=total > 0)
    return np.asarray(f1.sum(axis=1) / (total > 0).sum(axis=1))


def _guess_right(golds: Golds, choices: int) -> float:
    """Guessing one of k choices is right once in k; guessing free text is never right."""
    return 100 / choices if choices else 0.0


def _guess_f1(golds: Golds, choices: int) -> float:
    """Expected macro-F1 of guessing: a class of share p has precision p and recall 1/k, so F1 = 2p / (kp + 1)."""
    if not choices:
        return 0.0
    labels = [gold[0] for gold in golds]
    shares = [labels.count(label) / len(labels) for label in sorted(set(labels))]
    return 100 * sum(2 * share / (choices * share + 1) for share in shares) / choices


def _check(predictions: Predictions, golds: Golds) -> None:
    if len(predictions) != len(golds) or not golds:
        raise ValueError(f"{len(predictions)} predictions for {len(golds)} items; need as many, at least one")


METRICS.register("accuracy")(mean_of(same, "share of correct answers"))
METRICS.register("exact_match")(mean_of(same, "share of answers equal to an accepted one, letter by letter"))
METRICS.register("macro_f1")(
    Metric(
        same,
        macro_f1,
        resampled_macro_f1,
        _guess_f1,
        "https://scikit-learn.org/stable/modules/model_evaluation.html",
    )
)
METRICS.register("squad_em")(mean_of(squad_em, "https://arxiv.org/abs/1910.07475"))
METRICS.register("squad_f1")(mean_of(squad_f1, "https://arxiv.org/abs/1910.07475"))
METRICS.register("rouge_l")(mean_of(rouge_l, "https://aclanthology.org/W04-1013"))
METRICS.register("number_match")(mean_of(number_match, "https://arxiv.org/abs/2210.03057"))
