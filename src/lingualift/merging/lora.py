"""Merging LoRA: factor by factor, or as updates, held in factors or cores; the export for servers; what kinds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from lingualift.adapters.folder import Adapter
from lingualift.adapters.structure import Module
from lingualift.adapters.tensorfile import DTYPES, Array, TensorSpec, all_finite
from lingualift.errors import UserError, setting
from lingualift.merging import algebra
from lingualift.merging.loraconfig import lora_config
from lingualift.merging.methods import Floats, ZeroDivisorError, ratio, weighted_sum
from lingualift.merging.plan import ModulePlan, Plan, Request

Pair = tuple[Floats, Floats]


@dataclass
class Outcome:
    """What turned out while the tensors were computed.

    Args:
        changed: Whether any merged tensor differs from the base's.
        energy: Spectral energy kept and in all, of each truncated module.
        cutoff: The pseudo-inverse's relative cut-off, where one was used.
    """

    changed: bool = False
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)
    cutoff: float | None = None

    def compare(self, result: Array, base: Array) -> None:
        """Note whether a merged tensor differs from the base's own."""
        self.changed = self.changed or not np.array_equal(result, base)


@dataclass(frozen=True)
class Tensors:
    """Tensors that are announced now, and computed together when the file is written.

    Args:
        specs: What they will be.
        compute: Computes them, in that order.
    """

    specs: tuple[TensorSpec, ...]
    compute: Callable[[], tuple[Array, ...]]


def copies(adapter: Adapter, names: Sequence[str]) -> list[Tensors]:
    """The adapter's own tensors, bit for bit."""

    def copy(name: str) -> tuple[Array, ...]:
        return (adapter.read(name),)

    return [Tensors((adapter.tensors[name],), partial(copy, name)) for name in names]


def combine(request: Request, plan: ModulePlan, arrays: Sequence[Floats], names: Sequence[str]) -> Floats:
    """Apply the method, under the rule asked for, to one tensor of every adapter that enters a module.

    Args:
        request: The merge.
        plan: The module, with the weights.
        arrays: The tensors, of one shape.
        names: The tensor's name in each adapter, for messages and for the seed of a draw.

    Raises:
        UserError: a zero where the multiplicative rule divides.
    """
    if not (request.method.subtracts and request.cell.rule == "multiplicative"):
        return request.method.combine(arrays, plan.weights, request.options.of(names[0]))
    task, target, source = arrays
    try:
        return ratio(task, target, source, plan.merge_weight)
    except ZeroDivisorError as error:
        where = f"{plan.inputs[2].adapter.weights_file}, tensor {names[2]!r}"
        mend = f"leave the module out with {setting('modules')}, or use {setting('rule', 'additive')}"
        raise UserError(where, f"{error}, and the rule divides by it", "no zero", mend) from None


def cast(array: Floats, spec: TensorSpec) -> Array:
    """Round to the number format of the result.

    Raises:
        UserError: the result does not fit into it.
    """
    stored = array.astype(DTYPES[spec.code], copy=False)
    if not all_finite(stored):
        mend = f"use a smaller {setting('weight')}, or a task adapter in float32"
        raise UserError(f"tensor {spec.name!r}", f"the result overflows {spec.code}", "finite numbers", mend)
    return stored


@dataclass(frozen=True)
class _Goal:
    """What one module of the result will be.

    Args:
        plan: The module, and what enters it.
        owner: The adapter whose names, number format and scaling it takes.
        rank: Its rank.
        scaling: Its scaling.
        biased: Whether its lora_B has a bias: peft's `lora_bias`, which goes for all modules or none.
    """

    plan: ModulePlan
    owner: Adapter
    rank: int
    scaling: float
    biased: bool = False

    @property
    def home(self) -> Module:
        """The owner's module."""
        return self.owner.modules[self.plan.name]


def make_lora(request: Request, plan: Plan, outcome: Outcome) -> tuple[list[Tensors], dict[str, Any]]:
    """Announce the tensors of a merged LoRA adapter, and its configuration.

    Raises:
        UserError: ranks differ in factor space, or the export cannot hold what the base adapter has.
    """
    goals = [_goal(request, module) for module in plan.modules]
    if any(module.bias for module in request.base.modules.values()) or any(
        item.adapter.modules[module.name].bias for module in plan.modules for item in module.inputs
    ):
        _check_biases(request, goals)
        goals = [replace(goal, biased=True) for goal in goals]
    if request.serving:
        _check_servable(request)
        rank = request.rank or max(goal.rank for goal in goals)
        goals = [replace(goal, rank=rank, scaling=1.0) for goal in goals]
    tensors = [made for goal in goals for made in _module_tensors(request, goal, outcome)]
    return [*tensors, *copies(request.base, request.base.structure.whole)], _config(request, goals)


def _config(request: Request, goals: Sequence[_Goal]) -> dict[str, Any]:
    config = dict(request.base.config)
    if any(goal.biased for goal in goals):
        config["lora_bias"] = True
    new = {goal.plan.name: (goal.rank, goal.scaling) for goal in goals}
    own = {module.name: (module.rank, module.scaling) for module in request.base.modules.values()}
    if request.serving:
        config.update(
            use_rslora=False, rank_pattern={}, alpha_pattern={}, init_lora_weights=True, bias="none"
        )
    elif new == own:
        return config
    return lora_config(config, new, same_modules=new.keys() == own.keys())


def _check_biases(request: Request, goals: Sequence[_Goal]) -> None:
    """Refuse what peft cannot hold beside biases of lora_B."""
    embeddings = [goal.plan.name for goal in goals if goal.home.form == "embedding"]
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
    owner = request.base if plan.name in request.base.modules else plan.inputs[0].adapter
    home = owner.modules[plan.name]
    if plan.kept:
        return _Goal(plan, owner, home.rank, home.scaling)
    ranks = [item.adapter.modules[plan.name].rank for item in plan.inputs]
    if request.cell.space == "factors":
        if len(set(ranks)) > 1:
            found = f"module {plan.name!r} has ranks {', '.join(map(str, ranks))}"
            mend = f"use {setting('space', 'delta')}"
            raise UserError(request.base.path, found, "one rank in factor space", mend)
        return _Goal(plan, owner, ranks[0], home.scaling)
    rank = sum(ranks)
    if request.rank or request.cell.space == "core":
        rank = min(rank, *home.fits, request.rank or rank)
    return _Goal(plan, owner, rank, home.scaling)


def _module_tensors(request: Request, goal: _Goal, outcome: Outcome) -> list[Tensors]:
    if goal.plan.kept and not request.serving:
        return copies(request.base, goal.home.tensors) + _bias(request, goal, outcome)
    down_spec, up_spec = _specs(goal)
    space = request.cell.space
    if space == "core" and request.method.linear and len(goal.plan.inputs) == 1:
        space = "delta"  # the same, and what is taken whole is not turned into other bases
    merge = {"factors": _factors, "delta": _delta, "core": _core}[space]

    def compute() -> tuple[Array, ...]:
        if goal.plan.kept:
            down, up = (request.base.floats(name) for name in goal.home.tensors)
        else:
            down, up = merge(request, goal, outcome)
        if request.serving:
            up = up * np.float32(goal.home.scaling)
        down, up = _fit(goal, down, up, outcome)
        return cast(down, down_spec), cast(up, up_spec)

    return [Tensors((down_spec, up_spec), compute), *_bias(request, goal, outcome)]


def _bias(request: Request, goal: _Goal, outcome: Outcome) -> list[Tensors]:
    """The bias of lora_B: a part of the update, scaling·b, which is zero in an adapter that has none."""
    plan, home = goal.plan, goal.home
    if not goal.biased:
        return []
    if plan.kept and home.bias:
        return copies(request.base, (home.bias,))
    up = goal.owner.tensors[home.tensors[1]]
    spec = TensorSpec(f"{up.name.removesuffix('weight')}bias", up.code, up.shape[:1])

    def of(adapter: Adapter) -> Floats:
        module = adapter.modules.get(plan.name)
        if module is None or not module.bias:
            return np.zeros(spec.shape, np.float32)
        return adapter.floats(module.bias) * np.float32(module.scaling / home.scaling)

    def compute() -> tuple[Array, ...]:
        own = cast(of(request.base), spec)
        if plan.kept:
            return (own,)
        arrays = [of(item.adapter) for item in plan.inputs]
        if request.cell.space != "factors" and request.method.linear:
            result = cast(weighted_sum(arrays, plan.weights), spec)
        else:
            result = cast(combine(request, plan, arrays, [spec.name] * len(arrays)), spec)
        outcome.compare(result, own)
        return (result,)

    return [Tensors((spec,), compute)]


def _specs(goal: _Goal) -> tuple[TensorSpec, TensorSpec]:
    codes = [goal.owner.tensors[name].code for name in goal.home.tensors]
    code = max(codes, key=lambda code: DTYPES[code].itemsize)
    outputs, inputs = goal.home.fits
    down, up = goal.home.tensors
    return TensorSpec(down, code, (goal.rank, inputs)), TensorSpec(up, code, (outputs, goal.rank))


def _fit(goal: _Goal, down: Floats, up: Floats, outcome: Outcome) -> Pair:
    """The factors at the rank wanted."""
    name = goal.plan.name
    if len(down) > goal.rank:
        if not (all_finite(down) and all_finite(up)):
            mend = f"use a smaller {setting('weight')}, or adapters with smaller scalings"
            raise UserError(f"module {name!r}", "the merge overflows float32", "finite numbers", mend)
        small = min(goal.rank, len(up), down.shape[1])
        down, up, kept, energy = algebra.truncate(down, up, small)
        outcome.energy[name] = kept * goal.scaling**2, energy * goal.scaling**2
    return algebra.pad(down, up, goal.rank) if len(down) < goal.rank else (down, up)


def _factors(request: Request, goal: _Goal, outcome: Outcome) -> Pair:
    """X = method(Xᵢ) for A and B each, every adapter expressed at the home's scaling.

    The ratio of scalings goes into the factor that training starts at zero (B; for embeddings A), so that
    the one that was drawn at random keeps the basis that the adapters share.
    """
    plan, own = goal.plan, request.base.modules.get(goal.plan.name)
    modules = [item.adapter.modules[plan.name] for item in plan.inputs]
    started_at_zero = 0 if goal.home.form == "embedding" else 1
    results = []
    for position in (0, 1):
        names = [module.tensors[position] for module in modules]
        arrays = [item.adapter.floats(name) for item, name in zip(plan.inputs, names, strict=True)]
        if position == started_at_zero:
            folds = [np.float32(module.scaling / goal.home.scaling) for module in modules]
            arrays = [array * fold for array, fold in zip(arrays, folds, strict=True)]
        result = combine(request, plan, arrays, names)
        if own is None:
            outcome.changed = True
        elif not outcome.changed:
            base = request.base.read(own.tensors[position])
            outcome.compare(result.astype(base.dtype), base)
        results.append(result)
    return results[0], results[1]


def _delta(request: Request, goal: _Goal, outcome: Outcome) -> Pair:
    """Factors of Σ wᵢ·ΔWᵢ at the home's scaling: exact concatenation."""
    downs, ups, coefficients = [], [], []
    for item in goal.plan.inputs:
        module = item.adapter.modules[goal.plan.name]
        down, up = (item.adapter.floats(name) for name in module.tensors)
        downs.append(down)
        ups.append(up)
        coefficients.append(item.weight * module.scaling / goal.home.scaling)
    own = 0 if goal.plan.inputs[0].adapter is request.base else None
    outcome.changed = outcome.changed or not _is_own(downs, ups, coefficients, own)
    return algebra.concatenate(downs, ups, coefficients)


def _core(request: Request, goal: _Goal, outcome: Outcome) -> Pair:
    """Factors of U·M·Vᵀ at the home's scaling: the updates merged as cores, in bases that they share."""
    plan, downs, ups = goal.plan, [], []
    for item in plan.inputs:
        module = item.adapter.modules[plan.name]
        down, up = (item.adapter.floats(name) for name in module.tensors)
        downs.append(down)
        ups.append(up * np.float32(module.scaling / goal.home.scaling))
    found, left, right = algebra.cores(downs, ups)
    own = 0 if plan.inputs[0].adapter is request.base else None
    if request.method.linear:  # an adapter that lacks the module adds nothing
        core = weighted_sum(found, plan.weights)
        changed = not _is_own(downs, ups, plan.weights, own)
    else:
        core = combine(request, plan, found, [goal.home.tensors[1]] * len(found))
        changed = own is None or not np.array_equal(core, found[own])
    outcome.changed = outcome.changed or changed
    if len(core) <= core.shape[1]:
        return (core @ right.T).astype(np.float32), left.astype(np.float32)
    return right.T.astype(np.float32), (left @ core).astype(np.float32)


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
