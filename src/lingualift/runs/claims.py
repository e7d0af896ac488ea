"""Whose a run folder is: made for one experiment, gone on with for the same one, and never anybody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lingualift.config import Experiment, dump_experiment, load_experiment
from lingualift.errors import UserError
from lingualift.runs.made import adopt, alone, check, discard, made, place
from lingualift.provenance import reading
from lingualift.runs.folder import EXPERIMENT_FILE, RESULTS, files_of_older_run


def check_folder(folder: Path, experiment: Experiment, replace: bool, names: Iterable[str] = ()) -> None:
    """Check that an experiment may run into a folder; nothing is written.

    Args:
        folder: Where.
        experiment: What will run.
        replace: Whether results of another experiment may give way.
        names: Paths within the folder of what will be written.

    Raises:
        UserError: it holds another experiment's run (unless that may be replaced), no run at all, or files that were
            changed since a run wrote them.
    """
    older = set(files_of_older_run(folder))
    ours = {*made(folder), *older}
    there = folder / EXPERIMENT_FILE
    if EXPERIMENT_FILE not in ours:
        _check_empty(folder)
        return
    same = not there.is_file() or _same(there, experiment)
    if not same and not replace:
        raise UserError(
            folder,
            "holds the run of another experiment",
            "the same experiment, to go on with it",
            "choose another --output, or replace its results with --replace (finished steps are kept)",
        )
    check(folder, set(names) - older, changed=(EXPERIMENT_FILE,) if same else ())


def _check_empty(folder: Path) -> None:
    with reading(folder):
        others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others not in ([], [".lock"]):
        found = "is not empty and no run folder"
        if EXPERIMENT_FILE in others:
            found = f"holds an {EXPERIMENT_FILE} that no run wrote"
        raise UserError(folder, found, "a folder that is new or that a run made", "choose another --output")


@contextlib.contextmanager
def claimed(folder: Path, experiment: Experiment, replace: bool) -> Iterator[None]:
    """Make the run folder, put the resolved experiment into it, and keep other runs out while the block lasts.

    Raises:
        UserError: as `check_folder`, or it cannot be written.
    """
    check_folder(folder, experiment, replace)
    with alone(folder):
        check_folder(folder, experiment, replace)  # another run may have come first
        adopt(folder, files_of_older_run(folder))
        there = folder / EXPERIMENT_FILE
        if not (there.is_file() and _same(there, experiment)):
            discard(folder, RESULTS)  # lest they pass for this experiment's
            place(folder, {EXPERIMENT_FILE: dump_experiment(experiment)})
        yield


@contextlib.contextmanager
def still_there(folder: Path, experiment: Experiment) -> Iterator[None]:
    """Keep other runs out of a run's folder while its results are written.

    Raises:
        UserError: the folder was removed meanwhile, or another run has replaced the experiment in it.
    """
    mend = "run the same command again: finished steps are kept"
    if not (folder / EXPERIMENT_FILE).is_file():
        raise UserError(folder, "was removed while the run went on", mend=mend)
    with alone(folder):
        if not _same(folder / EXPERIMENT_FILE, experiment):
            found = "holds another experiment now, which was started there while this run went on"
            raise UserError(folder, found, mend="run again with another --output: finished steps are kept")
        yield


def _same(there: Path, experiment: Experiment) -> bool:
    """Whether a resolved experiment file gives the same results, however fast and wherever its loss is shown."""
    pace: Any = {
        "workers": True,
        "report_to": True,
        "scoring": {"batch_size"},
        "training": {"task": {"checkpoint_steps"}, "reference": {"checkpoint_steps"}},
    }
    try:
        other = load_experiment(there)
    except UserError:
        return False
    return other.model_dump(exclude=pace) == experiment.model_dump(exclude=pace)
