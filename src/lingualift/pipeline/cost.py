"""What the steps that are left will take: time, memory, disk. Sizes from the backbone's config, times measured."""

from __future__ import annotations

import functools
import heapq
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lingualift.backbone.loading import weight_bytes
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Adapter
from lingualift.errors import UserError
from lingualift.languages import knowing
from lingualift.pipeline.calibration import Pace, measure_all
from lingualift.pipeline.executors import default_workers, processors, ways
from lingualift.pipeline.machines import Estimator, Machine, Work
from lingualift.pipeline.plan import Plan
from lingualift.pipeline.steps import Evaluate, Step, Translate
from lingualift.pipeline.store import Store
from lingualift.processes import device, free_memory
from lingualift.provenance import fingerprint
from lingualift.terminal import readable
from lingualift.training.trainer import count_parameters

_PROCESS = (
    600 * 2**20
)  # what a process holds once torch, transformers and peft are imported (measured: 461 MiB)
_CHECKPOINT = 12  # bytes per trained number in a checkpoint: weight and AdamW's two moments


@dataclass(frozen=True)
class Cost:
    """What a step takes.

    Attributes:
        seconds: Time; None where it was not measured.
        memory: Bytes held at the peak, of the device's memory.
        disk: Bytes that stay in the store.
        steps: Optimiser steps; 0 where they were not counted.
        tokens: Tokens that are read; 0 where they were not counted.
    """

    seconds: float | None
    memory: int
    disk: int
    steps: int = 0
    tokens: int = 0


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
        device: "cpu", "cuda" or "mps"; what the machine is called that the plan is for.
        loading: Seconds of `seconds` in which the backbone is loaded.
        machine: The machine that the plan is for; None for this one.
    """

    costs: Mapping[Step, Cost]
    workers: int
    seconds: float | None
    memory: int
    memory_free: int
    disk: int
    disk_free: int
    device: str
    loading: float = 0.0
    machine: Machine | None = None


def estimate(
    plan: Plan,
    store: Store,
    *,
    calibrate: bool,
    machine: Machine | None = None,
    tell: Callable[[Step], None] = lambda step: None,
) -> Estimate:
    """Estimate what the steps that a store does not hold will take.

    Args:
        plan: The plan.
        store: Finished steps; the seconds that they took tell those of their kind.
        calibrate: Measure what finished steps do not tell, by a few steps of training and scoring; loads the backbone.
            Otherwise times are unknown, and memory is that of the weights alone, which is a lower bound.
        machine: A machine that this is not: counted from configuration and data, nothing is measured, one step at once.
        tell: Told which step is measured next.

    Raises:
        UserError: the backbone alone does not fit into memory (before it is loaded).
    """
    with knowing(plan.experiment.languages.added()):
        return _estimate(plan, store, calibrate, machine, tell)


def _estimate(
    plan: Plan, store: Store, calibrate: bool, machine: Machine | None, tell: Callable[[Step], None]
) -> Estimate:
    missing = plan.missing(store)
    workers = min(plan.experiment.workers or (1 if machine else default_workers()), max(1, len(missing)))
    homes = {step: (cell.backbone, cell.experiment.adapter) for step, cell in plan.homes().items()}
    sizes = {step: _sizes(*homes[step]) for step in missing}
    where = machine.name if machine else device()
    free = int(machine.memory) if machine else free_memory()
    for step in missing:
        _check_backbone(step, homes[step][0], sizes[step], free, where)
    loading = 0.0
    if machine:
        refs = dict.fromkeys(homes[step][0] for step in missing)
        counted = {ref: Estimator(ref, machine, weight_bytes(ref)) for ref in refs}
        costs = {step: _counted(step, sizes[step], counted[homes[step][0]].work(step)) for step in missing}
    else:
        paces, loading = (
            _paces(plan.steps, homes, store, set(missing), workers, tell) if calibrate else ({}, 0.0)
        )
        costs = {step: _cost(step, sizes[step], paces.get(step)) for step in missing}
    heaviest = sorted((cost.memory for cost in costs.values()), reverse=True)[:workers]
    trained = sorted((sizes[step].adapter for step in missing if step.kind == "adapter"), reverse=True)
    checkpoints = 2 * _CHECKPOINT * sum(trained[:workers])
    wall = _wall_time(costs, workers)
    return Estimate(
        costs,
        workers,
        None if wall is None else wall + loading,
        sum(heaviest),
        free,
        sum(cost.disk for cost in costs.values()) + checkpoints,
        shutil.disk_usage(_existing(store.root)).free,
        where,
        loading,
        machine,
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


@functools.cache
def _sizes(backbone: BackboneRef, adapter: Adapter) -> _Sizes:
    return _Sizes(weight_bytes(backbone), count_parameters(backbone, adapter)[1])


def _check_backbone(step: Step, backbone: BackboneRef, sizes: _Sizes, free: int, where: str) -> None:
    if sizes.backbone > free and step.loads:
        raise UserError(
            f"backbone {backbone.name!r}",
            f"needs {readable(sizes.backbone)} of memory for its weights alone "
            f"({backbone.quantization or backbone.dtype})",
            f"at most the {readable(free)} that are free ({where})",
            "take a smaller backbone, `backbone.dtype: bfloat16`, `backbone.quantization: nf4`, or a machine with "
            "more memory",
        )


def _counted(step: Step, sizes: _Sizes, work: Work) -> Cost:
    """What a step takes on another machine: what it holds as here, its activations as they were counted."""
    found = _cost(step, sizes, None, process=0)
    return replace(
        found, seconds=work.seconds, memory=found.memory + work.memory, steps=work.steps, tokens=work.tokens
    )


def _cost(step: Step, sizes: _Sizes, pace: Pace | None, process: int | None = None) -> Cost:
    if process is None:
        process = _PROCESS if device() == "cpu" else 0
    seconds = pace.seconds * step.units(pace.rows) if pace else None
    loaded = sizes.backbone * step.loads + _translator_bytes(step)
    row, rows = (pace.memory, pace.rows) if pace else (0, 0)
    held, kept = step.sizes(sizes.adapter, row, rows)
    return Cost(seconds, process + loaded + held, kept)


def _translator_bytes(step: Step) -> int:
    """Weights of the translation model that is loaded, beside the backbone or alone; 0 for steps without one."""
    if isinstance(step, Translate):
        return weight_bytes(step.model)
    if isinstance(step, Evaluate) and step.back:
        return weight_bytes(step.back.model)
    encoder = step.fused.source_encoder if step.fused else None
    return _encoder_bytes(encoder) if encoder else 0


@functools.cache
def _encoder_bytes(name: str) -> int:
    from lingualift.fusion.translator import find_translator

    return weight_bytes(find_translator(name).ref)


def _paces(
    steps: Sequence[Step],
    homes: Mapping[Step, tuple[BackboneRef, Adapter]],
    store: Store,
    left: set[Step],
    workers: int,
    tell: Callable[[Step], None],
) -> tuple[dict[Step, Pace], float]:
    """The pace of every step that is left, measured on the first of its workload, and the time that loading took."""
    threads = max(1, processors() // workers)
    found: dict[Step, Pace] = {}
    loading = 0.0
    for home in dict.fromkeys(homes[step] for step in steps if step in left):
        here = {step: fingerprint(step.workload()) for step in steps if homes[step] == home}
        first = {workload: step for step, workload in reversed(here.items()) if step in left}
        paces, loaded = measure_all(first, *home, threads, tell)
        loading += loaded
        for workload, pace in paces.items():
            told = [
                store.recipe(step)["seconds"] / max(1e-9, step.units(pace.rows))
                for step, its in here.items()
                if its == workload and step not in left
            ]
            measured = replace(pace, seconds=statistics.median(told)) if told else pace
            found |= {step: measured for step, its in here.items() if its == workload}
    return found, loading


def _wall_time(costs: Mapping[Step, Cost], workers: int) -> float | None:
    """Seconds until all steps are done, each started as soon as its inputs and a worker are there, as a run does it."""
    if any(cost.seconds is None for cost in costs.values()):
        return None
    seconds = {step.key: cost.seconds or 0.0 for step, cost in costs.items()}
    way = ways(list(costs), lambda step: seconds[step.key])
    waiting = sorted(costs, key=lambda step: -way[step.key])
    left, now = set(seconds), 0.0
    running: list[tuple[float, str]] = []
    while waiting or running:
        ready = [step for step in waiting if not any(source.key in left for source in step.inputs.values())]
        for step in ready[: workers - len(running)]:
            waiting.remove(step)
            heapq.heappush(running, (now + seconds[step.key], step.key))
        now, key = heapq.heappop(running)
        left.discard(key)
    return now


def _existing(path: Path) -> Path:
    """The path or the nearest of its parents that is there."""
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
