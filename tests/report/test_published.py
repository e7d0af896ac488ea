"""Numbers of papers beside those of a run: what is shown of them, and what is refused."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml

from builders.refusals import refused
from builders.reports import CODES, METHODS, large_experiment, write_run
from builders.worlds import experiment, write_experiment
from lingualift.config import Published, parse_experiment
from lingualift.pipeline import plan_of, run
from lingualift.report import write_report
from lingualift.report.published import beside_papers
from lingualift.report.tables import signed
from lingualift.runs.folder import read_run

FEW = {name: METHODS[name] for name in (("source-ft", ""), ("adamergex", "factors"), ("adamergex", "delta"))}
PAPER = {
    "paper": "https://arxiv.org/abs/2402.18913",
    "table": 2,
    "scores": {
        "xnli": {
            "source-ft": {"average": 50.0, "sw": 40.0},
            "adamergex delta": {"average": 55.5, "fr": 61.25, "sw": 44.0},
        }
    },
    "rows": 1000,
    "setup": {
        "backbone.name": "meta-llama/Llama-2-7b-hf",
        "adapter.rank": 8,
        "training.task.learning_rate": 2e-4,
        "seeds": [112],
        "adapter.modules": ["q_proj", "v_proj"],
    },
    "note": "The paper's prompts are <b>others</b>.",
}


def with_papers(*papers, **more):
    return large_experiment(methods=tuple(FEW), seeds=(0, 1, 2), published=list(papers), **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("papers") / "run", with_papers(PAPER), methods=FEW, n=30)


def scores(folder, method, variant):
    """(language, seed) -> score."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return {
        (row["language"], row["seed"]): row["score"]
        for row in rows
        if (row["method"], row["variant"]) == (method, variant)
    }


def test_published_measured_and_difference_stand_side_by_side(folder):
    (found,) = beside_papers(read_run(folder))
    assert found.title == "https://arxiv.org/abs/2402.18913, table 2"
    given = [
        (method, "average with fr*" if where == "average" else where, value)
        for method, of_method in PAPER["scores"]["xnli"].items()
        for where, value in of_method.items()
    ]
    assert [(line.method, line.where, line.published) for line in found.lines] == given
    for line in found.lines:
        method, _, variant = line.method.partition(" ")
        mine = scores(folder, method, variant)
        languages = CODES if line.average else [line.where]  # of papers: the tuning language too
        expected = statistics.fmean(mine[code, seed] for code in languages for seed in (0, 1, 2))
        assert line.measured == pytest.approx(expected)
        assert line.difference == pytest.approx(expected - line.published)
        assert line.ends[0] < line.difference < line.ends[1]


def test_the_interval_of_a_single_seed_is_that_of_a_mean_over_items(tmp_path):
    """Of 400 items that are right or wrong: mean ± 1.96 standard errors."""
    paper = {**PAPER, "scores": {"xnli": {"source-ft": {"sw": 10.0}}}}
    asked = large_experiment(["sw", "fr"], methods=tuple(FEW), seeds=(0,), published=[paper])
    folder = write_run(tmp_path / "run", asked, methods=FEW, n=400)
    ((line,),) = (one.lines for one in beside_papers(read_run(folder)))
    share = line.measured / 100
    error = 100 * 1.96 * np.sqrt(share * (1 - share) / 400)
    assert line.interval == pytest.approx((line.measured - error, line.measured + error), abs=0.5)


def test_the_documented_numbers_are_an_example_of_the_keys_that_the_document_lists(tmp_path):
    text = (Path(__file__).parents[2] / "docs/report.md").read_text(encoding="utf-8")
    part = text.split("## Beside the papers")[1].split("\n## ")[0]
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", part, re.DOTALL)[1])
    asked = large_experiment(["tr", "vi", "th", "sw"], tuple(FEW), ("xcopa",), (0,), "vi", **block)
    two = write_run(tmp_path / "two", asked, methods=FEW, n=10)
    with refused("published.0.scores.xcopa.adamergex", "several rows", mend="one of them"):
        beside_papers(read_run(two))
    one = {name: FEW[name] for name in (("source-ft", ""), ("adamergex", "delta"))}
    asked = large_experiment(["tr", "vi", "th", "sw"], tuple(one), ("xcopa",), (0,), "vi", **block)
    (found,) = beside_papers(read_run(write_run(tmp_path / "one", asked, methods=one, n=10)))
    assert {line.where: line.published for line in found.lines}["average with vi*"] == 67.5
    assert [one.what for one in found.differs] == ["backbone.name"]
    rows = re.findall(r"^\| ((?:`\w+`[, ]*)+)\|", part, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(Published.model_fields)


def test_what_differs_in_the_set_up_is_told_and_what_does_not_is_not(folder):
    (found,) = beside_papers(read_run(folder))
    told = {one.what: (one.paper, one.here) for one in found.differs}
    assert told == {
        "backbone.name": ("meta-llama/Llama-2-7b-hf", "miniworld"),
        "seeds": ("112", "0, 1, 2"),
        "adapter.modules": ("q_proj, v_proj", "none"),
        "xnli: test rows per language": ("1,000", "30"),
    }


def test_page_and_markdown_hold_them(folder):
    page = write_report(folder).read_text(encoding="utf-8")
    table = (folder / "table.md").read_text(encoding="utf-8")
    (found,) = beside_papers(read_run(folder))
    for line in found.lines:
        one = f"{signed(line.difference)} [{signed(line.ends[0])}, {signed(line.ends[1])}]"
        assert one in table
        shown = one.replace("-", "−").replace(" [", " <small>[")
        assert f"<td>{line.published:.1f}</td><td>{line.measured:.1f}</td><td>{shown}" in page
    assert "others&lt;/b&gt;" in page
    assert "&lt;b&gt;others" in table
    assert "backbone.name: meta-llama/Llama-2-7b-hf in the paper and miniworld here" in table
    assert "published.0" not in page  # they are no setting of the run


def test_a_number_that_lacks_rows_says_so(tmp_path):
    reason, none = "into-source/sw/test.jsonl is not there", "xnli/de/test.jsonl is not there"
    paper = {
        **PAPER,
        "scores": {
            "xnli": {"source-ft": {"sw": 40.0}, "adamergex delta": {"average": 55.5, "sw": 44.0, "fr": 50.0}}
        },
    }
    empty = {("xnli", "adamergex", "delta", "sw"): reason, ("xnli", "adamergex", "delta", "de"): none}
    folder = write_run(tmp_path / "run", with_papers(paper), methods=FEW, n=8, empty=empty)
    (found,) = beside_papers(read_run(folder))
    shown = {(line.method, line.where): (line.measured is None, found.gap(line)) for line in found.lines}
    assert shown == {
        ("source-ft", "sw"): (False, "–"),
        ("adamergex delta", "average with fr*"): (True, "–¹"),
        ("adamergex delta", "sw"): (True, "–²"),
        ("adamergex delta", "fr"): (False, "–"),
    }
    assert found.gaps == (f"¹ {none}; {reason}", f"² {reason}")
    html = (
        write_report(folder)
        .read_text(encoding="utf-8")
        .split('<section id="papers"')[1]
        .split("</section>")[0]
    )
    beside = (folder / "table.md").read_text(encoding="utf-8").split(f"**{found.title}**")[1]
    for text in (html, beside):
        assert [text.count(f"–{number}") for number in "¹²"] == [1, 1]
        assert all(note in text for note in found.gaps)


def test_without_predictions_there_is_no_interval_and_no_other_number(folder, tmp_path):
    other = write_run(tmp_path / "run", with_papers(PAPER), methods=FEW, n=30)
    for path in other.glob("predictions/*"):
        path.unlink()
    whole, bare = (beside_papers(read_run(each))[0].lines for each in (folder, other))
    assert [line.measured for line in bare] == pytest.approx([line.measured for line in whole])
    assert all(line.ends is None for line in bare)
    write_report(other)


def test_predictions_of_another_form_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", with_papers(PAPER), methods=FEW, n=4)
    path = next(folder.glob("predictions/xnli.sw.source-ft*"))
    text = path.read_text()
    for change, found in ((text[:-5], "line 4"), (text.split("\n", 1)[1], "holds 3 answers, of 4")):
        path.write_text(change)
        with refused(path.name, found, mend="lingualift run"):
            write_report(folder)


def test_an_average_of_the_papers_own_languages(folder):
    paper = {**PAPER, "averaged": ["sw", "th"], "scores": {"xnli": {"source-ft": {"average": 50.0}}}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(with_papers(paper).model_dump(mode="json")))
    (found,) = beside_papers(read_run(folder))
    mine = scores(folder, "source-ft", "")
    expected = statistics.fmean(mine[code, seed] for code in ("sw", "th") for seed in (0, 1, 2))
    assert found.lines[0].measured == pytest.approx(expected)
    strange = {**paper, "averaged": ["sw", "ja"]}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(with_papers(strange).model_dump(mode="json")))
    (found,) = beside_papers(read_run(folder))
    assert ("xnli: languages of the average", "sw, ja", ", ".join(CODES)) in [
        (one.what, one.paper, one.here) for one in found.differs
    ]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"scores": {"xnly": {"source-ft": {"sw": 1}}}}, "published.0.scores.xnly: is not in this file"),
        ({"scores": {"xnli": {"source": {"sw": 1}}}}, "published.0.scores.xnli.source: is not in this file"),
        ({"scores": {"xnli": {"source-ft": {"sv": 1}}}}, "published.0.scores.xnli.source-ft.sv: is not in this file"),
        ({"scores": {"xnli": {"source-ft": {"sw": 101}}}}, "published.0.scores.xnli.source-ft.sw"),
        ({"setup": {"adapter.rang": 8}}, "published.0.setup.adapter.rang: is not in this file; did you mean rank"),
        ({"setup": {"adapter": "lora"}}, "published.0.setup.adapter: is a section"),
        ({"grid": {"adapter": "lora"}}, "published.0.grid: names no point of the grid (this file has none)"),
        ({"score": 1}, "published.0.score: is not a known key; did you mean scores"),
    ],
)  # fmt: skip
def test_what_names_nothing_is_refused_with_its_key(changes, found):
    with refused("experiment", found, mend="correct the keys"):
        with_papers({**PAPER, **changes})


GRID = {"adapter": {"lora": {}, "ia3": {"adapter.type": "ia3", "methods": ["source-ft"]}}}


def test_with_a_grid_a_point_of_it_is_named():
    raw = with_papers().model_dump(mode="json") | {"grid": GRID}
    with refused("experiment", "published.0.grid", "adapter: lora or ia3", mend=""):
        parse_experiment(raw | {"published": [PAPER]})
    named = {**PAPER, "grid": {"adapter": "ia3"}, "setup": {"adapter.type": "lora"}}
    with refused("experiment", "published.0.scores.xnli.adamergex: is not in this file", mend=""):
        parse_experiment(raw | {"published": [named]})  # that point has no such method
    parse_experiment(raw | {"published": [{**named, "scores": {"xnli": {"source-ft": {"sw": 1}}}}]})


def small(data, scores):
    raw = experiment(data, methods=["source-ft", {"method": "adamergex", "weight": 0.5}])
    raw["methods"].append({"method": "adamergex", "space": "delta", "weight": 0.5})
    return raw | {"published": [{"paper": "a paper", "table": "1", "scores": {"mini-sentiment": scores}}]}


def test_a_plan_refuses_a_row_that_no_method_fills_and_one_that_several_do(data, tmp_path):
    for name, found in (
        ("adamergex", "several rows"),
        ("adamergex factor-weight=0.5", "is no row of the table"),
    ):
        file = write_experiment(tmp_path / "e.yaml", small(data, {name: {"sw": 1}}))
        with refused(f"published.0.scores.mini-sentiment.{name}", found, mend=""):
            plan_of(file, output=tmp_path / "run")


def test_a_run_goes_on_when_only_published_numbers_changed_and_shows_them(data, tmp_path):
    raw = small(data, {"source-ft": {"sw": 12.5}})
    raw["methods"] = ["source-ft"]
    first = run(write_experiment(tmp_path / "e.yaml", {**raw, "published": []}), output=tmp_path / "run")
    assert "Beside the papers" not in first.page.read_text()
    again = run(write_experiment(tmp_path / "e.yaml", raw), output=tmp_path / "run")
    assert again.trained == 0
    assert "a paper, table 1" in again.page.read_text()
    assert "| 12.5 " in (tmp_path / "run/table.md").read_text()
    bare = run(tmp_path / "e.yaml", tiny=True, output=tmp_path / "tiny")
    assert "Beside the papers" not in bare.page.read_text()  # its scores mean nothing
