"""Fusion functions: how source and target meet in LoRA's bottleneck. Pure functions of tensors; torch only.

Shapes: b rows, q positions of the target in this call, k >= q positions of the target up to now (k > q where a cache
holds the earlier ones), r the rank of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lingualift.registry import Registry

FLARE = "https://arxiv.org/abs/2501.06892"

Weights = Mapping[str, Tensor]
Fuse = Callable[[Tensor, Tensor, Tensor | None, Weights], Tensor]


@dataclass(frozen=True)
class Fusion:
    """A way to fuse.

    Attributes:
        name: Its name everywhere.
        source: Where it was published.
        formula: What it computes, for people, with S and T for the bottleneck states of source and target.
        attends: Whether a position sees other positions of the target, so that it needs to be told which ones.
        weights: Names of its learned (r, r) matrices.
        fuse: The function of source (b, q, r), target (b, k, r) whose last q positions are those that meet the source,
            what each position may see (b, q, k; None unless it attends) and its learned matrices. It returns (b, q, r).
            A position that meets no source has zeros there.
    """

    name: str
    source: str
    formula: str
    attends: bool
    weights: tuple[str, ...]
    fuse: Fuse


FUSIONS: Registry[Fusion] = Registry("fusion")


def fusion(
    name: str, *, formula: str, source: str = FLARE, attends: bool = False, weights: tuple[str, ...] = ()
) -> Callable[[Fuse], Fuse]:
    """Decorator that registers a function as a fusion function; see `Fusion`."""

    def enter(fuse: Fuse) -> Fuse:
        FUSIONS.register(name)(Fusion(name, source, formula, attends, weights, fuse))
        return fuse

    return enter


@fusion("add", formula="S + T")
def add(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """Sum (FLARE, section 3)."""
    return source + _current(source, target)


@fusion("mul", formula="S ⊙ T")
def mul(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """Element-wise product (FLARE, section 3); zero where a position meets no source."""
    return source * _current(source, target)


@fusion("add_relu", formula="relu(S) + relu(T)")
def add_relu(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """Sum of the positive parts, the paper's best (FLARE, section 3)."""
    return functional.relu(source) + functional.relu(_current(source, target))


@fusion(
    "cross_attention",
    formula="softmax(S·Wq·(T·Wk)ᵀ / √r)·T·Wv",
    attends=True,
    weights=("query", "key", "value"),
)
def cross_attention(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """Attention with one head, queries from the source, keys and values from the target (FLARE, section 3)."""
    query, key, value = (
        functional.linear(states, weights[name])
        for states, name in ((source, "query"), (target, "key"), (target, "value"))
    )
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)


@fusion("matmul", formula="S·Tᵀ·T", attends=True)
def matmul(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """Attention without softmax and projections, as in the authors' code."""
    scores = source @ target.transpose(1, 2)
    if visible is not None:
        scores = scores.masked_fill(~visible, 0)
    return scores @ target


@fusion("matmul_relu", formula="relu(S)·relu(T)ᵀ·relu(T)", attends=True)
def matmul_relu(source: Tensor, target: Tensor, visible: Tensor | None, weights: Weights) -> Tensor:
    """`matmul` of the positive parts."""
    return matmul(functional.relu(source), functional.relu(target), visible, weights)


def _current(source: Tensor, target: Tensor) -> Tensor:
    """The positions of the target that meet the source: its last."""
    return target[:, -source.shape[1] :]


def draw(weights: tuple[str, ...], rank: int) -> torch.nn.ParameterDict:
    """Learned matrices of a fusion function, (rank, rank) each, drawn as torch draws linear layers."""
    return torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.nn.Linear(rank, rank, bias=False).weight.data) for name in weights}
    )
