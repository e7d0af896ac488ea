"""The algebra of low-rank factors and of virtual tokens: arrays in, arrays out, nothing about files.

Shapes: m outputs, n inputs, r rank of one module; lora_A is (r, n), lora_B is (m, r), ΔW = scaling·B·A is
(m, n). Embeddings and Conv1D layers differ by transposes of ΔW only, so the same functions serve them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lingualift.merging.methods import Floats

WELL_CONDITIONED = 1e4
"""Condition number up to which Cholesky QR in float64 is as orthogonal as float32 can tell."""


class RankDeficientError(ArithmeticError):
    """The source reference's virtual tokens are linearly dependent, so that no matrix maps them to the target's."""


def default_cutoff(shape: tuple[int, ...]) -> float:
    """Singular values at or below this fraction of the largest count as zero: max(shape)·eps of float32."""
    return float(max(shape) * np.finfo(np.float32).eps)


def insertion(
    task: Floats, target: Floats, source: Floats, weight: float, *, cutoff: float, anchored: bool = True
) -> Floats:
    """Matrix rule for virtual tokens, each (tokens, width). AdaMergeX eq. 10.

    With M = target·source⁺ (tokens × tokens): (λ·(M − I) + I)·task, or λ·M·task where not anchored.

    Args:
        task: Virtual tokens of the task adapter.
        target: Those of the reference in the target language.
        source: Those of the reference in the source language.
        weight: λ.
        cutoff: Fraction of the largest singular value that still counts as zero in the pseudo-inverse.
        anchored: Whether λ = 0 stands for the task adapter.

    Raises:
        RankDeficientError: the rows of `source` are linearly dependent.
    """
    moved = target @ _pseudo_inverse(source, cutoff) @ task  # in float64, as the inverse is
    if not anchored:
        return (weight * moved).astype(np.float32)
    return (task + weight * (moved - task)).astype(np.float32)


def _pseudo_inverse(matrix: Floats, cutoff: float) -> NDArray[np.float64]:
    left, singular, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    rank = int((singular > cutoff * singular[0]).sum())
    if rank < len(matrix):
        raise RankDeficientError(f"rank {rank} with {len(matrix)} tokens at cut-off {cutoff:.3g}")
    return np.asarray((right.T / singular) @ left.T)


def concatenate(
    downs: Sequence[Floats], ups: Sequence[Floats], coefficients: Sequence[float]
) -> tuple[Floats, Floats]:
    """Factors of Σ cᵢ·Bᵢ·Aᵢ, exactly: ranks add up.

    Args:
        downs: lora_A of each adapter, (rᵢ, n).
        ups: lora_B of each adapter, (m, rᵢ).
        coefficients: cᵢ; folded into B.

    Returns:
        A of shape (Σrᵢ, n) and B of shape (m, Σrᵢ).
    """
    scaled = [up * np.float32(factor) for up, factor in zip(ups, coefficients, strict=True)]
    return np.concatenate(list(downs)), np.concatenate(scaled, axis=1)


def truncate(down: Floats, up: Floats, rank: int) -> tuple[Floats, Floats, float, float]:
    """The best factors of a lower rank for B·A, without forming the product.

    QR of both factors leaves a small core whose SVD is the product's
    (Golub and Van Loan, Matrix Computations, 4th ed., section 5.4).

    Args:
        down: A, (r, n).
        up: B, (m, r).
        rank: The rank wanted, at most min(r, m, n).

    Returns:
        A (rank, n) and B (m, rank), with the singular values shared evenly between them; the energy kept, Σσ² of
        the singular values kept; and the energy in all.
    """
    tall_up, mix_up, corner_up = thin_qr(up.astype(np.float64))
    tall_down, mix_down, corner_down = thin_qr(down.T.astype(np.float64))
    left, singular, right = np.linalg.svd(corner_up @ corner_down.T)
    energy = singular**2
    root = np.sqrt(singular[:rank])
    new_up = tall_up @ (mix_up @ (left[:, :rank] * root))
    new_down = (tall_down @ (mix_down @ (right[:rank].T * root))).T
    single = np.float32
    return new_down.astype(single), new_up.astype(single), float(energy[:rank].sum()), float(energy.sum())


def cores(downs: Sequence[Floats], ups: Sequence[Floats]) -> tuple[list[Floats], Floats, Floats]:
    """Every update in bases that all share: Mᵢ with Bᵢ·Aᵢ = U·Mᵢ·Vᵀ, exactly.

    Core Space (https://arxiv.org/abs/2509.17786, section 4): U and V are the singular vectors of all B side by side and
    of all A on top of each other, found here by QR of the stack and an SVD of what is left, as in `truncate`.

    Args:
        downs: A of each adapter, (rᵢ, n).
        ups: B of each adapter, (m, rᵢ).

    Returns:
        Each Mᵢ (p, q) with p = min(m, Σrᵢ) and q = min(n, Σrᵢ), U (m, p) and V (n, q).
    """
    left = _basis(np.concatenate([up.astype(np.float64) for up in ups], axis=1))
    right = _basis(np.concatenate([down.astype(np.float64) for down in downs]).T)
    small = [(left.T @ up) @ (down @ right) for down, up in zip(downs, ups, strict=True)]
    return [core.astype(np.float32) for core in small], left, right


def _basis(matrix: Floats) -> Floats:
    """The left singular vectors of a tall matrix, the largest first; the largest number of each is positive."""
    tall, mix, corner = thin_qr(matrix)
    basis = np.asarray(tall @ (mix @ np.linalg.svd(corner)[0]))
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return np.asarray(basis * np.sign(largest))


def thin_qr(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """QR of a tall matrix as (T, X, R) with matrix = (T·X)·R and T·X of orthonormal columns.

    Cholesky QR (https://doi.org/10.1109/ScaLA.2014.11) where the columns are independent enough, T being the
    matrix itself, ten times as fast as Householder's QR; else the latter, X being the identity.

    Args:
        matrix: (m, r) in float64.

    Returns:
        T (m, k), X (k, k) and R (k, r) with k = min(m, r).
    """
    try:
        corner = np.linalg.cholesky(matrix.T @ matrix).T
        if np.linalg.cond(corner) < WELL_CONDITIONED:
            return matrix, np.linalg.inv(corner), corner
    except np.linalg.LinAlgError:
        pass
    basis, corner = np.linalg.qr(matrix)
    return basis, np.eye(basis.shape[1]), corner


def pad(down: Floats, up: Floats, rank: int) -> tuple[Floats, Floats]:
    """The same product at a higher rank: rows of A and columns of B filled with zeros."""
    more = rank - len(down)
    return np.pad(down, ((0, more), (0, 0))), np.pad(up, ((0, 0), (0, more)))
