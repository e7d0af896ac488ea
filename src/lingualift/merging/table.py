"""Which merges exist: adapter kind × space × method × rule, and why the others do not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lingualift.errors import UserError
from lingualift.merging.methods import METHODS

SPACES = ("factors", "delta")
RULES = ("auto", "additive", "multiplicative", "unanchored")
KIND_NAMES = {"lora": "LoRA", "ia3": "(IA)³", "prefix": "prefix-tuning", "prompt": "prompt-tuning"}

_OWN_RULE = {"lora": "additive", "ia3": "multiplicative", "prefix": "insertion", "prompt": "insertion"}
_FORMULAS = {
    ("additive", "adamergex", "factors"): "X = X_task + λ·(X_target − X_source), X each of lora_A and lora_B",
    ("additive", "adamergex", "delta"): "ΔW = ΔW_task + λ·(ΔW_target − ΔW_source), ΔW = scaling·B·A",
    ("multiplicative", "adamergex", "factors"): "l = l_task ⊙ (λ·(l_target ⊘ l_source − 1) + 1)",
    ("insertion", "adamergex", "factors"): "P = (λ·(M − I) + I)·P_task, M = P_target·P_source⁺",
    ("unanchored", "adamergex", "factors"): "P = λ·M·P_task, M = P_target·P_source⁺",
}
_VECTOR_FORMULAS = {
    "adamergex": "l = l_task + λ·(l_target − l_source)",
    "arithmetic": "l = 1 + Σ wᵢ·(lᵢ − 1)",
    "ties": "l = 1 + TIES(lᵢ − 1)",
    "dare": "l = 1 + DARE(lᵢ − 1)",
}
_PLAIN_FORMULAS = {
    ("arithmetic", "factors"): "X = Σ wᵢ·Xᵢ",
    ("arithmetic", "delta"): "ΔW = Σ wᵢ·ΔWᵢ",
    ("ties", "factors"): "X = TIES(Xᵢ), X each of lora_A and lora_B",
    ("dare", "factors"): "X = DARE(Xᵢ), X each of lora_A and lora_B",
}


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
    if method != "adamergex" and rule != _OWN_RULE[kind]:
        return "a rule applies the difference of two references, which only adamergex takes"
    if rule == "unanchored" and _OWN_RULE[kind] != "insertion":
        return "only virtual tokens have an un-anchored reading"
    if rule != _OWN_RULE[kind] and _OWN_RULE[kind] == "insertion" and rule != "unanchored":
        return "the paper's cross ablation exchanges the rules of LoRA and (IA)³ only"
    if space == "delta" and rule == "multiplicative":
        return "an element-wise product of updates has no low rank"
    if space == "delta" and method in ("ties", "dare"):
        return (
            f"{method} acts on single elements of ΔW, which would have to be formed and has no low rank after"
        )
    if kind in ("prefix", "prompt") and method in ("ties", "dare"):
        return f"{method} drops small differences to the backbone, and virtual tokens are no differences"
    return ""


def _formula(kind: str, space: str, method: str, rule: str) -> str:
    if kind == "ia3" and (rule == "additive" or method != "adamergex"):
        return _VECTOR_FORMULAS[method]
    if method == "adamergex":
        formula = _FORMULAS[rule, method, space]
        return re.sub(r"\bl\b|\bl(?=_)", "X", formula) if kind == "lora" else formula
    formula = _PLAIN_FORMULAS[method, space]
    return formula.replace("X", "P") if kind in ("prefix", "prompt") else formula


def _mend(cell: Cell) -> str:
    filled = [
        f"space {other.space}, rule {other.rule}"
        for other in methods_table()
        if (other.kind, other.method) == (cell.kind, cell.method) and other.formula
    ]
    if filled:
        return f"what exists: {'; '.join(filled)}"
    return "use adamergex or arithmetic"
