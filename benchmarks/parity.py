"""Spectral signatures and activation clustering beside those of ART, on the same features: do they agree, how fast are they?

    pip install '.[peers]' && python benchmarks/parity.py [DATA]

Features of a model trained on poisoned pictures (default: those of the package; four attacks, to classes 0 to 3). ART's pure
functions are given centred features: its score projects features as they are, where the paper's algorithm projects centred
ones. Agreement: Spearman's correlation of the rankings, and of the clusters on the same reduced features the adjusted Rand
index. ART starts 2-means once, from a place drawn by lot, we twenty times and take the best. So three things are said: the
clusters from one start, the same for both; those of the best of twenty starts of each, by class (best: the lowest sum of
squared distances); and, as independent components are as wide in all directions and a class without poison does not fall in
two, how well our best of twenty agrees with itself from other starts: more agreement is not to be had. Seconds: the median of
rounds in turns, with one start each. Writes results/speed/parity.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from keeping import keep
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

import untaint as ut
from untaint import samples, terminal
from untaint.attacks import ATTACKS
from untaint.defenses.clustering import STARTS, reduced, two_clusters
from untaint.defenses.spectral import spectral_scores
from untaint.poisoning import poison
from untaint.recipe import preset
from untaint.training.features import features
from untaint.training.loop import fit

ATTACKERS = (
    "patch:rate=0.02",
    "blend:target=1,alpha=0.2,rate=0.02",
    "blend:target=2,pattern=lattice,alpha=0.15,rate=0.02",
)
ATTACKERS += ("sinusoid:target=3,class-rate=0.2",)
ENOUGH = 0.99
ALONE = 3  # runs of our own from other starts


def classes_of(data: str | Path) -> list[np.ndarray]:
    """Return the penultimate features of each class's pictures, under a model trained on all of them with poison in place."""
    progress = terminal.progress(quiet=False)
    dirty, _ = poison(ut.load(data, progress=progress), [ATTACKS.build(text) for text in ATTACKERS], seed=0)
    with tempfile.TemporaryDirectory() as folder:
        model = fit(dirty, preset("fast").retrain, Path(folder), seed=0, progress=progress, what="train on poison")
    seen = features(model, dirty, progress=progress)
    return [seen[dirty.rows[dirty.labels[dirty.rows] == label]] for label in range(len(dirty.class_names))]


def spread_of(points: np.ndarray, second: np.ndarray) -> float:
    """The sum of squared distances to the middle of each of two clusters."""
    parts = [points[second == side] for side in np.unique(second)]
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=samples.path())
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector.poison.activation_defence import cluster_activations, reduce_dimensionality
        from art.defences.detector.poison.spectral_signature_defense import SpectralSignatureDefense

    theirs_spectral = SpectralSignatureDefense.spectral_signature_scores
    classes = classes_of(asked.data)
    centred = [one - one.mean(axis=0) for one in classes]
    spearman = [
        spearmanr(spectral_scores(one), theirs_spectral(other)[:, 0])[0]
        for one, other in zip(classes, centred, strict=True)
    ]
    points = [reduced(one, 10, "ica", 0) for one in classes]
    same, best, alone, wider = [], [], [], []
    for own in points:
        theirs = []
        for start in range(STARTS):
            np.random.seed(start)  # noqa: NPY002 - what ART draws from
            theirs.append(np.asarray(cluster_activations([own])[0][0]))
        same.append(adjusted_rand_score(two_clusters(own, 0, starts=1), theirs[0]))
        tightest = min(theirs, key=lambda one: spread_of(own, one))
        ours = two_clusters(own, 0)
        best.append(adjusted_rand_score(ours, tightest))
        alone.append(np.mean([adjusted_rand_score(ours, two_clusters(own, other)) for other in range(1, 1 + ALONE)]))
        wider.append(spread_of(own, ours) / spread_of(own, tightest))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("spectral", "spectral, ART", "clustering", "clustering, ART")
    }

    def timed(name: str, begin: float) -> None:
        seconds[name].append(time.perf_counter() - begin)

    for turn in range(asked.rounds):
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
            two_clusters(reduced(one, 10, "ica", turn), turn, starts=1)
        timed("clustering", begin)
        begin = time.perf_counter()
        cluster_activations([reduce_dimensionality(one.astype(np.float64)) for one in classes])
        timed("clustering, ART", begin)
    middle = {name: float(np.median(taken)) for name, taken in seconds.items()}
    what = (
        f"{len(classes)} classes of {np.mean([len(one) for one in classes]):,.0f} rows, {classes[0].shape[1]} features"
    )
    for label, figures in (
        ("of one start", same),
        ("of the best", best),
        ("of our best with itself", alone),
        ("ratio of squares", wider),
    ):
        print(f"{label:>24}:", " ".join(f"{one:.3f}" for one in figures))
    keep(
        "parity",
        [
            (f"spectral beside ART's, {what}: lowest rank correlation", f"{min(spearman):.5f}", ">= .99"),
            ("its seconds over ART's", f"{middle['spectral'] / middle['spectral, ART']:.2f}", "<= 1"),
            ("clustering beside ART's from the same start: lowest adjusted Rand index", f"{min(same):.4f}", ">= .99"),
            ("its seconds over ART's", f"{middle['clustering'] / middle['clustering, ART']:.2f}", "<= 1"),
            (
                f"best of {STARTS} starts of either: classes whose clusters agree to {ENOUGH}",
                f"{sum(one >= ENOUGH for one in best)} of {len(best)} (ours with itself: {sum(one >= ENOUGH for one in alone)})",
                "",
            ),
            ("our sum of squared distances over ART's there, at most", f"{max(wider):.5f}", ""),
        ],
    )


if __name__ == "__main__":
    main()
