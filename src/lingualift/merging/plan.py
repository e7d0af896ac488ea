"""What a merge will do, module by module, before a number is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

from lingualift.adapters.folder import Adapter, one_layout, open_adapter
from lingualift.adapters.patterns import Patterns
from lingualift.adapters.structure import conflicts
from lingualift.config import layers_in
from lingualift.errors import UserError, setting
from lingualift.merging.methods import ROLES, Cell, Method, Options

_BLOCK = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
"""The first number of a module's path is that of its block."""


@dataclass(frozen=True)
class Input:
    """One adapter of a merge, or of one module of it: its role ("task", "adapter 2", …) and its weight."""

    role: str
    adapter: Adapter
    weight: float


@dataclass(frozen=True)
class Zones:
    """How many blocks are whose, of a method that goes by them; None for the paper's counts, scaled to the depth.

    The paper takes 5 at the bottom, 2 at the top and 1 on each side between, of 32 (section 4.2, as summaries of it
    have it; that modules outside of blocks stay the task's is our reading).

    Args:
        bottom: First blocks, which are the target reference's.
        top: Last blocks, which are too.
        transition: Blocks on each side of the task's that are averaged.
    """

    bottom: int | None = None
    top: int | None = None
    transition: int | None = None

    def parts(self, depth: int) -> list[float]:
        """The target reference's part in each block: 1, 0.5 or 0.

        Raises:
            UserError: there are not so many blocks.
        """
        bottom = max(1, round(depth * 5 / 32)) if self.bottom is None else self.bottom
        top = round(depth * 2 / 32) if self.top is None else self.top
        middle = depth - bottom - top
        sides = bool(bottom) + bool(top)
        fits = max(0, middle // sides) if sides else 0
        transition = min(round(depth / 32), fits) if self.transition is None else self.transition
        if middle < 0 or sides * transition > middle:
            given = f"{bottom} blocks at the bottom, {top} at the top and {transition} between on each side"
            where, mend = (
                "layer-swap",
                f"lower {setting('bottom')}, {setting('top')} or {setting('transition')}",
            )
            raise UserError(where, f"asks for {given}", f"at most the {depth} that there are", mend)
        lower, upper = transition * bool(bottom), transition * bool(top)
        task = middle - lower - upper
        return [1.0] * bottom + [0.5] * lower + [0.0] * task + [0.5] * upper + [1.0] * top


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
        layer_weights: Factors on the merge weight by block (`6`) or range of blocks (`6-11`).
        rank: Rank to truncate to; None for no truncation.
        serving: Whether to export plain LoRA that every server reads.
        options: Settings of single methods.
        cutoff: Relative cut-off of the pseudo-inverse; None for the default.
        zones: How many blocks are whose, of a method that goes by them.
    """

    method: Method
    cell: Cell
    inputs: tuple[Input, ...]
    modules: str | None = None
    module_weights: Mapping[str, float] = field(default_factory=dict)
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    rank: int | None = None
    serving: bool = False
    options: Options = field(default_factory=Options)
    cutoff: float | None = None
    zones: Zones = Zones()

    @property
    def base(self) -> Adapter:
        """The adapter that lends configuration, number format, whole values, and modules that are not merged."""
        return self.inputs[0].adapter


@dataclass(frozen=True)
class ModulePlan:
    """What happens to one module.

    Args:
        name: The module.
        inputs: The adapters that enter, in the order of the merge's, each with its weight in this module, never zero.
        kept: Why the base's own tensors stay; empty where they do not.
    """

    name: str
    inputs: tuple[Input, ...]
    kept: str = ""

    @property
    def weights(self) -> list[float]:
        """The weights in this module of the adapters that enter."""
        return [item.weight for item in self.inputs]

    @property
    def merge_weight(self) -> float:
        """λ in this module: the factor of the references' difference, of a method that takes roles."""
        return next(item.weight for item in self.inputs if item.role == "target_reference")


@dataclass(frozen=True)
class Plan:
    """All modules of the result, and what was left out of it."""

    modules: tuple[ModulePlan, ...]
    absent: Mapping[str, str]

    @property
    def merged(self) -> list[ModulePlan]:
        """The modules that are merged."""
        return [module for module in self.modules if not module.kept]

    def parts(self) -> dict[str, tuple[float, ...]]:
        """Block or range of blocks -> the target reference's different parts there, where it has any."""
        return in_ranges(
            (module.name, item.weight)
            for module in self.merged
            for item in module.inputs
            if item.role == "target_reference"
        )


def open_inputs(
    method: Method,
    roles: Mapping[str, Path | str | None],
    weight: float,
    adapters: Sequence[tuple[Path | str, float]] | None,
    mean: bool,
) -> tuple[Input, ...]:
    """Open the adapters that a method takes, all by the first one's names of modules, as far as layouts are known.

    Raises:
        UserError: they are not those that the method takes, or cannot be merged with each other.
    """
    if method.roles:
        if adapters is not None or mean:
            expected = f"roles {', '.join(map(setting, method.roles))}"
            raise UserError(method.name, "was given a list of adapters", expected, "name the roles")
        inputs = _role_inputs(method, roles, weight)
    else:
        given = [setting(role) for role, path in roles.items() if path is not None]
        if given or not adapters:
            found = f"was given {', '.join(given) or 'no adapters'}"
            mend = f"name each with its weight: {setting('adapters')}"
            raise UserError(method.name, found, "adapters with their weights", mend)
        inputs = _listed_inputs(method, adapters, mean)
    named = one_layout([item.adapter for item in inputs])
    for conflict in conflicts(named):
        raise conflict
    return tuple(replace(item, adapter=adapter) for item, adapter in zip(inputs, named, strict=True))


def check_roles(method: Method, roles: Mapping[str, Path | str | None], weight: float) -> None:
    """Check that a method is given the roles that it takes, all of them, and a number.

    Raises:
        UserError: it is not.
    """
    _check_number(setting("weight"), weight)
    if method.by_block and not 0 <= weight <= 1:
        expected = "a part of a block: 0 to 1"
        raise UserError(setting("weight"), f"is {weight:g}", expected, "name another")
    strange = [setting(role) for role, path in roles.items() if path is not None and role not in method.roles]
    if strange:
        raise UserError(strange[0], f"is given, and {method.name} takes none", mend="leave it out")
    for role in method.roles:
        if roles[role] is None:
            mend = f"name {setting(role)}"
            raise UserError(setting(role), f"is missing for {method.name}", "an adapter folder", mend)


def _role_inputs(method: Method, roles: Mapping[str, Path | str | None], weight: float) -> tuple[Input, ...]:
    check_roles(method, roles, weight)
    factors = dict(zip(ROLES, (1.0, float(weight), -float(weight)), strict=True))
    return tuple(Input(role, open_adapter(str(roles[role])), factors[role]) for role in method.roles)


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


def plan_modules(request: Request) -> Plan:
    """Decide for every module which adapters enter with which weight.

    Raises:
        UserError: a pattern matches nothing, or nothing would be merged although weights are not zero.
    """
    names = list(dict.fromkeys(name for item in request.inputs for name in item.adapter.modules))
    chosen = _chosen(request, names)
    factors = _factors(request, [name for name in names if name in chosen], names)
    planned, absent = [], {}
    for name in names:
        module = _plan(request, name, factors.get(name))
        if name in request.base.modules if module.kept else module.inputs:
            planned.append(module)
        else:
            absent[name] = module.kept or (
                "the target reference, whose block it is, has none"
                if request.method.by_block
                else "no adapter with a weight has it"
            )
    plan = Plan(tuple(planned), absent)
    _check_effect(request, plan, factors)
    return plan


def _plan(request: Request, name: str, factor: float | None) -> ModulePlan:
    if factor is None:
        return ModulePlan(name, (), "left out by modules")
    if factor == 0:
        return ModulePlan(name, (), why_the_tasks(name) if request.method.by_block else "weight 0")
    if request.method.by_block:
        return _plan_swap(request, name, factor)
    if request.method.roles:
        return _plan_roles(request, name, factor)
    entering = tuple(
        replace(item, weight=item.weight * factor)
        for item in request.inputs
        if item.weight and name in item.adapter.modules
    )
    if entering == (replace(request.inputs[0], weight=1.0),):
        return ModulePlan(name, entering, "only the first adapter, with weight 1, has a weight here")
    return ModulePlan(name, entering)


def _plan_roles(request: Request, name: str, factor: float) -> ModulePlan:
    task, *references = request.inputs
    references = [replace(item, weight=item.weight * factor) for item in references]
    if not references[0].weight:
        return ModulePlan(name, (), "weight 0")
    missing = [item.role for item in (task, *references) if name not in item.adapter.modules]
    if missing and (
        request.cell.space == "factors" or set(missing) >= {reference.role for reference in references}
    ):
        reason = f"missing in {' and '.join(missing)}: the references' difference counts as zero"
        return ModulePlan(name, (), reason)
    return ModulePlan(name, tuple(item for item in (task, *references) if item.role not in missing))


def _plan_swap(request: Request, name: str, factor: float) -> ModulePlan:
    """The target reference's part in a block, and the task's, which is the rest."""
    task, target = request.inputs
    part = target.weight * factor
    if not part:
        return ModulePlan(name, (), "weight 0")
    missing = [item.role for item in (task, target) if name not in item.adapter.modules]
    if missing and request.cell.space == "factors":
        return ModulePlan(name, (), f"missing in {missing[0]}")
    both = (replace(task, weight=1 - part), replace(target, weight=part))
    return ModulePlan(name, tuple(item for item in both if item.weight and item.role not in missing))


def _chosen(request: Request, names: Iterable[str]) -> set[str]:
    if request.modules is None:
        return set(names)
    chosen = set(Patterns(setting("modules")).end(request.modules).among(names))
    if not chosen:
        raise matches_nothing(setting("modules"), request.modules, names)
    return chosen


def _factors(request: Request, names: Sequence[str], every: Sequence[str]) -> dict[str, float]:
    """Module -> factor on the weight there, by its own name and by its block among `every` module's."""
    if request.method.by_block:
        by_block = by_zones(request.zones, request.layer_weights, names, every)
    else:
        by_block = block_factors(setting("layer_weights"), request.layer_weights, names)
    by_name = _module_factors(request.module_weights, names)
    return {name: by_name[name] * by_block[name] for name in names}


def _module_factors(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    if not weights:
        return dict.fromkeys(names, 1.0)
    bounded = Patterns(setting("module_weights"))
    patterns = [(bounded.end(text), text) for text in weights]
    factors, used = {}, set()
    for name in names:
        hit = next((text for pattern, text in patterns if pattern.matches(name)), None)
        used.add(hit)
        factors[name] = 1.0 if hit is None else weights[hit]
    for text in weights:
        if text not in used:
            raise matches_nothing(setting("module_weights"), text, names)
    return factors


def in_ranges(parts: Iterable[tuple[str, float]]) -> dict[str, tuple[float, ...]]:
    """The different numbers of modules or tensors by their range of blocks, such as `0-4`, and stack if there are two.

    Args:
        parts: Names and numbers; those outside of blocks are left out.
    """
    found: dict[str, dict[int, set[float]]] = {}
    for name, part in parts:
        if place := _stack_of(name):
            found.setdefault(place[0], {}).setdefault(place[1], set()).add(part)
    named = {}
    for stack, blocks in found.items():
        ranges: list[tuple[int, int]] = []
        for block in sorted(blocks):
            begin, end = ranges[-1] if ranges else (block, -2)
            if end == block - 1 and blocks[end] == blocks[block]:
                ranges[-1] = begin, block
            else:
                ranges.append((block, block))
        for first, last in ranges:
            within = f"{first}-{last}" if first < last else str(first)
            named[within if len(found) == 1 else f"{stack} {within}"] = tuple(sorted(blocks[first]))
    return named


def _stack_of(name: str) -> tuple[str, int] | None:
    """The stack of blocks in which a module stands, and its block, from 0; None for one outside of blocks."""
    match = _BLOCK.search(name)
    return (name[: match.start()], int(match[1])) if match else None


def block_of(name: str) -> int | None:
    """The block in which a module stands, from 0; None for one outside of blocks."""
    place = _stack_of(name)
    return place and place[1]


def why_the_tasks(name: str) -> str:
    """Why the target reference has no part in a module, where blocks are swapped."""
    return "outside of blocks" if block_of(name) is None else "a block of the task's"


def depth(names: Iterable[str]) -> int:
    """How many blocks there are, as far as modules tell."""
    return max((block for block in map(block_of, names) if block is not None), default=-1) + 1


def block_factors(where: str, weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Module -> factor of its block; 1 where none is given.

    Args:
        where: The setting, for messages.
        weights: Block, or range of blocks -> factor.
        names: The modules.

    Raises:
        UserError: there is no such block.
    """
    blocks = {name: block for name in names if (block := block_of(name)) is not None}
    factors = {number: factor for text, factor in weights.items() for number in layers_in(text)}
    strange = sorted(factors.keys() - {*blocks.values()})
    if strange:
        expected = (
            f"blocks from {min(blocks.values())} to {max(blocks.values())}" if blocks else "modules in blocks"
        )
        found = f"names block {strange[0]}, in which nothing is merged"
        raise UserError(where, found, expected, "mend the range")
    return {name: factors.get(blocks[name], 1.0) if name in blocks else 1.0 for name in names}


def by_zones(
    zones: Zones, layer_weights: Mapping[str, float], names: Sequence[str], every: Sequence[str]
) -> dict[str, float]:
    """Module or tensor -> the target reference's part there, 0 outside of blocks.

    Args:
        zones: How many blocks are whose.
        layer_weights: Factors by block, or range of blocks.
        names: The modules or tensors that are asked for.
        every: All that there are, whose highest block is the depth; every stack (encoder, decoder) has its own.

    Raises:
        UserError: there are fewer blocks than are asked for.
    """
    factors = block_factors(setting("layer_weights"), layer_weights, names)
    stacks: dict[str, list[str]] = {}
    for name in every:
        if place := _stack_of(name):
            stacks.setdefault(place[0], []).append(name)
    parts: dict[str, float] = {}
    for stack in stacks.values():
        zone = zones.parts(depth(stack))
        parts |= {name: zone[block] for name in stack if (block := block_of(name)) is not None}
    return {name: factors[name] * parts.get(name, 0.0) for name in names}


def matches_nothing(where: str, pattern: str, names: Iterable[str]) -> UserError:
    """The error of a pattern that is without effect."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    found = f"{pattern!r} matches no module that an earlier pattern left"
    mend = f"modules end in: {', '.join(ends[:12])}"
    return UserError(where, found, "a pattern of a path or its end", mend)


def _check_effect(request: Request, plan: Plan, factors: Mapping[str, float]) -> None:
    given = request.method.by_block or any(factors.values())
    weighted = given and any(item.weight for item in request.inputs[1:])
    if plan.merged or not (weighted or len(request.inputs) == 1):
        return
    reasons = sorted(
        {module.kept for module in plan.modules if module.name in factors} | set(plan.absent.values())
    )
    mend = f"choose {setting('modules')} that the adapters share, or {setting('space', 'delta')}"
    if request.method.by_block:
        mend = (
            f"raise {setting('bottom')} or {setting('top')}, or choose {setting('modules')} of their blocks"
        )
    found = f"nothing would be merged ({'; '.join(reasons)})"
    raise UserError(request.method.name, found, "a change", mend)
