"""The comparisons of PROTOCOL.md, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments import NOISE

from lingualift.config import FlareMethod

TASKS = {"world": ("mini-sentiment", "mini-qa")}
"""Tasks by setting; the others are named as their setting."""


class Row(NamedTuple):
    """A row of a table of results: of which run, which task, which method."""

    part: str
    task: str
    method: str
    variant: str = ""


@dataclass(frozen=True)
class Question:
    """A comparison to be made.

    Attributes:
        question: As PROTOCOL.md numbers it.
        setting: World, NusaX, ...
        label: What a figure calls it.
        one: The row in question.
        base: The row that it is compared with.
        named: Whether it is among the comparisons that were named beforehand.
    """

    question: str
    setting: str
    label: str
    one: Row
    base: Row
    named: bool = False


TUNED = ("adamergex", "factors")
SUBTRACTED, PLAIN = ("adamergex", "delta-weight=1"), ("arithmetic", "delta-sum-weight=1")
SOURCE = ("source-ft", "")


def questions() -> Iterator[Question]:
    """Every comparison of PROTOCOL.md."""
    for setting in ("world", "nusax", "nusatranslation"):
        for task in TASKS.get(setting, (setting,)):
            yield from _merging(setting, task)
    for setting in ("world", "nusaxweak"):
        for task in TASKS.get(setting, ("nusax",)):
            yield from _references(setting, task)
    yield from _untrained()
    for setting, task in (("world", "mini-sentiment"), ("nusax", "nusax")):
        yield from _fusing(setting, task)


def _untrained() -> Iterator[Question]:
    """What training brought at all: rows against the backbone as it is."""
    for setting in ("world", "nusax", "nusatranslation"):
        for task in TASKS.get(setting, (setting,)):
            found = [("main", *SOURCE), ("main", *TUNED), ("main", "reference-only", "")]
            if setting == "world":
                found.append(("main", "target-ft", ""))
            if task in ("mini-sentiment", "nusax"):
                found.append(("noise0", "translate-train", ""))
            for part, method, how in found:
                label = f"{task.removeprefix('mini-')}: {method}"
                base = Row("main", task, "vanilla")
                yield Question("V", setting, label, Row(part, task, method, how), base)


def _merging(setting: str, task: str) -> Iterator[Question]:
    def row(part: str, method: str, variant: str = "") -> Row:
        return Row(part, task, method, variant)

    source = row("main", *SOURCE)
    name = task.removeprefix("mini-")
    for rival in (SOURCE, ("arithmetic", "delta-sum"), ("reference-only", "")):
        label = f"{name}: against {rival[0]}"
        yield Question("M1", setting, label, row("main", *TUNED), row("main", *rival), named=True)
    for method, how in (TUNED, ("adamergex", "delta"), ("arithmetic", "delta-sum")):
        rules = [
            ("λ = 0.5", row("main", method, f"{how}-weight=0.5")),
            ("λ = 1", row("main", method, f"{how}-weight=1")),
            ("tuned on another language", row("main", method, how)),
        ]
        if task != "mini-qa":  # which has no classes
            rules.append(("least entropy", row("entropy", method, how)))
        for rule, one in rules:
            yield Question("M5", setting, f"{name}: {method} {how}, {rule}", one, source)
        half = rules[0][1]
        for rule, one in rules[1:]:
            yield Question("M5-rules", setting, f"{name}: {method} {how}, {rule}", one, half)
    if setting == "nusatranslation":
        return
    parts = {
        "all modules": "",
        "attention": "-modules=(q|k|v|o)_proj",
        "queries, values": "-modules=(q|v)_proj",
        "feed-forward": "-modules=(gate|up|down)_proj",
    }
    for what, pattern in parts.items():
        one = row("modules", "adamergex", f"delta{pattern}-weight=1")
        yield Question("M4", setting, f"{name}: {what}", one, row("modules", *SOURCE))
        if pattern:
            every = row("modules", "adamergex", "delta-weight=1")
            yield Question("M4", setting, f"{name}: {what} against all modules", one, every)


def _references(setting: str, task: str) -> Iterator[Question]:
    name = task.removeprefix("mini-")

    def ask(question: str, label: str, one: Row, base: Row) -> Question:
        return Question(question, setting, f"{name}: {label}", one, base)

    if setting == "world":
        regimes = {
            "text as the task's": "main",
            "trained for 400 steps": "steps400",
            "format of its own": "format",
            "100 target texts, all source": "unequal",
            "dialogues": "dialogue",
            "dialogues, 200 steps at 2e-3": "dialoguelong",
            "another labelled task": "sentimentbyqa" if task == "mini-sentiment" else "qabysentiment",
        }
    else:
        regimes = {"text as the task's": "main", "trained for 25 steps": "steps25", "another domain": "news"}
    for regime, part in regimes.items():
        subtracted, plain = Row(part, task, *SUBTRACTED), Row(part, task, *PLAIN)
        source = Row(part, task, *SOURCE)
        yield ask("M2", regime, subtracted, plain)
        yield ask("M2-source", f"{regime}, subtracted", subtracted, source)
        yield ask("M2-source", f"{regime}, not subtracted", plain, source)
    if setting != "world":
        return
    long = [Row("dialoguelong", task, *row) for row in (("reference-only", ""), SUBTRACTED, PLAIN, SOURCE)]
    yield ask("M2-source", "dialogues, 200 steps at 2e-3, reference alone", long[0], long[3])
    for what, half in (
        ("subtracted", ("adamergex", "delta")),
        ("not subtracted", ("arithmetic", "delta-sum")),
    ):
        row = Row("dialoguelong", task, half[0], f"{half[1]}-weight=0.5")
        yield ask("M2-source", f"dialogues, 200 steps at 2e-3, λ = 0.5, {what}", row, long[3])
    bound = Row("main", task, "target-ft")
    yield ask("M2-only", "reference alone against target-ft", long[0], bound)
    yield ask("M2-only", "subtracted against reference alone", long[1], long[0])
    yield ask("M2-only", "not subtracted against reference alone", long[2], long[0])
    for method, start in (("adamergex", "shared"), ("adamergex-own-start", "own")):
        for space in ("factors", "delta"):
            for weight in ("0.5", "1"):
                one = Row("starts", task, method, f"{space}-weight={weight}")
                label = f"{space}, {start} initialisation, λ = {weight}"
                yield ask("M3", label, one, Row("starts", task, *SOURCE))
                if start == "own":
                    shared = Row("starts", task, "adamergex", f"{space}-weight={weight}")
                    yield ask("M3", f"{space}, λ = {weight}: own against shared", one, shared)
    for weight in ("0.5", "1"):
        one, base = (
            Row("starts", task, "adamergex", f"{space}-weight={weight}") for space in ("delta", "factors")
        )
        yield ask("M3", f"λ = {weight}: delta against factors", one, base)
    of_ia3 = Row("ia3", task, *SOURCE)
    yield ask("M6", "source-ft: (IA)³ against LoRA", of_ia3, Row("main", task, *SOURCE))
    yield ask("M6", "LoRA, λ = 1", Row("main", task, *SUBTRACTED), Row("main", task, *SOURCE))
    tuned = Row("main", task, "adamergex", "delta")
    yield ask("M6", "LoRA, λ tuned", tuned, Row("main", task, *SOURCE))
    yield ask("M6", "(IA)³, λ = 1", Row("ia3", task, "adamergex", "weight=1"), of_ia3)
    yield ask("M6", "(IA)³, λ tuned", Row("ia3", task, "adamergex"), of_ia3)
    for size, part in (("100", "text100"), ("500", "text500"), ("2000", "main")):
        one = Row(part, task, *SUBTRACTED)
        yield ask("M7", f"{size} texts", one, Row(part, task, *SOURCE))
        if size != "2000":
            yield ask("M7", f"{size} texts against 2000", one, Row("main", task, *SUBTRACTED))
    if task == "mini-sentiment":  # whose form the dialogues do not hold
        return
    for size, part in (("100", "dialogue100"), ("500", "dialogue500"), ("2000", "dialoguelong")):
        for what, row in (("reference alone", ("reference-only", "")), ("not subtracted", PLAIN)):
            label = f"{size} dialogues, 200 steps at 2e-3, {what}"
            yield ask("M7", label, Row(part, task, *row), Row(part, task, *SOURCE))


def _fusing(setting: str, task: str) -> Iterator[Question]:
    def flare(name: str, **settings: str) -> tuple[str, str]:
        """A row of FLARE; at the block's output as in the protocol, where the default is another since."""
        method = FlareMethod(method="flare", fusion=name, **{"source_state": "block-output", **settings})
        return "flare", method.variant("lora")

    fused, entering = flare("add_relu"), flare("add_relu", source_state="block-input")
    rivals = ("translate-test", "translate-train", "input-fusion", "x-mixup")
    kinds = [
        ("cross_attention", flare("cross_attention"), fused),
        ("block input", entering, fused),
        ("projection input", flare("add_relu", source_state="projection-input"), fused),
    ]
    if setting == "world":
        others = ("add", "mul", "matmul", "matmul_relu")
        kinds = [*((name, flare(name), fused) for name in others), *kinds]
        kinds.append(("padded on the right", flare("add_relu", padding="right"), fused))
        mt = ("flare-mt", "add_relu")
        crossed = flare("cross_attention", source_state="block-input")
        right = flare("add_relu", source_state="block-input", padding="right")
        kinds.append(("block input: cross_attention against add_relu", crossed, entering))
        kinds.append(("block input: padded right against left", right, entering))
        kinds.append(("flare-mt against flare, block input", mt, entering))
        kinds.append(("flare-mt against translate-train", mt, ("translate-train", "")))

    def ask(
        question: str, label: str, one: tuple[str, str], base: tuple[str, str], part: str, **more: Any
    ) -> Question:
        return Question(question, setting, label, Row(part, task, *one), Row(part, task, *base), **more)

    for share in NOISE:
        part, wrong = f"noise{share:g}", f"{share:.0%} wrong"
        named = share in (0.0, 0.2)
        for rival in rivals:
            yield ask("F1", f"{wrong}: flare against {rival}", fused, (rival, ""), part, named=named)
            yield ask("F1-input", f"{wrong}: flare against {rival}", entering, (rival, ""), part)
        yield ask("F1-source", f"{wrong}: flare, block output", fused, SOURCE, part)
        yield ask("F1-source", f"{wrong}: flare, block input", entering, SOURCE, part)
        for rival in rivals:
            yield ask("F1-source", f"{wrong}: {rival}", (rival, ""), SOURCE, part)
        for label, one, base in kinds:
            yield ask("F1-kinds", f"{wrong}: {label}", one, base, part)
    for rival in ("translate-train", "x-mixup"):
        yield ask("F1-train", rival, (rival, ""), SOURCE, "worsetrain")
    yield ask("F1-train", "flare, block input", entering, SOURCE, "worsetrain")
    for rival in ("translate-train", "x-mixup"):
        label = f"flare, block input, against {rival}"
        yield ask("F1-train", label, entering, (rival, ""), "worsetrain")
    mixed = ("x-mixup", "")
    yield ask("F1-train", "x-mixup against translate-train", mixed, ("translate-train", ""), "worsetrain")
    reading = {name: (name, "") for name in ("translate-test", "input-fusion", "x-mixup")}
    reading |= {"flare, block output": fused, "flare, block input": entering}
    reading["flare cross_attention"] = flare("cross_attention")
    for label, one in reading.items():
        for rival in (SOURCE, ("translate-train", "")):
            yield ask("F2", f"{label} against {rival[0]}", one, rival, "blank")
    merged = ("adamergex", "delta-weight=0.5")
    places = {
        "block output": (fused, "add_relu-source_state=block-output-space=delta-weight=0.5"),
        "block input": (entering, "add_relu-space=delta-weight=0.5"),
    }
    for part, wrong in (("both", "0%"), ("bothnoise", "20%")):
        for place, (alone, onto) in places.items():
            both = ("flare-on-merged", onto)
            yield ask("B1", f"{wrong} wrong, {place}: both against flare", both, alone, part)
            yield ask("B1", f"{wrong} wrong, {place}: both against merging", both, merged, part)
    yield ask("B1", "merging against source-ft", merged, SOURCE, "both")
