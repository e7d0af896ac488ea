"""The merge, from arguments to the folder written."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from lingualift.adapters.compatibility import conflicts, initialisation, one_layout, same_initialisation
from lingualift.adapters.folder import open_adapter, write_adapter
from lingualift.adapters.tensorfile import Array
from lingualift.errors import UserError, did_you_mean, setting
from lingualift.merging.lora import make_lora
from lingualift.merging.methods import METHODS, ROLES, RULES, SPACES, Method, Options, find_cell
from lingualift.merging.others import make_tokens, make_vectors
from lingualift.merging.pieces import Piece, Record
from lingualift.merging.plan import Input, Plan, Request, plan_modules
from lingualift.merging.report import MergeReport, make_report, model_card, provenance_of

_LOG = logging.getLogger("lingualift.merging")
_MAKERS = {"lora": make_lora, "ia3": make_vectors, "prefix": make_tokens, "prompt": make_tokens}


def merge(
    *,
    method: str,
    output: Path | str,
    task: Path | str | None = None,
    target_reference: Path | str | None = None,
    source_reference: Path | str | None = None,
    weight: float = 1.0,
    adapters: Sequence[tuple[Path | str, float]] | None = None,
    mean: bool = False,
    space: Literal["factors", "delta"] = "factors",
    modules: str | None = None,
    module_weights: Mapping[str, float] | None = None,
    rank: int | None = None,
    rule: Literal["auto", "additive", "multiplicative", "unanchored"] = "auto",
    export: Literal["peft", "serving"] = "peft",
    density: float = 0.5,
    seed: int = 0,
    cutoff: float | None = None,
) -> MergeReport:
    """Merge adapters and write the result as a peft adapter folder.

    No backbone is loaded. Arithmetic is in float32, the result in the number format of the task adapter.
    Inputs of weight zero are dropped before any arithmetic, so that weight 0 gives the task adapter's own
    tensors.

    Args:
        method: `adamergex` (https://arxiv.org/abs/2402.18913), `arithmetic`, `ties` or `dare`.
        output: The folder to write; it must not exist.
        task: adamergex: adapter of the task in the source language.
        target_reference: adamergex: adapter of the reference task in the target language.
        source_reference: adamergex: adapter of the reference task in the source language.
        weight: adamergex: λ, the factor of the references' difference.
        adapters: Other methods: folders with their weights, the base first.
        mean: Other methods: divide the weights by their sum.
        space: LoRA: merge lora_A and lora_B each ("factors"), or the updates B·A ("delta"; ranks add up).
        modules: Pattern of the modules to merge, matched against the whole path or its end; others keep the
            base.
        module_weights: Factors on the weight by module pattern; the first that matches counts.
        rank: Space delta or export serving: the rank to truncate to; serving also pads to it.
        rule: How adamergex applies the difference: the kind's own way, or another by name.
        export: "peft", or "serving" for plain LoRA of one rank with the scaling folded in.
        density: ties and dare: fraction of elements that stay.
        seed: dare: seed of the draw.
        cutoff: Virtual tokens: relative cut-off of the pseudo-inverse.

    Raises:
        UserError: anything the user can mend; nothing is written then.
    """
    chosen = METHODS[method]
    _check_options(space, rule, export, rank, density, seed, cutoff)
    roles = {"task": task, "target_reference": target_reference, "source_reference": source_reference}
    inputs = _one_layout(_inputs(chosen, roles, weight, adapters, mean))
    for conflict in conflicts([item.adapter for item in inputs]):
        raise conflict
    request = Request(
        method=chosen,
        cell=find_cell(inputs[0].adapter.kind, space, method, rule),
        inputs=inputs,
        modules=modules,
        module_weights=dict(module_weights or {}),
        rank=rank,
        serving=export == "serving",
        options=Options(density=density, seed=seed),
        cutoff=cutoff,
    )
    _check_rank(request)
    return _run(request, plan_modules(request), Path(output))


def _run(request: Request, plan: Plan, output: Path) -> MergeReport:
    record = Record()
    made = _MAKERS[request.cell.kind](request, plan, record)
    pieces = made.ordered()
    with ThreadPoolExecutor(1) as pool, threadpool_limits(1, user_api="blas"):  # many small products
        verified = [pool.submit(item.adapter.verify) for item in request.inputs]
        shared, warnings = _initialisation(request, plan)

        def report() -> MergeReport:
            return make_report(output, request, plan, record, warnings)

        def provenance() -> Mapping[str, object]:
            for future in verified:
                future.result()
            return provenance_of(request, report(), shared)

        with np.errstate(all="ignore"):  # every result is checked
            write_adapter(
                output,
                config={**made.config, "inference_mode": True},
                specs=[spec for piece in pieces for spec in piece.specs],
                arrays=_arrays(pieces, request, plan, record),
                provenance=provenance,
                card=lambda: model_card(request, report()),
            )
    for warning in warnings:
        _LOG.warning(warning)
    return report()


def _arrays(pieces: Sequence[Piece], request: Request, plan: Plan, record: Record) -> Iterator[Array]:
    for piece in pieces:
        yield from piece.make()
    if plan.merged and not record.changed:
        found = "changes no tensor although its weights are not zero"
        mend = "check that the adapters differ and that the weights are not too small for the number format"
        raise UserError(request.method.name, found, "a change", mend)


def _initialisation(request: Request, plan: Plan) -> tuple[bool | None, tuple[str, ...]]:
    entering = {index for module in plan.merged for index, _ in module.terms} | {0}
    adapters = [item.adapter for index, item in enumerate(request.inputs) if index in entering]
    if request.cell.kind != "lora" or request.cell.space != "factors":
        recorded = {initialisation(adapter) for adapter in adapters}
        return (len(recorded) == 1 and None not in recorded) or None, ()
    shared, evidence = same_initialisation(adapters)
    if shared is not False:
        return shared, ()
    return False, (
        f"the adapters were not trained from one initialisation ({evidence}): merging their factors mixes unrelated "
        "bases. Use space delta, or train all adapters from one recorded initialisation",
    )


def _inputs(
    method: Method,
    roles: Mapping[str, Path | str | None],
    weight: float,
    adapters: Sequence[tuple[Path | str, float]] | None,
    mean: bool,
) -> tuple[Input, ...]:
    if method.roles:
        if adapters is not None or mean:
            raise UserError(
                method.name,
                "was given a list of adapters",
                f"roles {', '.join(map(setting, ROLES))}",
                "name the roles",
            )
        return _role_inputs(method, roles, weight)
    given = [role for role, path in roles.items() if path is not None]
    if given or not adapters:
        found = f"was given {', '.join(map(setting, given))}" if given else "was given no adapters"
        raise UserError(
            method.name,
            found,
            "adapters with their weights",
            f"name each with its weight: {setting('adapters')}",
        )
    return _listed_inputs(method, adapters, mean)


def _one_layout(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """The same inputs, all by the first one's names of modules, as far as layouts are known."""
    adapters = one_layout([item.adapter for item in inputs])
    return tuple(replace(item, adapter=adapter) for item, adapter in zip(inputs, adapters, strict=True))


def _role_inputs(method: Method, roles: Mapping[str, Path | str | None], weight: float) -> tuple[Input, ...]:
    _check_number(setting("weight"), weight)
    inputs = []
    for role, factor in zip(method.roles, (1.0, float(weight), -float(weight)), strict=True):
        path = roles[role]
        if path is None:
            mend = f"name {setting(role)}"
            raise UserError(setting(role), f"is missing for {method.name}", "an adapter folder", mend)
        inputs.append(Input(role, open_adapter(path), factor))
    return tuple(inputs)


def _listed_inputs(
    method: Method, adapters: Sequence[tuple[Path | str, float]], mean: bool
) -> tuple[Input, ...]:
    for path, weight in adapters:
        _check_number(f"weight of {path}", weight)
    total = math.fsum(weight for _, weight in adapters)
    if not any(weight for _, weight in adapters) or (mean and not total):
        found = "weights are all zero" if not mean else "weights sum to zero"
        raise UserError(method.name, found, "a weight other than zero", "mend the weights")
    inputs = tuple(
        Input(f"adapter {number}", open_adapter(path), float(weight) / (total if mean else 1.0))
        for number, (path, weight) in enumerate(adapters, start=1)
    )
    if [item.weight for item in inputs] == [1.0]:
        raise UserError(method.name, "one adapter with weight 1 is that adapter", "a merge", "name another")
    return inputs


def _check_number(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(where, f"is {value!r}", "a finite number", "mend the weight")


def _check_options(
    space: str, rule: str, export: str, rank: int | None, density: float, seed: int, cutoff: float | None
) -> None:
    named = (("space", space, SPACES), ("rule", rule, RULES), ("export", export, ("peft", "serving")))
    for name, value, known in named:
        if value not in known:
            raise UserError(
                setting(name), f"is {value!r}", " or ".join(known), did_you_mean(str(value), known)
            )
    if rank is not None and (type(rank) is not int or rank < 1):
        raise UserError(setting("rank"), f"is {rank!r}", "a whole number above 0", "mend the rank")
    if not 0 < density <= 1:
        raise UserError(
            setting("density"), f"is {density!r}", "a fraction above 0, at most 1", "mend the density"
        )
    if type(seed) is not int or seed < 0:
        raise UserError(setting("seed"), f"is {seed!r}", "a whole number, 0 or above", "mend the seed")
    if cutoff is not None and not 0 < cutoff < 1:
        raise UserError(setting("cutoff"), f"is {cutoff!r}", "a fraction between 0 and 1", "mend the cut-off")


def _check_rank(request: Request) -> None:
    lora = request.cell.kind == "lora"
    if request.serving and not lora:
        found = f"serving is for LoRA, not {request.cell.kind}"
        raise UserError(
            setting("export"),
            found,
            "peft",
            f"write {setting('export', 'peft')}: servers load plain LoRA only",
        )
    if request.rank and not (request.serving or request.cell.space == "delta"):
        mend = f"use {setting('space', 'delta')}, or {setting('export', 'serving')}"
        raise UserError(
            setting("rank"), "does not apply to factor space, which keeps the rank", "no rank", mend
        )
