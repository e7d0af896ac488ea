"""What the steps that are left will take: time, memory, disk. Sizes from the backbone's config, times measured."""

from __future__ import annotations

import functools
import heapq
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.backbone import BackboneRef, skeleton, weight_bytes
from lingualift.devices import device, free_memory
from lingualift.errors import UserError
from lingualift.pipeline.calibration import Pace, measure
from lingualift.pipeline.executors import default_workers, processors
from lingualift.pipeline.plan import Plan
from lingualift.pipeline.steps import (
    Evaluate,
    Initialise,
    InitialiseFused,
    Merge,
    Step,
    Sweep,
    Train,
    WordsHead,
    start_of,
)
from lingualift.pipeline.store import Store
from lingualift.pipeline.words import readable
from lingualift.provenance import fingerprint
from lingualift.training.trainer import count_parameters
from lingualift.training.words import own_weights

_PROCESS = (
    600 * 2**20
)  # what a process holds once torch, transformers and peft are imported (measured: 461 MiB)
_TRAINED = 16  # bytes per trained number: weight, gradient and AdamW's two moments, in float32
_CHECKPOINT = 12  # bytes per trained number in a checkpoint: weight and AdamW's two moments
_PREDICTION = 400  # bytes per answered row on disk


@dataclass(frozen=True)
class Cost:
    """What a step takes.

    Attributes:
        seconds: Time; None where it was not measured.
        memory: Bytes held at the peak, of the device's memory.
        disk: Bytes that stay in the store.
    """

    seconds: float | None
    memory: int
    disk: int


@dataclass(frozen=True)
class Estimate:
    """What is left of a plan, and what there is for it.

    Attributes:
        costs: Step that is to be done -> what it takes.
        workers: Steps at once.
        seconds: Time until all are done; None where it was not measured.
        memory: Bytes at the peak.
        memory_free: Bytes of the device that are free.
        disk: Bytes needed on the store's disk, checkpoints included.
        disk_free: Bytes that are free there.
        device: "cpu", "cuda" or "mps".
    """

    costs: Mapping[Step, Cost]
    workers: int
    seconds: float | None
    memory: int
    memory_free: int
    disk: int
    disk_free: int
    device: str


def estimate(plan: Plan, store: Store, *, calibrate: bool) -> Estimate:
    """Estimate what the steps that a store does not hold will take.

    Args:
        plan: The plan.
        store: Finished steps; the seconds that they took tell those of their kind.
        calibrate: Measure what finished steps do not tell, by a few steps of training and scoring; loads the backbone.
            Otherwise times are unknown, and memory is that of the weights alone, which is a lower bound.

    Raises:
        UserError: the backbone alone does not fit into memory (before it is loaded).
    """
    missing = plan.missing(store)
    workers = min(plan.experiment.workers or default_workers(), max(1, len(missing)))
    sizes = _Sizes.of(plan)
    _check_backbone(plan.backbone, sizes, missing)
    paces = _paces(plan, store, missing, workers) if calibrate else {}
    costs = {step: _cost(step, sizes, paces.get(_workload(step))) for step in missing}
    heaviest = sorted((cost.memory for cost in costs.values()), reverse=True)[:workers]
    checkpoints = (
        2 * _CHECKPOINT * sizes.adapter * min(workers, sum(isinstance(step, Train) for step in missing))
    )
    return Estimate(
        costs,
        workers,
        _wall_time(costs, workers),
        sum(heaviest),
        free_memory(),
        sum(cost.disk for cost in costs.values()) + checkpoints,
        shutil.disk_usage(_existing(store.root)).free,
        device(),
    )


def misfits(found: Estimate) -> list[UserError]:
    """What will not fit, each with the mend."""
    problems = []
    if found.memory > found.memory_free:
        one = max(cost.memory for cost in found.costs.values())
        fitting = found.memory_free // one
        mend = (
            f"set `workers: {fitting}`"
            if fitting
            else "lower `batch_size` or `max_length`, set `gradient_checkpointing: true`, or `backbone.dtype: bfloat16`"
        )
        needs = f"{found.workers} step{'s' * (found.workers > 1)} at once need about {readable(found.memory)}"
        expected = f"at most the {readable(found.memory_free)} that are free ({found.device})"
        problems.append(UserError("memory", needs, expected, mend))
    if found.disk > found.disk_free:
        problems.append(
            UserError(
                "disk",
                f"the steps that are left need about {readable(found.disk)}",
                f"at most the {readable(found.disk_free)} that are free where the store is",
                "free some space, choose another --store, or run `lingualift store prune`",
            )
        )
    return problems


def check_fits(found: Estimate) -> None:
    """Refuse what will not fit.

    Raises:
        UserError: the first of `misfits`.
    """
    for problem in misfits(found):
        raise problem


@dataclass(frozen=True)
class _Sizes:
    """Numbers of parameters and the bytes they take."""

    backbone: int
    adapter: int

    @classmethod
    def of(cls, plan: Plan) -> _Sizes:
        _, trained = count_parameters(plan.backbone, plan.experiment.adapter)
        return cls(weight_bytes(plan.backbone), trained)


def _check_backbone(backbone: BackboneRef, sizes: _Sizes, missing: Sequence[Step]) -> None:
    free = free_memory()
    if sizes.backbone > free and not all(isinstance(step, Merge) for step in missing):
        raise UserError(
            f"backbone {backbone.name!r}",
            f"needs {readable(sizes.backbone)} of memory for its weights alone "
            f"({backbone.quantization or backbone.dtype})",
            f"at most the {readable(free)} that are free ({device()})",
            "take a smaller backbone, `backbone.dtype: bfloat16`, `backbone.quantization: nf4`, or a machine with "
            "more memory",
        )


def _cost(step: Step, sizes: _Sizes, pace: Pace | None) -> Cost:
    process = _PROCESS if device() == "cpu" else 0
    per_unit = pace.seconds if pace else None
    seconds = None if per_unit is None or pace is None else per_unit * _units(step, pace)
    held = process + sizes.backbone + _encoder_bytes(step)
    if isinstance(step, Train):
        held += _TRAINED * sizes.adapter + (pace.memory * step.settings.batch_size if pace else 0)
        return Cost(seconds, held, 4 * sizes.adapter)
    if isinstance(step, WordsHead):
        head = _words_numbers(step.backbone)
        held += _TRAINED * head + (pace.memory * step.settings.batch_size if pace else 0)
        return Cost(seconds, held, 4 * head)
    if isinstance(step, Initialise | InitialiseFused):
        return Cost(seconds, held, 4 * sizes.adapter)
    if isinstance(step, Merge):
        grown = len(step.adapters) if step.how.space == "delta" else 1
        return Cost(seconds, process, 4 * sizes.adapter * grown)
    held += 4 * sizes.adapter * (3 if isinstance(step, Sweep) else 1)
    held += pace.memory * step.scoring.batch_size if pace else 0  # type: ignore[attr-defined]
    return Cost(seconds, held, _PREDICTION * pace.rows if pace and isinstance(step, Evaluate) else 0)


@functools.cache
def _words_numbers(backbone: BackboneRef) -> int:
    """Numbers in a head for words that are its own."""
    return sum(weight.numel() for weight in own_weights(skeleton(backbone)).values())


def _encoder_bytes(step: Step) -> int:
    """Weights of the translation model that is loaded beside the backbone; 0 for steps without one."""
    drawn = start_of(step)
    encoder = drawn.settings.get("source_encoder") if isinstance(drawn, InitialiseFused) else None
    return _translator_bytes(encoder) if encoder else 0


@functools.cache
def _translator_bytes(name: str) -> int:
    from lingualift.fusion.translator import find_translator

    return weight_bytes(find_translator(name).ref)


def _units(step: Step, pace: Pace) -> float:
    """How many times the measured unit a step does: optimiser steps, answered rows, merges."""
    if isinstance(step, Train | WordsHead):
        settings = step.own_settings if isinstance(step, WordsHead) else step.settings
        if settings.steps is not None:
            return settings.steps
        per_step = settings.batch_size * settings.accumulation
        return math.ceil((settings.epochs or 1) * math.ceil(pace.rows / per_step))
    if isinstance(step, Evaluate):
        return pace.rows
    return pace.rows * len(step.grid) if isinstance(step, Sweep) else 1


def _workload(step: Step) -> str:
    """What steps have in common that take the same time per unit."""
    if not isinstance(step, Train | Evaluate | Sweep):
        return step.kind
    beside = step.source.beside.use if step.source.beside else None
    about: list[Any] = [
        step.source.task,
        step.source.data.model_dump(mode="json"),
        beside,
        str(step.source.base),
    ]
    if isinstance(step, Train):
        about += ["train", step.segment_tokens, step.settings.model_dump(mode="json"), *_drawn(step)]
    else:
        about += ["score", step.split, step.scoring.model_dump(mode="json")]
        about += (
            _drawn(step.adapter) if isinstance(step, Evaluate) and isinstance(step.adapter, Train) else []
        )
    return fingerprint(about)


def _drawn(step: Train) -> list[Any]:
    """What adapter it is, whatever its seed."""
    return [step.drawn.kind, {**step.drawn.recipe(), "seed": None}]


def _paces(plan: Plan, store: Store, missing: Sequence[Step], workers: int) -> dict[str, Pace]:
    """The pace of every workload that is left, measured on its first step."""
    threads = max(1, processors() // workers)
    finished: dict[str, list[tuple[Step, float]]] = {}
    left = set(missing)
    for step in plan.steps:
        if step not in left:
            finished.setdefault(_workload(step), []).append((step, store.recipe(step)["seconds"]))
    paces: dict[str, Pace] = {}
    for step in missing:
        workload = _workload(step)
        if workload not in paces:
            pace = measure(step, plan.backbone, plan.experiment.adapter, threads)
            told = [seconds / max(1e-9, _units(other, pace)) for other, seconds in finished.get(workload, [])]
            paces[workload] = Pace(statistics.median(told), pace.memory, pace.rows) if told else pace
    return paces


def _wall_time(costs: Mapping[Step, Cost], workers: int) -> float | None:
    """Seconds until all steps are done, each started as soon as its inputs and a worker are there."""
    if any(cost.seconds is None for cost in costs.values()):
        return None
    done: dict[str, float] = {}
    free = [0.0] * workers
    for step, cost in costs.items():
        ready = max((done.get(source.key, 0.0) for source in step.inputs.values()), default=0.0)
        start = max(ready, heapq.heappop(free))
        done[step.key] = start + (cost.seconds or 0.0)
        heapq.heappush(free, done[step.key])
    return max(done.values(), default=0.0)


def _existing(path: Path) -> Path:
    """The path or the nearest of its parents that is there."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
