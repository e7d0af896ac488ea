"""Experiment trackers: which there are, where they write, and what a training is called there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lingualift.config import Tracker
from lingualift.errors import UserError, did_you_mean

_FOLDER = "TENSORBOARD_LOGGING_DIR"  # where transformers' Trainer is told it


@dataclass(frozen=True)
class Tracking:
    """Where a training reports its loss, beside its own log.

    Attributes:
        trackers: Names of trackers of transformers' Trainer.
        name: What the training is called there: task, language, seed.
        folder: Where trackers that write files put theirs; `logs` in the adapter's own folder when left out.
    """

    trackers: tuple[str, ...] = ()
    name: str = ""
    folder: Path | None = None


def check_trackers(trackers: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        UserError: with the command that installs it.
    """
    for name in trackers:
        if name not in get_args(Tracker):
            mend = did_you_mean(name, get_args(Tracker))
            raise UserError("report_to", f"{name!r} is no tracker known here", mend=mend)
        if importlib.util.find_spec(name) is None:
            raise UserError(
                "report_to", f"{name} is not installed", mend=f"pip install {name}, or leave it out"
            )


@contextlib.contextmanager
def reporting(tracking: Tracking, folder: Path) -> Iterator[None]:
    """Let the Trainer that is made and run in the block write below `folder`; each training is a run of its own."""
    before = os.environ.get(_FOLDER)
    os.environ[_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_FOLDER)
        if before is not None:
            os.environ[_FOLDER] = before
        if "wandb" in tracking.trackers:  # it would go on with the same run in this process's next training
            importlib.import_module("wandb").finish()
