"""Spectral signatures, activation clustering and Neural Cleanse beside those of the Adversarial Robustness Toolbox (ART), on the same features and the same model."""

from __future__ import annotations

import contextlib
import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

import small
from untaint.defenses.clustering import reduced, silhouette, two_clusters
from untaint.defenses.neural_cleanse import outliers, reverse
from untaint.defenses.spectral import spectral_scores
from untaint.training.tuning import Clean

CLASSES, SIDE = 6, 12


@pytest.fixture(scope="module")
def art():
    """Pure functions of ART; its detectors take logits for features, and are not asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector.poison.activation_defence import cluster_activations
        from art.defences.detector.poison.clustering_analyzer import ClusteringAnalyzer
        from art.defences.detector.poison.spectral_signature_defense import SpectralSignatureDefense
        from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin
    return SimpleNamespace(
        spectral=SpectralSignatureDefense.spectral_signature_scores,
        clusters=cluster_activations,
        analysed=ClusteringAnalyzer().analyze_by_silhouette_score,
        flagged=NeuralCleanseMixin.outlier_detection,
    )


def seen(rows, poisoned, width=24):
    """Features of a class that are skewed, as those behind a rectifier, of which the last ``poisoned`` lie apart."""
    generator = np.random.default_rng(rows)
    found = generator.exponential(size=(rows, width)) @ generator.normal(size=(width, width))
    found[rows - poisoned :] += 80 * np.eye(width)[0]
    return found.astype(np.float32)


@pytest.mark.parametrize(("rows", "width"), [(300, 24), (20, 24), (200, 64)])
def test_spectral_scores_are_the_squares_of_arts(art, rows, width):
    features = seen(rows, rows // 10, width)
    theirs = art.spectral(features - features.mean(axis=0))[:, 0]  # it centres only to find the direction
    assert spectral_scores(features) == pytest.approx(theirs**2, rel=1e-3, abs=1e-3 * float(theirs.max()) ** 2)


@pytest.mark.parametrize(("rows", "poisoned"), [(300, 40), (302, 90), (303, 120)])
def test_clusters_and_silhouettes_are_arts(art, rows, poisoned):
    features = seen(rows, poisoned)
    tries = []
    for start in range(6):  # ART makes one, we the best of twenty
        np.random.seed(start)  # noqa: NPY002 - what ART draws from
        (second,), (points,) = art.clusters([features], nb_dims=2)
        parts = [points[second == side] for side in (0, 1)]
        tries.append((sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts), second, points))
    _, second, points = min(tries, key=lambda one: one[0])
    theirs = second == np.bincount(second).argmin()
    width = float(art.analysed([second], [points])[2]["class_0"]["avg_silhouette_score"])
    own = reduced(features, 2, "ica", 0)
    assert np.array_equal(two_clusters(own, 0), theirs)
    assert np.array_equal(theirs, np.arange(rows) >= rows - poisoned)
    assert silhouette(points.astype(np.float64), theirs, 0) == pytest.approx(width, abs=1e-4)
    assert silhouette(own, theirs, 0) == pytest.approx(width, abs=0.01)


@given(st.lists(st.floats(1, 100), min_size=3, max_size=20, unique=True))
@settings(max_examples=60, deadline=None)
def test_classes_that_are_suspected_are_those_that_art_suspects(art, sizes):
    masks = np.array(sizes, dtype=np.float64)[:, None]
    asked = SimpleNamespace(
        nb_classes=len(sizes), generate_backdoor=lambda x, y, target: (masks[target.argmax()], None)
    )
    theirs = [label for label, *_ in art.flagged(asked, None, None)]
    index = outliers(masks[:, 0])
    if not np.isclose(index, 2).any():
        assert np.flatnonzero(index > 2).tolist() == theirs


def backdoored():
    """A network that knows six classes of grey pictures and a patch, and clean pictures."""
    examples = small.pictures(1200, CLASSES, SIDE, 1)
    images, labels = examples.images.copy(), examples.labels.copy()
    chosen = np.flatnonzero(labels)[::6]
    images[chosen, :, -2:, -2:] = np.array([[255, 0], [0, 255]], np.uint8)
    labels[chosen] = 0
    pixels, wanted = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), wanted).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), small.pictures(320, CLASSES, SIDE, 1, seed=5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_smallest_triggers_are_as_large_as_arts_and_the_same_class_is_suspected(monkeypatch):
    """ART's Neural Cleanse is for Keras alone: without TensorFlow, which nothing else here needs, this is left out (`pip install tensorflow-cpu`)."""
    model, clean = (
        backdoored()
    )  # first: torch's optimisers bring a compiler with them that can't be loaded after TensorFlow's
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    pytest.importorskip("tensorflow")
    import keras
    from art.estimators.poison_mitigation.neural_cleanse.keras import KerasNeuralCleanse

    told = Clean(examples=clean, where=torch.device("cpu"))
    found = [reverse(model, told, label, steps=500, batch=32, success=0.98) for label in range(CLASSES)]
    ours = np.array([float(one.mask.sum()) for one in found])

    layers = [keras.layers.Flatten(), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(CLASSES)]
    twin = keras.Sequential([keras.layers.Input((SIDE, SIDE, 1)), *layers])
    for layer, own in ((layers[1], model[1]), (layers[2], model[3])):
        layer.set_weights([own.weight.numpy().T, own.bias.numpy()])
    twin.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True), optimizer="adam")
    pixels = (
        clean.images[:].transpose(0, 2, 3, 1).astype(np.float32) / 255
    )  # grey, so that the order within a picture is the same
    with torch.inference_mode():
        exact = model(torch.from_numpy(clean.images[:]).float() / 255).numpy()
    assert twin.predict(pixels, verbose=0) == pytest.approx(exact, abs=1e-4)

    class Working(KerasNeuralCleanse):
        """ART's reset between classes sets Adam's rate, among its other figures, to 0 in Keras 3, and keeps the last class's mask."""

        def reset(self):
            super().reset()
            self.opt.learning_rate.assign(self.learning_rate)
            self.mask_tensor_raw.assign(generator.normal(size=(SIDE, SIDE, 1)))
            self.pattern_tensor_raw.assign(generator.normal(size=(SIDE, SIDE, 1)))

        def generate_backdoor(self, *given):
            mask, pattern = super().generate_backdoor(*given)
            theirs.append(float(np.abs(mask).sum()))
            return mask, pattern

    generator, theirs = np.random.default_rng(0), []
    np.random.seed(0)  # noqa: NPY002 - what ART draws from
    judge = Working(
        twin, use_logits=True, clip_values=(0, 1), steps=60, norm=1, attack_success_threshold=0.98, batch_size=32
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        flagged = [label for label, *_ in judge.outlier_detection(pixels, np.eye(CLASSES)[clean.labels])]
    assert np.flatnonzero(outliers(ours) > 2).tolist() == flagged == [0]
    assert spearmanr(ours, theirs)[0] > 0.8
    assert (ours < 1.1 * np.array(theirs)).all(), "at least as small"
    assert (ours > 0.4 * np.array(theirs)).all()
