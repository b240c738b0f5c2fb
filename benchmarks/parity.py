"""Spectral signatures and activation clustering beside those of ART, on the same features: do they agree, how fast are they?

    pip install '.[peers]' && python benchmarks/parity.py

Features of 10 classes, each of 5,000 rows of which 250 share a direction of their own, 64 wide. In these made-up
features 2-means has no one best answer, so that the clusters need not agree. ART's pure functions are given centred features: its score projects features as they
are, where the paper's algorithm projects centred ones. Agreement: Spearman's correlation of the rankings and the adjusted Rand
index of the clusters on the same reduced features. Seconds: the median of rounds in turns. Writes results/speed/parity.json.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from keeping import keep
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

from untaint.defenses.clustering import reduced, two_clusters
from untaint.defenses.spectral import spectral_scores


def features(classes: int, rows: int, width: int, poisoned: int, seed: int) -> list[np.ndarray]:
    """Correlated, skewed, non-negative features as after a rectifier; the last rows of each class have a trigger."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(classes):
        mixing = generator.normal(size=(width, width)) / np.sqrt(width)
        own = generator.normal(size=(rows, width)) @ mixing + generator.normal(size=width)
        own[-poisoned:] += 3 * np.abs(generator.normal(size=width))
        made.append(np.maximum(own, 0).astype(np.float32))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector.poison.activation_defence import cluster_activations, reduce_dimensionality
        from art.defences.detector.poison.spectral_signature_defense import SpectralSignatureDefense

    theirs_spectral = SpectralSignatureDefense.spectral_signature_scores
    classes = features(classes=10, rows=5000, width=64, poisoned=250, seed=0)
    centred = [one - one.mean(axis=0) for one in classes]
    spearman = [
        spearmanr(spectral_scores(one), theirs_spectral(other)[:, 0])[0]
        for one, other in zip(classes, centred, strict=True)
    ]
    points = [reduced(one, 10, "ica", 0) for one in classes]
    clusters, _ = cluster_activations(points)
    rand = [adjusted_rand_score(two_clusters(own, 0), theirs) for own, theirs in zip(points, clusters, strict=True)]
    seconds: dict[str, list[float]] = {
        name: [] for name in ("spectral", "spectral, ART", "clustering", "clustering, ART")
    }

    def timed(name: str, begin: float) -> None:
        seconds[name].append(time.perf_counter() - begin)

    for _ in range(rounds):
        begin = time.perf_counter()
        for one in classes:
            spectral_scores(one)
        timed("spectral", begin)
        begin = time.perf_counter()
        for one in centred:
            theirs_spectral(one)
        timed("spectral, ART", begin)
        begin = time.perf_counter()
        for one in classes:
            two_clusters(reduced(one, 10, "ica", 0), 0)
        timed("clustering", begin)
        begin = time.perf_counter()
        cluster_activations([reduce_dimensionality(one.astype(np.float64)) for one in classes])
        timed("clustering, ART", begin)
    middle = {name: float(np.median(taken)) for name, taken in seconds.items()}
    what = "10 classes of 5,000 rows, 64 features"
    keep(
        "parity",
        [
            (f"spectral beside ART's, {what}: lowest rank correlation", f"{min(spearman):.5f}", ">= .99"),
            ("its seconds over ART's", f"{middle['spectral'] / middle['spectral, ART']:.2f}", "<= 1"),
            (f"clustering beside ART's, {what}: lowest adjusted Rand index", f"{min(rand):.4f}", ">= .99"),
            ("its seconds over ART's", f"{middle['clustering'] / middle['clustering, ART']:.2f}", "<= 1"),
        ],
    )


if __name__ == "__main__":
    main()
