"""What a merge will do, module by module, before a number is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lingualift.adapters.folder import Adapter
from lingualift.adapters.patterns import Patterns
from lingualift.adapters.structure import Module
from lingualift.errors import UserError, setting
from lingualift.merging.methods import Cell, Method, Options


@dataclass(frozen=True)
class Input:
    """One adapter of a merge: its role ("task", "adapter 2", …) and its weight."""

    role: str
    adapter: Adapter
    weight: float


@dataclass(frozen=True)
class Request:
    """A merge that was asked for, its arguments checked.

    The first input is the base: it lends what is not merged.

    Args:
        method: The merge method.
        cell: The filled cell of the table of methods.
        inputs: The adapters, in the order of the method's roles.
        modules: Pattern of the modules to merge; None for all.
        module_weights: Factors on the merge weight by module pattern; the first that matches counts.
        rank: Rank to truncate to; None for no truncation.
        serving: Whether to export plain LoRA that every server reads.
        options: Settings of single methods.
        cutoff: Relative cut-off of the pseudo-inverse; None for the default.
    """

    method: Method
    cell: Cell
    inputs: tuple[Input, ...]
    modules: str | None = None
    module_weights: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    serving: bool = False
    options: Options = field(default_factory=Options)
    cutoff: float | None = None

    @property
    def base(self) -> Adapter:
        """The adapter that lends configuration, number format, whole values, and modules that are not merged."""
        return self.inputs[0].adapter

    def holders(self, name: str) -> list[Module | None]:
        """The module in every input, None where an adapter lacks it."""
        return [item.adapter.modules.get(name) for item in self.inputs]


@dataclass(frozen=True)
class ModulePlan:
    """What happens to one module.

    Args:
        name: The module.
        terms: Numbers of the inputs that enter, with their weights, none of them zero.
        kept: Why the base's own tensors stay; empty where they do not.
    """

    name: str
    terms: tuple[tuple[int, float], ...]
    kept: str = ""


@dataclass(frozen=True)
class Plan:
    """All modules of the result, and what was left out of it."""

    modules: tuple[ModulePlan, ...]
    absent: Mapping[str, str]

    @property
    def merged(self) -> list[ModulePlan]:
        """The modules that are merged."""
        return [module for module in self.modules if not module.kept]


def plan_modules(request: Request) -> Plan:
    """Decide for every module which adapters enter with which weight.

    Raises:
        UserError: a pattern matches nothing, or nothing would be merged although weights are not zero.
    """
    names = list(dict.fromkeys(name for item in request.inputs for name in item.adapter.modules))
    chosen = _chosen(request, names)
    factors = _factors(request, names)
    planned, absent = [], {}
    for name in names:
        module = _plan(request, name, name in chosen, factors[name])
        if not module.kept or name in request.base.modules:
            planned.append(module)
        else:
            absent[name] = module.kept
    plan = Plan(tuple(module for module in planned if module.terms or module.kept), absent)
    absent.update(
        {module.name: "no adapter with a weight has it" for module in planned if not _stays(module)}
    )
    _check_effect(request, plan, chosen)
    return plan


def _stays(module: ModulePlan) -> bool:
    return bool(module.terms or module.kept)


def _plan(request: Request, name: str, chosen: bool, factor: float) -> ModulePlan:
    if not chosen:
        return ModulePlan(name, (), "left out by modules")
    if factor == 0:
        return ModulePlan(name, (), "weight 0")
    if request.method.roles:
        return _plan_roles(request, name, factor)
    holders = request.holders(name)
    terms = tuple(
        (index, item.weight * factor)
        for index, item in enumerate(request.inputs)
        if item.weight and holders[index] is not None
    )
    unchanged = terms == ((0, 1.0),)
    only_base = "only the first adapter, with weight 1, has a weight here"
    return ModulePlan(name, terms, only_base if unchanged else "")


def _plan_roles(request: Request, name: str, factor: float) -> ModulePlan:
    weights = [request.inputs[0].weight, *(item.weight * factor for item in request.inputs[1:])]
    if not weights[1]:
        return ModulePlan(name, (), "weight 0")
    missing = [
        item.role
        for item, module in zip(request.inputs, request.holders(name), strict=True)
        if module is None
    ]
    if not missing:
        return ModulePlan(name, tuple(enumerate(weights)))
    reason = f"missing in {' and '.join(missing)}"
    if request.cell.space == "factors" or set(missing) >= {item.role for item in request.inputs[1:]}:
        return ModulePlan(name, (), f"{reason}: the references' difference counts as zero")
    return ModulePlan(
        name, tuple((i, w) for i, w in enumerate(weights) if request.inputs[i].role not in missing)
    )


def _chosen(request: Request, names: Iterable[str]) -> set[str]:
    if request.modules is None:
        return set(names)
    chosen = set(Patterns(setting("modules")).end(request.modules).among(names))
    if not chosen:
        raise matches_nothing(setting("modules"), request.modules, names)
    return chosen


def _factors(request: Request, names: Iterable[str]) -> dict[str, float]:
    bounded = Patterns(setting("module_weights"))
    patterns = [(bounded.end(text), text) for text in request.module_weights]
    factors, used = {}, set()
    for name in names:
        hit = next((text for pattern, text in patterns if pattern.matches(name)), None)
        used.add(hit)
        factors[name] = 1.0 if hit is None else request.module_weights[hit]
    for text, value in request.module_weights.items():
        if not math.isfinite(value):
            raise UserError(
                setting("module_weights"), f"{text!r} has weight {value}", "a number", "mend the weight"
            )
        if text not in used:
            raise matches_nothing(setting("module_weights"), text, names)
    return factors


def matches_nothing(where: str, pattern: str, names: Iterable[str]) -> UserError:
    """The error of a pattern that is without effect."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    found = f"{pattern!r} matches no module that an earlier pattern left"
    return UserError(
        where, found, "a pattern of a path or its end", f"modules end in: {', '.join(ends[:12])}"
    )


def _check_effect(request: Request, plan: Plan, chosen: set[str]) -> None:
    weighted = any(item.weight for item in request.inputs[1:]) and any(_factors(request, chosen).values())
    if plan.merged or not (weighted or len(request.inputs) == 1):
        return
    reasons = sorted(
        {module.kept for module in plan.modules if module.name in chosen} | set(plan.absent.values())
    )
    mend = f"choose {setting('modules')} that the adapters share, or {setting('space', 'delta')}"
    found = f"nothing would be merged ({'; '.join(reasons)})"
    raise UserError(request.method.name, found, "a change", mend)
