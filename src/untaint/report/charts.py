"""The histogram of scores as inline SVG: light, sharp at any size, and in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from untaint.report.words import count, number

__all__ = ["histogram", "ticks"]

WIDTH, HEIGHT = 640.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 630.0, 24.0, 206.0  # the axes' box, in the same units
BINS = 60
PROBES_DRAWN = 400


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Return round numbers in [low, high], some ``about`` of them, in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(score: NDArray[np.float32], threshold: float) -> tuple[float, float]:
    """Return what the axis shows: all but the outermost thousandth, and the threshold."""
    low, high = (float(value) for value in np.quantile(score, (0.001, 0.999)))
    if math.isfinite(threshold):
        room = 0.06 * max(high - low, 1e-6)
        low, high = min(low, threshold - room), max(high, threshold + room)
    if not high > low:
        low, high = low - 0.5 - abs(low) * 0.01, high + 0.5 + abs(high) * 0.01
    return low, high


def histogram(
    score: NDArray[np.float32], rejected: NDArray[np.bool_], probe: NDArray[np.bool_], threshold: float
) -> Markup:
    """Return an SVG: kept and rejected per bin (logarithmic scale), probes as marks below, the threshold as a line.

    All three arrays have one entry per row; rows without a score are left out. Empty when none has one.
    """
    finite = np.isfinite(score)
    exact = score.astype(np.float64)  # float32 would round past the edges
    if not finite.any():
        return Markup("")
    low, high = _range(score[finite], threshold)
    edges = np.linspace(low, high, BINS + 1)
    kept, bad = (np.histogram(exact[finite & mask].clip(low, high), edges)[0] for mask in (~rejected, rejected))
    top = max(int(kept.max()), int(bad.max()), 9) * 1.15
    parts = [*_grid(top), *_bars(kept, "kept", top), *_bars(bad, "set-aside", top), *_axis(low, high)]
    parts += _rug(score[finite & probe], low, high)
    if math.isfinite(threshold):
        x = _across(threshold, low, high)
        anchor = "end" if x > (LEFT + RIGHT) / 2 else "start"
        shift = -5 if anchor == "end" else 5
        parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 16}" y2="{BOTTOM}"/>')
        parts.append(
            f'<text class="threshold-text" x="{x + shift:.1f}" y="{TOP - 8}" text-anchor="{anchor}">'
            f"threshold {number(threshold)}</text>"
        )
    scores, good, worse = (int(amount) for amount in (finite.sum(), kept.sum(), bad.sum()))
    told = f"Histogram of {count(scores, 'score')}: {count(good)} kept, {count(worse)} set aside."
    box = f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}"'
    return Markup(f'<svg {box} role="img" aria-label="{told}" class="histogram">{"".join(parts)}</svg>')


def _across(value: float, low: float, high: float) -> float:
    return LEFT + (min(max(value, low), high) - low) / (high - low) * (RIGHT - LEFT)


def _up(amount: float, top: float) -> float:
    return BOTTOM - math.log10(1 + amount) / math.log10(1 + top) * (BOTTOM - TOP)


def _bars(counts: NDArray[np.int64], kind: str, top: float) -> Iterator[str]:
    step = (RIGHT - LEFT) / len(counts)
    for index, amount in enumerate(counts.tolist()):
        if amount:
            y = _up(amount, top)
            x, width, height = LEFT + index * step + 0.5, step - 1, BOTTOM - y
            yield f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _grid(top: float) -> Iterator[str]:
    for power in range(math.floor(math.log10(top)) + 1):
        y = _up(10**power, top)
        yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:,}</text>'


def _axis(low: float, high: float) -> Iterator[str]:
    yield f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>'
    for value in ticks(low, high):
        x = _across(value, low, high)
        yield f'<text x="{x:.1f}" y="{BOTTOM + 31}" text-anchor="middle">{number(value)}</text>'
    title = "score (further right = more suspicious)"
    yield f'<text class="title" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{title}</text>'


def _rug(scores: NDArray[np.float32], low: float, high: float) -> Iterator[str]:
    drawn = np.sort(scores)
    if len(drawn) > PROBES_DRAWN:  # evenly spaced in rank, both ends included
        drawn = drawn[np.linspace(0, len(drawn) - 1, PROBES_DRAWN).round().astype(int)]
    for value in drawn.tolist():
        x = _across(value, low, high)
        yield f'<line class="probe" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM + 4}" y2="{BOTTOM + 15}"/>'
