"""`steps.json` of a run folder, written by hand from its store."""

import json
from pathlib import Path

from lingualift.pipeline import plan_of


def with_steps(experiment: Path, folder: Path) -> Path:
    """The folder, with a `steps.json` that says what the store says, unless the run wrote one."""
    if not (folder / "steps.json").is_file():
        planned, store = plan_of(experiment, output=folder)
        steps = [
            {
                "key": step.key,
                "kind": step.kind,
                "label": step.label(),
                "inputs": {role: one.key for role, one in step.inputs.items()},
                "seconds": store.recipe(step)["seconds"],
                "warnings": [],
                "facts": facts(step, store.folder(step)),
            }
            for step in planned.steps
        ]
        (folder / "steps.json").write_text(json.dumps({"schema": 1, "steps": steps}), encoding="utf-8")
    return folder


def facts(step, made):
    """What a finished step says of itself, by kind."""
    recipe = json.loads((made / "step.json").read_text())["recipe"]
    if step.kind == "initialisation":
        return {"seed": recipe["seed"]}
    if step.kind == "adapter":
        told = json.loads((made / "provenance.json").read_text())
        log = [json.loads(line) for line in (made / "training_log.jsonl").read_text().splitlines()]
        names = ("task", "language", "seed", "rows", "segments", "truncated_prompts", "steps", "settings")
        loss = [[entry["step"], entry["loss"]] for entry in log if "loss" in entry]
        return {**{name: told[name] for name in names}, "loss": loss}
    if step.kind == "sweep":
        found = json.loads((made / "sweep.json").read_text())
        how = recipe["how"]
        variant = how["space"] + (f"-{how['combine']}" if how["method"] == "arithmetic" else "")
        names = {"task": Path(step.source.task).stem, "method": how["method"], "variant": variant}
        return {**names, "seed": step.adapters[0][1].seed, "decides": True, **found}
    if step.kind == "merged":
        how = recipe["how"]
        return {"weight": recipe["weight"], "method": how["method"], "space": how["space"]}
    told = json.loads((made / "scores.json").read_text())
    counted = {name: told[name] for name in ("n", "malformed", "truncated")}
    return {"task": Path(step.source.task).stem, "language": step.language, **counted}
