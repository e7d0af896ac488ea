"""The table and its words, from rows written by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingualift.evaluation.comparisons import Comparison
from lingualift.pipeline.steps import choose_weight
from lingualift.report.tables import Layout, all_tables, in_words, tables, to_markdown

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


def compared(seeds=3, **methods):
    """method -> (gain, low, high), over the weak languages."""
    return [
        Comparison("task", "accuracy", method.replace("_", "-"), "", "weak", *numbers, seeds, 200)
        for method, numbers in methods.items()
    ]


BOTH = rows(source_ft=flat(60.0, 62.0), adamergex=flat(63.0, 65.0))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((2.0, 0.5, 3.5), "clearly above SOURCE: adamergex (+2.0 [+0.5, +3.5])."),
        (
            (-2.0, -3.5, -0.5),
            "no method is clearly above SOURCE. Clearly below: adamergex (-2.0 [-3.5, -0.5]).",
        ),
        (
            (2.0, -0.5, 3.5),
            "no method is clearly above SOURCE. No clear difference: adamergex (+2.0 [-0.5, +3.5]).",
        ),
    ],
)
def test_the_words_say_what_is_above_below_or_level_by_the_interval(numbers, said):
    words = in_words(BOTH, compared(adamergex=numbers), LAYOUT)
    source = "source-ft (61.0) over the weak languages (sw, ht)"
    assert words.startswith(f"task: {said.replace('SOURCE', source)}\n\n")
    assert "means over 3 seeds" in words
    assert "paired bootstrap over test items and seeds;" in words


def test_one_seed_gives_verdicts_over_items_and_says_so():
    words = in_words(BOTH, compared(seeds=1, adamergex=(2.0, 0.5, 3.5)), LAYOUT)
    assert "clearly above" in words
    assert "over 1 seed of" in words
    assert "bootstrap over test items;" in words
    assert "one seed cannot tell how much training varies" in words


def test_bounds_are_not_rivals():
    found = compared(vanilla=(9.0, 8.0, 10.0), target_ft=(20.0, 18.0, 22.0))
    words = in_words(BOTH, found, LAYOUT)
    assert "Labels in the target language: +20.0 (upper bound)." in words
    assert "vanilla" not in words


def test_the_words_are_of_the_first_metric_and_the_last_group():
    found = compared(adamergex=(2.0, 1.0, 3.0))
    other = [replace(found[0], metric="macro_f1", gain=7.0), replace(found[0], where="average", gain=8.0)]
    words = in_words(BOTH, [*other, *found], LAYOUT)
    assert "+2.0" in words
    assert "+7.0" not in words
    assert "+8.0" not in words


@pytest.mark.parametrize(
    ("found", "layout", "said"),
    [
        (rows(vanilla=flat(1.0)), LAYOUT, "`source-ft` is not among the methods"),
        (rows(source_ft=flat(1.0, 2.0)), LAYOUT, "no other method"),
        (rows(source_ft={"fr": [1.0]}, adamergex={"fr": [2.0]}), Layout("en", ("fr",), "fr"), "no language"),
    ],
)
def test_where_nothing_can_be_compared_the_words_say_why(found, layout, said):
    words = in_words(found, [], layout)
    assert said in words
    assert words in to_markdown(found, [], layout)


def test_a_bar_in_a_pattern_does_not_end_a_cell():
    found = [{**row, "variant": "modules=(q|v)_proj"} for row in BOTH]
    lines = [line for line in to_markdown(found, [], LAYOUT).splitlines() if line.startswith("|")]
    assert len({len(line.replace(r"\|", "").split("|")) for line in lines}) == 1


def test_further_metrics_have_tables_of_their_own():
    found = [*BOTH, *[{**row, "metric": "macro_f1", "score": 1.0} for row in BOTH]]
    assert [table.metric for table in tables(found, LAYOUT)] == ["accuracy"]
    assert [table.metric for table in all_tables(found, LAYOUT)] == ["accuracy", "macro_f1"]
    assert all_tables(found, LAYOUT)[1].lines[0].cells["sw"].mean == 1


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
