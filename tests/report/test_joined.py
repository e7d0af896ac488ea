"""Several runs on one page: whose number stands where, what is told of them, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest

import lingualift as ll
from builders.refusals import refused
from builders.reports import METHODS, large_experiment, write_run
from lingualift.report import write_report
from lingualift.report.joined import join
from lingualift.report.scores import gain_charts
from lingualift.report.tables import tables
from lingualift.runs.folder import read_run

FEW = {name: METHODS[name] for name in (("source-ft", ""), ("adamergex", "factors"), ("flare", "add_relu"))}
CODES = ("fr", "sw", "th")
PAPER = {"paper": "a paper", "table": "2", "scores": {"xnli": {"source-ft": {"sw": 50.0}}}}


def asked(**more):
    return large_experiment(CODES, tuple(FEW), seeds=(0,), **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one task, on other backbones, of which the second has another task too."""
    folder = tmp_path_factory.mktemp("joined")
    small = write_run(folder / "small", asked(published=[PAPER]), methods=FEW, n=20)
    other = asked(tasks=("xnli", "xcopa"), backbone={"name": "another"})
    return [small, write_run(folder / "large", other, methods=FEW, n=20, better=15)]


@pytest.fixture
def joined(runs):
    return join([read_run(folder) for folder in runs])


def test_a_task_of_both_has_one_table_with_every_row_of_each(joined, runs):
    found = {table.task: table for table in tables(joined.told.rows, joined.told.layouts)}
    assert list(found) == ["xnli", "xcopa"]
    names = [f"{method} {variant}".strip() for method, variant in FEW]
    both = [f"{name} ({run})" for run in ("small", "large") for name in names]
    assert [line.method for line in found["xnli"].lines] == both
    assert [line.method for line in found["xcopa"].lines] == names
    lines = {line.method: line.cells for line in found["xnli"].lines}
    for folder in runs:
        for row in json.loads((folder / "results.json").read_text())["rows"]:
            if row["task"] == "xnli":
                name = f"{row['method']} {row['variant']}".strip()
                assert lines[f"{name} ({folder.name})"][row["language"]].mean == row["score"]


def test_each_method_keeps_the_gain_over_its_own_baseline(joined, runs):
    (xnli, _) = gain_charts(joined.told.rows, joined.told.comparisons, joined.told.layouts)
    drawn = {(method, variant): gains[0].comparison.gain for method, variant, gains in xnli.lines}
    for folder in runs:
        for one in json.loads((folder / "results.json").read_text())["comparisons"]:
            if (one["task"], one["where"]) == ("xnli", "average"):
                assert drawn[one["method"], f"{one['variant']} ({folder.name})"] == one["gain"]
    assert len(drawn) == 4
    assert "Each method is compared with the source-ft of its own run." in joined.notes


def test_what_the_runs_differ_in_is_told_by_key(joined):
    assert joined.differs == [("backbone.name", ["miniworld", "another"])]


def test_page_and_markdown_hold_all_of_them(runs, tmp_path):
    page = write_report(*runs, output=tmp_path / "page")
    assert page == tmp_path / "page/report.html"
    html, table = page.read_text(encoding="utf-8"), (tmp_path / "page/table.md").read_text(encoding="utf-8")
    for text in (
        "flare add_relu (large)",
        "xnli, small:",
        "xnli, large:",
        "xcopa:",
        "a paper, table 2; small",
    ):
        assert text in table
    for text in ("xnli, small", "a paper, table 2; small", "the runs differ in", "add_relu (large)"):
        assert text in html
    assert "Merge weights</h2>" not in html
    assert {path.name for path in (tmp_path / "page").iterdir()} <= {
        "report.html",
        "table.md",
        "made.json",
        ".lock",
    }
    write_report(*runs, output=tmp_path / "page")  # again, over its own


def test_the_same_rows_are_not_talked_of_and_others_are(runs, tmp_path):
    assert not any("test rows" in note for note in join([read_run(folder) for folder in runs]).notes)
    for changes, told in (({"ids": "line"}, "n = 20"), ({"n": 25}, "n = 25")):
        other = write_run(tmp_path / told, asked(), methods=FEW, **{"n": 20, **changes})
        notes = join([read_run(runs[0]), read_run(other)]).notes
        (note,) = [note for note in notes if "test rows" in note]
        assert "did not read the same test rows in en, fr, sw, th" in note
        assert told in note
    bare = shutil.copytree(runs[1], tmp_path / "bare")
    shutil.rmtree(bare / "predictions")
    (note,) = [note for note in join([read_run(runs[0]), read_run(bare)]).notes if "test rows" in note]
    assert "cannot be told" in note


def test_tasks_in_other_languages_have_tables_apart(runs, tmp_path):
    wide = large_experiment((*CODES, "de"), tuple(FEW), seeds=(0,))
    other = write_run(tmp_path / "wide", wide, methods=FEW, n=20)
    found = join([read_run(folder) for folder in (*runs, other)])
    names = [table.task for table in tables(found.told.rows, found.told.layouts)]
    assert names == ["xnli (small, large)", "xcopa", "xnli (wide)"]
    assert any("whose languages or averages differ: small, large; wide" in note for note in found.notes)


def test_a_cell_that_lacks_rows_says_so_in_the_line_of_its_run(runs, tmp_path):
    reason = "into-source/sw/test.jsonl is not there"
    empty = {("xnli", "flare", "add_relu", "sw"): reason, ("xnli", "adamergex", "factors", "fr"): reason}
    other = write_run(tmp_path / "gaps", asked(), methods=FEW, n=20, better=5, empty=empty)
    found = join([read_run(folder) for folder in (*runs, other)])
    (xnli, _) = tables(found.told.rows, found.told.layouts)
    lines = {line.method: line for line in xnli.lines}
    for method, code in (("flare add_relu", "sw"), ("adamergex factors", "fr")):
        assert code not in lines[f"{method} (gaps)"].cells
        assert xnli.gap(f"{method} (gaps)", code) == "–¹"
        assert all(code in lines[f"{method} ({run})"].cells for run in ("small", "large"))
    assert "average" not in lines["flare add_relu (gaps)"].cells
    page = write_report(*runs, other, output=tmp_path / "page")
    html, table = page.read_text(encoding="utf-8"), (tmp_path / "page/table.md").read_text(encoding="utf-8")
    assert 'class="scores turned"' in html
    assert html.count(f"<bdi>¹ {reason}</bdi>") == 2  # below the chart, and below the table
    assert html.count("–¹") == 4
    assert table.count("–¹") == 2
    assert f"\n\n¹ {reason}\n\n" in table


def test_runs_of_which_one_has_no_rows_in_a_language_have_tables_apart(runs, tmp_path):
    reason = "xnli/sw/test.jsonl is not there"
    empty = {("xnli", *method, "sw"): reason for method in FEW}
    other = write_run(tmp_path / "gaps", asked(), methods=FEW, n=20, better=5, empty=empty)
    found = join([read_run(folder) for folder in (*runs, other)])
    shown = {table.task: table for table in tables(found.told.rows, found.told.layouts)}
    assert list(shown) == ["xnli (small, large)", "xcopa", "xnli (gaps)"]
    assert shown["xnli (gaps)"].layout.averages == {"average": ("th",)}
    assert shown["xnli (gaps)"].gap("source-ft", "sw") == "–¹"
    assert shown["xnli (small, large)"].notes == ()


def test_folders_of_one_name_are_told_apart_by_what_stands_before(runs, tmp_path):
    for name, folder in zip(("one", "two"), runs, strict=True):
        shutil.copytree(folder, tmp_path / name / "run")
    found = join([read_run(tmp_path / name / "run") for name in ("one", "two")])
    assert list(found.runs) == ["one/run", "two/run"]


def test_names_of_folders_and_papers_cannot_break_out(runs, tmp_path):
    evil = "<b onclick=alert(1)>x|y"
    paper = {**PAPER, "paper": evil, "note": evil, "setup": {"backbone.name": evil}}
    other = write_run(tmp_path / evil, asked(published=[paper]), methods=FEW, n=10)
    page = write_report(runs[0], other, output=tmp_path / "page")
    html, table = page.read_text(encoding="utf-8"), (tmp_path / "page/table.md").read_text(encoding="utf-8")
    for text in (html, table):
        assert "<b onclick" not in text
        assert text.count("&lt;b onclick") > 5
    for lines in re.findall(r"(?:^\|.*\n)+", table, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_runs_that_cannot_be_joined_are_refused_and_nothing_is_written(runs, tmp_path):
    place = tmp_path / "page"
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    scored = shutil.copytree(runs[0], tmp_path / "scored")
    found = json.loads((scored / "results.json").read_text())
    for row in (*found["rows"], *found["comparisons"]):
        row["metric"] = "macro_f1"
    (scored / "results.json").write_text(json.dumps(found))
    (tmp_path / "none").mkdir()
    for others, output, where, told in (
        ([runs[0]], place, "small", "named twice"),
        ([copy], place, "copy", "same results as small"),
        ([scored], place, "scored/results.json", "by macro_f1"),
        ([tmp_path / "none"], place, "none", "holds no experiment.yaml"),
        ([runs[1]], None, "output", "is missing, and 2 runs"),
        ([runs[1]], runs[1], "large", "is a run folder"),
    ):
        with refused(where, told):
            write_report(runs[0], *others, output=output)
        assert not place.exists()
    with refused("report", "names no run"):
        write_report()


def test_one_run_can_be_written_elsewhere(runs, tmp_path):
    before = {path.name for path in runs[1].iterdir()}
    page = ll.write_report(runs[1], output=tmp_path / "elsewhere")
    assert "Merge weights</h2>" in page.read_text(encoding="utf-8")
    assert {path.name for path in runs[1].iterdir()} == before


def test_the_documented_command_joins_runs(cli, runs, inside):
    text = (Path(__file__).parents[2] / "docs/report.md").read_text(encoding="utf-8")
    command = re.search(r"^    lingualift (report .*)$", text, re.MULTILINE)[1]
    for folder in runs:
        shutil.copytree(folder, inside / "runs" / folder.name)
    done = cli(*command.split())
    assert done.code == 0, done.err
    assert "next: open both/report.html" in done.err
    assert (inside / "both/table.md").is_file()
    refusal = cli("report", *runs)
    assert refusal.code == 2
    assert "--output" in refusal.err
    assert "Traceback" not in refusal.err
