"""Metrics against scikit-learn, against values worked out by hand, and against simulation."""

import math
import statistics
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from lingualift.metrics.scores import METRICS


def macro_f1(predictions, golds):
    return METRICS["macro_f1"].score(predictions, golds, "en")


def proportion(predictions, golds):
    return METRICS["accuracy"].score(predictions, golds, "en")


def is_correct(prediction, gold):
    return METRICS["exact_match"].is_right(prediction, gold, "en")


labels = st.sampled_from(["a", "b", "c"])
items = st.lists(st.tuples(st.one_of(labels, st.none()), labels), min_size=1, max_size=40)


def apart(pairs):
    return [prediction for prediction, _ in pairs], [(gold,) for _, gold in pairs]


@given(items)
def test_macro_f1_is_that_of_scikit_learn(pairs):
    predictions, golds = apart(pairs)
    true, told = [gold for (gold,) in golds], ["?" if p is None else p for p in predictions]
    classes = sorted({*true, *told} - {"?"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = f1_score(true, told, labels=classes, average="macro", zero_division=0)
    assert macro_f1(predictions, golds).value == pytest.approx(100 * expected)


@given(items)
def test_a_proportion_is_the_mean_with_the_error_of_a_mean(pairs):
    predictions, golds = apart(pairs)
    right = [float(prediction == gold) for prediction, (gold,) in zip(predictions, golds, strict=True)]
    found = proportion(predictions, golds)
    assert found.value == pytest.approx(100 * statistics.fmean(right))
    if len(right) == 1:
        assert math.isnan(found.stderr)
    else:
        expected = 100 * statistics.stdev(right) / math.sqrt(len(right))
        assert found.stderr == pytest.approx(expected, abs=1e-9)


def test_values_worked_out_by_hand():
    predictions, golds = apart([("a", "a"), ("a", "a"), ("b", "a"), (None, "b"), ("b", "b")])
    assert proportion(predictions, golds).value == pytest.approx(60)
    assert proportion(predictions, golds).stderr == pytest.approx(100 * math.sqrt(0.6 * 0.4 / 4))
    # a: 2 hits of 2 predicted and 3 true, F1 = 4/5; b: 1 hit of 2 predicted and 2 true, F1 = 1/2
    assert macro_f1(predictions, golds).value == pytest.approx(65)


@pytest.mark.parametrize("metric", [macro_f1, proportion])
def test_perfect_and_hopeless_answers(metric):
    golds = [("a",), ("b",), ("a",)]
    assert metric(["a", "b", "a"], golds).value == 100
    assert metric(["a", "b", "a"], golds).stderr == 0
    assert metric(["b", "a", "b"], golds).value == 0
    assert metric([None, None, None], golds).value == 0


@pytest.mark.parametrize("metric", [macro_f1, proportion])
def test_a_malformed_answer_never_scores_better_than_a_right_one(metric):
    golds = [("a",), ("b",), ("a",), ("b",)]
    assert metric(["a", "b", None, "b"], golds).value < metric(["a", "b", "a", "b"], golds).value


def test_any_accepted_answer_is_right_letter_by_letter():
    assert is_correct("two", ("2", "two"))
    assert not is_correct("Two", ("2", "two"))
    assert not is_correct("two ", ("2", "two"))
    assert not is_correct(None, ("2",))
    assert not is_correct("tw", ("two",))
    assert proportion(["two", "2", "3"], [("2", "two")] * 3).value == pytest.approx(200 / 3)


def test_the_first_accepted_answer_is_the_class_of_macro_f1():
    assert macro_f1(["a", "b"], [("a", "x"), ("b", "a")]).value == 100


@pytest.mark.parametrize("metric", [macro_f1, proportion])
@pytest.mark.parametrize(
    ("predictions", "golds"), [([], []), (["a"], []), ([], [("a",)]), (["a", "b"], [("a",)])]
)
def test_lists_that_do_not_match_are_our_error(metric, predictions, golds):
    with pytest.raises(
        ValueError, match=f"{len(predictions)} predictions for {len(golds)} items; need as many"
    ):
        metric(predictions, golds)


def test_the_error_of_macro_f1_is_the_spread_over_fresh_samples():
    """Draw many test sets from one population: their scores spread as the bootstrap of one says."""
    rng = np.random.default_rng(1)
    chances = {"a": [0.7, 0.2, 0.1], "b": [0.3, 0.5, 0.2], "c": [0.2, 0.2, 0.6]}

    def sample():
        true = rng.choice(["a", "b", "c"], size=150, p=[0.5, 0.3, 0.2])
        return [str(rng.choice(["a", "b", "c"], p=chances[gold])) for gold in true], [
            (str(gold),) for gold in true
        ]

    found = [macro_f1(*sample()) for _ in range(200)]
    spread = statistics.stdev(score.value for score in found)
    assert statistics.fmean(score.stderr for score in found) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("metric", "error"), [(proportion, 50), (macro_f1, None)])
def test_two_items_have_a_standard_error(metric, error):
    found = metric(["a", "b"], [("a",), ("a",)]).stderr
    assert found == pytest.approx(error) if error else found > 0


def test_the_error_of_macro_f1_is_repeatable_and_needs_two_items():
    predictions, golds = ["a", "b", "b", None], [("a",), ("a",), ("b",), ("b",)]
    assert macro_f1(predictions, golds) == macro_f1(predictions, golds)
    assert macro_f1(predictions, golds).stderr > 0
    assert math.isnan(macro_f1(["a"], [("a",)]).stderr)
    assert macro_f1(["a"], [("a",)]).value == 100


@pytest.mark.parametrize(("choices", "counts"), [(2, [500, 500]), (3, [700, 200, 100]), (4, [400, 300, 300])])
@pytest.mark.parametrize("name", ["accuracy", "exact_match", "macro_f1"])
def test_chance_is_what_guessing_scores(name, choices, counts):
    metric = METRICS[name]
    golds = [(f"label{index}",) for index, count in enumerate(counts) for _ in range(count)]
    rng = np.random.default_rng(0)
    scores = [
        metric.score([f"label{guess}" for guess in rng.integers(choices, size=len(golds))], golds, "en").value
        for _ in range(30)
    ]
    expected = metric.chance(golds, choices)
    if name == "macro_f1" and choices > len(counts):  # a class that is never gold has an F1 of nought
        assert expected == pytest.approx(statistics.fmean(scores), abs=1.5)
    else:
        assert expected == pytest.approx(statistics.fmean(scores), abs=1.0)


def test_chance_is_nought_for_free_text_and_one_in_k_for_choices():
    for _, metric in METRICS.items():
        assert metric.chance([("a",), ("b",)], 0) == 0
        assert metric.source
    assert METRICS["accuracy"].chance([("a",)] * 9, 4) == 25
    # two classes, evenly: precision 1/2, recall 1/2
    assert METRICS["macro_f1"].chance([("a",), ("b",)], 2) == pytest.approx(50)
    # one class of two: its F1 is 2 * 1 * .5 / 1.5, the other's 0
    assert METRICS["macro_f1"].chance([("a",), ("a",)], 2) == pytest.approx(100 / 3)


def test_the_metrics_are_registered():
    assert list(METRICS) == [
        "accuracy",
        "exact_match",
        "macro_f1",
        "squad_em",
        "squad_f1",
        "rouge_l",
        "number_match",
    ]
