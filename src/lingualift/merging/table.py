"""Which merges exist: adapter kind × space × method × rule, and why the others do not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lingualift.errors import UserError, setting
from lingualift.merging.methods import METHODS

SPACES = ("factors", "delta")
RULES = ("auto", "additive", "multiplicative", "unanchored")
KIND_NAMES = {"lora": "LoRA", "ia3": "(IA)³", "prefix": "prefix-tuning", "prompt": "prompt-tuning"}

_OWN_RULE = {"lora": "additive", "ia3": "multiplicative", "prefix": "insertion", "prompt": "insertion"}
_ROLE_FORMULAS = {
    "additive": "x_task + λ·(x_target − x_source)",
    "multiplicative": "x_task ⊙ (λ·(x_target ⊘ x_source − 1) + 1)",
    "insertion": "(λ·(M − I) + I)·x_task, M = x_target·x_source⁺",
    "unanchored": "λ·M·x_task, M = x_target·x_source⁺",
}
_LETTERS = {"lora": "X", "ia3": "l", "prefix": "P", "prompt": "P"}


@dataclass(frozen=True)
class Cell:
    """One combination: its formula, or the reason why there is none.

    Args:
        kind: Adapter kind, a key of `KIND_NAMES`.
        space: "factors" (the adapter's tensors as they are) or "delta" (the update of the weights).
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
    for cell in methods_table():
        if (cell.kind, cell.space, cell.method) == (kind, space, method) and rule in cell.asked:
            if cell.reason:
                where = f"{method} on {KIND_NAMES[kind]}, space {space}, rule {cell.rule}"
                raise UserError(where, f"does not exist: {cell.reason}", mend=_mend(cell))
            return cell
    raise LookupError((kind, space, method, rule))


def _cell(kind: str, space: str, method: str, rule: str) -> Cell:
    own = ("auto",) if rule == _OWN_RULE[kind] else ()
    asked = own + ((rule,) if rule in RULES else ())
    reason = _reason(kind, space, method, rule)
    formula = "" if reason else _formula(kind, space, method, rule)
    return Cell(kind, space, method, rule, asked, formula, reason)


def _reason(kind: str, space: str, method: str, rule: str) -> str:
    if space == "delta" and kind != "lora":
        return f"{KIND_NAMES[kind]} has no factors whose product could be taken; its tensors are the update"
    entry = METHODS[method]
    if not entry.roles and rule != _OWN_RULE[kind]:
        return "a rule applies the difference of two references, which only adamergex takes"
    if rule == "unanchored" and _OWN_RULE[kind] != "insertion":
        return "only virtual tokens have an un-anchored reading"
    if rule != _OWN_RULE[kind] and _OWN_RULE[kind] == "insertion" and rule != "unanchored":
        return "the paper's cross ablation exchanges the rules of LoRA and (IA)³ only"
    if space == "delta" and rule == "multiplicative":
        return "an element-wise product of updates has no low rank"
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
    text = _ROLE_FORMULAS[rule] if entry.roles else entry.formula
    letter = "ΔW" if space == "delta" else _LETTERS[kind]
    if kind == "ia3" and not entry.roles:
        return f"l = 1 + {text.replace('xᵢ', '(lᵢ − 1)')}"
    written = re.sub(r"\bx(?=[ᵢ_])", letter, text)
    formula = f"{letter} = {written}"
    if kind != "lora":
        return formula
    return f"{formula}, {'ΔW = scaling·B·A' if space == 'delta' else 'X each of lora_A and lora_B'}"


def _mend(cell: Cell) -> str:
    filled = [
        f"{setting('space', other.space)} with {setting('rule', other.rule if other.rule in RULES else 'auto')}"
        for other in methods_table()
        if (other.kind, other.method) == (cell.kind, cell.method) and other.formula
    ]
    if filled:
        return f"what exists: {'; '.join(filled)}"
    return f"use {setting('method', 'adamergex')} or {setting('method', 'arithmetic')}"
