"""The singular values of a batch's features, equalised and damped: functions on matrices alone.

A matrix ``A`` of rows (pictures) is U diag(s) V'. Its ``k`` largest singular values become one common value, and the others are multiplied by
``remainder``: every singular vector stays, so that the result is a linear map of the matrix, A V diag(g) V' or U diag(g) U' A, with a gain ``g`` for
each direction. All is done through the Gram matrix of the smaller side, whose eigenvalues are the squares of the singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Common", "Directions", "directions", "gains", "guarded_exactly", "guarded_with", "merged"]

Common = Literal["kth", "mean"]


class Directions(NamedTuple):
    """The strongest left singular vectors of a matrix.

    ``left``: (rows, k), zero in columns beyond the rank; ``there``: bool (k,), which columns are not.
    """

    left: Tensor
    there: Tensor


def tolerance(values: Tensor, size: int) -> Tensor:
    """Return how large an eigenvalue of a Gram matrix must be to be told from rounding; ``size``: of the longer side of the matrix."""
    return values.amax(-1, keepdim=True).clamp(min=0) * (size * torch.finfo(values.dtype).eps)


def spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, the largest first and none below zero, and eigenvectors, by columns.

    In float64 where there is such: in float32 some solvers give up on a matrix of low rank, which has many equal eigenvalues.
    """
    values, vectors = torch.linalg.eigh(gram if gram.device.type == "mps" else gram.double())
    return values.flip(-1).clamp(min=0).to(gram.dtype), vectors.flip(-1).to(gram.dtype)


@torch.no_grad()
def directions(matrix: Tensor, k: int) -> Directions:
    """Return the ``k`` strongest left singular vectors of (rows, columns); ``k`` may not be more than either."""
    rows, columns = matrix.shape
    if rows <= columns:
        values, vectors = spectrum(matrix @ matrix.T)
        there = values[:k] > tolerance(values, columns)
        return Directions(vectors[:, :k] * there, there)
    values, vectors = spectrum(matrix.T @ matrix)
    there = values[:k] > tolerance(values, rows)
    lengths = torch.where(there, values[:k], 1).sqrt()
    return Directions((matrix @ vectors[:, :k]) / lengths * there, there)


def common_of(values: Tensor, there: Tensor, common: Common) -> Tensor:
    """Return the one value that singular values get: the smallest of those that are there, or their mean; 0 if none is."""
    if common == "mean":
        return (values * there).sum() / there.sum().clamp(min=1)
    smallest = torch.where(there, values, torch.inf).amin(-1)
    return torch.where(there.any(), smallest, 0)


def gains(values: Tensor, there: Tensor, common: Common) -> Tensor:
    """Return by what each of the top singular values is multiplied to become the common one: (k,); 0 where none is there."""
    return common_of(values, there, common) / torch.where(there, values, 1) * there


def guarded_with(
    matrix: Tensor,
    found: Directions,
    remainder: float,
    common: Common,
    summed: Callable[[Tensor], Tensor] = lambda part: part,
) -> tuple[Tensor, Tensor]:
    """Return the matrix with its top singular values equalised and the others damped, and its projections on the directions, (k, columns).

    The directions are taken for constants, in the backward pass too. Where ``matrix`` has some rows of a larger one, ``found`` those of its
    directions, and ``summed`` adds up what all such parts have.
    """
    projected = summed(found.left.T @ matrix)
    lengths = torch.linalg.vector_norm(torch.where(found.there[:, None], projected, 1), dim=1)
    more = (gains(lengths, found.there, common) - remainder) * found.there
    return remainder * matrix + found.left @ (more[:, None] * projected), projected


def guarded_exactly(matrix: Tensor, k: int, remainder: float, common: Common) -> Tensor:
    """Return the same with the true gradient, that of the directions too."""
    rows, columns = matrix.shape
    if rows <= columns:
        return Filter.apply(matrix @ matrix.T, k, remainder, common, columns) @ matrix  # type: ignore[no-any-return]
    return matrix @ Filter.apply(matrix.T @ matrix, k, remainder, common, rows)  # type: ignore[no-any-return]


class Filter(torch.autograd.Function):
    """W = U diag(g) U' of a Gram matrix U diag(s^2) U', with its derivative (Daleckii and Krein, 1965).

    Between two of the top directions, and between two of the others, differences of gains are divided by differences of eigenvalues without
    dividing by zero, however equal these are. Between a top direction and another the gain really jumps where their eigenvalues
    meet; there the difference is kept from rounding only.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor, k: int, remainder: float, common: Common, size: int) -> Tensor:
        values, vectors = spectrum(gram)
        least = tolerance(values, size)
        there = (torch.arange(len(values), device=values.device) < k) & (values > least)
        lengths = torch.where(there, values, 1).sqrt()
        gain = torch.where(there, gains(lengths, there, common), remainder)
        ctx.save_for_backward(values, vectors, there, gain, least)
        ctx.common = common
        return (vectors * gain) @ vectors.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        values, vectors, there, gain, least = ctx.saved_tensors
        inner = vectors.T @ ((grads[0] + grads[0].T) / 2) @ vectors
        lengths = torch.where(there, values, 1).sqrt()
        value = common_of(lengths, there, ctx.common)
        both = there[:, None] & there[None, :]
        one, two = lengths[:, None], lengths[None, :]
        apart = values[:, None] - values[None, :]
        floor = least.clamp(min=torch.finfo(values.dtype).tiny)
        apart = torch.where(apart.abs() < floor, torch.where(apart < 0, -floor, floor), apart)
        mixed = (gain[:, None] - gain[None, :]) / apart
        slope = torch.where(both, -value / (one * two * (one + two)), mixed)
        slope = torch.where(~there[:, None] & ~there[None, :], 0, slope)
        moved = slope * inner
        per_common = (inner.diagonal() / lengths * there).sum()
        if ctx.common == "mean":
            share = there / there.sum().clamp(min=1)
        else:
            share = (torch.arange(len(values), device=values.device) == there.sum() - 1).to(values.dtype)
        moved = moved + torch.diag(per_common * share / (2 * lengths))
        return vectors @ moved @ vectors.T, None, None, None, None


@torch.no_grad()
def merged(basis: Tensor, lengths: Tensor, projected: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
    """Return the strongest right singular vectors, (K, columns), and singular values, (K,), of a mean over batches.

    ``basis``, ``lengths``: those so far. ``projected``: singular vectors of a batch times singular values, (k, columns). The
    mean is that of second moments: so much of the old one as ``1 - momentum``.
    """
    both = torch.cat([(1 - momentum) ** 0.5 * lengths[:, None] * basis, momentum**0.5 * projected])
    values, vectors = spectrum(both @ both.T)
    kept = len(basis)
    found = vectors[:, :kept].T @ both
    long = values[:kept].sqrt()
    there = values[:kept] > tolerance(values, both.shape[1])
    return found / torch.where(there, long, 1)[:, None] * there[:, None], long * there
