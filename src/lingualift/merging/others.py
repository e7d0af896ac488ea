"""Merging (IA)³ vectors and virtual tokens (prefix- and prompt-tuning)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lingualift.adapters.layout import PROMPT
from lingualift.adapters.tensorfile import Array
from lingualift.errors import UserError, setting
from lingualift.merging import algebra
from lingualift.merging.methods import Floats
from lingualift.merging.pieces import Made, Piece, Record, cast, combine, copies, floats
from lingualift.merging.plan import ModulePlan, Plan, Request

_ONE = np.float32(1)


def make_vectors(request: Request, plan: Plan, record: Record) -> Made:
    """Announce the vectors of a merged (IA)³ adapter."""
    pieces = [piece for module in plan.modules for piece in _vector(request, module, record)]
    pieces += copies(request.base, request.base.structure.whole)
    return Made(pieces, _vector_config(request, plan))


def _vector(request: Request, plan: ModulePlan, record: Record) -> list[Piece]:
    own = request.base.modules.get(plan.name)
    if plan.kept and own:
        return copies(request.base, own.tensors)
    members = [request.inputs[index].adapter for index, _ in plan.terms]
    names = [adapter.modules[plan.name].tensors[0] for adapter in members]
    spec = request.base.tensors[own.tensors[0]] if own else members[0].tensors[names[0]]

    def make() -> tuple[Array, ...]:
        arrays = [floats(adapter, name) for adapter, name in zip(members, names, strict=True)]
        result = cast(_combine_vectors(request, plan, arrays, names), spec)
        record.compare(result, request.base.read(spec.name) if own else np.ones_like(result))
        return (result,)

    return [Piece((spec,), make)]


def _combine_vectors(request: Request, plan: ModulePlan, arrays: list[Floats], names: list[str]) -> Floats:
    weights = [weight for _, weight in plan.terms]
    if request.method.roles and request.cell.rule == "multiplicative":
        return combine(request, arrays, weights, names)
    return combine(request, [array - _ONE for array in arrays], weights, names) + _ONE


def _vector_config(request: Request, plan: Plan) -> dict[str, Any]:
    config = dict(request.base.config)
    names = {module.name for module in plan.modules}
    if names != set(request.base.modules):
        shapes = {
            name: next(module for module in request.holders(name) if module).shapes[0]
            for name in sorted(names)
        }
        config["target_modules"] = list(shapes)
        config["feedforward_modules"] = [name for name, shape in shapes.items() if shape[0] == 1]
        config["exclude_modules"] = None
    return config


def make_tokens(request: Request, plan: Plan, record: Record) -> Made:
    """Announce the flat matrix of a merged prefix or prompt; every layer's keys and values are merged apart."""
    spec = request.base.tensors[PROMPT]

    def make() -> tuple[Array, ...]:
        own = request.base.read(PROMPT)
        if not plan.merged:
            return (own,)
        matrices = [floats(item.adapter, PROMPT) for item in request.inputs]
        result = own.copy()
        for module in plan.merged:
            place = _place(request, module)
            block = _block(request, module, [matrix[place] for matrix in matrices], record)
            result[place] = cast(block, spec)
        record.compare(result, own)
        return (result,)

    return Made(
        [Piece((spec,), make), *copies(request.base, request.base.structure.whole)], dict(request.base.config)
    )


def _place(request: Request, plan: ModulePlan) -> tuple[slice, slice]:
    module = request.base.modules[plan.name]
    return slice(*module.rows), slice(*module.columns)


def _block(request: Request, plan: ModulePlan, blocks: list[Floats], record: Record) -> Floats:
    if not request.method.roles:
        members = [blocks[index] for index, _ in plan.terms]
        return combine(request, members, [weight for _, weight in plan.terms], [PROMPT] * len(members))
    task, target, source = blocks
    record.cutoff = algebra.default_cutoff(source.shape) if request.cutoff is None else request.cutoff
    anchored = request.cell.rule == "insertion"
    try:
        return algebra.insertion(
            task, target, source, plan.terms[1][1], cutoff=record.cutoff, anchored=anchored
        )
    except algebra.RankDeficientError as error:
        where = f"{request.inputs[2].adapter.weights_file}, {plan.name}"
        left_out = f"leave the module out with {setting('modules')}"
        mend = f"train the reference longer or with fewer virtual tokens, or {left_out}"
        raise UserError(
            where, f"virtual tokens are linearly dependent ({error})", "full rank", mend
        ) from None
