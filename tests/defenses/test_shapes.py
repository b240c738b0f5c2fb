"""Every defence on 43 classes of which one has five pictures, and on pictures of 128x128 pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import small
from defenses.test_every_defence import SMALL
from untaint import Examples, load_model, run
from untaint.defenses import DEFENSES, Detector, Task
from untaint.progress import Silent
from untaint.scores import Fraction

CLASSES, FEW = 43, 5
NAMES = DEFENSES.names()


def signs() -> Examples:
    """Pictures of 43 classes, ten of each but of the last."""
    labels = np.concatenate([np.repeat(np.arange(CLASSES - 1), 10), np.full(FEW, CLASSES - 1)])
    generator = np.random.default_rng(0)
    own = generator.uniform(0, 200, (CLASSES, 3, 8, 8))
    images = own[labels] + generator.normal(0, 20, (len(labels), 3, 8, 8))
    order = generator.permutation(len(labels))
    return Examples.of(images.clip(0, 255).astype(np.uint8)[order], labels[order])


def answers(model: nn.Module, side: int) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.full((2, 3, side, side), 0.5))


def defended(name: str, examples: Examples, probes: np.ndarray, scratch) -> tuple[np.ndarray | None, nn.Module]:
    """Give the scores and the model of a defence."""
    judge = DEFENSES.build(SMALL.get(name, name))
    if hasattr(judge, "told"):
        judge = judge.told(examples.rows[1::20])
    preset = small.preset(epochs=2)
    here = Task(
        examples=examples, probes=probes, preset=preset, rule=Fraction(0.1), scratch=scratch, seed=0, progress=Silent()
    )
    outcome = judge.defend(here)
    assert run.finished(outcome.model) is not None
    if isinstance(judge, Detector):
        assert outcome.scores is not None
        return outcome.scores.values, load_model(outcome.model)
    return None, load_model(outcome.model)


@pytest.mark.parametrize("name", NAMES)
def test_43_classes_and_a_class_of_five(name, tmp_path):
    examples = signs()
    probes = np.concatenate([np.flatnonzero(examples.labels == label)[:2] for label in range(CLASSES)])
    scores, model = defended(name, examples, np.sort(probes), tmp_path)
    assert answers(model, 8).shape == (2, CLASSES)
    if scores is not None:
        assert not np.isinf(scores).any()
        large = examples.labels != CLASSES - 1
        assert not np.isnan(scores[large]).any(), "only a class too small may have no score"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_128_pixels(name, tmp_path):
    examples = small.pictures(45, side=128)
    scores, model = defended(name, examples, np.arange(0, 45, 2), tmp_path)
    assert answers(model, 128).shape == (2, 3)
    assert scores is None or np.isfinite(scores).all()
