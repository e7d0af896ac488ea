"""What a merge did: the typed report, provenance and the model card."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingualift.adapters.card import Card, as_code, as_line, table
from lingualift.adapters.compatibility import backbone, initialisation
from lingualift.merging.pieces import Record
from lingualift.merging.plan import Plan, Request
from lingualift.provenance import library_versions

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class MergeReport:
    """What was merged, what was not and why, and what the user should know.

    Args:
        output: The folder written.
        method: Merge method.
        kind: Adapter kind.
        space: "factors" or "delta".
        rule: The rule that was applied.
        export: "peft" or "serving".
        formula: What was computed.
        weights: Weight of every input by its role.
        merged: Modules that were merged.
        kept: Modules that keep the base adapter's tensors, with the reason.
        absent: Modules of other inputs that the result lacks, with the reason.
        energy: Fraction of the spectral energy kept, by truncated module.
        energy_kept: The same over all truncated modules; None where none was.
        cutoff: Relative cut-off of the pseudo-inverse; None where none was taken.
        warnings: What may make the result worse than it could be.
        notes: What else is worth knowing.
    """

    output: Path
    method: str
    kind: str
    space: str
    rule: str
    export: str
    formula: str
    weights: Mapping[str, float]
    merged: tuple[str, ...]
    kept: Mapping[str, str]
    absent: Mapping[str, str]
    energy: Mapping[str, float]
    energy_kept: float | None
    cutoff: float | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people, one finding a line; warnings are logged when the merge ends."""
        reasons = Counter([*self.kept.values(), *self.absent.values()])
        lines = [
            f"merged {len(self.merged)} modules into {self.output}",
            f"{self.method}, {self.kind}, space {self.space}, rule {self.rule}, export {self.export}",
            self.formula,
            *(f"{role}: weight {weight:g}" for role, weight in self.weights.items()),
            *(f"not merged: {count} modules ({reason})" for reason, count in reasons.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        if self.energy_kept is not None:
            lines.append(f"spectral energy kept: {self.energy_kept:.4%}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "output": str(self.output)}


def make_report(
    output: Path, request: Request, plan: Plan, record: Record, warnings: tuple[str, ...]
) -> MergeReport:
    """Put the report together once the tensors are written."""
    total = sum(whole for _, whole in record.energy.values())
    return MergeReport(
        output=output,
        method=request.method.name,
        kind=request.cell.kind,
        space=request.cell.space,
        rule=request.cell.rule,
        export="serving" if request.serving else "peft",
        formula=request.cell.formula,
        weights={item.role: item.weight for item in request.inputs},
        merged=tuple(module.name for module in plan.merged),
        kept={module.name: module.kept for module in plan.modules if module.kept},
        absent=dict(plan.absent),
        energy={name: kept / whole if whole else 1.0 for name, (kept, whole) in record.energy.items()},
        energy_kept=sum(kept for kept, _ in record.energy.values()) / total if total else None,
        cutoff=record.cutoff,
        warnings=warnings,
        notes=_notes(request, plan),
    )


def _notes(request: Request, plan: Plan) -> tuple[str, ...]:
    notes = []
    if not plan.merged:
        notes.append(f"no other adapter has a weight: the result is {request.inputs[0].role} itself")
    if request.base.structure.whole:
        notes.append(f"biases and saved modules come from {request.inputs[0].role}")
    if any(item.adapter.structure.whole for item in request.inputs[1:]):
        notes.append("biases and saved modules of the other adapters are whole values and were left out")
    notes += [
        f"{item.role} has {note}; they were renamed"
        for item in request.inputs
        for note in item.adapter.layout.notes
    ]
    if any(_EXPERT.search(name) for item in request.inputs for name in item.adapter.modules):
        notes.append(
            "modules of single experts: transformers 5 has all experts of a layer in one tensor, and peft makes one of "
            "the adapter too, of some architectures only; `lingualift evaluate` tells whether it fits yours"
        )
    if not all(backbone(item.adapter)["name"] for item in request.inputs):
        notes.append("an adapter does not name its backbone; that all have the same could not be checked")
    return tuple(notes)


def provenance_of(request: Request, report: MergeReport, shared: bool | None) -> dict[str, Any]:
    """Content of the result's `provenance.json`."""
    return {
        "kind": "merged",
        "method": report.method,
        "source": request.method.source,
        "space": report.space,
        "rule": report.rule,
        "export": report.export,
        "rank": request.rank,
        "module_pattern": request.modules,
        "module_weights": dict(request.module_weights),
        "options": {
            "density": request.options.density,
            "seed": request.options.seed,
            "cutoff": report.cutoff,
        },
        "inputs": [
            {
                "role": item.role,
                "path": str(item.adapter.path),
                "weight": item.weight,
                "layout": list(item.adapter.layout.notes),
                "weights_sha256": item.adapter.weights_sha256,
                "config_sha256": item.adapter.config_sha256,
            }
            for item in request.inputs
        ],
        "initialisation": initialisation(request.base) if shared else None,
        "backbone": backbone(request.base),
        "chat_template": (request.base.provenance or {}).get("chat_template"),
        "labels": (request.base.provenance or {}).get("labels"),
        "languages": _languages(request),
        "modules": list(report.merged),
        "kept": dict(report.kept),
        "energy_kept": report.energy_kept,
        "warnings": list(report.warnings),
        "versions": library_versions("lingualift", "numpy", "ml_dtypes"),
    }


def model_card(request: Request, report: MergeReport) -> str:
    """The result's README: front matter for the hub, the recipe for people."""
    rows = [
        (item.role, as_code(item.adapter.path.resolve().name), f"{item.weight:g}") for item in request.inputs
    ]
    kept = f"{len(report.kept)} kept from {request.inputs[0].role}"
    facts = [f"{len(report.merged)} modules merged, {kept}. Hashes of the inputs: `provenance.json`."]
    facts += [f"- Warning: {as_line(warning)}" for warning in report.warnings]
    facts += [f"- {as_line(note)}" for note in report.notes]
    return Card(
        title=f"{report.kind} adapter, merged by {report.method}",
        summary=f"Made by `lingualift merge`: {report.method} ([source]({request.method.source})), space "
        f"{report.space}, rule {report.rule}: `{report.formula}`",
        config=request.base.config,
        backbone=backbone(request.base),
        languages=_languages(request),
        tags=("merge", report.method),
        sections=(table(("role", "adapter", "weight"), rows), "\n".join(facts)),
        sources=(request.method.source,),
    ).text()


def _languages(request: Request) -> list[str]:
    """The languages that the adapters with a weight were trained in, as far as they say so."""
    found: list[Any] = []
    for item in request.inputs:
        recorded = item.adapter.provenance or {}
        found += [recorded.get("language"), *(recorded.get("languages") or ())] if item.weight else []
    return list(dict.fromkeys(code for code in found if isinstance(code, str)))
