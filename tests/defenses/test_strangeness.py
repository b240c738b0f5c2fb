from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import run
from untaint.defenses._strangeness import PRIOR, SHRINK, strangeness


def slowly(features, labels, rows, probes):
    """One row at a time; a probe is left out of what the probes are."""
    weights = np.array([np.mean(labels[rows] == c) / np.mean(labels[probes] == c) for c in range(labels.max() + 1)])
    weights = np.array([min(max(weight, 1 / 3), 3) for weight in weights])
    weights /= np.mean([weights[labels[probe]] for probe in probes])

    def usual(members, prior):
        classes, dims = labels.max() + 1, features.shape[1]
        means = np.zeros((classes, dims))
        for label in range(classes):
            own = [features[m] for m in members if labels[m] == label]
            weight = 0 if prior is None else PRIOR
            sums = np.sum(own, axis=0) if own else np.zeros(dims)
            means[label] = (sums + (0 if prior is None else weight * prior[label])) / max(1, len(own) + weight)
        residuals = np.stack([features[m] - means[labels[m]] for m in members])
        counted = np.ones(len(members)) if prior is None else weights[labels[members]]
        spread = sum(w * np.outer(r, r) for w, r in zip(counted, residuals, strict=True)) / counted.sum()
        return means, spread + SHRINK * np.trace(spread) / dims * np.eye(dims)

    everybody = usual(rows, None)
    values = np.full(len(labels), np.nan)
    for row in rows:
        means, spread = usual([p for p in probes if p != row], everybody[0])
        far = [
            residual @ np.linalg.inv(covariance) @ residual
            for residual, covariance in (
                (features[row] - means[labels[row]], spread),
                (features[row] - everybody[0][labels[row]], everybody[1]),
            )
        ]
        values[row] = np.log(far[0] / far[1])
    return values


@given(seed=st.integers(0, 2**31), probes=st.integers(40, 90))
@settings(max_examples=10, deadline=None)
def test_it_is_the_slow_figure(tmp_path_factory, seed, probes):
    folder = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(200, 5)) * generator.uniform(0.5, 2, 5)
    labels = generator.integers(0, 3, 200)
    rows = np.sort(generator.choice(200, 180, replace=False))
    chosen = np.sort(generator.choice(rows, probes, replace=False))
    run.save_array(folder / "a.npy", features)
    near = [np.setdiff1d(rows[labels[rows] == labels[probe]], chosen)[:4] for probe in chosen]
    found, beside = strangeness([folder / "a.npy"], labels, rows, chosen, near)
    expected = slowly(features, labels, rows, chosen)
    without = slowly(features, labels, rows, chosen[1:])
    roughly = max(0.1, 6 / probes)  # the shrinking is not done anew, which few probes feel more
    assert beside[0] == pytest.approx(without[near[0]], abs=roughly)
    assert [len(figures) for figures in beside] == [4] * len(chosen)
    others = np.setdiff1d(rows, chosen)
    assert found[others] == pytest.approx(expected[others], rel=1e-4, abs=1e-4)
    assert found[chosen] == pytest.approx(expected[chosen], abs=roughly)
    assert np.isnan(np.delete(found, rows)).all()


def test_no_probe_counts_for_more_than_three_times_its_share(tmp_path):
    """Two of sixty probes stand for a third of the rows: they would count for ten times their share."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 5)) * generator.uniform(0.5, 2, 5)
    labels = np.arange(300) % 3
    run.save_array(tmp_path / "a.npy", features)
    probes = np.sort(np.r_[np.flatnonzero(labels == 0)[:2], np.flatnonzero(labels > 0)[:58]])
    found, _ = strangeness([tmp_path / "a.npy"], labels, np.arange(300), probes)
    others = np.setdiff1d(np.arange(300), probes)
    assert found[others] == pytest.approx(slowly(features, labels, np.arange(300), probes)[others], rel=1e-4, abs=1e-4)


def test_what_many_do_and_no_probe_does_is_strange(tmp_path):
    """A direction that a tenth of the rows take stands out, a wide but common one does not."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2000, 8)) * np.r_[5, np.ones(7)]
    features[:200, 3] += 6
    run.save_array(tmp_path / "a.npy", features.astype(np.float16))
    labels, probes = np.zeros(2000, dtype=np.int64), np.arange(500, 750)
    found, _ = strangeness([tmp_path / "a.npy"], labels, np.arange(2000), probes)
    assert np.median(found[:200]) > np.quantile(found[200:], 0.99)
    assert abs(np.median(found[probes]) - np.median(found[750:])) < 0.1  # probes are not familiar to themselves


def test_labels_without_a_probe_and_no_features_are_answered(tmp_path):
    generator = np.random.default_rng(0)
    run.save_array(tmp_path / "a.npy", generator.normal(size=(90, 4)).astype(np.float16))
    labels = np.repeat([0, 1, 2], 30)
    assert np.isfinite(strangeness([tmp_path / "a.npy"], labels, np.arange(90), np.arange(40))[0]).all()
    assert (strangeness([], labels, np.arange(90), np.arange(40))[0] == 0).all()


def test_a_class_with_few_probes_is_not_strange_as_a_whole(tmp_path):
    """Its own wide direction is known from its few probes, each of which counts for more."""
    generator = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    features = generator.normal(size=(4000, 6))
    features[labels == 1, 2] *= 4
    run.save_array(tmp_path / "a.npy", features.astype(np.float16))
    probes = np.sort(np.r_[np.flatnonzero(labels == 0)[:150], np.flatnonzero(labels == 1)[:75]])
    found, _ = strangeness([tmp_path / "a.npy"], labels, np.arange(4000), probes)
    assert abs(np.median(found[labels == 0]) - np.median(found[labels == 1])) < 0.1


def test_a_probe_keeps_no_better_company_than_others(tmp_path):
    """What lies around a probe is familiar because of it; without it, it is as strange as elsewhere."""
    generator = np.random.default_rng(0)
    centres = np.repeat(4 * generator.normal(size=(400, 12)), 5, axis=0)  # each row has four near copies
    run.save_array(tmp_path / "a.npy", centres + 0.1 * generator.normal(size=centres.shape))
    labels, rows, probes = np.zeros(2000, dtype=np.int64), np.arange(2000), np.arange(0, 500, 5)
    copies = [probe + np.arange(1, 5) for probe in probes]
    found, beside = strangeness([tmp_path / "a.npy"], labels, rows, probes, copies)
    elsewhere = np.median(found[500:])
    assert np.median([found[others] for others in copies]) < elsewhere - 0.1
    assert np.median(beside) == pytest.approx(elsewhere, abs=0.06)
