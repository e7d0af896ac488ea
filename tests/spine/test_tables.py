"""The table and its words, from rows written by hand."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingualift.pipeline.steps import choose_weight
from lingualift.report.tables import Layout, compare, in_words, tables, to_markdown

LAYOUT = Layout("en", ("fr", "sw", "ht"), "fr", {"weak": ("sw", "ht")})


def rows(**methods):
    """method -> language -> scores by seed."""
    return [
        {
            "method": method.replace("_", "-"),
            "variant": "",
            "task": "task",
            "metric": "accuracy",
            "language": language,
            "score": score,
            "n": 100,
            "chance": 50.0,
            "malformed": 1,
            "seed": seed,
            "weight": None,
        }
        for method, languages in methods.items()
        for language, scores in languages.items()
        for seed, score in enumerate(scores)
    ]


def flat(*scores):
    return {"fr": [0.0] * len(scores), "sw": list(scores), "ht": list(scores)}


def test_averages_leave_out_the_tuning_language():
    found = rows(source_ft={"en": [90.0], "fr": [0.0], "sw": [60.0], "ht": [80.0]})
    (table,) = tables(found, LAYOUT)
    assert {name: cell.mean for name, cell in table.lines[0].cells.items()} == {
        "en": 90,
        "fr": 0,
        "sw": 60,
        "ht": 80,
        "average": 70,
        "weak": 70,
    }


def test_a_deviation_is_that_of_the_seeds_averages():
    found = rows(source_ft={"fr": [0.0] * 3, "sw": [60.0, 70.0, 80.0], "ht": [80.0, 70.0, 60.0]})
    (table,) = tables(found, LAYOUT)
    cells = table.lines[0].cells
    assert (cells["average"].mean, cells["average"].deviation) == (70, 0)
    assert cells["sw"].deviation == pytest.approx(10)
    assert str(cells["sw"]) == "70.0 ± 10.0"


def test_a_seed_that_lacks_a_language_is_in_no_average():
    found = rows(source_ft={"sw": [60.0, 70.0], "ht": [80.0]})
    (table,) = tables(found, LAYOUT)
    assert (table.lines[0].cells["average"].mean, table.lines[0].cells["average"].seeds) == (70, 1)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((70.0, 71.0, 72.0), "above"),
        ((50.0, 51.0, 52.0), "below"),
        ((50.0, 60.0, 73.0), "level with"),
        ((60.0, 60.0, 60.0), "level with"),
        ((61.0, 61.0, 61.0), "above"),
    ],
)
def test_a_method_is_above_or_below_by_two_standard_errors_of_the_paired_difference(scores, verdict):
    found = rows(source_ft=flat(60.0, 60.0, 60.0), adamergex=flat(*scores))
    (comparison,) = [one for one in compare(found, LAYOUT) if one.average == "weak"]
    assert comparison.verdict == verdict
    assert comparison.gain == pytest.approx(statistics.fmean(scores) - 60)
    assert comparison.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(3))
    words = in_words(found, LAYOUT)
    opening = {"above": "Above it", "below": "Below it", "level with": "Level with it"}[verdict]
    sentence = next(part for part in words.split(". ") if part.startswith(opening))
    assert f"adamergex ({comparison.gain:+.1f} ± {comparison.stderr:.1f})" in sentence


def test_differences_are_paired_by_seed():
    found = rows(source_ft=flat(40.0, 60.0, 80.0), adamergex=flat(42.0, 62.0, 82.0))
    assert "Above it: adamergex (+2.0 ± 0.0)." in in_words(found, LAYOUT)


def test_one_seed_gives_no_verdict():
    found = rows(source_ft=flat(40.0), adamergex=flat(80.0))
    words = in_words(found, LAYOUT)
    assert "Too few seeds to tell: adamergex (+40.0)." in words
    assert "Above" not in words


def test_the_words_name_the_languages_that_count():
    words = in_words(rows(source_ft=flat(1.0, 2.0), adamergex=flat(3.0, 4.0)), LAYOUT)
    assert "over the weak languages (sw, ht), source-ft scores 1.5" in words
    assert "means over 2 seeds" in words


@pytest.mark.parametrize(
    ("found", "layout", "said"),
    [
        (rows(vanilla=flat(1.0)), LAYOUT, "`source-ft` is not among the methods"),
        (rows(source_ft=flat(1.0, 2.0)), LAYOUT, "no other method"),
        (rows(source_ft=flat(1.0, 2.0), target_ft=flat(4.0, 5.0)), LAYOUT, "would give +3.0"),
        (rows(source_ft={"fr": [1.0]}, adamergex={"fr": [2.0]}), Layout("en", ("fr",), "fr"), "no language"),
    ],
)
def test_where_nothing_can_be_compared_the_words_say_why(found, layout, said):
    words = in_words(found, layout)
    assert said in words
    assert ": ." not in words
    assert words in to_markdown(found, layout)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]), st.integers(0, 5)),
        min_size=1,
        unique_by=lambda pair: pair[0],
    )
)
def test_the_best_weight_wins_and_of_equals_the_one_closest_to_1(tried):
    chosen = choose_weight([(weight, float(score)) for weight, score in tried])
    best = [weight for weight, score in tried if score == max(score for _, score in tried)]
    assert chosen in best
    assert all(abs(chosen - 1) <= abs(weight - 1) for weight in best)
    assert all(chosen <= weight for weight in best if abs(chosen - 1) == abs(weight - 1))


@given(st.permutations([(0.0, 3.0), (0.5, 7.0), (1.5, 7.0), (2.0, 7.0), (1.25, 6.0)]))
def test_the_order_of_the_grid_does_not_matter(tried):
    assert choose_weight(tried) == 0.5
