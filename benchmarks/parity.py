"""Spectral signatures and activation clustering beside those of ART, on the same features: do they agree, how fast are they?

    pip install '.[peers]' && python benchmarks/parity.py [DATA]

Features of a model trained on poisoned pictures (default: those of the package; four attacks, to classes 0 to 3). ART's pure
functions are given centred features: its score projects features as they are, where the paper's algorithm projects centred
ones. Agreement: Spearman's correlation of the rankings, and of the clusters on the same reduced features the adjusted Rand
index. ART starts 2-means once, from a place drawn by lot, we ten times: so of ART's, too, the best of ten starts is taken (the
lowest sum of squared distances), and whether ours is as low is said as well. Seconds: the median of rounds in turns, of one start
for ART as it is used. Writes results/speed/parity.json.
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
from untaint.defenses.clustering import reduced, two_clusters
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
STARTS = 10


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
    parser.add_argument("--rounds", type=int, default=5)
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
    starts = []
    for start in range(STARTS):
        np.random.seed(start)  # noqa: NPY002 - what ART draws from
        starts.append([np.asarray(one) for one in cluster_activations(points)[0]])
    rand, wider = [], []
    for place, own in enumerate(points):
        best = min((start[place] for start in starts), key=lambda one: spread_of(own, one))
        ours = two_clusters(own, 0)
        rand.append(adjusted_rand_score(ours, best))
        wider.append(spread_of(own, ours) / spread_of(own, best))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("spectral", "spectral, ART", "clustering", "clustering, ART")
    }

    def timed(name: str, begin: float) -> None:
        seconds[name].append(time.perf_counter() - begin)

    for _ in range(asked.rounds):
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
    what = (
        f"{len(classes)} classes of {np.mean([len(one) for one in classes]):,.0f} rows, {classes[0].shape[1]} features"
    )
    print("adjusted Rand index by class:", " ".join(f"{one:.3f}" for one in rand))
    print("our sum of squares over ART's:", " ".join(f"{one:.5f}" for one in wider))
    keep(
        "parity",
        [
            (f"spectral beside ART's, {what}: lowest rank correlation", f"{min(spearman):.5f}", ">= .99"),
            ("its seconds over ART's", f"{middle['spectral'] / middle['spectral, ART']:.2f}", "<= 1"),
            (
                "clustering beside the best of ten of ART's starts: lowest adjusted Rand index",
                f"{min(rand):.4f}; {sum(one >= 0.99 for one in rand)} of {len(rand)} classes at .99 or more",
                ">= .99",
            ),
            ("its sum of squared distances over that, at most", f"{max(wider):.5f}", ""),
            ("its seconds over one of ART's", f"{middle['clustering'] / middle['clustering, ART']:.2f}", "<= 1"),
        ],
    )


if __name__ == "__main__":
    main()
