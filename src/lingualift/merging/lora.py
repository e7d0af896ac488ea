"""Merging LoRA: factor by factor, or as updates held in factors; and the export for servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lingualift.adapters.folder import Adapter
from lingualift.adapters.structure import Module
from lingualift.adapters.tensorfile import DTYPES, Array, TensorSpec, all_finite
from lingualift.errors import UserError, setting
from lingualift.merging import algebra
from lingualift.merging.loraconfig import lora_config
from lingualift.merging.methods import Floats, weighted_sum
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
        biased: Whether its lora_B has a bias: peft's `lora_bias`, which goes for all modules or none.
    """

    home: Module
    rank: int
    scaling: float
    biased: bool = False


def make_lora(request: Request, plan: Plan, record: Record) -> Made:
    """Announce the tensors of a merged LoRA adapter.

    Raises:
        UserError: ranks differ in factor space, or the export cannot hold what the base adapter has.
    """
    goals = {module.name: _goal(request, module) for module in plan.modules}
    if _biased(request, plan):
        _check_biases(request, goals)
        goals = {name: replace(goal, biased=True) for name, goal in goals.items()}
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
    if any(goal.biased for goal in goals.values()):
        base["lora_bias"] = True
    shapes = {name: (goal.rank, goal.scaling) for name, goal in goals.items()}
    return lora_config(base, shapes, same_modules=goals.keys() == request.base.modules.keys())


def _biased(request: Request, plan: Plan) -> bool:
    """Whether an adapter has biases of lora_B in what the result is made of."""
    entering = [
        (request.inputs[index].adapter, module.name) for module in plan.modules for index, _ in module.terms
    ]
    own = any(module.bias for module in request.base.modules.values())
    return own or any(adapter.modules[name].bias for adapter, name in entering)


def _check_biases(request: Request, goals: Mapping[str, _Goal]) -> None:
    """Refuse what peft cannot hold beside biases of lora_B."""
    embeddings = [name for name, goal in goals.items() if goal.home.form == "embedding"]
    if embeddings or request.serving:
        found = f"has biases of lora_B (lora_bias), which {'servers refuse' if request.serving else 'embeddings lack'}"
        mend = (
            f"use {setting('export', 'peft')}"
            if request.serving
            else f"leave {embeddings[0]!r} out with {setting('modules')}"
        )
        raise UserError(request.base.path, found, "lora_A and lora_B without biases", mend)


def _check_servable(request: Request) -> None:
    whole = request.base.structure.whole
    embeddings = [module.name for module in request.base.modules.values() if module.form == "embedding"]
    if whole or embeddings:
        found = f"holds {(whole or embeddings)[0]!r}, which servers refuse or drop"
        mend = f"use {setting('export', 'peft')}, or train without modules_to_save, biases and embeddings"
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
            raise UserError(
                request.base.path, found, "one rank in factor space", f"use {setting('space', 'delta')}"
            )
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
        return copies(request.base, goal.home.tensors) + _bias(request, plan, goal, record)
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

    return [Piece(specs, make), *_bias(request, plan, goal, record)]


def _bias(request: Request, plan: ModulePlan, goal: _Goal, record: Record) -> list[Piece]:
    """The bias of lora_B: a part of the update, scaling·b, which is zero in an adapter that has none."""
    if not goal.biased:
        return []
    if plan.kept and goal.home.bias:
        return copies(request.base, (goal.home.bias,))
    up = _owner(request, plan, goal).tensors[goal.home.tensors[1]]
    spec = TensorSpec(f"{up.name.removesuffix('weight')}bias", up.code, up.shape[:1])

    def of(index: int) -> Floats:
        adapter = request.inputs[index].adapter
        module = adapter.modules.get(plan.name)
        if module is None or not module.bias:
            return np.zeros(spec.shape, np.float32)
        return floats(adapter, module.bias) * np.float32(module.scaling / goal.home.scaling)

    def make() -> tuple[Array, ...]:
        if plan.kept:
            return (cast(of(0), spec),)
        arrays, weights = [of(index) for index, _ in plan.terms], [weight for _, weight in plan.terms]
        if request.cell.space == "delta":
            result = cast(weighted_sum(arrays, weights), spec)
        else:
            result = cast(combine(request, arrays, weights, [spec.name] * len(arrays)), spec)
        record.compare(result, cast(of(0), spec))
        return (result,)

    return [Piece((spec,), make)]


def _owner(request: Request, plan: ModulePlan, goal: _Goal) -> Adapter:
    return next(item.adapter for item in request.inputs if item.adapter.modules.get(plan.name) is goal.home)


def _specs(request: Request, plan: ModulePlan, goal: _Goal) -> tuple[TensorSpec, TensorSpec]:
    owner = _owner(request, plan, goal)
    codes = [owner.tensors[name].code for name in goal.home.tensors]
    code = max(codes, key=lambda code: DTYPES[code].itemsize)
    outputs, inputs = goal.home.fits
    down, up = goal.home.tensors
    return TensorSpec(down, code, (goal.rank, inputs)), TensorSpec(up, code, (outputs, goal.rank))


def _fit(name: str, down: Floats, up: Floats, goal: _Goal, record: Record) -> Pair:
    if len(down) > goal.rank:
        if not (all_finite(down) and all_finite(up)):
            mend = f"use a smaller {setting('weight')}, or adapters with smaller scalings"
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
