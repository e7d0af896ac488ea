"""From finished steps to `results.json`, predictions, and adapters under names that people can read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import WEIGHTS_FILE
from lingualift.backbone.loading import parameters_of
from lingualift.config import grid_name
from lingualift.evaluation.runner import by_reading
from lingualift.fusion.translator import find_translator
from lingualift.metrics.comparisons import Comparison, compare, with_rows
from lingualift.pipeline.methods import METHODS
from lingualift.pipeline.plan import Plan, Planned, in_order
from lingualift.pipeline.steps import PREDICTIONS_FILE, SCORES_FILE, Evaluate, Merge, Step, Translate
from lingualift.pipeline.store import RECIPE_FILE, Store
from lingualift.provenance import PROVENANCE_FILE, fingerprint, json_text, jsonl_text, read_json
from lingualift.runs.claims import RESULTS_FILE, STEPS_FILE, discard, made, place

SCHEMA = 1
_VIEWS = ("predictions/", "adapters/")


def collect(plan: Plan, store: Store, output: Path) -> tuple[list[dict[str, Any]], list[Comparison]]:
    """Write `results.json`, `steps.json`, `predictions/` and `adapters/` of a run whose steps are all finished.

    Args:
        plan: Of the run.
        store: Holds its steps.
        output: The run folder.

    Returns:
        The rows of `results.json`, one per cell and metric, and its comparisons with `source-ft`.
    """
    rows: list[dict[str, Any]] = []
    activations: list[dict[str, Any]] = []
    answers: dict[str, list[dict[str, Any]]] = {}
    files: dict[str, str | Path] = {}
    for planned in plan.cells:
        name = cell_name(planned)
        text = (store.folder(planned.evaluation) / PREDICTIONS_FILE).read_text(encoding="utf-8")
        file, link = f"predictions/{name}.jsonl", None
        reading = planned.cell.experiment.scoring.reading
        answers[file] = [by_reading(json.loads(line), reading) for line in text.split("\n") if line]
        files[file] = jsonl_text(answers[file])
        if planned.evaluation.adapter is not None:
            link = f"adapters/{name}"
            files |= _shared(store.folder(planned.evaluation.adapter), link)
        mine = _rows(planned, store)
        rows.extend({**row, "adapter": link, "predictions": file} for row in mine)
        activations.extend(_activations(mine[0], store.folder(planned.evaluation)))
    found = list(_compared(plan, rows, answers))
    results = {"schema": SCHEMA, "rows": rows, "comparisons": [asdict(comparison) for comparison in found]}
    results |= {"activations": activations} if activations else {}
    results |= {"empty": [asdict(one) for one in plan.empty]} if plan.empty else {}
    points = plan.points_of()
    steps = {"schema": SCHEMA, "steps": [_told(step, store, points[step]) for step in plan.steps]}
    files |= {STEPS_FILE: json_text(steps), RESULTS_FILE: json_text(results)}
    place(output, files)
    discard(output, {name for name in made(output) if name.startswith(_VIEWS)} - files.keys())
    return rows, found


def _compared(
    plan: Plan, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, list[dict[str, Any]]]
) -> Iterator[Comparison]:
    """Methods against the baseline, on each task at each point of the grid, over that task's own averages."""
    for planned in {(grid_name(each.grid), each.cell.task.task): each for each in plan.cells}.values():
        task = Path(planned.cell.task.task).stem
        there = [row for row in rows if row["grid"] == planned.grid and row["task"] == task]
        averages = with_rows(planned.cell.experiment.averages(), there)
        for one in compare(there, lambda row: answers[row["predictions"]], averages):
            yield replace(one, grid=planned.grid)


def names_of(plan: Plan) -> Iterator[str]:
    """Paths within the run folder that `collect` will write, of adapters those that all of them have."""
    yield from (STEPS_FILE, RESULTS_FILE)
    for planned in plan.cells:
        name = cell_name(planned)
        yield f"predictions/{name}.jsonl"
        if planned.evaluation.adapter is not None:
            yield from (f"adapters/{name}/{file}" for file in (CONFIG_FILE, WEIGHTS_FILE))


def _shared(folder: Path, name: str) -> dict[str, Path]:
    """The files of a finished step's adapter, each by its second name.

    As hard links they need no more room, and stay whole when the run folder is moved or the store is pruned.
    """
    recipe = folder / RECIPE_FILE
    files = (path for path in folder.rglob("*") if path.is_file() and path != recipe)
    return {f"{name}/{path.relative_to(folder)}": path for path in files}


def _told(step: Step, store: Store, grids: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What a finished step was, cost and warned of, for reports."""
    recipe = store.recipe(step)
    shown = {name: recipe[name] for name in ("key", "kind", "label", "inputs", "seconds", "warnings")}
    return {**shown, "facts": {**step.facts(store.folder(step)), "grids": grids}}


def cell_name(planned: Planned) -> str:
    """File name of a cell: task, language, method, variant, seed, point of the grid."""
    cell = planned.cell
    parts = [
        Path(cell.task.task).stem,
        cell.language,
        cell.method.method,
        cell.method.variant(cell.experiment.adapter.type),
        "" if planned.seed is None else f"seed{planned.seed}",
        *(f"{axis}={name}" for axis, name in planned.grid.items()),
    ]
    name = ".".join(filter(None, parts))
    plain = "".join(letter if letter.isalnum() or letter in "-_.=" else "_" for letter in name)
    return plain if plain == name else f"{plain}.{fingerprint(name)[:8]}"  # patterns may look alike then


def _rows(planned: Planned, store: Store) -> list[dict[str, Any]]:
    cell, evaluation = planned.cell, planned.evaluation
    reading = cell.experiment.scoring.reading
    found = by_reading(read_json(store.folder(evaluation) / SCORES_FILE), reading)
    seconds = store.recipe(evaluation)["seconds"]
    if evaluation.adapter is not None:
        seconds += store.recipe(evaluation.adapter)["seconds"]
    shared: dict[str, Any] = {
        "method": cell.method.method,
        "variant": cell.method.variant(cell.experiment.adapter.type),
        "task": Path(cell.task.task).stem,
        "language": cell.language,
        "answer_language": evaluation.answer_language,
        "split": evaluation.split,
        "backbone": cell.backbone.name,
        "quantization": cell.backbone.quantization,
        "chat_template": cell.backbone.chat,
        "source_language": cell.experiment.languages.source,
        "reference_task": Path(cell.reference.task).stem
        if _uses_reference(planned) and cell.reference
        else None,
    }
    further = {
        "n": found["n"],
        "n_train": _training_rows(planned, store),
        "malformed": found["malformed"],
        "reading": reading if found["readings"] else None,
        "truncated": found["truncated"],
        "seed": planned.seed,
        **_weight(planned, store),
        "seconds": round(seconds, 3),
    }
    shared["grid"] = dict(planned.grid)
    shared |= _translator(evaluation)
    return [
        {**shared, "metric": metric, **values, **further, "readings": _readings(found, metric)}
        for metric, values in found["scores"].items()
    ]


def _readings(found: Mapping[str, Any], metric: str) -> dict[str, dict[str, Any]]:
    """Reading -> score by a metric, its standard error, and answers that could not be read."""
    return {
        reading: {
            **{name: one["scores"][metric][name] for name in ("score", "stderr")},
            "malformed": one["malformed"],
        }
        for reading, one in found["readings"].items()
    }


def _translator(evaluation: Evaluate) -> dict[str, Any]:
    """The translation model whose work a row depends on, and how many numbers its weights are; None without one."""
    steps = list(in_order([evaluation]))
    models = [step.model for step in steps if isinstance(step, Translate)]
    models += [evaluation.back.model] if evaluation.back else []
    encoder = evaluation.fused.source_encoder if evaluation.fused else None
    models += [find_translator(encoder).ref] if encoder else []
    if not models:
        return {"translator": None, "translator_parameters": None}
    largest = max(models, key=parameters_of)
    return {"translator": largest.name, "translator_parameters": parameters_of(largest)}


def _activations(row: Mapping[str, Any], evaluation: Path) -> list[dict[str, Any]]:
    """What the fused layers of a FLARE adapter did, under the names of its row; nothing for others."""
    names = ("method", "variant", "task", "language", "seed", "grid")
    layers = read_json(evaluation / SCORES_FILE).get("activations")
    return [{**{name: row[name] for name in names}, "layers": layers}] if layers else []


def _uses_reference(planned: Planned) -> bool:
    return METHODS[planned.cell.method.method].needs_reference


def _weight(planned: Planned, store: Store) -> dict[str, Any]:
    """The merge weight, None for what is not merged, and those of ranges of blocks, whose mean it is."""
    adapter = planned.evaluation.adapter
    if not isinstance(adapter, Merge):
        return {"weight": None, "weight_by_block": {}}
    weight, by_block = adapter.chosen({role: store.folder(step) for role, step in adapter.inputs.items()})
    return {"weight": weight, "weight_by_block": by_block}


def _training_rows(planned: Planned, store: Store) -> int | None:
    """Rows that the adapter, or the task adapter in a merge, was trained on."""
    adapter = planned.evaluation.adapter
    if adapter is None:
        return None
    return int(read_json(store.folder(adapter.task_training) / PROVENANCE_FILE)["rows"])
