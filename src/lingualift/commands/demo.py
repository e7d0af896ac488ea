"""The whole method on bundled data: write the mini-world's files, run an experiment on them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from lingualift.errors import UserError
from lingualift.miniworld import write_data
from lingualift.pipeline import Run, run
from lingualift.pipeline.executors import Watch
from lingualift.provenance import write_text

EXPERIMENT = "demo.yaml"
SHOWN = """flare reads poor translations here, because there the methods differ. In the study (study/README.md), over \
three other backbones, it is above translate-test by +12.2 [+5.3, +18.1] points and level with translate-train and \
x-mixup; its setting block-input was chosen after the first results. Merging is level with source-ft there too."""
"""What the demo's table stands for; the numbers are the study's."""


def run_demo(output: Path, *, seeds: int = 3, watch: Watch = lambda event: None) -> Run:
    """Run the demo into a folder; what is finished there is not done again.

    Args:
        output: Gets `data/`, `demo.yaml` and the run folder `run/`.
        seeds: How many seeds of adapters.
        watch: Told when a step starts, goes on and ends.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if seeds < 1:
        raise UserError("--seeds", f"is {seeds}", "at least 1", "leave it out for 3")
    if output.exists() and (
        not output.is_dir() or (any(output.iterdir()) and not (output / EXPERIMENT).is_file())
    ):
        raise UserError(output, "is not empty and holds no demo", mend="choose another --output")
    path = output / EXPERIMENT
    text = resources.files("lingualift.commands").joinpath(EXPERIMENT).read_text(encoding="utf-8")
    if path.exists() and path.read_text(encoding="utf-8") != text:
        mend = f"run it: lingualift run {path}; or see the demo again elsewhere: choose another --output"
        raise UserError(path, "is not the demo's experiment, but one of your own", mend=mend)
    write_text(path, text)
    if not (output / "data").is_dir():
        write_data(output / "data")
    numbers = yaml.safe_dump(list(range(seeds)), default_flow_style=True).strip()
    return run(
        output / EXPERIMENT, output=output / "run", overrides=[f"seeds={numbers}"], replace=True, watch=watch
    )
