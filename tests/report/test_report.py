"""The report of a run: read as HTML, opened in a browser, and with names that try to break out."""

import copy
import json
import random
import re
import shutil
import statistics
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml

from builders.refusals import refused
from builders.worlds import experiment, write_experiment
from lingualift.errors import UserError
from lingualift.pipeline import run
from lingualift.pipeline.methods import METHODS
from lingualift.report import write_report
from lingualift.report.figures import line_plot, nice_ticks
from lingualift.report.markdown import in_markdown
from lingualift.report.scores import ROLES
from lingualift.report.tables import BOUNDS
from lingualift.terminal import duration

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
EVIL = "<script>alert(1)<script>"
EVIL_TASK = """x"><img src=x onerror=alert(2)>&amp;'{{ 7 * 7 }}"""
EVIL_GROUP = """</style><b onclick='alert(3)'>"weak"</b>"""
EVIL_MODULES = """(q|v)_proj|"'><svg onload=alert(4)>"""
EVIL_WARNING = """</bdi></li><script src="https://evil.invalid/x.js"></script> & more"""
TASK = """
from lingualift.tasks import TASKS, Example, Task


class Mine(Task):
    columns = ("text",)
    gold_column = "label"
    metrics = ("accuracy", "macro_f1")
    source = "a test"

    def example(self, row, language):
        words = {"positive": "good", "negative": "bad"}
        return Example(row["id"], row["text"] + " Rating:", choices=words)


TASKS.register("mine-report")(Mine())
"""


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """The folder of a run whose names try to break out, and of its experiment."""
    folder = tmp_path_factory.mktemp("report")
    (folder / f"{EVIL_TASK}.py").write_text(TASK, encoding="utf-8")
    raw = experiment(data, seeds=[0, 1])
    raw["tasks"] = [{"task": f"{EVIL_TASK}.py", "data": raw["tasks"][0]["data"]}]
    raw["tasks"].append({"task": "mini-qa", "data": {"files": f"{data}/qa/{{language}}/{{split}}.jsonl"}})
    raw["languages"]["groups"] = {EVIL_GROUP: ["sw"]}
    raw["methods"] = ["vanilla", "source-ft", {"method": "adamergex", "space": "delta"}]
    raw["methods"].append({"method": "adamergex", "modules": EVIL_MODULES, "weight": 0.5})
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 0.5, 1.0]}
    file = write_experiment(folder / "e.yaml", raw)
    return run(file, output=folder / "run").folder


@pytest.fixture
def folder(made, tmp_path):
    """A run folder to spoil; its links still lead to the store."""
    return shutil.copytree(made, tmp_path / "run", symlinks=True)


@pytest.fixture(scope="module")
def warned(made, tmp_path_factory):
    """The page of the run with warnings and a failure that try to break out."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("warned") / EVIL, symlinks=True)
    steps = json.loads((folder / "steps.json").read_text())
    steps["steps"][0]["warnings"] = [EVIL_WARNING]
    steps["steps"][1]["label"] = EVIL_WARNING
    (folder / "steps.json").write_text(json.dumps(steps))
    evil = {
        "time": 0.0,
        "key": "k",
        "step": EVIL,
        "text": EVIL_WARNING + "\n\ud800",
    }  # JSON can spell half a letter
    entries = [{"event": "warning", **evil}, {"event": "failed", **evil}, {"event": "failed", **evil}]
    with_activations(folder)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write("".join(json.dumps(entry) + "\n" for entry in entries))
        log.write('{"half a li')
    return write_report(folder)


class Page(HTMLParser):
    """What a reader of the HTML finds: elements with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._hidden = [], "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._hidden = tag == "style"
        self.text += " " if tag in ("td", "th") else ""

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data

    def cells(self):
        """(task, metric, method, variant, where) -> the attributes of its cell."""
        found, table = {}, {}
        for tag, attributes in self.elements:
            table = attributes if tag == "table" else table
            if tag == "td" and "data-score" in attributes:
                names = [table["data-task"], table["data-metric"]]
                key = (*names, *(attributes[f"data-{name}"] for name in ("method", "variant", "where")))
                assert key not in found
                found[key] = attributes
        return found


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def check_numbers(cells, folder):
    """Every score and gain of the cells, key -> attribute -> text, is that of `results.json`, and none is missing."""
    found, expected = results(folder), {}
    for row in found["rows"]:
        key = tuple(row[name] for name in ("task", "metric", "method", "variant", "language"))
        expected.setdefault(key, []).append(row["score"])
    for (*names, language), scores in list(expected.items()):
        if language == "sw":  # the only language that is not tuned on
            expected |= {(*names, where): scores for where in ("average", EVIL_GROUP)}
            expected[(*names, "average with fr*")] = scores + expected[(*names, "fr")]
    assert cells.keys() == expected.keys()
    for key, scores in expected.items():
        assert float(cells[key]["data-score"]) == pytest.approx(statistics.fmean(scores))
    compared = {
        tuple(one[name] for name in ("task", "metric", "method", "variant", "where")): one
        for one in found["comparisons"]
    }
    assert {key for key, cell in cells.items() if "data-gain" in cell} == compared.keys()
    assert len(compared) == 3 * (5 + 4 + 4)
    for key, one in compared.items():
        assert [float(cells[key][f"data-{name}"]) for name in ("gain", "low", "high")] == [
            one["gain"],
            one["low"],
            one["high"],
        ]


def test_every_score_and_gain_is_that_of_the_results(made):
    check_numbers(Page(made / "report.html").cells(), made)


def test_what_is_read_is_what_is_measured(made):
    """The text of a cell says the numbers of its attributes, and its colour their sign."""
    page = (made / "report.html").read_text(encoding="utf-8")
    for (*_, where), cell in Page(made / "report.html").cells().items():
        if "data-gain" not in cell:
            continue
        gain, low, high = (float(cell[f"data-{name}"]) for name in ("gain", "low", "high"))
        shown = [f"{value:+.1f}".replace("-", "−") for value in (gain, low, high)]
        shown = ["0.0" if text in ("+0.0", "−0.0") else text for text in shown]
        assert f"{shown[0]} <small>[{shown[1]}, {shown[2]}]</small>" in page
        tone = [name for name in cell["class"].split() if name != "average"]
        if cell["data-method"] in BOUNDS:  # colour is for what is under test
            assert tone == []
            continue
        assert ("level" in tone) == (low <= 0 <= high)
        assert tone[0].rstrip("1234") == ("up" if gain > 0 else "down" if gain < 0 else "same"), where
        size = 1 + (abs(gain) >= 1) + (abs(gain) >= 3) + (abs(gain) >= 10)
        assert gain == 0 or tone[0].endswith(str(size))


def test_the_page_loads_nothing_and_runs_nothing(warned):
    for tag, attributes in Page(warned).elements:
        assert tag not in (
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "image",
            "use",
        )
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#")
    assert "url(" not in warned.read_text(encoding="utf-8")
    assert "@import" not in warned.read_text(encoding="utf-8")


def test_what_tries_to_break_out_is_shown_letter_by_letter(warned):
    page = Page(warned)
    for text in (EVIL, EVIL_TASK, EVIL_GROUP, EVIL_MODULES, EVIL_WARNING):
        assert text in page.text
    assert "failed (2 times)" in " ".join(page.text.split())
    assert "1 line of the log cannot be read" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def leaves(value, keep):
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() if keep(key, value) for leaf in leaves(inner, keep)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, keep)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def test_the_recipe_holds_every_setting_and_the_training_sizes(made):
    page, asked = Page(made / "report.html"), yaml.safe_load((made / "experiment.yaml").read_text())
    for leaf in leaves(asked, lambda key, of: True):
        assert leaf in page.text
    for key in ("gradient_checkpointing", "weight_decay", "init_seed", "length_normalization", "sample_seed"):
        assert key in page.text
    sizes = json.loads((made / "steps.json").read_text())["steps"]
    text = " ".join(page.text.split())
    for step in sizes:
        if step["kind"] == "adapter":
            facts = step["facts"]
            assert f"{facts['language']} 2 {facts['rows']} {facts['segments']} " in text


def test_the_weights_of_the_sweeps_are_marked(made):
    circles = [
        (float(found["data-weight"]), float(found["data-score"]))
        for tag, found in Page(made / "report.html").elements
        if found.get("class") == "chosen"
    ]
    steps = json.loads((made / "steps.json").read_text())["steps"]
    sweeps = [step["facts"] for step in steps if step["kind"] == "sweep"]
    assert len(sweeps) == 2 * 2
    expected = [
        (tried["weight"], tried["score"])
        for sweep in sweeps
        for tried in sweep["tried"]
        if tried["weight"] == sweep["chosen"] and sweep["decides"]
    ]
    assert sorted(circles) == sorted(expected)


def test_a_language_that_does_not_decide_has_a_curve_and_no_mark(folder):
    steps = json.loads((folder / "steps.json").read_text())
    for step in steps["steps"]:
        if step["kind"] == "sweep":
            step["facts"] |= {"language": "sw", "decides": False}
    (folder / "steps.json").write_text(json.dumps(steps))
    before = Page(folder / "report.html")
    after = Page(write_report(folder))
    drawn = [[tag for tag, _ in page.elements].count("figure") for page in (before, after)]
    assert drawn[0] == drawn[1] > 0
    assert "chosen" not in [found.get("class") for _, found in after.elements]


def with_activations(folder):
    """A run folder as if a FLARE adapter had been scored: two seeds, two languages, three layers, evil names."""
    found, drawn = results(folder), random.Random(0)
    task = found["rows"][0]["task"]
    found["activations"] = [
        {
            **{"method": "flare", "variant": EVIL_MODULES, "task": task, "language": language, "seed": seed},
            "layers": [
                {
                    "layer": layer,
                    "module": module,
                    "source": None if (language, layer) == ("sw", 1) else drawn.uniform(0, 7),
                    "target": drawn.uniform(0, 7),
                    "fused": drawn.uniform(0, 7),
                }
                for layer in range(3)
                for module in ("q_proj", EVIL)
            ],
        }
        for language in ("sw", EVIL_GROUP)
        for seed in (0, 1)
    ]
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def lines_of(svg):
    """Name of a line -> its points in the units of the axes, read off the ticks."""
    ticks = [
        (float(part.get("y")) - 3.5, float(part.text))
        for part in svg.iter("text")
        if part.get("class") == "y"
    ]
    (low, at_low), (high, at_high) = ticks[0], ticks[-1]
    across = [float(part.get("x")) for part in svg.iter("text") if part.get("class").startswith("x")]
    assert [part.text for part in svg.iter("text") if part.get("class").startswith("x")] == ["0", "1", "2"]
    found = {}
    for path in svg.iter("path"):
        if path.get("class") != "grid":
            points = [tuple(map(float, point.split())) for point in path.get("d")[1:].split(" L")]
            found[path.get("class")] = {
                round(2 * (x - across[0]) / (across[-1] - across[0])): at_low
                + (y - low) * (at_high - at_low) / (high - low)
                for x, y in points
            }
    return found


def test_units_of_the_first_layer_are_drawn_behind_the_layers(folder):
    found = results(with_activations(folder))
    for entry in found["activations"]:
        for layer in entry["layers"][:2]:
            layer["units"] = {side: [0.5 * entry["seed"], 1.0, 2.5] for side in ("target", "fused")}
            layer["units"]["source"] = None
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    labels = re.findall(r'aria-label="([^"]*mean activation by unit[^"]*)"', page)
    assert len(labels) == 4
    for label in labels:
        assert "target: 0.25, 1, 2.5; fused: 0.25, 1, 2.5." in label
        assert "source" not in label
        drawn = page.split(label)[1].split("</svg>")[0]
        assert re.findall('<(path|circle) class="(?!grid)([a-z]+)"', drawn) == [
            *[("circle", "target")] * 3,  # in no order, so that no line joins them
            *[("circle", "fused")] * 3,
        ]


def test_the_bottleneck_activations_are_those_of_the_results(folder):
    page = write_report(with_activations(folder)).read_text(encoding="utf-8")
    part = page.split('<section id="activations"')[1].split("</section>")[0]
    figures = [ElementTree.fromstring(text) for text in re.findall(r"<figure>.*?</figure>", part, re.DOTALL)]
    expected = {}
    for entry in results(folder)["activations"]:
        for layer in entry["layers"]:
            for side in ("source", "target", "fused"):
                place = expected.setdefault((entry["language"], layer["module"]), {}).setdefault(side, {})
                if layer[side] is not None:
                    place.setdefault(layer["layer"], []).append(layer[side])
    assert len(figures) == len(expected) == 4
    for figure, ((language, module), sides) in zip(figures, expected.items(), strict=True):
        told = [part.text for part in figure.iter("bdi")]
        assert told == [module, {"sw": "Swahili (sw)"}.get(language, language)]
        drawn = lines_of(figure.find("svg"))
        assert drawn.keys() == sides.keys()
        label = figure.find("svg").get("aria-label")
        for side, layers in sides.items():
            means = {layer: statistics.fmean(values) for layer, values in layers.items()}
            assert drawn[side] == pytest.approx(means, abs=0.01 * 7)
            spelt = ", ".join(f"{value:.3g} in layer {layer}" for layer, value in means.items())
            assert f"{side}: {spelt}" in label
    assert "hardly reads the source" in " ".join(part.split())


def test_the_names_of_activations_cannot_break_out(folder):
    before = Page(folder / "report.html")
    after = Page(write_report(with_activations(folder)))
    assert not {"script", "img"} & {tag for tag, _ in after.elements}
    assert [tag for tag, _ in after.elements].count("figure") == 4 + [
        tag for tag, _ in before.elements
    ].count("figure")
    assert "activations" not in [attributes.get("id") for _, attributes in before.elements]
    assert f"flare {EVIL_MODULES}" in after.text


def test_activations_of_another_form_are_refused(folder):
    found = results(folder) | {"activations": [{"layers": [{"layer": 1}]}]}
    (folder / "results.json").write_text(json.dumps(found))
    with refused("run/results.json", "activations.0.method", "schema 1"):
        write_report(folder)


def test_the_cost_adds_up(made):
    page = " ".join(Page(made / "report.html").text.split())
    steps = json.loads((made / "steps.json").read_text())["steps"]
    total = sum(step["seconds"] for step in steps)
    assert f"{len(steps)} steps, {duration(total)} of work added up" in page
    for step in steps:
        assert step["label"] in page


def test_malformed_answers_are_counted_by_method_and_language(folder):
    found = results(folder)
    for row in found["rows"]:
        if (row["task"], row["method"], row["language"]) == ("mini-qa", "vanilla", "sw"):
            row["malformed"] = 4
        else:
            row["malformed"] = 0
    (folder / "results.json").write_text(json.dumps(found))
    page = " ".join(Page(write_report(folder)).text.split())
    answers = sum(row["n"] for row in found["rows"] if row["task"] == "mini-qa")
    assert f"mini-qa: 4 of {answers} answers were malformed" in page
    assert "vanilla 0.0 0.0 25.0" in page  # 4 of 16 in sw
    assert f"{EVIL_TASK}: none of" in page


def test_the_report_made_anew_is_the_report_of_the_run(cli, folder):
    before = (folder / "report.html").read_bytes(), (folder / "table.md").read_bytes()
    for name in ("report.html", "table.md"):
        (folder / name).unlink()
    done = cli("report", folder)
    assert done.code == 0, done.err
    assert f"next: open {folder / 'report.html'}" in done.err
    made = (folder / "report.html").read_bytes(), (folder / "table.md").read_bytes()
    assert made == before


def test_what_the_folder_lacks_is_said(folder):
    for name in ("steps.json", "log.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "adapters")
    page = write_report(folder)
    text = " ".join(Page(page).text.split())
    assert text.count("has no steps.json") == 4
    assert "has no log.jsonl" in text
    assert "library versions cannot be shown" in text
    check_numbers(Page(page).cells(), folder)


def spoil(**files):
    def change(folder):
        for name, text in files.items():
            path = folder / name.replace("_", ".")
            path.unlink() if text is None else path.write_text(text)

    return change


def of_another_task(folder):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["rows"][0]["task"] = "another"
    path.write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("change", "where", "found", "mend"),
    [
        (spoil(experiment_yaml=None), "", "no experiment.yaml", "name the --output of the run"),
        (spoil(results_json=None), "", "stopped or has failed", "the same `lingualift run` again"),
        (spoil(results_json="{"), "/results.json", "not JSON", "restore"),
        (spoil(results_json='{"schema": 2}'), "/results.json", "has schema 2", "lingualift run"),
        (spoil(results_json='{"schema": 1, "rows": []}'), "/results.json", "comparisons: ", "lingualift run"),
        (spoil(results_json="[]"), "/results.json", "needs (Results: ", "lingualift run"),
        (spoil(steps_json='{"schema": 1, "steps": [{"key": ""}]}'), "/steps.json", "0.kind: ", "lingualift"),
        (spoil(experiment_yaml="[]"), "/experiment.yaml", "holds list", "docs/experiment.md"),
        (of_another_task, "/results.json", "'another'", "lingualift run"),
    ],
)
def test_a_folder_that_cannot_be_reported_on_is_left_as_it_is(folder, change, where, found, mend):
    change(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with refused(f"{folder}{where}", found, mend=mend):
        write_report(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


JUNK = [
    None,
    True,
    -1,
    10**30,
    1e308,
    float("nan"),
    1e-320,
    "",
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    {},
    {"a": 1},
    [1, 2],
]


def nodes(value, path=()):
    """Paths to everything in a JSON value."""
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else [])
    ):
        yield from nodes(inner, (*path, key))


def spoilt(value, path, junk):
    """A JSON value with junk at a path; without what is there for junk that is `...`."""
    if not path:
        return None if junk is ... else junk
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if junk is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = junk
    return changed


def test_whatever_stands_in_a_run_folder_the_report_is_made_or_refused(folder):
    with_activations(folder)
    drawn = random.Random(0)
    files = [folder / "results.json", folder / "steps.json", next(folder.glob("adapters/*/provenance.json"))]
    made, refused = 0, []
    for path in files:
        text = path.read_text(encoding="utf-8")
        path.unlink()  # an adapter's is a link to the store's
        for junk in (*JUNK, ...):
            value = json.loads(text)
            path.write_text(
                json.dumps(spoilt(value, drawn.choice(list(nodes(value))), junk)), encoding="utf-8"
            )
            try:
                write_report(folder)
                made += 1
            except UserError as error:
                refused.append((path.name, str(error)))
        path.write_text(text, encoding="utf-8")
    assert made > 5
    assert len(refused) > 5
    assert all(name in message and "mend: " in message for name, message in refused)


def test_lines_of_the_log_that_are_no_entries_are_counted(folder):
    junk = [json.dumps(one) for one in (*JUNK, {"time": "x"}, {"time": 1e300}, {"text": 1}, {"event": []})]
    junk += ["[" * 5000, '{"time": ' + "1" * 5000 + "}"]
    entries = [one for one in junk if one not in ("{}", '{"a": 1}')]  # which say nothing, and do no harm
    (folder / "log.jsonl").write_text("\n".join(junk) + "\n", encoding="utf-8")
    assert f"{len(entries)} lines of the log cannot be read" in Page(write_report(folder)).text


def test_seeds_that_tried_other_weights_have_curves_and_no_band(folder):
    steps = json.loads((folder / "steps.json").read_text())
    sweeps = [step["facts"] for step in steps["steps"] if step["kind"] == "sweep"]
    sweeps[0]["tried"][1]["weight"] = 0.25
    (folder / "steps.json").write_text(json.dumps(steps))
    before, after = Page(folder / "report.html"), Page(write_report(folder))
    bands = [sum(found.get("class") == "band" for _, found in page.elements) for page in (before, after)]
    assert bands[0] - bands[1] == 1


def test_layers_that_met_no_source_at_all_are_left_out(folder):
    with_activations(folder)
    found = results(folder)
    for one in found["activations"]:
        for layer in one["layers"]:
            layer |= {"source": None, "target": None, "fused": None}
    (folder / "results.json").write_text(json.dumps(found))
    assert "figure" in [tag for tag, _ in Page(write_report(folder)).elements]  # of the weights


def test_names_break_out_of_no_table(made):
    text = (made / "table.md").read_text(encoding="utf-8")
    assert not re.search(r"<(img|b|svg|script|/style)", text)
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}
        assert len(cells) == 1
    assert r"(q\|v)" in text
    assert "&lt;svg onload=alert(4)&gt;" in text
    assert "&lt;/style&gt;" in text


def test_words_of_others_are_no_marks_in_markdown():
    evil = "![x](http://a) `a` *b* _c_ ~~d~~ # e $f$ \\ a|b <i> &amp;\n- \x1b[2J"
    found = in_markdown(evil)
    assert found == (
        r"!\[x\](http://a) \`a\` \*b\* \_c\_ \~\~d\~\~ \# e \$f\$ \\ a\|b &lt;i&gt; &amp;amp;"
        r"\\n- \\u001b\[2J"
    )
    for plain in ("source-ft", "exact_match", "adamergex (delta) r=4", "mini-sentiment"):
        assert in_markdown(plain) == plain


def test_a_failed_run_says_what_failed(folder):
    (folder / "results.json").unlink()
    with (folder / "log.jsonl").open("a") as log:
        entry = {"time": 0, "event": "failed", "step": "train x", "key": "k", "text": "out of\nmemory"}
        log.write(json.dumps(entry) + "\n")
    with refused("/run", "train x: out of memory"):
        write_report(folder)


def test_the_results_of_a_replaced_experiment_do_not_pass_for_its_own(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run", symlinks=True)
    file = made.parent / "e.yaml"

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(file, output=folder, overrides=["seeds=[7]"], replace=True, watch=stop)
    with refused("/run", "results.json"):
        write_report(folder)


def test_ticks_are_round_and_enclose_the_range():
    assert nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert nice_ticks(55, 63.2) == [55, 57.5, 60, 62.5, 65]
    for low, high in ((0, 0.0037), (17.2, 88.1), (99.5, 100), (0, 1e-9)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 5


def test_a_plot_places_its_points_to_scale():
    plot = line_plot([[(0, 0), (1, 50), (2, 100)]], "x", within=(0, 100), chosen=[1])
    assert [(dot.x, dot.y) for dot in plot.dots] == [
        (plot.left, plot.bottom),
        ((plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2),
        (plot.right, plot.top),
    ]
    assert [dot.chosen for dot in plot.dots] == [False, True, False]
    assert plot.mean == ""
    two = line_plot([[(0, 0), (1, 0)], [(0, 100), (1, 100)]], "x", within=(0, 100), errors=[10, 10])
    middle = (plot.top + plot.bottom) / 2
    assert two.mean == f"M{plot.left} {middle:g} L{plot.right} {middle:g}"
    assert two.band.endswith(" Z")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, warned):
    """Opens the page at a width in a colour scheme; afterwards there was no console message and no request but it."""
    told, asked, contexts = [], [], []

    def visit(width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(warned.as_uri())
        page.wait_for_load_state("networkidle")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert told == []
    assert set(asked) == {warned.as_uri()}


SIZES = pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        pytest.param(390, "dark", marks=pytest.mark.slow),
        pytest.param(1280, "light", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
    ],
)


@in_browser
@SIZES
def test_a_browser_shows_the_numbers_of_the_results_and_scrolls_only_down(opened, warned, width, scheme):
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.scripts.length") == 0
    assert page.locator("h1").is_visible()
    assert page.locator("figure svg").first.bounding_box()["height"] > 60
    for details in page.locator("details").all():
        details.evaluate("node => node.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    cells = page.evaluate(
        """[...document.querySelectorAll("td[data-score]")].map(cell => {
            const table = cell.closest("table");
            const box = cell.getBoundingClientRect();
            const told = Object.fromEntries([...cell.attributes].map(one => [one.name, one.value]));
            return {...told, task: table.dataset.task, metric: table.dataset.metric, drawn: box.width * box.height};
        })"""
    )
    names = ("task", "metric", "data-method", "data-variant", "data-where")
    check_numbers({tuple(cell[name] for name in names): cell for cell in cells}, warned.parent)
    assert all(cell["drawn"] > 1000 for cell in cells)


CONTRASTS = """() => {
    const light = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(value => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = node => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
        }
    };
    const table = document.querySelector("table.scores tbody tr");
    for (const side of ["up", "down"]) for (const size of [1, 2, 3, 4]) {
        const cell = table.insertCell();
        cell.className = side + size;
        cell.textContent = "1";
    }
    return [...document.querySelectorAll("main *")]
        .filter(node => [...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()))
        .map(node => {
            const style = getComputedStyle(node);
            const ink = node.closest("svg") ? style.fill : style.color;
            const [low, high] = [light(ink), light(ground(node))].sort((one, other) => one - other);
            return [(high + 0.05) / (low + 0.05), node.className.baseVal ?? node.className, node.tagName];
        });
}"""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(opened, scheme):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5, on every tone that a cell can have."""
    contrasts = opened(1280, scheme).evaluate(CONTRASTS)
    assert {f"{side}{size}" for side in ("up", "down") for size in (1, 2, 3, 4)} <= {
        name for _, name, _ in contrasts
    }
    assert min(contrasts)[0] >= 4.5, min(contrasts)


@in_browser
def test_on_a_phone_the_table_scrolls_in_its_box_beside_a_column_that_stays(opened):
    page = opened(390, "light")
    box = page.locator(".scroll").first
    inner, outer = box.evaluate("node => [node.scrollWidth, node.clientWidth]")
    assert inner > outer
    head = box.locator("tbody th").first
    before = head.bounding_box()["x"]
    box.evaluate("node => node.scrollLeft = 200")
    assert head.bounding_box()["x"] == before


@in_browser
def test_in_print_the_recipe_is_open_and_nothing_is_cut(opened):
    page = opened(1000, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    recipe = page.locator("#recipe details").first.locator("dd").first
    assert recipe.bounding_box()["height"] > 0
    assert page.locator("nav").is_hidden()
    for box in page.locator(".scroll").all():
        assert box.evaluate("node => getComputedStyle(node).overflowX") == "visible"
    assert page.pdf()[:5] == b"%PDF-"


def test_every_method_of_the_package_has_its_role():
    assert set(ROLES) == {
        name for name, entry in METHODS.items() if entry.adapter.__module__.startswith("lingualift.")
    }
