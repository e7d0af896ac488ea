"""The merge, from arguments to the folder written, with its report, provenance and model card."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from lingualift.adapters.card import Card, as_code, as_line, table
from lingualift.adapters.folder import write_adapter
from lingualift.adapters.structure import same_initialisation
from lingualift.adapters.tensorfile import DTYPES, Array
from lingualift.config import merge_settings
from lingualift.errors import UserError, did_you_mean, setting
from lingualift.merging.checkpoints import is_checkpoint, swap_blocks
from lingualift.merging.lora import Outcome, Tensors, make_lora
from lingualift.merging.methods import CORE_SPACE, METHODS, Method, Options, check_merge
from lingualift.merging.plan import (
    Plan,
    Request,
    Zones,
    check_roles,
    in_ranges,
    open_inputs,
    plan_modules,
)
from lingualift.merging.vectors import make_bottlenecks, make_tokens, make_vectors
from lingualift.provenance import library_versions

_LOG = logging.getLogger("lingualift.merging")
_MAKERS = {
    "lora": make_lora,
    "ia3": make_vectors,
    "bottleneck": make_bottlenecks,
    "prefix": make_tokens,
    "prompt": make_tokens,
}
EXPORTS = ("peft", "serving")
_EXPERT = re.compile(r"\.experts\.\d+\.")


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
    space: Literal["factors", "delta", "core"] = "factors",
    modules: str | None = None,
    module_weights: Mapping[str, float] | None = None,
    layer_weights: Mapping[str, float] | None = None,
    rank: int | None = None,
    rule: Literal["auto", "additive", "multiplicative", "unanchored"] = "auto",
    export: Literal["peft", "serving"] = "peft",
    density: float = 0.5,
    seed: int = 0,
    cutoff: float | None = None,
    bottom: int | None = None,
    top: int | None = None,
    transition: int | None = None,
) -> MergeReport:
    """Merge adapters and write the result as a peft adapter folder.

    No backbone is loaded. Arithmetic is in float32, the result in the number format of the task adapter.
    Inputs of weight zero are dropped before any arithmetic, so that weight 0 gives the task adapter's own
    tensors.

    Args:
        method: `adamergex` (https://arxiv.org/abs/2402.18913), `arithmetic`, `ties`, `dare` or `layer-swap`.
        output: The folder to write; it must not exist.
        task: adamergex, layer-swap: adapter of the task in the source language; layer-swap also takes the folders of
            two whole models that were trained from one.
        target_reference: adamergex, layer-swap: adapter of the reference task in the target language.
        source_reference: adamergex: adapter of the reference task in the source language.
        weight: λ: of adamergex the factor of the references' difference, of layer-swap the target reference's part in
            the outer blocks.
        adapters: Other methods: folders with their weights, the base first.
        mean: Other methods: divide the weights by their sum.
        space: LoRA: merge lora_A and lora_B each ("factors"), the updates B·A ("delta"; ranks add up), or these as
            small matrices in bases that all adapters share ("core", https://arxiv.org/abs/2509.17786; ranks add up).
        modules: Pattern of the modules to merge, matched against the whole path or its end; others keep the
            base.
        module_weights: Factors on the weight by module pattern; the first that matches counts.
        layer_weights: Factors on the weight by block, from 0, or range of blocks: `{"0-5": 0.5}`.
        rank: Spaces delta and core, or export serving: the rank to truncate to; serving also pads to it.
        rule: How adamergex applies the difference: the kind's own way, or another by name.
        export: "peft", or "serving" for plain LoRA of one rank with the scaling folded in.
        density: ties and dare: fraction of elements that stay.
        seed: dare: seed of the draw.
        cutoff: Virtual tokens: relative cut-off of the pseudo-inverse.
        bottom: layer-swap: first blocks, which are the target reference's; 5 of 32 if None, at least one.
        top: layer-swap: last blocks, which are too; 2 of 32 if None.
        transition: layer-swap: blocks on each side that are averaged; 1 of 32 if None.

    Raises:
        UserError: anything the user can mend; nothing is written then.
    """
    chosen = METHODS[method]
    if export not in EXPORTS:
        raise UserError(
            setting("export"), f"is {export!r}", " or ".join(EXPORTS), did_you_mean(str(export), EXPORTS)
        )
    settings = merge_settings(
        method,
        space=space,
        modules=modules,
        module_weights=dict(module_weights or {}),
        layer_weights=dict(layer_weights or {}),
        rank=rank,
        rule=rule,
        density=density,
        seed=seed,
        cutoff=cutoff,
        mean=mean,
        bottom=bottom,
        top=top,
        transition=transition,
    )
    roles = {"task": task, "target_reference": target_reference, "source_reference": source_reference}
    zones = Zones(**settings.model_dump(include={"bottom", "top", "transition"}))
    if chosen.by_block and is_checkpoint(task):
        idle = settings.given() - {"method", "layer_weights", "bottom", "top", "transition"}
        if idle or export != "peft":
            name = min(idle, default="export")
            raise UserError(setting(name), "does not apply to whole checkpoints", mend="leave it out")
        return _swap_checkpoints(chosen, roles, Path(output), zones, weight, settings.layer_weights)
    inputs = open_inputs(chosen, roles, weight, adapters, getattr(settings, "mean", False))
    request = Request(
        method=chosen,
        cell=check_merge(inputs[0].adapter.kind, method, settings, serving=export == "serving"),
        inputs=inputs,
        modules=settings.modules,
        module_weights=settings.module_weights,
        layer_weights=settings.layer_weights,
        rank=settings.rank,
        serving=export == "serving",
        options=Options(**settings.model_dump(include={"density", "seed"})),
        cutoff=getattr(settings, "cutoff", None),
        zones=zones,
    )
    return _run(request, plan_modules(request), Path(output))


def _swap_checkpoints(
    method: Method,
    roles: Mapping[str, Path | str | None],
    output: Path,
    zones: Zones,
    weight: float,
    layer_weights: Mapping[str, float],
) -> MergeReport:
    check_roles(method, roles, weight)
    parts, kept = swap_blocks(
        Path(str(roles["task"])), Path(str(roles["target_reference"])), output, zones, weight, layer_weights
    )
    return MergeReport(
        output=output,
        method=method.name,
        kind="checkpoint",
        space="weights",
        rule="additive",
        export="peft",
        formula=re.sub(r"\bx(?=_)", "W", method.formula),
        weights={"task": 1.0, "target_reference": float(weight)},
        merged=tuple(parts),
        kept=kept,
        absent={},
        energy={},
        energy_kept=None,
        cutoff=None,
        parts=in_ranges(parts.items()),
        warnings=(),
        notes=(),
    )


def _run(request: Request, plan: Plan, output: Path) -> MergeReport:
    outcome = Outcome()
    tensors, config = _MAKERS[request.cell.kind](request, plan, outcome)
    # wide number formats first: readers want every tensor aligned to its own width
    tensors.sort(key=lambda made: -DTYPES[made.specs[0].code].itemsize)
    with ThreadPoolExecutor(1) as pool, threadpool_limits(1, user_api="blas"):  # many small products
        verified = [pool.submit(item.adapter.verify) for item in request.inputs]
        shared, warnings = _initialisation(request, plan)

        def report() -> MergeReport:
            return make_report(output, request, plan, outcome, warnings)

        def provenance() -> Mapping[str, object]:
            for future in verified:
                future.result()
            return provenance_of(request, report(), shared)

        with np.errstate(all="ignore"):  # every result is checked
            write_adapter(
                output,
                config={**config, "inference_mode": True},
                specs=[spec for made in tensors for spec in made.specs],
                arrays=_arrays(tensors, request, plan, outcome),
                provenance=provenance,
                card=lambda: model_card(request, report()),
            )
    for warning in warnings:
        _LOG.warning(warning)
    return report()


def _arrays(tensors: Sequence[Tensors], request: Request, plan: Plan, outcome: Outcome) -> Iterator[Array]:
    for made in tensors:
        yield from made.compute()
    if plan.merged and not outcome.changed:
        found = "changes no tensor although its weights are not zero"
        mend = "check that the adapters differ and that the weights are not too small for the number format"
        raise UserError(request.method.name, found, "a change", mend)


def _initialisation(request: Request, plan: Plan) -> tuple[bool | None, tuple[str, ...]]:
    """Whether what enters was trained from one draw, and the warning where a merge of factors needs that."""
    meet = [module for module in plan.merged if len(module.inputs) > 1 or not request.method.by_block]
    entering = {item.role for module in meet for item in module.inputs} | {request.inputs[0].role}
    adapters = [item.adapter for item in request.inputs if item.role in entering]
    if request.cell.kind != "lora" or request.cell.space != "factors":
        recorded = {adapter.initialisation for adapter in adapters}
        return (len(recorded) == 1 and None not in recorded) or None, ()
    shared, evidence = same_initialisation(adapters)
    if shared is not False:
        return shared, ()
    return False, (
        f"the adapters were not trained from one initialisation ({evidence}): merging their factors mixes unrelated "
        "bases. Use space delta, or train all adapters from one recorded initialisation",
    )


@dataclass(frozen=True)
class MergeReport:
    """What was merged, what was not and why, and what the user should know.

    Args:
        output: The folder written.
        method: Merge method.
        kind: Adapter kind, or "checkpoint" for whole models.
        space: "factors", "delta" or "core"; "weights" for whole models.
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
        parts: Range of blocks -> the target reference's different parts there, of a method that goes by blocks.
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
    parts: Mapping[str, tuple[float, ...]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people, one finding a line; warnings are logged when the merge ends."""
        reasons = Counter([*self.kept.values(), *self.absent.values()])
        things = "tensors" if self.kind == "checkpoint" else "modules"
        lines = [
            f"merged {len(self.merged)} {things} into {self.output}",
            f"{self.method}, {self.kind}, space {self.space}, rule {self.rule}, export {self.export}",
            self.formula,
            *(f"{role}: weight {weight:g}" for role, weight in self.weights.items()),
            *self.zones(),
            *(f"not merged: {count} {things} ({reason})" for reason, count in reasons.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        if self.energy_kept is not None:
            lines.append(f"spectral energy kept: {self.energy_kept:.4%}")
        return lines

    def zones(self) -> list[str]:
        """What the target reference has of which blocks, in words."""
        return [
            f"blocks {place}: {' to '.join(f'{part:g}' for part in dict.fromkeys((parts[0], parts[-1])))} of the "
            "target reference"
            for place, parts in self.parts.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "output": str(self.output)}


def make_report(
    output: Path, request: Request, plan: Plan, outcome: Outcome, warnings: tuple[str, ...]
) -> MergeReport:
    """Put the report together once the tensors are written."""
    total = sum(whole for _, whole in outcome.energy.values())
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
        energy={name: kept / whole if whole else 1.0 for name, (kept, whole) in outcome.energy.items()},
        energy_kept=sum(kept for kept, _ in outcome.energy.values()) / total if total else None,
        cutoff=outcome.cutoff,
        parts=plan.parts() if request.method.by_block else {},
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
    if request.method.by_block and any(
        item.adapter.config.get("layers_to_transform") is not None for item in request.inputs
    ):
        notes.append(
            "adapters are on some blocks only (layers_to_transform): the highest of them counts as the model's last"
        )
    if any(_EXPERT.search(name) for item in request.inputs for name in item.adapter.modules):
        notes.append(
            "modules of single experts: transformers 5 has all experts of a layer in one tensor, and peft makes one of "
            "the adapter too, of some architectures only; `lingualift evaluate` tells whether it fits yours"
        )
    if not all(item.adapter.backbone["name"] for item in request.inputs):
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
        "layer_weights": dict(request.layer_weights),
        "options": {
            "density": request.options.density,
            "seed": request.options.seed,
            "cutoff": report.cutoff,
        },
        **(
            {"zones": asdict(request.zones), "parts_of_the_target": dict(report.parts)}
            if request.method.by_block
            else {}
        ),
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
        "initialisation": request.base.initialisation if shared else None,
        "backbone": request.base.backbone,
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
    facts += [f"- {as_line(zone)}" for zone in report.zones()]
    facts += [f"- Warning: {as_line(warning)}" for warning in report.warnings]
    facts += [f"- {as_line(note)}" for note in report.notes]
    return Card(
        title=f"{report.kind} adapter, merged by {report.method}",
        summary=f"Made by `lingualift merge`: {report.method} ([source]({request.method.source})), space "
        f"{report.space}, rule {report.rule}: `{report.formula}`",
        config=request.base.config,
        backbone=request.base.backbone,
        languages=_languages(request),
        tags=("merge", report.method),
        sections=(table(("role", "adapter", "weight"), rows), "\n".join(facts)),
        sources=(request.method.source, *([CORE_SPACE] if report.space == "core" else [])),
    ).text()


def _languages(request: Request) -> list[str]:
    """The languages that the adapters with a weight were trained in, as far as they say so."""
    found: list[Any] = []
    for item in request.inputs:
        recorded = item.adapter.provenance or {}
        found += [recorded.get("language"), *(recorded.get("languages") or ())] if item.weight else []
    return list(dict.fromkeys(code for code in found if isinstance(code, str)))
