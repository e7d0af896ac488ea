"""Merging (IA)³ vectors and virtual tokens (prefix- and prompt-tuning)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from lingualift.adapters.structure import PROMPT
from lingualift.adapters.tensorfile import Array
from lingualift.errors import UserError, setting
from lingualift.merging import algebra
from lingualift.merging.lora import Outcome, Tensors, cast, combine, copies
from lingualift.merging.methods import Floats
from lingualift.merging.plan import ModulePlan, Plan, Request

_ONE = np.float32(1)
_Merge = Callable[[Request, ModulePlan, Sequence[Floats], Sequence[str]], Floats]


def make_vectors(request: Request, plan: Plan, outcome: Outcome) -> tuple[list[Tensors], dict[str, Any]]:
    """Announce the vectors of a merged (IA)³ adapter, and its configuration."""
    tensors = [
        made
        for module in plan.modules
        for made in _each_tensor(request, module, outcome, _combine_vectors, 1)
    ]
    return [*tensors, *copies(request.base, request.base.structure.whole)], _vector_config(request, plan)


def _combine_vectors(
    request: Request, plan: ModulePlan, arrays: Sequence[Floats], names: Sequence[str]
) -> Floats:
    differs = request.method.subtracts and request.cell.rule == "multiplicative"
    if differs or request.method.by_block:  # whose weights add up to 1
        return combine(request, plan, arrays, names)
    return combine(request, plan, [array - _ONE for array in arrays], names) + _ONE


def _vector_config(request: Request, plan: Plan) -> dict[str, Any]:
    config = dict(request.base.config)
    names = {module.name for module in plan.modules}
    if names != set(request.base.modules):
        modules = [item.adapter.modules for item in reversed(request.inputs)]
        lengths = {name: module.shapes[0][0] for each in modules for name, module in each.items()}
        config["target_modules"] = sorted(names)
        config["feedforward_modules"] = [name for name in sorted(names) if lengths[name] == 1]
        config["exclude_modules"] = None
    return config


def make_bottlenecks(request: Request, plan: Plan, outcome: Outcome) -> tuple[list[Tensors], dict[str, Any]]:
    """Announce the tensors of a merged bottleneck adapter, each merged by itself, and its configuration."""
    tensors = [made for module in plan.modules for made in _each_tensor(request, module, outcome, combine, 0)]
    config = {**request.base.config, "target_modules": sorted(module.name for module in plan.modules)}
    return [*tensors, *copies(request.base, request.base.structure.whole)], config


def _each_tensor(
    request: Request, plan: ModulePlan, outcome: Outcome, merge: _Merge, idle: float
) -> list[Tensors]:
    """The tensors of one module, each merged by itself; `idle` is what they hold where an adapter does nothing."""
    own = request.base.modules.get(plan.name)
    if plan.kept and own:
        return copies(request.base, own.tensors)
    given = [(item.adapter, item.adapter.modules[plan.name].tensors) for item in plan.inputs]
    owner, named = (request.base, own.tensors) if own else given[0]

    def merged(place: int) -> tuple[Array, ...]:
        spec, names = owner.tensors[named[place]], [tensors[place] for _, tensors in given]
        arrays = [adapter.floats(name) for (adapter, _), name in zip(given, names, strict=True)]
        result = cast(merge(request, plan, arrays, names), spec)
        outcome.compare(result, request.base.read(spec.name) if own else np.full_like(result, idle))
        return (result,)

    return [Tensors((owner.tensors[name],), partial(merged, place)) for place, name in enumerate(named)]


def make_tokens(request: Request, plan: Plan, outcome: Outcome) -> tuple[list[Tensors], dict[str, Any]]:
    """Announce the flat matrix of a merged prefix or prompt; every layer's keys and values are merged apart."""
    spec = request.base.tensors[PROMPT]

    def compute() -> tuple[Array, ...]:
        own = request.base.read(PROMPT)
        if not plan.merged:
            return (own,)
        result = own.copy()
        matrices = {item.role: item.adapter.floats(PROMPT) for item in request.inputs}
        for module in plan.merged:
            block = request.base.modules[module.name]
            place = slice(*block.rows), slice(*block.columns)
            blocks = [matrices[item.role][place] for item in module.inputs]
            result[place] = cast(_block(request, module, blocks, outcome), spec)
        outcome.compare(result, own)
        return (result,)

    whole = copies(request.base, request.base.structure.whole)
    return [Tensors((spec,), compute), *whole], dict(request.base.config)


def _block(request: Request, plan: ModulePlan, blocks: list[Floats], outcome: Outcome) -> Floats:
    if not request.method.subtracts:
        return combine(request, plan, blocks, [PROMPT] * len(blocks))
    task, target, source = blocks
    outcome.cutoff = algebra.default_cutoff(source.shape) if request.cutoff is None else request.cutoff
    anchored = request.cell.rule == "insertion"
    try:
        return algebra.insertion(
            task, target, source, plan.merge_weight, cutoff=outcome.cutoff, anchored=anchored
        )
    except algebra.RankDeficientError as error:
        where = f"{plan.inputs[2].adapter.weights_file}, {plan.name}"
        left_out = f"leave the module out with {setting('modules')}"
        mend = f"train the reference longer or with fewer virtual tokens, or {left_out}"
        raise UserError(
            where, f"virtual tokens are linearly dependent ({error})", "full rank", mend
        ) from None
