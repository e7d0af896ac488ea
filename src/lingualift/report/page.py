"""The page of a run: what `report.html.j2` shows, worked out from the run folder; the template escapes all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from lingualift.config import Experiment, grid_name
from lingualift.errors import UserError
from lingualift.languages import language
from lingualift.metrics.comparisons import BASELINE
from lingualift.report.figures import HEIGHT, WIDTH, Plot, dot_plot, line_plot, millions, size_plot
from lingualift.report.joined import Joined
from lingualift.report.published import beside_papers
from lingualift.report.recipe import recipe
from lingualift.report.scores import STEPS, Place, gain_charts, score_tables
from lingualift.report.tables import (
    Layout,
    Layouts,
    findings,
    how_compared,
    in_words,
    merge_weight,
    merge_weights,
    method_name,
    other_readings,
    signed,
    tables,
)
from lingualift.runs.folder import RunFolder, task_at
from lingualift.runs.records import Step
from lingualift.terminal import duration

TEMPLATE = "report.html.j2"


def render(run: RunFolder) -> str:
    """The page as HTML: one file that loads nothing, runs nothing and escapes everything it shows."""
    layouts = Layout.of(run.experiment, run.empty)
    return _rendered(
        run=run,
        joined=None,
        name=run.folder.name,
        sources=_sources(layouts),
        targets=_targets(layouts),
        asked=_asked(run),
        findings=findings(run.rows, run.comparisons, layouts),
        tasks=_headed(run.rows),
        words=in_words(run.rows, run.comparisons, layouts),
        how=how_compared(run.comparisons) if run.comparisons else "",
        gains=gain_charts(run.rows, run.comparisons, layouts),
        scores=score_tables(run.rows, run.comparisons, layouts),
        papers=beside_papers(run),
        curves=_curves(run),
        sizes=_sizes(run, layouts),
        activations=_activations(run),
        malformed=_malformed(run, layouts),
        losses=_losses(run),
        costs=_costs(run.steps or ()),
        recipe=recipe(run),
        trained=_trained(run),
        troubles=_troubles(run),
        libraries=_libraries(run),
        backbones=_backbones(run),
        history=_history(run),
        width=WIDTH,
        height=HEIGHT,
    )


def render_joined(joined: Joined) -> str:
    """The page of several runs: what they share; the rest stands on the pages of each."""
    told = joined.told
    return _rendered(
        run=None,
        joined=joined,
        name=", ".join(joined.runs),
        sources=_sources(told.layouts),
        targets=_targets(told.layouts),
        asked=[("runs", ", ".join(joined.runs))],
        findings=joined.findings,
        tasks=_headed(told.rows),
        words="",
        how=joined.how,
        gains=gain_charts(told.rows, told.comparisons, told.layouts),
        scores=score_tables(told.rows, told.comparisons, told.layouts),
        papers=joined.papers,
    )


def _headed(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The tasks, each once, and at how many points of a grid."""
    points: dict[str, dict[str, None]] = {}
    for row in rows:
        name = row["task"].removesuffix(f" ({grid_name(row.get('grid', {}))})")
        points.setdefault(name, {})[row["task"]] = None
    return [
        next(iter(found)) if len(found) == 1 else f"{name} at {len(found)} points of a grid"
        for name, found in points.items()
    ]


def _rendered(**told: Any) -> str:
    page = _template().render(steps=STEPS, baseline=BASELINE, **told)
    return page.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a character


def _sources(layouts: Layouts) -> str:
    return ", ".join(dict.fromkeys(_tongue(layout.source) for layout in layouts.values()))


def _targets(layouts: Layouts) -> int:
    return len({code for layout in layouts.values() for code in layout.targets})


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"points": _points, "signed": _signed, "number": _number, "edge": _edge}
    environment.filters |= {"duration": duration, "tongue": _tongue}
    text = resources.files("lingualift.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text)


def _signed(value: float) -> str:
    return signed(value).replace("-", "−")


def _points(value: float) -> str:
    """A mark of a scale of gains: `+2.5`, `−20`."""
    return f"{value:+g}".replace("-", "−")


def _edge(place: Place) -> str:
    """Classes of the cells of an average."""
    return f" average{' paper' * bool(place.note)}" if place.members else ""


def _number(value: float) -> str:
    return f"{value:.1f}"


def _tongue(code: str) -> str:
    """The English name of a language code."""
    try:
        return language(code).name
    except UserError:
        return code


def _asked(run: RunFolder) -> list[tuple[str, str]]:
    """What the experiment asked for, in the words of its file."""
    wanted, adapter = run.experiment, run.experiment.adapter
    backbone = wanted.backbone
    loaded = f" at {backbone.revision}" if backbone.revision else ""
    loaded += f", rounded to {backbone.quantization}" if backbone.quantization else ""
    loaded += ", asked by its chat template" if backbone.chat_template else ""
    named = wanted.reference.task if wanted.reference else None
    points = [point.experiment for point in wanted.points()]
    sources = dict.fromkeys(point.languages.source for point in points)
    targets = dict.fromkeys(code for point in points for code in point.languages.targets)
    axes = "; ".join(f"{axis}: {', '.join(values)}" for axis, values in wanted.grid.items())
    told = [f"labels in {' or '.join(map(_named, sources))}"]
    told += [f"unlabelled text{f' ({named})' if named else ''}"] if wanted.reference else []
    told += ["translated rows"] if any(task.translated.given() for task in wanted.tasks) else []
    rank = f", rank {adapter.rank}, alpha {adapter.alpha}" if adapter.type == "lora" else ""
    seeds = f"seed{'s' * (len(wanted.seeds) > 1)} {', '.join(map(str, wanted.seeds))}"
    return [
        ("backbone", backbone.name + loaded),
        ("from", ", ".join(told)),
        ("into", ", ".join(map(_named, targets))),
        ("tasks", ", ".join(dict.fromkeys(row["task"] for row in run.rows))),
        ("with", f"{adapter.type} adapters{rank}; {seeds}"),
        *([("languages added", "; ".join(_own(wanted)))] if wanted.languages.own else []),
        *([("grid", axes)] if axes else []),
    ]


def _own(wanted: Experiment) -> Iterator[str]:
    """What the experiment says of languages that lingualift does not know, or not how to tag."""
    for one in wanted.languages.added():
        yield f"{one.name} ({one.code}), {one.script}" + (f", tagged {one.near}" if one.near else "")


def _named(code: str) -> str:
    name = _tongue(code)
    return f"{name} ({code})" if name != code else code


@dataclass(frozen=True)
class _Panel:
    """A plot under its title; `decides` if its language chose the weight."""

    title: str
    note: str
    decides: bool
    plot: Plot


def _curves(run: RunFolder) -> list[tuple[str, str, list[_Panel]]]:
    """Task, metric and panels: validation score against merge weight, for each method and language."""
    sweeps = [_at_points(step.facts) for step in run.steps or () if step.kind == "sweep"]
    found = []
    for (task, metric), of_task in _grouped(sweeps, "task", "metric"):
        panels = [
            _curve(of_seeds, [sweep for sweep in of_task if sweep["language"] == of_seeds[0]["language"]])
            for _, of_seeds in _grouped(of_task, "method", "variant", "language")
        ]
        found.append((task, metric, panels))
    return found


def _at_points(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a sweep whose task is named with the points of the grid that it serves."""
    named = "; ".join(grid_name(grid) for grid in facts.get("grids", ()) if grid)
    return {**facts, "task": f"{facts['task']} ({named})" if named else facts["task"]}


def _curve(sweeps: list[Mapping[str, Any]], comparable: Iterable[Mapping[str, Any]]) -> _Panel:
    """The sweeps of a method's seeds in one language, on a scale that holds those of the other methods there."""
    first = sweeps[0]
    decides = any(sweep["decides"] for sweep in sweeps)
    parts = [
        (f"seed {sweep['seed']}" + (f", blocks {place}" if place else ""), found)
        for sweep in sweeps
        for place, found in _parts(sweep["tried"]).items()
    ]
    series = [sorted((tried["weight"], tried["score"]) for tried in found) for _, found in parts]
    tried = _grouped([one for sweep in sweeps for one in sweep["tried"]], "weight")
    errors = [2 * statistics.fmean(one["stderr"] or 0 for one in group) for _, group in sorted(tried)]
    chosen = [merge_weight(sweep, "chosen", "by_block") for sweep in sweeps] if decides else []
    told = "; ".join(
        f"{part}: " + ", ".join(f"{score:.1f} at {weight:g}" for weight, score in points)
        for (part, _), points in zip(parts, series, strict=True)
    )
    name, where = method_name(first), _named(first["language"])
    ending = f" Chosen: {merge_weights(chosen)}." if decides else ""
    return _Panel(
        name,
        where + (f", λ = {merge_weights(chosen)}" if decides else ""),
        decides,
        line_plot(
            series,
            f"{first['task']}, {name}, {where}: {first['metric']} by merge weight. {told}.{ending}",
            within=_scale(comparable),
            errors=errors,
            chosen=[part for weight in chosen for part in weight],
        ),
    )


def _parts(tried: Sequence[Mapping[str, Any]]) -> dict[str | None, list[Mapping[str, Any]]]:
    """What was tried, by the range of blocks; None where a weight was that of all."""
    found: dict[str | None, list[Mapping[str, Any]]] = {}
    for one in tried:
        found.setdefault(one.get("blocks"), []).append(one)
    return found


def _scale(sweeps: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Percent that hold every score with its error, and at least four points, lest noise look like a trend."""
    ends = [
        one["score"] + side * 2 * (one["stderr"] or 0)
        for sweep in sweeps
        for one in sweep["tried"]
        for side in (-1, 1)
    ]
    middle, half = (min(ends) + max(ends)) / 2, max(2.0, (max(ends) - min(ends)) / 2)
    return max(0.0, min(middle - half, 96.0)), min(100.0, max(middle + half, 4.0))


def _losses(run: RunFolder) -> list[tuple[str, list[_Panel]]]:
    """Adapters -> training loss per language, a line per seed, on one scale for those of a name."""
    adapters = [facts for facts in _adapters(run) if facts.get("loss")]
    found = []
    for (name,), mine in _grouped(adapters, "name"):
        top = max(loss for facts in mine for _, loss in facts["loss"])
        panels = []
        for (code,), of_language in _grouped(mine, "language"):
            series = [[(step, loss) for step, loss in facts["loss"]] for facts in of_language]
            ends = ", ".join(f"{points[-1][1]:.3g}" for points in series)
            label = f"Training loss of {name} in {_tongue(code)} by step, at the end {ends}."
            plot = line_plot(series, label, within=(0.0, top or 1.0))
            panels.append(_Panel(_named(code), f"at the end {ends}", False, plot))
        found.append((name, panels))
    return found


def _sizes(run: RunFolder, layouts: Layouts) -> list[tuple[str, list[_Panel]]]:
    """Task and panels: a method's average by the size of the translation model, where several are in the run."""
    means: dict[tuple[str, str], dict[int, float]] = {}
    for (task, metric, name, size), rows in _grouped(
        [{**row, "name": method_name(row)} for row in run.rows if row["translator_parameters"]],
        "task",
        "metric",
        "name",
        "translator_parameters",
    ):
        scores = [
            [row["score"] for row in rows if row["language"] == code]
            for code in layouts[task].averages.get("average", ())
        ]
        if scores and all(scores):
            where = f"{_without_translator(run, rows[0])}, {metric}"
            means.setdefault((where, name), {})[size] = statistics.fmean(map(statistics.fmean, scores))
    several = {key: sorted(by_size.items()) for key, by_size in means.items() if len(by_size) > 1}
    found = []
    for where in dict.fromkeys(where for where, _ in several):
        mine = {name: points for (other, name), points in several.items() if other == where}
        scale = _scale(
            {"tried": [{"score": y, "stderr": None} for _, y in points]} for points in mine.values()
        )
        found.append((where, [_size(where, name, points, scale) for name, points in mine.items()]))
    return found


def _without_translator(run: RunFolder, row: Mapping[str, Any]) -> str:
    """A row's task at its point of the grid, but for the axes along which translation models change."""
    changing = {
        axis
        for axis, values in run.experiment.grid.items()
        for keys in values.values()
        if any(key.endswith((".translated.model", "source_encoder")) for key in keys)
    }
    task = row["task"].removesuffix(f" ({grid_name(row['grid'])})")
    return task_at(task, {axis: name for axis, name in row["grid"].items() if axis not in changing})


def _size(where: str, name: str, points: list[tuple[int, float]], scale: tuple[float, float]) -> _Panel:
    told = "; ".join(f"{millions(size)}: {score:.1f}" for size, score in points)
    label = f"{where}, {name}: average by the size of the translation model. {told}."
    return _Panel(name, told, False, size_plot(points, label, within=scale))


_SIDES = ("source", "target", "fused")


def _activations(run: RunFolder) -> list[tuple[str, str, list[_Panel]]]:
    """Task, method and panels: mean activation by layer, for each language and kind of module, over seeds.

    The panels of a task share their scale.
    """
    found = []
    for (task,), mine in _grouped(run.activations, "task"):
        layers = [
            {**layer, "language": one["language"], "name": method_name(one)}
            for one in mine
            for layer in one["layers"]
            if any(layer[side] is not None for side in _SIDES)
        ]
        top = max((layer[side] or 0.0 for layer in layers for side in _SIDES), default=0.0)
        for (name,), of_method in _grouped(layers, "name"):
            groups = _grouped(of_method, "language", "module")
            panels = [
                _activation(task, name, where, module, group, top or 1.0) for (where, module), group in groups
            ]
            panels += [
                _units(task, name, where, module, group)
                for (where, module), group in groups
                if any(layer["units"] for layer in group)
            ]
            found.append((task, name, panels))
    return found


def _activation(
    task: str, name: str, where: str, module: str, layers: list[Mapping[str, Any]], top: float
) -> _Panel:
    series = {
        side: [
            (float(number), statistics.fmean(measured))
            for (number,), of_seeds in sorted(_grouped(layers, "layer"))
            if (measured := [layer[side] for layer in of_seeds if layer[side] is not None])
        ]
        for side in _SIDES
    }
    drawn = {side: points for side, points in series.items() if points}
    told = "; ".join(
        f"{side}: " + ", ".join(f"{value:.3g} in layer {number:g}" for number, value in points)
        for side, points in drawn.items()
    )
    label = f"{task}, {name}, {module}, {_named(where)}: mean activation by layer. {told}."
    plot = line_plot(list(drawn.values()), label, within=(0.0, top), names=list(drawn))
    return _Panel(module, _named(where), False, plot)


def _units(task: str, name: str, where: str, module: str, layers: list[Mapping[str, Any]]) -> _Panel:
    """Mean activation of each unit of the first layer, over seeds."""
    first = [layer for layer in layers if layer["units"]]
    values = {
        side: [
            statistics.fmean(each) for each in zip(*(layer["units"][side] for layer in first), strict=True)
        ]
        for side in _SIDES
        if all(layer["units"][side] for layer in first)
    }
    told = "; ".join(f"{side}: " + ", ".join(f"{y:.3g}" for y in one) for side, one in values.items())
    number = first[0]["layer"]
    label = f"{task}, {name}, {module} of layer {number}, {_named(where)}: mean activation by unit. {told}."
    plot = dot_plot(values, label)
    return _Panel(f"{module}, units of layer {number}", _named(where), False, plot)


def _grouped(
    facts: Iterable[Mapping[str, Any]], *names: str
) -> list[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    """Values of the named facts -> the facts that have them, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in facts:
        groups.setdefault(tuple(one[name] for name in names), []).append(one)
    return list(groups.items())


@dataclass(frozen=True)
class _Counted:
    """Answers of one task that could not be read, and prompts that were cut, by method and language."""

    task: str
    answers: int
    malformed: int
    truncated: int
    languages: tuple[str, ...]
    lines: tuple[
        tuple[str, tuple[tuple[int, int] | None, ...]], ...
    ]  # method, (malformed, answers) by language
    others: list[str]  # what other readings score


def _malformed(run: RunFolder, layouts: Layouts) -> list[_Counted]:
    found = []
    for table in tables(run.rows, layouts):
        mine = [row for row in run.rows if (row["task"], row["metric"]) == table.name]
        languages = tuple(name for name in table.columns if name not in table.layout.means)
        counts: dict[tuple[str, str], tuple[int, int]] = {}
        for row in mine:
            place = method_name(row), row["language"]
            wrong, of = counts.get(place, (0, 0))
            counts[place] = wrong + row["malformed"], of + row["n"]
        lines = tuple(
            (line.method, tuple(counts.get((line.method, code)) for code in languages))
            for line in table.lines
        )
        answers, malformed, truncated = (
            sum(row[name] for row in mine) for name in ("n", "malformed", "truncated")
        )
        others = other_readings(table)
        found.append(_Counted(table.task, answers, malformed, truncated, languages, lines, others))
    return found


@dataclass(frozen=True)
class _Cost:
    """Steps of one sort: how many, and the seconds they took together."""

    what: str
    count: int
    seconds: float
    share: float


_VERBS = {
    "translation": "translate",
    "initialisation": "initialise",
    "words-head": "train a head for words",
    "adapter": "train",
    "sweep": "choose weights",
    "merged": "merge",
    "evaluation": "evaluate",
}


def _costs(steps: Sequence[Step]) -> list[_Cost]:
    """Where the time went, the dearest first."""
    groups: dict[str, list[float]] = {}
    for step in steps:
        task = step.facts.get("task")
        what = _VERBS.get(step.kind, step.kind) + (f": {task}" if task else "")
        groups.setdefault(what, []).append(step.seconds)
    total = sum(step.seconds for step in steps) or 1.0
    found = [_Cost(what, len(took), sum(took), sum(took) / total) for what, took in groups.items()]
    return sorted(found, key=lambda cost: -cost.seconds)


@dataclass(frozen=True)
class _Trained:
    """The adapters of a language, over seeds; ranges where seeds differ."""

    language: str
    adapters: int
    rows: str
    segments: str
    truncated: str
    steps: str
    seconds: float


def _trained(run: RunFolder) -> list[tuple[str, list[_Trained]]]:
    """Adapters -> what they were trained on, by language."""
    return [
        (name, [_of_language(code, mine) for (code,), mine in _grouped(of_name, "language")])
        for (name,), of_name in _grouped(_adapters(run), "name")
    ]


def _adapters(run: RunFolder) -> list[dict[str, Any]]:
    """Facts of all trainings, with `name`: the task and how it was learnt; of older runs, the task."""
    return [
        {"name": step.facts["task"], **step.facts, "seconds": step.seconds}
        for step in run.steps or ()
        if step.kind == "adapter"
    ]


def _of_language(code: str, adapters: list[Mapping[str, Any]]) -> _Trained:
    rows, segments, truncated, steps = (
        _range(one[size] for one in adapters) for size in ("rows", "segments", "truncated_prompts", "steps")
    )
    seconds = statistics.fmean(one["seconds"] for one in adapters)
    return _Trained(code, len(adapters), rows, segments, truncated, steps, seconds)


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "–".join(str(value) for value in dict.fromkeys((found[0], found[-1])))


@dataclass(frozen=True)
class _Trouble:
    """A warning or a failure of a step."""

    kind: str
    step: str
    text: str
    times: int
    mended: bool


def _troubles(run: RunFolder) -> list[_Trouble]:
    """Failures and warnings of the log and of the steps, each text of a step once."""
    counted: dict[tuple[str, str, str, str], int] = {}
    ended: dict[str, int] = {}
    failed: dict[str, int] = {}
    for index, entry in enumerate(run.log or ()):
        event, key = entry.get("event"), str(entry.get("key", ""))
        if event == "end":
            ended[key] = index
        if event in ("warning", "failed"):
            place = str(event), key, str(entry.get("step", "")), str(entry.get("text", ""))
            counted[place] = counted.get(place, 0) + 1
        if event == "failed":
            failed[key] = index
    for step in run.steps or ():
        for text in step.warnings:
            counted.setdefault(("warning", step.key, step.label, text), 1)
    found = [
        _Trouble(
            kind, step, text, times, mended=kind == "failed" and ended.get(key, -1) > failed.get(key, -1)
        )
        for (kind, key, step, text), times in counted.items()
    ]
    return sorted(found, key=lambda trouble: trouble.kind != "failed")


def _libraries(run: RunFolder) -> dict[str, list[str]]:
    """Library -> the versions that the run's adapters were made with."""
    found: dict[str, list[str]] = {}
    for provenance in run.adapters.values():
        for name, version in provenance.get("libraries", {}).items():
            found[name] = sorted({*found.get(name, []), version})
    return found


def _backbones(run: RunFolder) -> list[str]:
    """Fingerprints of the backbones that the run's adapters belong to."""
    told = (provenance.get("backbone", {}).get("fingerprint") for provenance in run.adapters.values())
    return list(dict.fromkeys(filter(None, told)))


def _history(run: RunFolder) -> dict[str, Any]:
    """When the first and the last step of the log was begun or ended, and how many ended."""
    times = [entry["time"] for entry in run.log or () if isinstance(entry.get("time"), int | float)]
    if not times:
        return {}
    shown = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment)) for moment in (min(times), max(times)))
    ended = {entry.get("key") for entry in run.log or () if entry.get("event") == "end"}
    return {**dict(zip(("first", "last"), shown, strict=True)), "ended": len(ended)}
