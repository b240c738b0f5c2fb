from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaint.report import words
from untaint.report.charts import histogram, ticks
from untaint.report.pictures import data_uris


def classes(*rejected: int) -> list[dict]:
    return [{"name": f"c{i}", "rows": 100, "rejected": amount} for i, amount in enumerate(rejected)]


@pytest.mark.parametrize(
    ("rejected", "said"),
    [
        ((5, 0, 0), "5 of 300 pictures (1.7 %) were set aside, all of them labelled “c0”."),
        ((0, 1, 0), "1 of 300 pictures (0.33 %) was set aside, labelled “c1”."),
        ((90, 5, 5), "100 of 300 pictures (33 %) were set aside, 90 % of them labelled “c0”."),
        ((30, 30, 0), "60 of 300 pictures (20 %) were set aside, all of them labelled “c0” and “c1”."),
        ((4,), "4 of 100 pictures (4.0 %) were set aside."),
        (
            (5, 4, 4, 4, 4),
            "21 of 500 pictures (4.2 %) were set aside, spread over 5 of 5 classes, most often labelled “c0” (5).",
        ),
        ((0, 0), "Nothing was set aside: none of 200 pictures stands out clearly enough."),
    ],
)
def test_headline(rejected, said):
    parts = classes(*rejected)
    assert words.headline(100 * len(parts), sum(rejected), parts).replace("\N{NO-BREAK SPACE}", " ") == said


@pytest.mark.parametrize(
    ("rule", "rejected", "said"),
    [
        ("false-discovery:q=0.1", 412, "about 41 of these 412 are clean"),
        ("false-discovery", 412, "up to 10\N{NO-BREAK SPACE}% of what it sets aside be mistakes"),
        ("false-discovery:keep=0.05", 412, "about 41 of these 412 are clean"),
        ("false-discovery:q=0.1", 3, "perhaps one of these is clean"),
        ("false-discovery:q=0.1", 0, "no proof"),
        ("fraction:share=0.4", 40, "fixed share"),
        ("gap", 4, "two separate groups"),
        ("mystery:a=b", 4, ""),
        ("", 4, ""),
    ],
)
def test_certainty(rule, rejected, said):
    assert said in words.certainty(rule, rejected)
    assert bool(said) == bool(words.certainty(rule, rejected))


@given(st.text())
def test_what_is_shown_is_printable_and_told_apart(key):
    assert words.shown(key).isprintable()
    assert key.isprintable() is (words.shown(key) == key) or not key


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_shares_are_never_rounded_to_nothing_or_all(part, rest):
    text = words.share(part, part + rest)
    assert text.startswith((">", "<")) or 0 < float(text.split("\N{NO-BREAK SPACE}")[0]) < 100


@pytest.mark.parametrize(("amount", "said"), [(1, "1 class"), (2, "2 classes"), (1200, "1,200 classes")])
def test_count(amount, said):
    assert words.count(amount, "class") == said


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_few(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 * width - 1e-9 <= value <= low + width * (1 + 1e-6) + 1e-9 for value in found)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(math.nan), max_size=30), st.floats(-10, 10) | st.just(math.nan)
)
def test_histogram_has_every_score(scores, threshold):
    score = np.array(scores, dtype=np.float32)
    rejected, probe = score > 2, np.zeros(len(score), dtype=bool)
    drawn = histogram(score, rejected, probe, threshold)
    assert bool(drawn) == bool(np.isfinite(score).any())
    if drawn:
        kept = int((np.isfinite(score) & ~rejected).sum())
        assert f"{kept} kept, {int(rejected.sum())} set aside" in drawn
        assert ("threshold-text" in drawn) == math.isfinite(threshold)
        assert not re.search(r'"(nan|inf|-inf)"', drawn)


def test_pictures_shrink_until_they_fit():
    noise = [np.random.default_rng(i).integers(0, 256, (3, 120, 120), dtype=np.uint8) for i in range(10)]
    uris, side = data_uris(noise, 200_000)
    assert side == 64
    assert sum(map(len, uris)) <= 200_000
    assert data_uris(noise, 10**9)[1] == 96
    assert data_uris(noise, 1)[1] == 24
