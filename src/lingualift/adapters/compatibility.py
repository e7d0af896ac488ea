"""Whether adapters belong together: one kind, one backbone, one shape per module, one initialisation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lingualift.adapters.config import CONFIG_FILE
from lingualift.adapters.folder import Adapter
from lingualift.adapters.structure import Module
from lingualift.errors import UserError
from lingualift.provenance import PROVENANCE_FILE

SAME_START = 0.3
"""Cosine of two lora_A from which they count as grown from one draw; independent draws lie near 0, and
training
moves a factor by a fraction of its length."""

_SAMPLED = 8


def conflicts(adapters: Sequence[Adapter]) -> Iterator[UserError]:
    """Every reason why these adapters cannot be merged, each with its mend."""
    usable = []
    for adapter in adapters:
        try:
            _ = adapter.structure
            usable.append(adapter)
        except UserError as error:
            yield error
    for first, other in zip(usable[:1] * len(usable), usable[1:], strict=False):
        yield from _pairwise(first, other)


def one_layout(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters by the first one's names of modules, where one layout that is known brings them together."""
    first, *others = adapters
    if first.refusal:
        return [first, *others]
    return [first, *(other if other.refusal else other.named_as(first.modules) for other in others)]


def backbone(adapter: Adapter) -> dict[str, Any]:
    """What an adapter says of its backbone: `name`, `revision` and, where recorded, `fingerprint` and `formerly`.

    The last is the fingerprint that older versions recorded of the same backbone (`lingualift.backbone.identity`).
    """
    recorded = (adapter.provenance or {}).get("backbone")
    recorded = recorded if isinstance(recorded, dict) else {}
    name, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    return {
        "name": name or recorded.get("name"),
        "revision": revision or recorded.get("revision"),
        "fingerprint": recorded.get("fingerprint"),
        "formerly": recorded.get("formerly"),
    }


def initialisation(adapter: Adapter) -> str | None:
    """Hash of the tensors that the adapter's training started from, where its provenance records it."""
    recorded = (adapter.provenance or {}).get("initialisation")
    return recorded if isinstance(recorded, str) else None


def same_initialisation(adapters: Sequence[Adapter]) -> tuple[bool | None, str]:
    """Whether LoRA adapters were trained from one draw, and how that is known.

    Told from `initialisation` in every `provenance.json`, else from the factors that were drawn at random
    (lora_A; for embeddings lora_B). None where nothing tells.
    """
    recorded = {initialisation(adapter) for adapter in adapters}
    if None not in recorded:
        return len(recorded) == 1, "provenance"
    if any(adapter.kind != "lora" for adapter in adapters) or len(adapters) < 2:
        return None, "unknown"
    cosines = [_start_cosine(adapters[0], other) for other in adapters[1:]]
    known = [cosine for cosine in cosines if cosine is not None]
    if len(known) < len(cosines):
        return None, "unknown"
    return min(known) >= SAME_START, f"tensors, cosine of the drawn factors {min(known):.2f}"


def _start_cosine(first: Adapter, other: Adapter) -> float | None:
    shared = [name for name, module in first.modules.items() if _matches(module, other.modules.get(name))]
    cosines = []
    for name in shared[:: max(1, len(shared) // _SAMPLED)]:
        drawn = 1 if first.modules[name].form == "embedding" else 0
        a, b = (x.read(x.modules[name].tensors[drawn]).ravel().astype(np.float64) for x in (first, other))
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        if length and np.isfinite(length):
            cosines.append(float(a @ b) / length)
    return float(np.median(cosines)) if cosines else None


def _matches(module: Module, other: Module | None) -> bool:
    return other is not None and module.shapes == other.shapes


def _pairwise(first: Adapter, other: Adapter) -> Iterator[UserError]:
    if first.kind != other.kind:
        expected = f"{first.kind} as {first.path} is"
        yield UserError(other.path, f"is a {other.kind} adapter", expected, "merge adapters of one kind")
        return
    yield from _backbone_conflict(first, other)
    shared = first.modules.keys() & other.modules.keys()
    if not shared:
        found = f"shares no module with {first.path} (it has {next(iter(other.modules))!r} and others)"
        expected = f"modules such as {next(iter(first.modules))!r}"
        yield UserError(other.path, found, expected, "train both on the same modules of one backbone class")
    for name in sorted(shared):
        ours, theirs = first.modules[name], other.modules[name]
        if (ours.form, ours.fits) != (theirs.form, theirs.fits):
            found = f"module {name!r} is {theirs.form} with shapes {theirs.shapes}"
            expected = f"{ours.form} with {ours.shapes} as in {first.path}"
            yield UserError(other.path, found, expected, "merge adapters of one backbone")
            return


def _backbone_conflict(first: Adapter, other: Adapter) -> Iterator[UserError]:
    ours, theirs = backbone(first), backbone(other)
    if ours["fingerprint"] and theirs["fingerprint"]:
        told = [{text["fingerprint"], text["formerly"]} - {None} for text in (ours, theirs)]
        if not told[0] & told[1]:
            yield UserError(
                other.path,
                f"its backbone is {_text(theirs)}",
                f"{_text(ours)} as {first.path}",
                "merge adapters of one backbone; if you know that the two are one, remove `fingerprint` and `formerly` "
                f"under `backbone` in {other.path / PROVENANCE_FILE}, and see that the names agree",
            )
        return
    names = ours["name"], theirs["name"]
    revisions = {str(text["revision"] or "main") for text in (ours, theirs)}
    if all(names) and (names[0] != names[1] or len(revisions) > 1):
        yield UserError(
            other.path,
            f"its backbone is {_text(theirs)}",
            f"{_text(ours)} as {first.path}",
            "merge adapters of one backbone; if you know that the two are one, set base_model_name_or_path and "
            f"revision in {other.path / CONFIG_FILE} to those of the other",
        )


def _text(facts: dict[str, Any]) -> str:
    revision = f" at revision {facts['revision']}" if facts["revision"] else ""
    fingerprint = f" (fingerprint {str(facts['fingerprint'])[:12]})" if facts["fingerprint"] else ""
    return f"{facts['name']!r}{revision}{fingerprint}"
