"""A small run with a weight to choose, and what its folder and its store say."""

import json
import os

from builders.worlds import experiment, write_experiment
from lingualift.pipeline import plan_of
from lingualift.pipeline.store import Store


def tuned(data, **changes):
    raw = experiment(data, methods=["source-ft", {"method": "adamergex", "space": "delta"}, "target-ft"])
    raw["weights"] = {"tune_on": "fr", "grid": [0.0, 1.0]}
    return raw | changes


def redone(folder, **changes):
    """Labels of the steps that a run would do now, sorted."""
    path = folder / "e.yaml"
    if changes:
        write_experiment(path, tuned("data", **changes))
    planned, store = plan_of(path, output=folder / "run")
    return sorted(step.label() for step in planned.missing(store))


def timeless(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def states(folder):
    return {entry.path.name.strip("."): entry.state for entry in Store(folder).entries()}


def flip(path):
    """Alter the last letter or number, leaving size and time as they were."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def lose(path):
    path.unlink()
