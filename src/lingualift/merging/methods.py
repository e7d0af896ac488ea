"""Merge methods: each a pure function over one tensor of every adapter, registered with its source; and which exist.

A method sees differences to the backbone: LoRA's factors as they are, (IA)³ vectors less 1.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingualift.config import MergeMethod
from lingualift.errors import UserError, setting
from lingualift.registry import Registry

Floats = NDArray[np.floating[Any]]


class ZeroDivisorError(ArithmeticError):
    """An element of the source reference is zero where the rule divides by it."""


@dataclass(frozen=True)
class Options:
    """Settings of single methods.

    Args:
        density: Fraction of elements that `ties` and `dare` keep, above 0 and at most 1.
        seed: Seed of `dare`'s draw.
        tensor: Number of the tensor in the adapter, so that every tensor has a draw of its own.
    """

    density: float = 0.5
    seed: int = 0
    tensor: int = 0

    def of(self, tensor: str) -> Options:
        """These options for one tensor, told by its name."""
        return replace(self, tensor=zlib.crc32(tensor.encode()))


Combine = Callable[[Sequence[Floats], Sequence[float], Options], Floats]


@dataclass(frozen=True)
class Method:
    """A way to combine tensors of one shape.

    Args:
        name: Its name everywhere.
        source: Where it was published.
        formula: What it computes, for people, with xᵢ for one tensor of adapter i and wᵢ for its weight.
        roles: Names of its inputs in the order in which `combine` takes them; empty where any number may
            come.
        linear: Whether the result is Σ wᵢ·xᵢ, so that it exists for ΔW held as factors too. A method that is
            not sees single elements of differences to the backbone, so that it has no meaning on virtual tokens.
        by_block: Whether the target reference takes the place of the task by zones of blocks: v of it and 1 − v of
            the task, v being λ in some blocks, half of it in others and 0 in the rest.
        combine: The function.
    """

    name: str
    source: str
    formula: str
    roles: tuple[str, ...]
    linear: bool
    by_block: bool
    combine: Combine

    @property
    def subtracts(self) -> bool:
        """Whether it applies the difference of two references, by a rule."""
        return "source_reference" in self.roles


METHODS: Registry[Method] = Registry("merge method")

ROLES = ("task", "target_reference", "source_reference")


def method(
    name: str,
    *,
    source: str,
    formula: str,
    roles: tuple[str, ...] = (),
    linear: bool = False,
    by_block: bool = False,
) -> Callable[[Combine], Combine]:
    """Decorator that registers a function as a merge method; see `Method`."""

    def enter(combine: Combine) -> Combine:
        METHODS.register(name)(Method(name, source, formula, roles, linear, by_block, combine))
        return combine

    return enter


@method(
    "adamergex",
    source="https://arxiv.org/abs/2402.18913",
    formula="x_task + λ·(x_target − x_source)",
    roles=ROLES,
    linear=True,
)
def adamergex(arrays: Sequence[Floats], weights: Sequence[float], _: Options) -> Floats:
    """Additive AdaMergeX, eq. 7; arrays and weights are those of task, target and source, weights (1, λ, −λ)."""
    task, target, source = arrays
    weight = weights[ROLES.index("target_reference")]
    step = target - source
    step *= np.float32(weight)
    step += task
    return step


def ratio(task: Floats, target: Floats, source: Floats, weight: float) -> Floats:
    """Multiplicative rule: task ⊙ (λ·(target ⊘ source − 1) + 1). AdaMergeX eq. 9.

    Raises:
        ZeroDivisorError: an element of `source` is zero.
    """
    if not source.all():
        raise ZeroDivisorError(f"element {int(np.argmin(source.ravel() != 0))} is zero")
    step = target / source
    step -= np.float32(1)
    step *= np.float32(weight)
    step += np.float32(1)
    step *= task
    return step


@method("arithmetic", source="https://arxiv.org/abs/2306.14870", formula="Σ wᵢ·xᵢ", linear=True)
def arithmetic(arrays: Sequence[Floats], weights: Sequence[float], _: Options) -> Floats:
    """Weighted sum; the AdaMergeX paper's AriMerge is the task adapter with weight 1 and a reference with λ."""
    return weighted_sum(arrays, weights)


def weighted_sum(arrays: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Σ wᵢ·xᵢ over arrays of one shape."""
    total = arrays[0] * np.float32(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array * np.float32(weight)
    return total


@method("ties", source="https://arxiv.org/abs/2306.01708", formula="TIES(wᵢ·xᵢ)")
def ties(arrays: Sequence[Floats], weights: Sequence[float], options: Options) -> Floats:
    """Trim, elect signs, disjoint mean: section 4, on every tensor by itself (the paper trims over all at once).

    Each array is trimmed to `density` of its elements and multiplied with its weight; the sign of the sum is
    elected per element; the result is the mean of the elements that carry it, zero where none does.
    """
    terms = np.stack([trim(x, options.density) * np.float32(w) for x, w in zip(arrays, weights, strict=True)])
    agrees = np.sign(terms) == np.sign(terms.sum(axis=0))
    return np.asarray((terms * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1), dtype=np.float32)


def trim(array: Floats, density: float) -> Floats:
    """The array with all but its largest elements set to zero; ceil(density · size) elements stay."""
    count = array.size - int(np.ceil(density * array.size))
    kept = array.copy()
    if count:
        kept.ravel()[np.argpartition(np.abs(array), count, axis=None)[:count]] = 0
    return kept


@method("dare", source="https://arxiv.org/abs/2311.03099", formula="DARE(wᵢ·xᵢ)")
def dare(arrays: Sequence[Floats], weights: Sequence[float], options: Options) -> Floats:
    """Drop elements at random, rescale the rest, add up: section 3.

    Each element stays with probability `density` and is divided by it, so that the expectation is the weighted sum.
    The draw depends on the seed and on the tensor's number only.
    """
    random, density = np.random.default_rng((options.seed, options.tensor)), options.density
    kept = [array * (random.random(array.shape) < density) / np.float32(density) for array in arrays]
    return weighted_sum(kept, weights)


@method(
    "layer-swap",
    source="https://arxiv.org/abs/2410.01335",
    formula="(1 − v)·x_task + v·x_target, v = λ in outer blocks",
    roles=ROLES[:2],
    linear=True,
    by_block=True,
)
def layer_swap(arrays: Sequence[Floats], weights: Sequence[float], _: Options) -> Floats:
    """The outer blocks of the language, the middle ones of the task, and averages between."""
    return weighted_sum(arrays, weights)


SPACES = ("factors", "delta", "core")
CORE_SPACE = "https://arxiv.org/abs/2509.17786"
RULES = ("auto", "additive", "multiplicative", "unanchored")
KIND_NAMES = {
    "lora": "LoRA",
    "ia3": "(IA)³",
    "bottleneck": "bottleneck",
    "prefix": "prefix-tuning",
    "prompt": "prompt-tuning",
}

_OWN_RULE = {
    "lora": "additive",
    "ia3": "multiplicative",
    "bottleneck": "additive",
    "prefix": "insertion",
    "prompt": "insertion",
}
_ROLE_FORMULAS = {
    "additive": "x_task + λ·(x_target − x_source)",
    "multiplicative": "x_task ⊙ (λ·(x_target ⊘ x_source − 1) + 1)",
    "insertion": "(λ·(M − I) + I)·x_task, M = x_target·x_source⁺",
    "unanchored": "λ·M·x_task, M = x_target·x_source⁺",
}
_WHERE = {
    "factors": "X each of lora_A and lora_B",
    "delta": "ΔW = scaling·B·A",
    "core": "ΔW = U·M·Vᵀ, Mᵢ = Uᵀ·ΔWᵢ·V",
}
_LETTERS = {"lora": "X", "ia3": "l", "bottleneck": "X", "prefix": "P", "prompt": "P"}


@dataclass(frozen=True)
class Cell:
    """One combination: its formula, or the reason why there is none.

    Args:
        kind: Adapter kind, a key of `KIND_NAMES`.
        space: "factors" (the adapter's tensors as they are), "delta" (the update of the weights) or "core" (the update
            in bases that the adapters share).
        method: A merge method.
        rule: How the references' difference is applied: the kind's own rule, or one asked for by name.
        asked: The values of `rule` that lead here.
        formula: What is computed; empty where it does not exist.
        reason: Why it does not exist; empty where it does.
    """

    kind: str
    space: str
    method: str
    rule: str
    asked: tuple[str, ...]
    formula: str = ""
    reason: str = ""


def methods_table() -> tuple[Cell, ...]:
    """Every combination of kind, space, method and rule, filled or with the reason why it is empty."""
    return tuple(
        _cell(kind, space, method, rule)
        for kind in KIND_NAMES
        for space in SPACES
        for method in METHODS
        for rule in dict.fromkeys((_OWN_RULE[kind], "additive", "multiplicative", "unanchored"))
    )


def find_cell(kind: str, space: str, method: str, rule: str) -> Cell:
    """The combination that was asked for, `rule` being one of `RULES`.

    Raises:
        UserError: it does not exist.
    """
    _ = METHODS[method]
    for cell in methods_table():
        if (cell.kind, cell.space, cell.method) == (kind, space, method) and rule in cell.asked:
            if cell.reason:
                where = f"{method} on {KIND_NAMES[kind]}, space {space}, rule {cell.rule}"
                raise UserError(where, f"does not exist: {cell.reason}", mend=_mend(cell))
            return cell
    raise LookupError((kind, space, method, rule))


def check_merge(kind: str, method: str, settings: MergeMethod, *, serving: bool = False) -> Cell:
    """The combination that a merge asks for, all of whose settings mean something for the kind of adapter.

    Args:
        kind: Adapter kind, a key of `KIND_NAMES`.
        method: A merge method.
        settings: How it merges.
        serving: Whether plain LoRA is written that every server reads.

    Raises:
        UserError: it does not exist, or a setting would have no effect.
    """
    cell = find_cell(kind, settings.space, method, settings.rule)
    if serving and kind != "lora":
        mend = f"write {setting('export', 'peft')}: servers load plain LoRA only"
        raise UserError(setting("export"), f"serving is for LoRA, not {kind}", "peft", mend)
    if settings.rank and kind != "lora":
        raise UserError(setting("rank"), f"does not apply to {KIND_NAMES[kind]}", "no rank", "remove it")
    if settings.rank and cell.space == "factors" and not serving:
        found = "does not apply to factor space, which keeps the rank"
        mend = f"use {setting('space', 'delta')} or {setting('space', 'core')}, or {setting('export', 'serving')}"
        raise UserError(setting("rank"), found, "no rank", mend)
    if getattr(settings, "cutoff", None) is not None and _OWN_RULE[kind] != "insertion":
        found = f"is of the pseudo-inverse of virtual tokens, and {KIND_NAMES[kind]} takes none"
        raise UserError(setting("cutoff"), found, "no cut-off", "remove it")
    return cell


def _cell(kind: str, space: str, method: str, rule: str) -> Cell:
    own = ("auto",) if rule == _OWN_RULE[kind] else ()
    asked = own + ((rule,) if rule in RULES else ())
    reason = _reason(kind, space, method, rule)
    formula = "" if reason else _formula(kind, space, method, rule)
    return Cell(kind, space, method, rule, asked, formula, reason)


def _reason(kind: str, space: str, method: str, rule: str) -> str:
    if space != "factors" and kind == "bottleneck":
        return "a function stands between its ways down and up, so that they have no product"
    if kind == "bottleneck" and rule == "multiplicative":
        return "the paper's cross ablation exchanges the rules of LoRA and (IA)³ only"
    if space != "factors" and kind != "lora":
        return f"{KIND_NAMES[kind]} has no factors whose product could be taken; its tensors are the update"
    entry = METHODS[method]
    if not entry.subtracts and rule != _OWN_RULE[kind]:
        return "a rule applies the difference of two references, which only adamergex takes"
    if entry.by_block and kind == "prompt":
        return "its virtual tokens stand before the first block, and in none"
    if rule == "unanchored" and _OWN_RULE[kind] != "insertion":
        return "only virtual tokens have an un-anchored reading"
    if rule != _OWN_RULE[kind] and _OWN_RULE[kind] == "insertion" and rule != "unanchored":
        return "the paper's cross ablation exchanges the rules of LoRA and (IA)³ only"
    if space == "delta" and rule == "multiplicative":
        return "an element-wise product of updates has no low rank"
    if space == "core" and rule == "multiplicative":
        return "the ratio of two cores says something of their bases, and not of the updates"
    if space == "delta" and not entry.linear:
        return (
            f"{method} acts on single elements of ΔW, which would have to be formed and has no low rank after"
        )
    if _OWN_RULE[kind] == "insertion" and not entry.linear:
        return f"{method} acts on differences to the backbone, and virtual tokens are no differences"
    return ""


def _formula(kind: str, space: str, method: str, rule: str) -> str:
    """The method's formula in the letters of the kind."""
    entry = METHODS[method]
    text = _ROLE_FORMULAS[rule] if entry.subtracts else entry.formula
    letter = {"factors": _LETTERS[kind], "delta": "ΔW", "core": "M"}[space]
    if kind == "ia3" and not entry.roles:
        return f"l = 1 + {text.replace('xᵢ', '(lᵢ − 1)')}"
    written = re.sub(r"\bx(?=[ᵢ_])", letter, text)
    formula = f"{letter} = {written}"
    if kind == "bottleneck":
        return f"{formula}, X each weight and bias, down and up"
    if kind != "lora":
        return formula
    return f"{formula}, {_WHERE[space]}"


def _mend(cell: Cell) -> str:
    filled = [
        f"{setting('space', other.space)} with {setting('rule', other.rule if other.rule in RULES else 'auto')}"
        for other in methods_table()
        if (other.kind, other.method) == (cell.kind, cell.method) and other.formula
    ]
    if filled:
        return f"what exists: {'; '.join(filled)}"
    return f"use {setting('method', 'adamergex')} or {setting('method', 'arithmetic')}"
