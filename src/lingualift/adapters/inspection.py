"""What adapter folders hold, how large and how alike their updates are, and whether they can be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lingualift.adapters.config import Refusal
from lingualift.adapters.folder import Adapter, one_layout, open_adapter
from lingualift.adapters.structure import conflicts, same_initialisation
from lingualift.adapters.tensorfile import Array, as_float32
from lingualift.errors import UserError, one_line


@dataclass(frozen=True)
class ModuleFacts:
    """One module of one adapter.

    Args:
        name: The module.
        rank: LoRA's rank, else 0.
        scaling: LoRA's scaling, else 1.
        norm: Frobenius norm of its update: of scaling·B·A, of l − 1, or of the virtual tokens.
    """

    name: str
    rank: int
    scaling: float
    norm: float


@dataclass(frozen=True)
class AdapterFacts:
    """One adapter folder.

    Args:
        path: The folder.
        kind: "lora", "ia3", "prefix", "prompt", or peft's name of a kind that cannot be merged.
        task_type: peft's task type.
        formats: Number formats of its tensors.
        parameters: How many numbers it holds.
        ranks: The ranks that occur.
        scalings: The scalings that occur.
        modules: Its modules; empty where the kind cannot be merged.
        whole: Tensors that hold whole values: biases, saved modules.
        norm: Norm of all updates together.
        backbone: Name, revision and fingerprint, as far as recorded.
        layout: What of its names was brought back to peft's.
        provenance: What `provenance.json` says; None where there is none.
    """

    path: Path
    kind: str
    task_type: str | None
    formats: tuple[str, ...]
    parameters: int
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    modules: tuple[ModuleFacts, ...]
    whole: tuple[str, ...]
    norm: float
    backbone: dict[str, Any]
    layout: tuple[str, ...]
    provenance: dict[str, Any] | None

    def lines(self) -> list[str]:
        """The facts for people, one a line; modules with one last name together."""
        ends: dict[tuple[str, int, float], list[float]] = {}
        for module in self.modules:
            ends.setdefault((module.name.rpartition(".")[2], module.rank, module.scaling), []).append(
                module.norm
            )
        made = (self.provenance or {}).get("method") or (self.provenance or {}).get("kind") or "not recorded"
        return [
            f"{self.path}: {self.kind}, {self.parameters:,} numbers ({', '.join(self.formats)}), norm {self.norm:.4g}",
            f"  backbone {self.backbone['name'] or 'not recorded'}, task type {self.task_type}, made by {made}",
            *(
                f"  {len(norms)} × {end}"
                + (f", rank {rank}, scaling {scaling:g}" if rank else "")
                + f", norms {min(norms):.3g} to {max(norms):.3g}"
                for (end, rank, scaling), norms in ends.items()
            ),
            *(f"  {note}, renamed" for note in self.layout),
            *(
                [f"  {len(self.whole)} tensors with whole values (biases, saved modules)"]
                if self.whole
                else []
            ),
        ]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Args:
        adapters: Facts of each adapter, in the order given.
        cosines: Cosine between the updates of every two adapters, a square matrix; None where it is undefined.
        shared_initialisation: Whether all were trained from one draw; None where nothing tells.
        evidence: How that is known.
        mergeable: Whether `merge` would take them together.
        obstacles: Why not.
    """

    adapters: tuple[AdapterFacts, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    shared_initialisation: bool | None
    evidence: str
    mergeable: bool
    obstacles: tuple[Refusal, ...]

    def lines(self) -> list[str]:
        """The findings for people, one a line."""
        lines = [line for facts in self.adapters for line in facts.lines()]
        for i, first in enumerate(self.adapters):
            for j, other in enumerate(self.adapters[:i]):
                cosine = self.cosines[i][j]
                if cosine is not None:
                    lines.append(f"cosine of {other.path} and {first.path}: {cosine:.4f}")
        if len(self.adapters) > 1:
            words = {True: "one draw", False: "different draws", None: "not known"}
            lines.append(f"initialisation: {words[self.shared_initialisation]} ({self.evidence})")
        for obstacle in self.obstacles:
            lines += [f"cannot be merged: {obstacle.reason}", f"  mend: {obstacle.mend}"]
        return [one_line(line) for line in (*lines, *(["can be merged"] if self.mergeable else []))]

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        facts = asdict(self)
        for adapter in facts["adapters"]:
            adapter["path"] = str(adapter["path"])
        return facts


def inspect(paths: Sequence[Path | str] | Path | str) -> Inspection:
    """Look into one or more adapter folders; tensors are streamed module by module.

    Args:
        paths: Adapter folders, or repository ids in the hub's cache.

    Raises:
        UserError: a folder holds no adapter, is damaged, or is not what its provenance recorded.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    adapters = [open_adapter(path) for path in given]
    if not adapters:
        raise UserError("inspect", "was given no adapter", "one or more folders", "name an adapter folder")
    with threadpool_limits(1, user_api="blas"):  # many small products
        return _inspect(adapters)


def _inspect(adapters: Sequence[Adapter]) -> Inspection:
    for adapter in adapters:
        adapter.verify()
    readable = all(map(_is_readable, adapters))
    if readable:
        adapters = one_layout(adapters)
    found = tuple(Refusal(f"{error.where}: {error.found}", error.mend) for error in conflicts(adapters))
    one_kind = readable and len({adapter.kind for adapter in adapters}) == 1
    shared, evidence = same_initialisation(adapters) if one_kind else (None, "unknown")
    inner = _inner_products(adapters)
    return Inspection(
        adapters=tuple(_facts(adapter, number, inner) for number, adapter in enumerate(adapters)),
        cosines=_cosines(inner, len(adapters)),
        shared_initialisation=shared,
        evidence=evidence,
        mergeable=not found,
        obstacles=found,
    )


def _is_readable(adapter: Adapter) -> bool:
    try:
        return bool(adapter.structure)
    except UserError:
        return False


def _facts(adapter: Adapter, number: int, inner: dict[str, Array]) -> AdapterFacts:
    structure = adapter.structure if _is_readable(adapter) else None
    norms = {name: float(np.sqrt(max(products[number, number], 0.0))) for name, products in inner.items()}
    modules = tuple(
        ModuleFacts(module.name, module.rank, module.scaling, norms[module.name])
        for module in (structure.modules.values() if structure else ())
    )
    return AdapterFacts(
        path=adapter.path,
        kind=adapter.kind,
        task_type=adapter.config.get("task_type"),
        formats=tuple(sorted({spec.code for spec in adapter.tensors.values()})),
        parameters=sum(int(np.prod(spec.shape)) for spec in adapter.tensors.values()),
        ranks=tuple(sorted({module.rank for module in modules if module.rank})),
        scalings=tuple(sorted({module.scaling for module in modules if module.rank})),
        modules=modules,
        whole=structure.whole if structure else (),
        norm=float(np.linalg.norm([module.norm for module in modules])),
        backbone=adapter.backbone,
        layout=adapter.layout.notes,
        provenance=adapter.provenance,
    )


def _inner_products(adapters: Sequence[Adapter]) -> dict[str, Array]:
    """By module, the matrix of Frobenius inner products between the adapters' updates; 0 where one lacks it."""
    usable = {number: adapter for number, adapter in enumerate(adapters) if _is_readable(adapter)}
    names = dict.fromkeys(name for adapter in usable.values() for name in adapter.modules)
    return {name: _module_products(usable, name, len(adapters)) for name in names}


def _module_products(adapters: dict[int, Adapter], name: str, count: int) -> Array:
    updates = {
        number: _update(adapter, name) for number, adapter in adapters.items() if name in adapter.modules
    }
    products = np.zeros((count, count))
    for i, first in updates.items():
        for j, other in updates.items():
            if j >= i and [x.shape for x in _outer(first)] == [x.shape for x in _outer(other)]:
                products[i, j] = products[j, i] = _inner(first, other)
    return products


def _update(adapter: Adapter, name: str) -> list[Array]:
    """Factors (A, scaling·B) of LoRA's update; else the update itself."""
    module = adapter.modules[name]
    arrays = [as_float32(adapter.read(tensor)).astype(np.float64) for tensor in module.tensors]
    if module.form == "vector":
        return [arrays[0] - 1]
    if module.form == "bottleneck":
        return [np.concatenate([array.ravel() for array in arrays])]
    if module.form == "block":
        return [arrays[0][slice(*module.rows), slice(*module.columns)]]
    return [arrays[0], arrays[1] * module.scaling]


def _outer(update: list[Array]) -> list[Array]:
    """What must agree in shape: the update, or its factors without the rank."""
    return update if len(update) == 1 else [update[0][0], update[1][:, 0]]


def _inner(first: list[Array], other: list[Array]) -> float:
    if len(first) == 1:
        return float((first[0] * other[0]).sum())
    return float(((first[1].T @ other[1]) * (first[0] @ other[0].T)).sum())


def _cosines(inner: dict[str, Array], count: int) -> tuple[tuple[float | None, ...], ...]:
    total = sum(inner.values(), np.zeros((count, count)))
    norms = np.sqrt(np.maximum(np.diag(total), 0))
    return tuple(
        tuple(
            float(total[i, j] / (norms[i] * norms[j])) if norms[i] * norms[j] else None for j in range(count)
        )
        for i in range(count)
    )
