"""Feature consistency: how pictures are turned over, and whose features move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

import small
from untaint.defenses.feature_consistency import FeatureConsistency, moved, turned
from untaint.errors import InputError, SpecError


def test_pixels_are_turned_and_moved():
    images = torch.rand(2, 3, 8, 6)
    found = turned(images, 0.25)
    for y, x in np.ndindex(8, 6):
        exact = images[:, :, 7 - (y - 2), 5 - (x - 2)] if y >= 2 and x >= 2 else torch.zeros(2, 3)
        assert torch.equal(found[:, :, y, x], exact)
    assert torch.equal(turned(turned(images, 0), 0), images)


class Sees(nn.Module):
    """Its penultimate features are the means of the upper and the lower half."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, images):
        return self.head(torch.stack([images[:, :, :4].mean(dim=(1, 2, 3)), images[:, :, 4:].mean(dim=(1, 2, 3))], 1))


def test_scores_are_squared_distances_of_features(tmp_path):
    examples = small.pictures(30).take(np.arange(5, 30))
    found = moved(Sees(), small.task(tmp_path, examples), 0.0)
    halves = examples.images[:, :, :4].mean(axis=(1, 2, 3)) / 255, examples.images[:, :, 4:].mean(axis=(1, 2, 3)) / 255
    assert found[5:] == pytest.approx(2 * (halves[0] - halves[1])[5:] ** 2, rel=1e-3)
    assert np.isnan(found[:5]).all()
    with pytest.raises(InputError, match="no linear layer"):
        moved(nn.Flatten(), small.task(tmp_path, examples), 0.0)


def test_a_trigger_that_is_moved_is_none(tmp_path):
    clean = small.pictures(360, side=12)
    images, labels = clean.images.copy(), clean.labels.copy()
    images[:, :, :] = np.random.default_rng(0).integers(90, 160, images.shape)
    for label in range(3):  # classes that look the same when they are turned over
        images[labels == label, :, 5:7, 5:7] = 40 + 80 * label
    poisoned = np.flatnonzero(labels)[::8]
    images[poisoned, :, :3, :3] = 255
    labels[poisoned] = 0
    values = FeatureConsistency(epochs=4).score(small.task(tmp_path, type(clean).of(images, labels))).values
    assert roc_auc_score(np.isin(np.arange(360), poisoned), values) > 0.8


@pytest.mark.parametrize(("options", "said"), [({"epochs": 0}, "epochs is 0"), ({"shift": 0.5}, "shift 0.5")])
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        FeatureConsistency(**options)
