"""Whether scores have one mode or two, and where the gap between them lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

__all__ = ["Modes", "dip", "dip_p_value", "two_modes"]

POINTS = 10_000  # more are thinned to so many order statistics, which can only lower the dip, by 1e-4 at most
BINS = 2_048

# sqrt(n) x dip of n uniform numbers (the worst case of one mode) exceeds QUANTILES in a share SHARES of cases:
# 3,000 draws of n = 1,000, generator seed 0. For n = 100 the quantiles are 5 % lower, so the test is cautious there.
SHARES = (0.99, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
QUANTILES = (0.2417, 0.2870, 0.3223, 0.3728, 0.4325, 0.4965, 0.5332, 0.5769, 0.6164, 0.6471, 0.7361)


@dataclass(frozen=True)
class Modes:
    """The dip test's p-value, and the emptiest place right of the largest mode, if there is one."""

    p_value: float
    gap: float | None


def two_modes(values: NDArray[np.float64]) -> Modes:
    """Test for a second mode and find the gap left of it."""
    if len(values) < 4:
        return Modes(1.0, None)
    return Modes(dip_p_value(dip(values), len(values)), _gap(values))


def dip(values: NDArray[np.float64]) -> float:
    """Return the largest distance between the empirical distribution and the nearest one with one mode.

    The algorithm of Hartigan and Hartigan (1985): the candidate modal interval shrinks to where
    the convex minorant and the concave majorant lie furthest apart, until what is left outside
    deviates more from convexity and concavity than what is inside.
    """
    ordered = np.sort(values)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), POINTS)).round().astype(np.int64))
    x = np.unique(ordered[places])
    below = np.searchsorted(ordered, x, side="left") / len(ordered)  # just left of each point
    upto = np.searchsorted(ordered, x, side="right") / len(ordered)
    first, last, deviation = 0, len(x) - 1, 1 / len(ordered)
    while last > first:
        inside = slice(first, last + 1)
        convex, corners = _minorant(x[inside], below[inside])
        mirrored, turns = _minorant(x[inside], -upto[inside])
        apart = -mirrored - convex
        knots = np.union1d(corners, turns)
        widest = knots[np.argmax(apart[knots])]
        if apart[widest] <= deviation:
            break
        left = corners[np.searchsorted(corners, widest, side="right") - 1]
        right = turns[np.searchsorted(turns, widest, side="left")]
        outside_left = upto[inside][:left] - convex[:left]
        outside_right = -mirrored[right + 1 :] - below[inside][right + 1 :]
        deviation = max(deviation, outside_left.max(initial=0), outside_right.max(initial=0))
        if (left, right) == (0, last - first):
            break
        first, last = first + int(left), first + int(right)
    return float(deviation / 2)


def dip_p_value(dip: float, count: int) -> float:
    """Return how often so many numbers with one mode show such a dip at least: 0.001 to 1."""
    return float(np.interp(dip * np.sqrt(count), QUANTILES, SHARES, left=1.0))


def _minorant(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the greatest convex function below the points, at each x, and the points that it touches."""
    hull: list[int] = []
    for index, (at, height) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        while len(hull) > 1:
            before, corner = hull[-2], hull[-1]
            if (y[corner] - y[before]) * (at - x[before]) < (height - y[before]) * (x[corner] - x[before]):
                break
            hull.pop()
        hull.append(index)
    corners = np.array(hull, dtype=np.int64)
    return np.interp(x, x[corners], y[corners]), corners


def _gap(values: NDArray[np.float64]) -> float | None:
    """Return where the density is lowest between the largest mode and the clearest one right of it."""
    centre = np.median(values)
    scale = np.median(np.abs(values - centre)) or values.std()
    if scale == 0:
        return None
    squeezed = np.arcsinh((values - centre) / scale)  # so that lonely outliers do not set the scale
    spread = min(squeezed.std(), np.subtract(*np.quantile(squeezed, [0.75, 0.25])) / 1.349 or np.inf)
    width = 0.9 * spread * len(values) ** -0.2  # Silverman (1986)
    edges = np.linspace(squeezed.min() - 3 * width, squeezed.max() + 3 * width, BINS + 1)
    counts = np.histogram(squeezed, edges)[0].astype(np.float64)
    density = np.sqrt(gaussian_filter1d(counts, width / (edges[1] - edges[0]), mode="constant"))
    middles = (edges[:-1] + edges[1:]) / 2
    main = int((density**2 / np.cosh(middles)).argmax())  # the largest on the scale of the scores
    peaks = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])) + 1
    # the root of a smoothed count has the standard deviation 0.27 / sqrt(kernel width in bins), whatever the count
    best, gap = 5 * 0.27 * np.sqrt((edges[1] - edges[0]) / width), None
    for peak in peaks[peaks > main]:
        between = density[main : peak + 1]
        rise = density[peak] - between.min()
        if rise > best:
            lowest = np.flatnonzero(between == between.min()) + main
            best, gap = rise, float(np.median(middles[lowest]))
    return None if gap is None else float(np.sinh(gap) * scale + centre)
