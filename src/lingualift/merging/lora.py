"""Merging LoRA: factor by factor, or as updates held in factors; and the export for servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lingualift.adapters.structure import Module
from lingualift.adapters.tensorfile import DTYPES, Array, TensorSpec, all_finite
from lingualift.errors import UserError
from lingualift.merging import algebra
from lingualift.merging.algebra import Floats
from lingualift.merging.loraconfig import lora_config
from lingualift.merging.pieces import Made, Piece, Record, cast, combine, copies, floats
from lingualift.merging.plan import ModulePlan, Plan, Request

Pair = tuple[Floats, Floats]


@dataclass(frozen=True)
class _Goal:
    """What one module of the result will be.

    Args:
        home: The module whose names, number format and scaling it takes.
        rank: Its rank.
        scaling: Its scaling.
    """

    home: Module
    rank: int
    scaling: float


def make_lora(request: Request, plan: Plan, record: Record) -> Made:
    """Announce the tensors of a merged LoRA adapter.

    Raises:
        UserError: ranks differ in factor space, or the export cannot hold what the base adapter has.
    """
    goals = {module.name: _goal(request, module) for module in plan.modules}
    if request.serving:
        _check_servable(request)
        rank = request.rank or max(goal.rank for goal in goals.values())
        goals = {name: _Goal(goal.home, rank, 1.0) for name, goal in goals.items()}
    pieces = [
        piece for module in plan.modules for piece in _pieces(request, module, goals[module.name], record)
    ]
    pieces += copies(request.base, request.base.structure.whole)
    return Made(pieces, _config(request, goals))


def _config(request: Request, goals: Mapping[str, _Goal]) -> dict[str, Any]:
    base = dict(request.base.config)
    if request.serving:
        base.update(use_rslora=False, rank_pattern={}, alpha_pattern={}, init_lora_weights=True, bias="none")
    shapes = {name: (goal.rank, goal.scaling) for name, goal in goals.items()}
    return lora_config(base, shapes, same_modules=goals.keys() == request.base.modules.keys())


def _check_servable(request: Request) -> None:
    whole = request.base.structure.whole
    embeddings = [module.name for module in request.base.modules.values() if module.form == "embedding"]
    if whole or embeddings:
        found = f"holds {(whole or embeddings)[0]!r}, which servers refuse or drop"
        mend = "export peft, or train without modules_to_save, biases and embeddings"
        raise UserError(request.base.path, found, "LoRA on linear layers only", mend)


def _goal(request: Request, plan: ModulePlan) -> _Goal:
    home = _home(request, plan)
    if plan.kept:
        return _Goal(home, home.rank, home.scaling)
    entering = [request.holders(plan.name)[index] for index, _ in plan.terms]
    ranks = [module.rank for module in entering if module]
    if request.cell.space == "factors":
        if len(set(ranks)) > 1:
            found = f"module {plan.name!r} has ranks {', '.join(map(str, ranks))}"
            raise UserError(request.base.path, found, "one rank in factor space", "use space delta")
        return _Goal(home, ranks[0], home.scaling)
    rank = sum(ranks)
    return _Goal(home, min(rank, *home.fits, request.rank) if request.rank else rank, home.scaling)


def _home(request: Request, plan: ModulePlan) -> Module:
    own = request.base.modules.get(plan.name)
    if own:
        return own
    return request.inputs[plan.terms[0][0]].adapter.modules[plan.name]


def _pieces(request: Request, plan: ModulePlan, goal: _Goal, record: Record) -> list[Piece]:
    if plan.kept and not request.serving:
        return copies(request.base, goal.home.tensors)
    specs = _specs(request, plan, goal)
    compute = _factors if request.cell.space == "factors" else _delta

    def make() -> tuple[Array, ...]:
        if plan.kept:
            down, up = (floats(request.base, name) for name in goal.home.tensors)
        else:
            down, up = compute(request, plan, goal, record)
        if request.serving:
            up = up * np.float32(goal.home.scaling)
        down, up = _fit(plan.name, down, up, goal, record)
        return cast(down, specs[0]), cast(up, specs[1])

    return [Piece(specs, make)]


def _specs(request: Request, plan: ModulePlan, goal: _Goal) -> tuple[TensorSpec, TensorSpec]:
    owner = next(item.adapter for item in request.inputs if item.adapter.modules.get(plan.name) is goal.home)
    codes = [owner.tensors[name].code for name in goal.home.tensors]
    code = max(codes, key=lambda code: DTYPES[code].itemsize)
    outputs, inputs = goal.home.fits
    down, up = goal.home.tensors
    return TensorSpec(down, code, (goal.rank, inputs)), TensorSpec(up, code, (outputs, goal.rank))


def _fit(name: str, down: Floats, up: Floats, goal: _Goal, record: Record) -> Pair:
    if len(down) > goal.rank:
        if not (all_finite(down) and all_finite(up)):
            mend = "use a smaller weight, or adapters with smaller scalings"
            raise UserError(f"module {name!r}", "the merge overflows float32", "finite numbers", mend)
        small = min(goal.rank, len(up), down.shape[1])
        down, up, kept, energy = algebra.truncate(down, up, small)
        record.energy[name] = kept * goal.scaling**2, energy * goal.scaling**2
    return algebra.pad(down, up, goal.rank)


def _factors(request: Request, plan: ModulePlan, goal: _Goal, record: Record) -> Pair:
    """X = method(Xᵢ) for A and B each, every adapter expressed at the home's scaling.

    The ratio of scalings goes into the factor that training starts at zero (B; for embeddings A), so that
    the one that was drawn at random keeps the basis that the adapters share.
    """
    members = [
        (request.inputs[i].adapter, request.inputs[i].adapter.modules[plan.name]) for i, _ in plan.terms
    ]
    started_at_zero = 0 if goal.home.form == "embedding" else 1
    results = []
    for position in (0, 1):
        names = [module.tensors[position] for _, module in members]
        arrays = [floats(adapter, module.tensors[position]) for adapter, module in members]
        if position == started_at_zero:
            folds = [np.float32(module.scaling / goal.home.scaling) for _, module in members]
            arrays = [array * fold for array, fold in zip(arrays, folds, strict=True)]
        results.append(combine(request, arrays, [weight for _, weight in plan.terms], names))
        _note_change(request, plan, position, results[-1], record)
    return results[0], results[1]


def _note_change(request: Request, plan: ModulePlan, position: int, result: Floats, record: Record) -> None:
    own = request.base.modules.get(plan.name)
    if record.changed or own is None:
        record.changed = True
        return
    base = request.base.read(own.tensors[position])
    record.compare(result.astype(base.dtype), base)


def _delta(request: Request, plan: ModulePlan, goal: _Goal, record: Record) -> Pair:
    """Factors of Σ wᵢ·ΔWᵢ at the home's scaling: exact concatenation."""
    downs, ups, coefficients = [], [], []
    for index, weight in plan.terms:
        adapter = request.inputs[index].adapter
        module = adapter.modules[plan.name]
        down, up = (floats(adapter, name) for name in module.tensors)
        downs.append(down)
        ups.append(up)
        coefficients.append(weight * module.scaling / goal.home.scaling)
    own = 0 if plan.terms[0][0] == 0 else None
    record.changed = record.changed or not _is_own(downs, ups, coefficients, own)
    return algebra.concatenate(downs, ups, coefficients)


def _is_own(
    downs: Sequence[Floats], ups: Sequence[Floats], coefficients: Sequence[float], own: int | None
) -> bool:
    """Whether equal terms cancel until nothing but the base's own update is left."""
    left: list[tuple[int, float]] = []
    for index, coefficient in enumerate(coefficients):
        for place, (first, total) in enumerate(left):
            if np.array_equal(downs[index], downs[first]) and np.array_equal(ups[index], ups[first]):
                left[place] = first, total + coefficient
                break
        else:
            left.append((index, coefficient))
    return [term for term in left if term[1]] == ([] if own is None else [(own, 1.0)])
