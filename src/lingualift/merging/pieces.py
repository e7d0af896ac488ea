"""Parts of a result in the making: tensors announced now, computed when the file is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lingualift.adapters.folder import Adapter
from lingualift.adapters.tensorfile import DTYPES, Array, TensorSpec, all_finite, as_float32
from lingualift.errors import UserError, setting
from lingualift.merging.methods import Floats, ZeroDivisorError, ratio
from lingualift.merging.plan import Request


@dataclass
class Record:
    """What turned out while the tensors were computed.

    Args:
        changed: Whether any merged tensor differs from the base's.
        energy: Spectral energy kept and in all, of each truncated module.
        cutoff: The pseudo-inverse's relative cut-off, where one was used.
    """

    changed: bool = False
    energy: dict[str, tuple[float, float]] = field(default_factory=dict)
    cutoff: float | None = None

    def compare(self, result: Array, base: Array) -> None:
        """Note whether a merged tensor differs from the base's own."""
        self.changed = self.changed or not np.array_equal(result, base)


@dataclass(frozen=True)
class Piece:
    """Tensors that are computed together.

    Args:
        specs: What they will be.
        make: Computes them, in that order.
    """

    specs: tuple[TensorSpec, ...]
    make: Callable[[], tuple[Array, ...]]


@dataclass(frozen=True)
class Made:
    """A result: its pieces and its configuration."""

    pieces: list[Piece]
    config: dict[str, Any]

    def ordered(self) -> list[Piece]:
        """The pieces, wide number formats first: readers want every tensor aligned to its own width."""
        return sorted(self.pieces, key=lambda piece: -DTYPES[piece.specs[0].code].itemsize)


def copies(adapter: Adapter, names: Sequence[str]) -> list[Piece]:
    """The adapter's own tensors, bit for bit."""
    return [Piece((adapter.tensors[name],), partial(_copy, adapter, name)) for name in names]


def _copy(adapter: Adapter, name: str) -> tuple[Array, ...]:
    return (adapter.read(name),)


def floats(adapter: Adapter, name: str) -> Floats:
    """A tensor in float32."""
    return as_float32(adapter.read(name))


def cast(array: Floats, spec: TensorSpec) -> Array:
    """Round to the number format of the result.

    Raises:
        UserError: the result does not fit into it.
    """
    stored = array.astype(DTYPES[spec.code], copy=False)
    if not all_finite(stored):
        mend = f"use a smaller {setting('weight')}, or a task adapter in float32"
        raise UserError(f"tensor {spec.name!r}", f"the result overflows {spec.code}", "finite numbers", mend)
    return stored


def combine(
    request: Request, arrays: Sequence[Floats], weights: Sequence[float], names: Sequence[str]
) -> Floats:
    """Apply the method, under the rule asked for, to one tensor of every adapter that enters.

    Args:
        request: The merge.
        arrays: The tensors, of one shape.
        weights: Their weights.
        names: The tensor's name in each adapter, for messages and for the seed of a draw.

    Raises:
        UserError: a zero where the multiplicative rule divides.
    """
    if request.method.roles and request.cell.rule == "multiplicative":
        try:
            return ratio(arrays[0], arrays[1], arrays[2], weights[1])
        except ZeroDivisorError as error:
            where = f"{request.inputs[2].adapter.weights_file}, tensor {names[2]!r}"
            mend = f"leave the module out with {setting('modules')}, or use {setting('rule', 'additive')}"
            raise UserError(where, f"{error}, and the rule divides by it", "no zero", mend) from None
    return request.method.combine(arrays, weights, request.options.of(names[0]))
