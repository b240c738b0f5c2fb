"""How fast, and in how much memory, the detectors to compare with judge: beside ART's, and beside plain loops of the same arithmetic.

    pip install '.[peers]' && OMP_NUM_THREADS=1 python benchmarks/detectors.py [--rows 50000] [--rounds 3]

`spectral`, `clustering`, `spectre` and `contamination` on features of so many rows, drawn at random: ten classes that vary much in a few directions, nearly
normal, so that no independent components are found and clustering takes all 1,000 steps in search of them, which is the dearest case; a twentieth of one class lies apart. Beside ART's
pure functions on the same features (clusters, from one start where ours is the best of twenty, and their silhouettes), and, as ART has neither SPECTRE nor SCAn, beside these written as loops
over classes and rows (benchmarks/plain.py), on fewer rows. `cognitive-distillation` and `strip` on pictures of the package and a network trained on them for an epoch, beside loops over pictures. The loops
reach the same figures, which is checked (but SCAn's: from one start, and two groups of a class that is whole are anyone's guess).

Turns alternate in an order that changes from round to round. Ratios: the median of those of the same round with its 95 % bootstrap interval. On one thread seconds are the processor's, which others on the
machine hardly change; on more, those of the clock. Memory: all that a fresh process holds at most (anonymous memory), features, pictures and libraries with it. Writes results/speed/detectors.json.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch
from keeping import interval, keep
from numpy.typing import NDArray
from scoring import Peak, anonymous

import untaint as ut
from untaint import samples
from untaint.defenses import DEFENSES, Task, spectre
from untaint.defenses.cognitive_distillation import CognitiveDistillation, mask_norms
from untaint.defenses.contamination import Contamination
from untaint.defenses.spectre import OUT, Spectre
from untaint.defenses.strip import Strip, entropies
from untaint.progress import Silent
from untaint.recipe import preset
from untaint.scores import Fraction

CLASSES = 10
WIDTH = 512
ASKED = {"spectral": "2 s", "clustering": "5 s", "spectre": "20 s", "contamination": "20 s"}
MEMORY = "3 GiB"
STEPS = 20  # of cognitive distillation; each costs the same
MANY = 1_000  # pictures at which memory is measured

Feature, Label = NDArray[np.float32], NDArray[np.int64]


class Seen(Task):
    """A task whose undefended model sees what it is told."""

    seen: Feature

    def features(self) -> Feature:
        return self.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--loop-rows", type=int, default=5_000, help="of the loops over rows")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--loop-images", type=int, default=20, help="of the loops over pictures")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    figures = on_features(given.rows, given.rounds) + beside_loops(given.loop_rows, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        figures += on_images(Path(folder), given.images, given.loop_images, given.rounds)
    keep("detectors", figures)


def on_features(rows: int, rounds: int) -> list[tuple[str, str, str]]:
    """Measure the four detectors that look at features, two of them beside ART's."""
    features, labels = drawn(rows)
    here, few = task(features, labels), task(*drawn(2_000))
    calls: dict[str, Callable[[], object]] = {}
    for name in ("spectral", "clustering"):
        judge = DEFENSES.build(name)
        judge.score(few)  # libraries
        calls[name] = functools.partial(judge.score, here)
    ours = list(calls)
    calls["ART's spectral"], calls["ART's clustering"] = theirs([features[labels == label] for label in range(CLASSES)])
    taken = turns(calls, rounds)
    figures = []
    for name, asked in ASKED.items():
        seconds, size = apart(once_on_features, name, rows)
        seconds = statistics.median(taken[name]) if name in ours else seconds
        figures.append(
            (
                f"`{name}` on {rows:,} rows of {WIDTH} features, {CLASSES} classes",
                f"{seconds:.1f} {unit()}, {size / 2**30:.2f} GiB",
                f"{asked}, {MEMORY}",
            )
        )
        if name in ours:
            figures.append(
                (
                    f"ART's seconds over those of `{name}`, the same rows",
                    said(taken[f"ART's {name}"], taken[name]),
                    "> 1",
                )
            )
    return figures


def beside_loops(rows: int, rounds: int) -> list[tuple[str, str, str]]:
    """Measure SPECTRE and SCAn beside loops."""
    features, labels = drawn(rows)
    here = task(features, labels)
    judge = Spectre()
    found = judge.score(here).values
    assert np.allclose(plain.spectre_scores(features, labels, OUT * judge.rate, judge.alpha), found, rtol=1e-2)
    taken = turns(
        {
            "spectre": lambda: (spectre._usual.cache_clear(), judge.score(here)),
            "spectre, loop": lambda: plain.spectre_scores(features, labels, OUT * judge.rate, judge.alpha),
            "contamination": lambda: Contamination().score(here),
            "contamination, loop": lambda: plain.contamination_ratios(features, labels),
        },
        rounds,
    )
    return [
        (
            f"seconds of a plain loop over those of `{name}`{more}, {rows:,} rows of {WIDTH} features",
            said(taken[f"{name}, loop"], taken[name]),
            "> 1",
        )
        for name, more in (("spectre", ""), ("contamination", " (the loop from one start, not five)"))
    ]


def on_images(folder: Path, count: int, few: int, rounds: int) -> list[tuple[str, str, str]]:
    """Measure the two detectors that ask the model about altered pictures, beside loops over pictures."""
    here = pictures(folder, count)
    less = replace(here, examples=here.examples.take(here.examples.rows[:few]))
    strip, distil = Strip(), CognitiveDistillation(steps=STEPS)
    model, pixels = (
        here.load("undefended").eval().requires_grad_(False),
        torch.from_numpy(here.examples.images[:] / 255),
    )
    rows = less.examples.rows
    assert np.allclose(plain.strip_entropies(less, model, pixels, strip), entropies(less, strip)[rows], atol=1e-3)
    assert np.allclose(plain.distilled(less, model, pixels, distil), mask_norms(less, distil)[rows], atol=1e-2)
    taken = turns(
        {
            "strip": lambda: entropies(here, strip),
            "strip, loop": lambda: plain.strip_entropies(less, model, pixels, strip),
            "cognitive-distillation": lambda: mask_norms(here, distil),
            "cognitive-distillation, loop": lambda: plain.distilled(less, model, pixels, distil),
        },
        rounds,
    )
    figures = []
    for name, what, each in (
        ("strip", "pictures with another laid over", strip.overlays),
        ("cognitive-distillation", "pictures' masks, a step each", STEPS),
    ):
        own = [seconds / (len(here.examples) * each) for seconds in taken[name]]
        loop = [seconds / (few * each) for seconds in taken[f"{name}, loop"]]
        size = apart(memory_on_images, name, folder)
        figures += [
            (
                f"`{name}`, {what}",
                f"{1 / statistics.median(own):,.0f} in a {unit()}, {size / 2**30:.2f} GiB with {MANY:,} pictures",
                MEMORY,
            ),
            (f"seconds of a loop over pictures over those of `{name}`", said(loop, own), "> 1"),
        ]
    return figures


def drawn(rows: int) -> tuple[Feature, Label]:
    """Return features of classes, which vary the less the later the direction, and the labels; a twentieth of class 0 lies apart."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, rows)
    turned = generator.normal(size=(WIDTH, WIDTH)) * np.geomspace(9, 0.15, WIDTH)[:, None] / np.sqrt(WIDTH)
    middles = generator.normal(size=(CLASSES + 1, WIDTH))
    features = np.empty((rows, WIDTH), dtype=np.float32)
    for start in range(0, rows, 5_000):
        own = labels[start : start + 5_000]
        values = middles[own] + generator.standard_normal((len(own), WIDTH)) @ turned
        features[start : start + 5_000] = np.maximum(values, 0)
    odd = np.flatnonzero(labels == 0)[::20]
    features[odd] = np.maximum(features[odd] + 2 * middles[-1], 0)
    return features, labels


def task(features: Feature, labels: Label) -> Task:
    examples = ut.Examples.of(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    here = Seen(
        examples=examples,
        probes=examples.rows[::200],
        preset=preset("fast"),
        rule=Fraction(0.1),
        scratch=Path("nowhere"),
        seed=0,
        progress=Silent(),
    )
    object.__setattr__(here, "seen", features)
    return here


def pictures(folder: Path, count: int) -> Task:
    """Return a task on so many pictures, whose model is trained for an epoch on all of the package."""
    everything = ut.load(samples.path())
    recipe = replace(preset("fast").retrain, epochs=1, precision="float32")
    here = Task(
        examples=everything,
        probes=everything.rows[-250:],
        preset=replace(preset("fast"), retrain=recipe),
        rule=Fraction(0.1),
        scratch=folder,
        seed=0,
        progress=Silent(),
    )
    here.reference()
    return replace(here, examples=everything.take(everything.rows[:count]))


def theirs(classes: list[Feature]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return ART's spectral signatures, of centred features (it centres none that it projects), and its clusters with their silhouettes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector.poison.activation_defence import cluster_activations
        from art.defences.detector.poison.clustering_analyzer import ClusteringAnalyzer
        from art.defences.detector.poison.spectral_signature_defense import SpectralSignatureDefense
    centred = [one - one.mean(axis=0) for one in classes]

    def spectral() -> None:
        for one in centred:
            SpectralSignatureDefense.spectral_signature_scores(one)

    def clustering() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = cluster_activations(classes)
            ClusteringAnalyzer().analyze_by_silhouette_score(*found)

    return spectral, clustering


def apart(measure: Callable[..., Any], *given: object) -> Any:
    """Return what is measured in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(measure, *given).result()


def once_on_features(name: str, rows: int) -> tuple[float, int]:
    """Return the seconds that a detector takes, and all that its process holds."""
    here, judge = task(*drawn(rows)), DEFENSES.build(name)
    judge.score(task(*drawn(2_000)))  # libraries
    before, begin = anonymous(), clock()
    with Peak() as peak:
        judge.score(here)
    return clock() - begin, before + peak.bytes


def memory_on_images(name: str, folder: Path) -> int:
    here = pictures(folder, MANY)
    before = anonymous()
    with Peak() as peak:
        if name == "strip":
            entropies(here, Strip(overlays=2))
        else:
            mask_norms(here, CognitiveDistillation(steps=2))
    return before + peak.bytes


def turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for _ in range(rounds):
        for name in shuffled.sample(list(calls), len(calls)):
            begin = clock()
            calls[name]()
            taken[name].append(clock() - begin)
    return taken


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def unit() -> str:
    return "processor s" if torch.get_num_threads() == 1 else "s"


def said(one: list[float], other: list[float]) -> str:
    middle, low, high = interval([first / second for first, second in zip(one, other, strict=True)])
    return f"x{middle:.1f} ({low:.1f} to {high:.1f}; {len(one)} rounds)"


if __name__ == "__main__":
    main()
