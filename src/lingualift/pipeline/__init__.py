"""The method, top to bottom: an experiment becomes a plan, a plan becomes finished steps, those become a table.

Read `methods.py` (what each method does), `steps/` (what a step is), `plan.py`, `executors.py`, `results.py`,
`runs/claims.py` (whose the run folder is), and the function below that puts them together.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from lingualift.config import Experiment, load_experiment
from lingualift.errors import UserError
from lingualift.languages import knowing, tag_notes
from lingualift.metrics.comparisons import Comparison
from lingualift.pipeline.cost import check_fits, estimate
from lingualift.pipeline.executors import Event, Watch, default_workers, expect_workers, run_locally
from lingualift.pipeline.plan import Plan, check_data, make_plan
from lingualift.pipeline.results import collect, names_of
from lingualift.pipeline.store import Store
from lingualift.provenance import writing
from lingualift.report import write_report
from lingualift.runs.claims import (
    EXPERIMENT_FILE,
    LOG_FILE,
    PAGE_FILE,
    RESULTS_FILE,
    check_folder,
    claimed,
    still_there,
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Holds `experiment.yaml`, `results.json`, `report.html`, `table.md`, `predictions/`, `adapters/`,
            `log.jsonl`.
        rows: The rows of `results.json`.
        comparisons: Every method against `source-ft`.
        experiment: The settings.
        trained: Steps that ran; the others were finished before.
        notes: What a tiny run changed in its experiment, and whose tags languages of its own borrow, a sentence each.
        empty: The cells that lack rows, as in `results.json`.
    """

    folder: Path
    rows: list[dict[str, Any]]
    comparisons: list[Comparison]
    experiment: Experiment
    trained: int
    notes: tuple[str, ...] = ()
    empty: tuple[dict[str, Any], ...] = ()

    @property
    def page(self) -> Path:
        """Its `report.html`."""
        return self.folder / PAGE_FILE


def run(
    experiment: Path | str,
    *,
    output: Path | str | None = None,
    overrides: list[str] | None = None,
    store: Path | str | None = None,
    replace: bool = False,
    tiny: bool = False,
    watch: Watch = lambda event: None,
) -> Run:
    """Run an experiment file; steps that are finished already are not done again.

    Args:
        experiment: The YAML file.
        output: Run folder; `runs/<name of the file>` when left out.
        overrides: `a.b=value` each, over the file's keys.
        store: Folder of finished steps, shared by the runs that name it; `store` beside the run folder when left out.
        replace: Let the results of another experiment in `output` be replaced; its finished steps stay.
        tiny: Prove the file, end to end, on a random small backbone of the same class and the rows that ship; into
            `runs/<name of the file>-tiny` when `output` is left out, with a store of its own in there.
        watch: Told when a step starts, goes on and ends.

    Returns:
        The run.

    Raises:
        UserError: anything the user can mend; nothing has run if it is found in the experiment or its data.
    """
    if tiny:
        return _run_tiny(Path(experiment), output, overrides, replace, watch)
    folder = _folder(experiment, output)
    if not (folder / RESULTS_FILE).is_file():  # else nothing may be left to do
        expect_workers(load_experiment(Path(experiment), overrides).workers)
    plan, steps = plan_of(experiment, output=output, overrides=overrides, store=store)
    check_folder(folder, plan.experiment, replace, names_of(plan))
    steps.check()
    if plan.missing(steps):
        steps.check_writable()
        check_fits(estimate(plan, steps, calibrate=False))
    return run_plan(plan, folder, steps, watch, replace=replace)


def plan_of(
    experiment: Path | str,
    *,
    output: Path | str | None = None,
    overrides: list[str] | None = None,
    store: Path | str | None = None,
) -> tuple[Plan, Store]:
    """The plan of an experiment file, all of its data checked, and the store that holds its finished steps.

    Arguments and errors as for `run`; nothing is written.
    """
    path = Path(experiment)
    folder = _folder(experiment, output)
    plan = make_plan(load_experiment(path, overrides), path.parent, folder / "logs")
    return plan, Store(Path(store) if store else folder.parent / "store")


def _folder(experiment: Path | str, output: Path | str | None) -> Path:
    return Path(output) if output else Path("runs") / Path(experiment).stem


def _run_tiny(
    path: Path, output: Path | str | None, overrides: list[str] | None, replace: bool, watch: Watch
) -> Run:
    """Run a file on a small random backbone; results of an earlier tiny run in the folder give way."""
    from lingualift.pipeline.tiny import shrink

    folder = Path(output) if output else Path("runs") / f"{path.stem}-tiny"
    given = load_experiment(path, overrides)
    small = shrink(given, path.parent)
    replace = replace or _is_tiny(folder)
    with claimed(folder, small.experiment, replace):
        small.write(folder)
    plan = make_plan(small.experiment, folder)
    real_room = small.experiment.model_copy(update={"scoring": given.scoring})
    with knowing(given.languages.added()):
        for part in plan.by_point():
            check_data(real_room, part.backbone, part.steps)  # as the real run will
    with writing(folder), (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        for note in small.notes:
            entry = {"time": time.time(), "event": "warning", "step": "--tiny", "key": "tiny", "text": note}
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    found = run_plan(plan, folder, Store(folder / "store"), watch)
    return changed(found, notes=(*small.notes, *found.notes))


def _is_tiny(folder: Path) -> bool:
    """Whether a run folder is that of a tiny run."""
    from lingualift.pipeline.tiny import PREFIX

    try:
        return load_experiment(folder / EXPERIMENT_FILE).backbone.name.startswith(PREFIX)
    except UserError:
        return False


def run_plan(
    plan: Plan, folder: Path, store: Store, watch: Watch = lambda event: None, *, replace: bool = False
) -> Run:
    """Run what a store does not hold yet, and write the results."""
    own = plan.experiment.languages.added()
    with knowing(own):
        return _run_plan(plan, folder, store, watch, replace, tuple(tag_notes(own)))


def _run_plan(
    plan: Plan, folder: Path, store: Store, watch: Watch, replace: bool, notes: tuple[str, ...]
) -> Run:
    store.claim()
    with claimed(folder, plan.experiment, replace):
        pass
    with store.needing(plan.steps):
        missing = plan.missing(store)
        with writing(folder), (folder / LOG_FILE).open("a", encoding="utf-8") as log:

            def note(event: Event) -> None:
                if event.what != "progress":
                    entry = {
                        "time": time.time(),
                        "event": event.what,
                        "step": event.step.label(),
                        "key": event.step.key,
                        **({"text": event.text} if event.text else {}),
                        **({"done": event.done, "total": event.total} if event.what == "pulse" else {}),
                        **({"seconds_left": round(event.left, 1)} if event.left is not None else {}),
                    }
                    log.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    log.flush()
                watch(event)

            if missing:
                for text in notes:
                    told = {"time": time.time(), "event": "note", "step": "languages.own", "key": "languages"}
                    log.write(json.dumps({**told, "text": text}, ensure_ascii=False) + "\n")
                watch(Event("plan", missing[0], done=len(missing), total=sum(step.cost for step in missing)))
            run_locally(missing, store, plan.experiment.workers or default_workers(), note)
        store.used(plan.steps)
        with still_there(folder, plan.experiment):
            rows, comparisons = collect(plan, store, folder)
    write_report(folder)
    empty = tuple(asdict(one) for one in plan.empty)
    return Run(folder, rows, comparisons, plan.experiment, len(missing), notes, empty)


__all__ = ["RESULTS_FILE", "Event", "Run", "make_plan", "plan_of", "run", "run_plan"]
