"""Finished steps on disk: one folder each, addressed by everything that determines it, whole or absent."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lingualift.pipeline.steps import Step
from lingualift.provenance import atomic_folder, read_json, write_json, writing

RECIPE_FILE = "step.json"


@dataclass(frozen=True)
class Store:
    """A folder of finished steps.

    Attributes:
        root: Holds `<kind>/<key>` for each finished step, and `work/<key>` for unfinished ones.
    """

    root: Path

    def folder(self, step: Step) -> Path:
        """Where the step's output is, or will be."""
        return self.root / step.kind / step.key[:20]

    def has(self, step: Step) -> bool:
        """Whether the step is finished."""
        return (self.folder(step) / RECIPE_FILE).is_file()

    def work(self, step: Step) -> Path:
        """Scratch space that outlives a killed run: checkpoints."""
        return self.root / "work" / step.key[:20]

    def recipe(self, step: Step) -> dict[str, Any]:
        """What a finished step was made from, and the seconds it took."""
        return dict(read_json(self.folder(step) / RECIPE_FILE))

    @contextlib.contextmanager
    def writing(self, step: Step) -> Iterator[Path | None]:
        """A folder to fill; it becomes the step's output when the block ends well.

        One process at a time: another that wants the same step waits, and gets None because there is nothing left to
        do. What a killed process left unfinished is cleared away.
        """
        folder, locks = self.folder(step), self.root / "locks"
        with writing(locks):
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / f"{step.key[:20]}.lock")
        with lock:
            if self.has(step):
                yield None
                return
            for leftover in (folder, *folder.parent.glob(f".{folder.name}.*.partial")):
                shutil.rmtree(leftover, ignore_errors=True)
            with atomic_folder(folder) as scratch:
                started = time.monotonic()
                yield scratch
                seconds = round(time.monotonic() - started, 3)
                write_json(scratch / RECIPE_FILE, {**step.description(), "seconds": seconds})
