"""Twelve methods in twelve languages: their averages, their chart, and whether they fit a screen and a terminal."""

import json
import re
import shutil
import statistics

import pytest

from builders.reports import CODES, METHODS, large_experiment, write_run
from lingualift.cli.tables import show
from lingualift.report import write_report
from lingualift.report.scores import gain_charts, score_tables
from lingualift.report.tables import Layout, findings, in_words, tables
from lingualift.runs.folder import read_run
from lingualift.terminal import Terminal

BROWSER = shutil.which("chromium")
SIZES = "name => { const box = document.querySelector(name); return [box.scrollWidth, box.clientWidth]; }"
PAPER = "average with fr*"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("large") / "run", n=20))


@pytest.fixture(scope="module")
def layouts(run):
    return Layout.of(run.experiment)


def mean_over(run, method, variant, languages):
    """Mean over seeds of the mean over languages, from the rows of the file."""
    rows = json.loads((run.folder / "results.json").read_text())["rows"]
    mine = [row for row in rows if (row["method"], row["variant"]) == (method, variant)]
    by_seed = {}
    for row in mine:
        if row["language"] in languages:
            by_seed.setdefault(row["seed"], []).append(row["score"])
    return statistics.fmean(statistics.fmean(scores) for scores in by_seed.values())


def test_one_average_leaves_the_tuning_language_out_and_one_for_papers_has_it(run, layouts):
    (table,) = tables(run.rows, layouts)
    assert table.columns == ("en", *CODES, "average", PAPER)
    for line in table.lines:
        names = tuple((line.method + " ").split(" ")[:2])
        held_out = [code for code in CODES if code != "fr"]
        assert line.cells["average"].mean == pytest.approx(mean_over(run, *names, held_out))
        assert line.cells[PAPER].mean == pytest.approx(mean_over(run, *names, CODES))


def test_the_average_for_papers_is_in_tables_and_in_no_comparison(run, layouts):
    assert PAPER not in {one.where for one in run.comparisons}
    assert "with fr" not in in_words(run.rows, run.comparisons, layouts)
    ((shown, _),) = score_tables(run.rows, run.comparisons, layouts)
    (there,) = [place for place in shown.places if place.name == PAPER]
    assert "in no comparison" in there.note
    assert all(cells[-1].comparison is None and cells[-1].score for cells in shown.cells)
    (chart,) = gain_charts(run.rows, run.comparisons, layouts)
    assert PAPER not in [place.name for place in chart.places]


def test_there_is_none_where_no_average_lacks_a_language():
    assert all(not layout.papers for layout in Layout.of(large_experiment(tuned=None)).values())
    only = large_experiment(languages={"source": "en", "targets": ["fr"]})
    assert all(not layout.means for layout in Layout.of(only).values())
    weak = {
        "source": "en",
        "targets": ["fr", "sw", "th"],
        "groups": {"weak": ["sw", "th"], "all": ["fr", "sw"]},
    }
    (layout,) = Layout.of(large_experiment(languages=weak)).values()
    assert layout.papers == {PAPER: ("fr", "sw", "th"), "all with fr*": ("fr", "sw")}


GAPS = {  # Greek has no rows at all; one method lacks them in Swahili, another in the language that λ is chosen on
    **{("xnli", *method, "el"): "xnli/el/test.jsonl is not there" for method in METHODS},
    ("xnli", "translate-test", "", "sw"): "into-source/sw/test.jsonl is not there",
    ("xnli", "flare", "add_relu", "fr"): "into-source/fr/test.jsonl is not there",
}


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("gaps") / "run", n=20, empty=GAPS))


def test_averages_are_over_the_languages_of_the_task_and_none_is_over_fewer(gaps):
    (table,) = tables(gaps.rows, Layout.of(gaps.experiment, gaps.empty))
    there = tuple(code for code in CODES if code != "el")
    assert table.layout.papers == {PAPER: there}
    assert table.layout.averages == {"average": tuple(code for code in there if code != "fr")}
    assert table.columns == ("en", *CODES, "average", PAPER)
    lines = {line.method: line.cells for line in table.lines}
    assert [name for name, cells in lines.items() if "average" not in cells] == ["translate-test"]
    assert [name for name, cells in lines.items() if PAPER not in cells] == [
        "translate-test",
        "flare add_relu",
    ]
    assert lines["x-mixup"][PAPER].mean == pytest.approx(mean_over(gaps, "x-mixup", "", there))


def test_an_average_for_papers_needs_rows_in_the_tuning_language(tmp_path):
    empty = {("xnli", *method, "fr"): "xnli/fr/test.jsonl is not there" for method in METHODS}
    found = read_run(write_run(tmp_path / "run", n=4, empty=empty))
    (table,) = tables(found.rows, Layout.of(found.experiment, found.empty))
    assert table.columns == ("en", *CODES, "average")
    assert table.layout.papers == {}


def test_a_cell_that_lacks_rows_says_so_in_the_chart_and_its_line_stands_below(gaps):
    (chart,) = gain_charts(gaps.rows, gaps.comparisons, Layout.of(gaps.experiment, gaps.empty))
    places = [place.name for place in chart.places]
    assert "el" not in places
    assert chart.lines[-1][0] == "translate-test"
    shown = {
        (method, where): gain
        for method, _, gains in chart.lines
        for where, gain in zip(places, gains, strict=True)
    }
    (two, three) = chart.notes
    assert shown["translate-test", "sw"] == f"–{two[0]}"
    assert two[2:] == GAPS["xnli", "translate-test", "", "sw"]
    assert shown["flare", "fr"] == f"–{three[0]}"
    assert three[2:] == GAPS["xnli", "flare", "add_relu", "fr"]
    assert shown["translate-test", "average"] == "–"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_terminal_shows_cells_that_lack_rows_and_why(gaps, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show(gaps.rows, gaps.comparisons, Layout.of(gaps.experiment, gaps.empty), Terminal())
    shown = capsys.readouterr().out
    assert [shown.count(f"–{number}") for number in "¹²³"] == [len(METHODS), 1, 1]
    for number, reason in zip("¹²³", dict.fromkeys(GAPS.values()), strict=True):
        assert f"{number} {reason}\n" in shown
    assert "Not compared, for want of rows: translate-test." in " ".join(shown.split())


def test_page_and_markdown_of_many_methods_show_cells_that_lack_rows_and_why(gaps):
    html = write_report(gaps.folder).read_text(encoding="utf-8")
    table = (gaps.folder / "table.md").read_text(encoding="utf-8")
    (scores,) = re.findall(r'<table class="scores turned".*?</table>', html, re.DOTALL)
    (chart,) = re.findall(r'<table class="gains".*?</table>', html, re.DOTALL)
    for text, greek in ((scores, len(METHODS)), (table, len(METHODS)), (chart, 0)):
        assert [text.count(f"–{number}") for number in "¹²³"] == [greek, 1, 1]
    for number, reason, told in zip("¹²³", dict.fromkeys(GAPS.values()), (1, 2, 2), strict=True):
        assert html.count(f"<bdi>{number} {reason}</bdi>") == told
        assert f"\n\n{number} {reason}\n\n" in table


def test_a_single_target_that_decides_is_in_no_average(run):
    found = findings(run.rows, run.comparisons, {"xnli": Layout("en", CODES, "fr")})
    assert found == []


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_terminal_shows_every_number_of_twelve_languages(run, layouts, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show(run.rows, run.comparisons, layouts, Terminal())
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    (table,) = tables(run.rows, layouts)
    lines = shown.split("\n\nxnli: ")[0].splitlines()
    for line in table.lines:
        mine = " ".join(row.removeprefix(line.method) for row in lines if re.match(rf"{line.method}  ", row))
        for column, found in line.cells.items():
            digits = 0 if width == 100 and column not in table.layout.means else 1
            assert f" {found.mean:.{digits}f}" in mine, (line.method, column)


def test_a_terminal_rather_leaves_out_the_average_for_papers_than_decimals(run, layouts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    show(run.rows, run.comparisons, layouts, Terminal())
    shown = capsys.readouterr().out
    assert "with fr*" not in shown
    assert "which no average contains\n" in shown
    (table,) = tables(run.rows, layouts)
    assert str(table.lines[1].cells["average"]) in shown


def test_a_long_name_is_folded_where_nothing_else_fits(run, layouts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    long = "modules=" + "self_attn." * 12
    rows = [{**row, "variant": row["variant"] and long} for row in run.rows if row["method"] != "arithmetic"]
    show(rows, [], layouts, Terminal())
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 60
    assert long in re.sub(r"\s", "", "".join(row[:30] for row in shown.splitlines()))


def test_many_methods_stand_one_below_the_other(run, layouts):
    ((twelve, _),) = score_tables(run.rows, run.comparisons, layouts)
    assert twelve.turned
    six = ("vanilla", "source-ft", "xlt", "reference-only", "x-mixup", "target-ft")
    few = [row for row in run.rows if row["method"] in six]
    ((shown, _),) = score_tables(few, run.comparisons, layouts)
    assert not shown.turned
    assert len(shown.methods) == 6


def test_the_dots_of_the_chart_stand_to_scale_the_largest_gain_first(run, layouts):
    (chart,) = gain_charts(run.rows, run.comparisons, layouts)
    compared = {(one.method, one.variant, one.where): one for one in run.comparisons}
    assert chart.places[0].name == "average"
    gains = [compared[method, variant, "average"].gain for method, variant, _ in chart.lines]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == len(METHODS) - 1
    low, nought, high = chart.ticks
    assert nought == 0
    drawn = 0
    for method, variant, found in chart.lines:
        for place, gain in zip(chart.places, found, strict=True):
            one = compared.get((method, variant, place.name))
            if one is None:
                assert gain == "–"
                continue
            drawn += 1
            for at, value in (
                (gain.drawn.at, one.gain),
                (gain.drawn.low, one.low),
                (gain.drawn.high, one.high),
            ):
                held = min(max(value, low), high)
                assert at == pytest.approx(100 * (held - low) / (high - low), abs=0.01)
            assert (gain.tone == "level") == (one.low <= 0 <= one.high)
            if method not in ("vanilla", "target-ft"):
                assert low <= one.low <= one.high <= high
                assert not gain.drawn.beyond
    assert drawn == len(compared)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_page_of_twelve_methods_fits_a_screen_and_a_phone_scrolls_within_boxes(run):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page_file = write_report(run.folder)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for width in (1280, 420):
            page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
            page.goto(page_file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            for table in ("gains", "scores"):
                inner, outer = page.evaluate(SIZES, f".scroll:has(.{table})")
                assert (inner == outer) == (width == 1280), (table, width)
            first = page.locator(".gains svg").first
            box, dot = first.bounding_box(), first.locator("circle").bounding_box()
            (chart,) = gain_charts(run.rows, run.comparisons, Layout.of(run.experiment))
            expected = box["x"] + box["width"] * chart.lines[0][2][0].drawn.at / 100
            assert dot["x"] + dot["width"] / 2 == pytest.approx(expected, abs=1)
        browser.close()
