"""Merge methods: each a pure function over one tensor of every adapter, registered with its source.

A method sees differences to the backbone: LoRA's factors as they are, (IA)³ vectors less 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lingualift.merging import algebra
from lingualift.merging.algebra import Floats
from lingualift.registry import Registry


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
        combine: The function.
    """

    name: str
    source: str
    formula: str
    roles: tuple[str, ...]
    linear: bool
    combine: Combine


METHODS: Registry[Method] = Registry("merge method")

ROLES = ("task", "target_reference", "source_reference")


def method(
    name: str, *, source: str, formula: str, roles: tuple[str, ...] = (), linear: bool = False
) -> Callable[[Combine], Combine]:
    """Decorator that registers a function as a merge method; see `Method`."""

    def enter(combine: Combine) -> Combine:
        METHODS.register(name)(Method(name, source, formula, roles, linear, combine))
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
    """Additive AdaMergeX; arrays and weights are those of the task and the two references, weights (1, λ, −λ)."""
    task, target, source = arrays
    return algebra.difference(task, target, source, weights[1])


@method("arithmetic", source="https://arxiv.org/abs/2306.14870", formula="Σ wᵢ·xᵢ", linear=True)
def arithmetic(arrays: Sequence[Floats], weights: Sequence[float], _: Options) -> Floats:
    """Weighted sum; the AdaMergeX paper's AriMerge is the task adapter with weight 1 and a reference with λ."""
    return algebra.weighted_sum(arrays, weights)


@method("ties", source="https://arxiv.org/abs/2306.01708", formula="TIES(wᵢ·xᵢ)")
def ties(arrays: Sequence[Floats], weights: Sequence[float], options: Options) -> Floats:
    """TIES on every tensor by itself (the paper trims over all tensors at once)."""
    return algebra.ties(arrays, weights, options.density)


@method("dare", source="https://arxiv.org/abs/2311.03099", formula="DARE(wᵢ·xᵢ)")
def dare(arrays: Sequence[Floats], weights: Sequence[float], options: Options) -> Floats:
    """DARE; the draw depends on the seed and on the tensor's number only."""
    random = np.random.default_rng((options.seed, options.tensor))
    return algebra.dare(arrays, weights, options.density, random)
