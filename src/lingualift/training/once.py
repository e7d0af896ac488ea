"""Training a single adapter outside an experiment, from the command line or a script of your own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lingualift.attachment import check_adapter
from lingualift.backbone import find_backbone
from lingualift.config import Adapter, Backbone, Training
from lingualift.provenance import atomic_folder, fingerprint, sha256_folder
from lingualift.source import Source
from lingualift.training.tracking import Tracking, check_trackers
from lingualift.training.trainer import Progress, initialise, train


def train_once(
    backbone: Backbone,
    source: Source,
    language: str,
    adapter: Adapter,
    settings: Training,
    *,
    output: Path,
    seed: int = 0,
    start: Path | None = None,
    progress: Progress = lambda done, total: None,
    report_to: Sequence[str] = (),
) -> None:
    """Train one adapter into a new folder.

    Args:
        backbone: The backbone.
        source: Task and rows.
        language: Language of the rows.
        adapter: Type, rank, modules, seed of the initialisation.
        settings: Steps, batch, learning rate.
        output: Folder to write; it must not exist. Checkpoints lie beside it until it is whole.
        seed: Order of the data; added to the adapter's initialisation seed.
        start: Adapter folder to start from instead of a fresh initialisation.
        progress: Called with steps done and steps in all.
        report_to: Experiment trackers; what they write to files goes to `logs` in the output.

    Raises:
        UserError: bad data, no backbone, an adapter to start from that does not fit, an output that exists.
    """
    check_trackers(report_to)
    ref = find_backbone(backbone)
    if start is not None:
        check_adapter(ref, start)
    rows = source.rows(language, "train")
    everything = {
        "backbone": ref.identity(),
        "rows": source.identity(language, "train"),
        "adapter": adapter.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "start": sha256_folder(start) if start else None,
    }
    with _output(output) as scratch, tempfile.TemporaryDirectory() as drawn:
        if start is None:
            initialise(ref, adapter, adapter.init_seed + seed, Path(drawn))
        train(
            ref,
            source.get_task(),
            rows,
            settings,
            start=start or Path(drawn),
            seed=seed,
            output=scratch,
            work=output.parent / f".{output.name}.{fingerprint(everything)[:12]}.checkpoints",
            language=language,
            segment_tokens=settings.max_length,
            about={"task": source.task, "language": language, **source.identity(language, "train")["data"]},
            progress=progress,
            tracking=Tracking(tuple(report_to), f"{Path(source.task).stem}.{language}.seed{seed}"),
        )


@contextlib.contextmanager
def _output(output: Path) -> Iterator[Path]:
    """The folder to fill; under `accelerate launch` only the first process writes it."""
    if os.environ.get("RANK", "0") != "0":
        with tempfile.TemporaryDirectory() as unused:
            yield Path(unused)
        return
    with atomic_folder(output) as scratch:
        yield scratch
