"""The paired bootstrap against scikit-learn, brute force, formulas and simulation."""

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from lingualift.metrics.comparisons import Comparison, compare, item_draws, seed_draws
from lingualift.metrics.comparisons import paired as compare_answers
from lingualift.metrics.scores import METRICS

LABELS = ("a", "b", "c")


class World:
    """Rows and answers, written cell by cell."""

    def __init__(self, metric="accuracy"):
        self.metric, self.rows, self.answers = metric, [], {}

    def add(self, method, language, predictions, golds, *, seed=0, ids=None, variant="", spoken=None):
        ids = ids or [f"{language}-{index}" for index in range(len(golds))]
        name = f"{method}{variant}{language}{seed}"
        value = METRICS[self.metric].score(predictions, [(gold,) for gold in golds], spoken or language).value
        self.rows.append(
            {"task": "t", "metric": self.metric, "method": method, "variant": variant, "language": language}
            | {"seed": seed, "score": value, "predictions": name}
            | ({"answer_language": spoken} if spoken else {})
        )
        self.answers[name] = [
            {"id": one, "gold": [gold], "prediction": prediction}
            for one, gold, prediction in zip(ids, golds, predictions, strict=True)
        ]
        return self

    def compare(self, **averages):
        return compare(self.rows, lambda row: self.answers[row["predictions"]], averages)


def right(*marks):
    """Predictions that are right where the mark is 1, of items whose answer is `a`."""
    return ["a" if mark else "b" for mark in marks]


def paired(base, other, **facts):
    """One language: 0/1 marks of `source-ft` and of a method, a list per seed each."""
    world = World()
    for name, by_seed in (("source-ft", base), ("adamergex", other)):
        for seed, marks in enumerate(by_seed):
            world.add(name, "sw", right(*marks), ["a"] * len(marks), seed=seed, **facts)
    return world


@pytest.mark.parametrize(
    ("metric", "answer", "gold"), [("squad_em", "the Elbe", "Elbe"), ("number_match", "1,234", "1234")]
)
def test_answers_are_drawn_by_the_language_that_they_were_scored_in(metric, answer, gold):
    """In German, "the" is no article and 1,234 is little more than 1: no draw would differ from the baseline's."""
    world = World(metric).add("source-ft", "de", ["none"] * 3, [gold] * 3)
    (found,) = world.add("translate-test", "de", [answer] * 3, [gold] * 3, spoken="en").compare()
    assert (found.gain, found.low, found.high) == (100, 100, 100)


answers = st.lists(
    st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from(LABELS)), min_size=2, max_size=25
)


@given(answers, st.integers(0, 2**32 - 1))
def test_every_metric_on_a_resample_is_that_of_scikit_learn_on_the_repeated_items(pairs, seed):
    rng = np.random.default_rng(seed)
    n = len(pairs)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=5)
    number = {
        "a": "11",
        "b": "12",
        "c": "13",
        None: None,
    }  # one word and one number: right or wrong to every metric
    predictions, golds = [number[one] for one, _ in pairs], [number[gold] for _, gold in pairs]
    oracles = dict.fromkeys(("squad_em", "squad_f1", "rouge_l", "number_match"), accuracy_score) | {
        "accuracy": accuracy_score,
        "exact_match": accuracy_score,
        "macro_f1": lambda true, told: f1_score(
            true, told, labels=sorted({*true, *told} - {"?"}), average="macro", zero_division=0
        ),
    }
    assert set(oracles) == set(METRICS)
    for name, oracle in oracles.items():
        found = METRICS[name].resampled(predictions, [(gold,) for gold in golds], "sw", counts)
        assert found.shape == (5,)
        for value, times in zip(found, counts, strict=True):
            true = [gold for gold, count in zip(golds, times, strict=True) for _ in range(count)]
            told = [one or "?" for one, count in zip(predictions, times, strict=True) for _ in range(count)]
            assert value == pytest.approx(100 * oracle(true, told))


@pytest.mark.parametrize("name", list(METRICS))
def test_each_item_once_is_the_score(name):
    predictions, golds = ["1", "2 1", None, "3", "1"], [(label,) for label in "11231"]
    (found,) = METRICS[name].resampled(predictions, golds, "sw", np.ones((1, 5)))
    score = METRICS[name].score(predictions, golds, "sw").value
    assert found == pytest.approx(score)
    assert 0 < score < 100


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_interval_is_that_of_a_bootstrap_written_out(metric):
    rng = random.Random(3)
    golds = [rng.choice(LABELS) for _ in range(40)]
    world, told = World(metric), {}
    for method, skill in (("source-ft", 0.4), ("adamergex", 0.7)):
        for seed in range(3):
            told[method, seed] = [gold if rng.random() < skill else rng.choice(LABELS) for gold in golds]
            world.add(method, "sw", told[method, seed], golds, seed=seed)
    (found,) = world.compare()

    def score(predictions, chosen):
        pairs = [(golds[i], predictions[i]) for i in chosen]
        if metric == "accuracy":
            return 100 * statistics.fmean(true == mine for true, mine in pairs)
        f1 = []
        for label in {label for pair in pairs for label in pair}:
            named = sum((true == label) + (mine == label) for true, mine in pairs)
            f1.append(2 * sum(true == mine == label for true, mine in pairs) / named)
        return 100 * statistics.fmean(f1)

    gains = []
    for _ in range(1500):
        chosen, seeds = rng.choices(range(40), k=40), rng.choices(range(3), k=2)
        gains.append(
            statistics.fmean(
                score(told["adamergex", seed], chosen) - score(told["source-ft", seed], chosen)
                for seed in seeds
            )
        )
    low, high = np.percentile(gains, [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low, abs=1.5), pytest.approx(high, abs=1.5))
    assert found.high - found.low > 10  # the tolerance tells something
    assert found.gain == pytest.approx(
        statistics.fmean(
            score(told["adamergex", seed], range(40)) - score(told["source-ft", seed], range(40))
            for seed in range(3)
        ),
        abs=1e-5,
    )
    assert (found.seeds, found.n) == (3, 40)


def test_one_seed_gives_the_normal_interval_of_a_mean_of_paired_differences():
    rng = np.random.default_rng(0)
    base, other = rng.random(400) < 0.6, rng.random(400) < 0.65
    (found,) = paired([base], [other]).compare()
    differences = 100 * (other.astype(float) - base)
    error = differences.std(ddof=1) / 20
    assert found.gain == pytest.approx(differences.mean(), abs=1e-5)
    assert found.low == pytest.approx(found.gain - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.gain + 1.96 * error, abs=0.15 * error)


def test_what_both_methods_get_wrong_does_not_count():
    """Pairing: the items that differ decide, however hard the others are."""
    base, other = [0] * 50 + [1] * 50, [1] * 10 + [0] * 40 + [1] * 50
    (found,) = paired([base], [other]).compare()
    error = 100 * (0.1 * 0.9 / 100) ** 0.5  # of a share of 0.1, not of two shares of 0.5 and 0.6
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=3))
def test_the_same_answers_are_level_and_exactly_so(marks):
    (found,) = paired(marks, marks).compare()
    assert (found.gain, found.low, found.high, found.verdict) == (0, 0, 0, "level with")


@given(
    st.integers(1, 3).flatmap(
        lambda seeds: st.tuples(
            *[st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=seeds, max_size=seeds)] * 2
        )
    )
)
def test_swapping_the_two_methods_mirrors_the_interval(marks):
    (found,), (mirrored,) = paired(*marks).compare(), paired(*marks[::-1]).compare()
    assert (found.gain, found.low, found.high) == pytest.approx(
        (-mirrored.gain, -mirrored.high, -mirrored.low), abs=2e-6
    )


def test_over_seeds_the_draws_spread_as_the_mean_of_the_seeds_does():
    """S - 1 draws of S seeds have the variance s²/S, not (S - 1)/S of it."""
    for gains in ([0.0, 4.0], [1.0, 2.0, 6.0], [3.0, 1.0, 4.0, 1.0, 5.0]):
        means = seed_draws(len(gains)) @ np.array(gains)
        assert means.mean() == pytest.approx(statistics.fmean(gains), abs=0.2)
        assert means.var() == pytest.approx(statistics.variance(gains) / len(gains), rel=0.1)
    assert (seed_draws(1) == 1).all()


def test_seeds_that_disagree_widen_the_interval():
    base = [[0, 1] * 50] * 3
    agree, disagree = [[1, 1] + [0, 1] * 49] * 3, [[1, 1] * 50, [0, 1] * 50, [0, 0] + [0, 1] * 49]
    (narrow,), (wide,) = paired(base, agree).compare(), paired(base, disagree).compare()
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.verdict == "level with"


def test_parallel_items_are_drawn_together_and_others_apart():
    rng = np.random.default_rng(1)
    base, other = (rng.random(100) < share for share in (0.5, 0.6))
    found = {}
    for name, ids in (("parallel", [f"{index}" for index in range(100)]), ("apart", None)):
        world = World()
        for language in ("sw", "ht", "id", "de"):
            for method, marks in (("source-ft", base), ("adamergex", other)):
                world.add(method, language, right(*marks), ["a"] * 100, ids=ids)
        *_, found[name] = world.compare(average=("sw", "ht", "id", "de"))
        single = world.compare()[0]
        assert (found[name].where, found[name].n) == ("average", 400)
        assert found[name].gain == single.gain
        if ids:  # the same items with the same answers: four languages say no more than one
            assert (found[name].low, found[name].high) == (single.low, single.high)
    widths = {name: one.high - one.low for name, one in found.items()}
    assert widths["apart"] == pytest.approx(widths["parallel"] / 2, rel=0.1)


def test_the_draws_depend_on_the_items_alone():
    first, again, other = (np.concatenate(list(item_draws(ids))) for ids in ("abc", "abc", "abd"))
    assert (first == again).all()
    assert (first != other).any()
    assert first.shape == (2000, 3)
    assert (first.sum(axis=1) == 3).all()
    assert first.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.1)


def test_large_test_sets_are_drawn_in_blocks():
    blocks = list(item_draws([str(index) for index in range(9_000)]))
    assert len(blocks) > 1
    assert sum(len(block) for block in blocks) == 2000
    assert all((block.sum(axis=1) == 9_000).all() for block in blocks)


def test_the_plain_backbone_stands_beside_every_seed():
    world = paired([[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0]] * 2)
    world.add("vanilla", "sw", right(1, 1, 1, 1), ["a"] * 4, seed=None)
    found = {one.method: one for one in world.compare()}
    assert found["vanilla"].gain == pytest.approx(100 - (25 + 50) / 2)
    assert found["vanilla"].seeds == 2
    assert found["adamergex"].gain == pytest.approx(75 - (25 + 50) / 2)


def test_an_average_counts_only_the_seeds_that_have_all_of_its_languages():
    world = paired([[1, 0], [0, 0]], [[1, 1], [1, 1]])
    for method in ("source-ft", "adamergex"):
        world.add(method, "ht", right(1, 0), ["a"] * 2, seed=0)
    found = {one.where: one for one in world.compare(average=("sw", "ht"), none=("sw", "de"))}
    assert set(found) == {"sw", "ht", "average"}
    assert (found["sw"].seeds, found["average"].seeds) == (2, 1)
    assert found["average"].gain == pytest.approx((50 + 0) / 2)


def test_variants_are_compared_each_on_its_own():
    world = World().add("source-ft", "sw", right(1, 0), ["a"] * 2)
    world.add("adamergex", "sw", right(1, 1), ["a"] * 2, variant="delta")
    world.add("adamergex", "sw", right(0, 0), ["a"] * 2, variant="factors")
    assert [(one.variant, one.gain) for one in world.compare()] == [("delta", 50), ("factors", -50)]


def test_two_methods_on_different_items_are_our_error():
    world = World().add("source-ft", "sw", right(1, 0), ["a"] * 2)
    world.add("adamergex", "sw", right(1, 0), ["a"] * 2, ids=["x", "y"])
    with pytest.raises(ValueError, match="different items"):
        world.compare()


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 2, "above"),
        (-2, -0.1, "below"),
        (-1, 1, "level with"),
        (0, 2, "level with"),
        (-2, 0, "level with"),
    ],
)
def test_an_interval_that_holds_0_is_level(low, high, verdict):
    assert Comparison("t", "m", "x", "", "sw", 1.0, low, high, 3, 10).verdict == verdict


@pytest.mark.parametrize(
    ("seeds", "spread", "least"),
    [
        (1, 0.0, 0.91),
        pytest.param(3, 0.0, 0.93, marks=pytest.mark.slow),
        pytest.param(3, 0.02, 0.91, marks=pytest.mark.slow),
    ],
)
def test_the_interval_holds_the_true_gain_about_as_often_as_it_says(seeds, spread, least):
    """Many experiments from one population: items differ in difficulty, seeds in skill (by `spread`)."""
    rng = np.random.default_rng(seeds)
    held = []
    for experiment in range(150):
        hard = rng.uniform(0.3, 0.8, size=150)
        skills = 0.05 + rng.normal(0, spread, size=seeds) if seeds > 1 else np.array([0.05])
        base = [rng.random(150) < hard for _ in range(seeds)]
        other = [rng.random(150) < hard + skill for skill in skills]
        ids = [f"{experiment}-{index}" for index in range(150)]
        (found,) = paired(base, other, ids=ids).compare()
        held.append(found.low <= 5 <= found.high)
    assert least <= statistics.fmean(held)
    assert seeds > 1 or statistics.fmean(held) <= 0.99


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_two_sets_of_answers_compare_as_a_run_of_one_seed_does(metric):
    world, rng = World(metric), random.Random(5)
    golds = [rng.choice(LABELS) for _ in range(30)]
    for name in ("source-ft", "adamergex"):
        world.add(name, "sw", [rng.choice([gold, "a"]) for gold in golds], golds)
    (found,) = world.compare()
    sides = [world.answers[row["predictions"]] for row in world.rows]
    assert compare_answers(metric, "sw", *sides) == (found.gain, found.low, found.high)
    with pytest.raises(ValueError, match="different items"):
        compare_answers(metric, "sw", sides[0], [{**answer, "id": "x" + answer["id"]} for answer in sides[1]])


@pytest.mark.parametrize(
    ("seeds", "spread", "covered"), [(3, 4, 0.86), (5, 4, 0.91), (10, 4, 0.94), (3, 1, 0.945)]
)
def test_the_interval_covers_the_truth_as_often_as_the_documents_say(seeds, spread, covered):
    """Scores that vary by 1 with the items and by `spread` with the seed, around no difference."""
    random = np.random.default_rng(1)
    weights = seed_draws(seeds)
    hits = 0
    for _ in range(2000):
        found = random.normal(0, spread, seeds) + random.normal()
        drawn = weights @ found + random.normal(size=len(weights))
        low, high = np.percentile(drawn, [2.5, 97.5])
        hits += low <= 0 <= high
    assert hits / 2000 == pytest.approx(covered, abs=0.02)
