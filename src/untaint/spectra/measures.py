"""Mathematics on matrices of features: a row for each picture."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from untaint.errors import InputError, SpecError

__all__ = ["effective_rank", "energy_along", "projected", "singular_values", "top_directions"]

FAINT = 1e-12  # energy, of all


def singular_values(features: NDArray[np.floating[Any]], centred: bool = False) -> NDArray[np.float64]:
    """Return the singular values of (rows, width), the largest first: float64, as many as the smaller side.

    ``centred``: of the features less their mean. Through the Gram matrix of the smaller side: values below 1e-8 of the largest are rounding.
    """
    table = _table(features, centred)
    gram = table @ table.T if table.shape[0] <= table.shape[1] else table.T @ table
    return np.asarray(np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(0)))


def effective_rank(values: NDArray[np.floating[Any]]) -> float:
    """Return how many equal singular values would be as spread out as these: from 1 to their number; 0 if all are 0.

    The exponential of the entropy of the values over their sum (Roy and Vetterli, 2007).
    """
    total = float(np.sum(values))
    if not total > 0:
        return 0.0
    share = np.asarray(values, dtype=np.float64) / total
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def top_directions(features: NDArray[np.floating[Any]], k: int, centred: bool = False) -> NDArray[np.float64]:
    """Return the ``k`` strongest right singular vectors of (rows, width), as rows of length one: fewer where the rank is lower."""
    if k < 1:
        raise InputError(f"k is {k}; give at least 1.")
    table = _table(features, centred)
    wide = table.shape[0] <= table.shape[1]
    values, vectors = np.linalg.eigh(table @ table.T if wide else table.T @ table)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    there = values > max(float(values.max(initial=0)), 0) * max(table.shape) * np.finfo(np.float64).eps
    values, vectors = values[there], vectors[:, there]
    return np.asarray((vectors.T @ table) / np.sqrt(values)[:, None] if wide else vectors.T)


def energy_along(features: NDArray[np.floating[Any]], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the sum of squares of (rows, width) that lies along each direction, float64 (directions,); 0 where there is none.

    Of the differences between triggered and clean features of the same pictures this is where a trigger's energy lies.
    """
    table = np.asarray(features, dtype=np.float64)
    total = float(np.square(table).sum())
    if total <= FAINT:
        return np.zeros(len(directions))
    return np.asarray(np.square(table @ directions.T).sum(axis=0) / total)


def projected(
    features: NDArray[np.floating[Any]],
    directions: NDArray[np.float64],
    *,
    inside: bool = True,
    method: Literal["pca", "t-sne"] = "pca",
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return two coordinates for each row of (rows, width): of its part in the space of some directions, or of what is left outside of it.

    ``method``: the two strongest directions of that part, or scikit-learn's t-SNE of it (minutes for thousands of rows).
    """
    table = np.asarray(features, dtype=np.float64)
    part = table @ directions.T
    if not inside:
        part = table - part @ directions
    part = part - part.mean(axis=0)
    if method == "t-sne":
        from sklearn.manifold import TSNE

        near = min(30.0, (len(part) - 1) / 3)
        if part.shape[1] < 2:
            part = np.pad(part, ((0, 0), (0, 2 - part.shape[1])))
        return np.asarray(TSNE(perplexity=near, random_state=seed).fit_transform(part.astype(np.float32)), dtype=float)
    if method != "pca":
        raise SpecError(f"method is {method!r}. Give 'pca' or 't-sne'.")
    along = top_directions(part, 2)
    flat = np.zeros((len(part), 2))
    flat[:, : len(along)] = part @ along.T
    return flat


def _table(features: NDArray[np.floating[Any]], centred: bool) -> NDArray[np.float64]:
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"features have the shape {table.shape}. Give (pictures, width), with one entry at least.")
    if not np.isfinite(table).all():
        raise InputError(f"{int((~np.isfinite(table)).sum()):,} of {table.size:,} features are not finite.")
    return table - table.mean(axis=0) if centred else table
