"""D-ST: its losses against their formulas, whose labels it is told, and that it learns no backdoor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import Examples, accuracy, load_model, rng, run
from untaint.defenses._sensitive import Parted
from untaint.defenses.d_st import DST, HalfTold, contrast, recoloured, surprise
from untaint.errors import RunError, SpecError
from untaint.models.build import build
from untaint.training.objective import Batch

POISONED = np.flatnonzero(np.arange(240) % 3)[::7]  # of classes 1 and 2 by turns


def pictures(count=240, seed=0, *, triggered=()) -> Examples:
    """Pictures of a square, a bar and a post, which look the same when they are turned over, and a bright corner that says class 0."""
    generator = np.random.default_rng(seed)
    labels, triggered = np.arange(count) % 3, np.array(triggered, dtype=np.int64)
    images = generator.integers(60, 130, (count, 3, 12, 12))
    images[labels == 0, :, 4:8, 4:8] += 90
    images[labels == 1, :, 5:7] += 90
    images[labels == 2, :, :, 5:7] += 90
    images[triggered, :, :3, :3] = 255
    labels[triggered] = 0
    return Examples.of(images.astype(np.uint8), labels, class_names=["square", "bar", "post"])


def test_contrast_is_the_mean_log_share_of_those_alike():
    values, group = torch.randn(7, 4), torch.tensor([3, 0, 3, 1, 3, 0, 1])
    exact = 0.0
    unit = (values / values.norm(dim=1, keepdim=True)).double().numpy()
    for one in range(7):
        likes = [other for other in range(7) if other != one and group[other] == group[one]]
        below = sum(np.exp(unit[one] @ unit[other] / 0.3) for other in range(7) if other != one)
        exact -= np.mean([np.log(np.exp(unit[one] @ unit[like] / 0.3) / below) for like in likes]) / 7
    assert float(contrast(values, group, 0.3)) == pytest.approx(exact, rel=1e-5)


def test_contrast_has_finite_gradients_where_a_picture_has_none_alike():
    values = torch.randn(4, 3, requires_grad=True)
    contrast(values, torch.tensor([0, 0, 1, 2]), 0.1).backward()
    assert torch.isfinite(values.grad).all()


def test_surprise_is_minus_the_log_of_all_other_labels():
    logits, labels = torch.randn(6, 4) * 3, torch.tensor([0, 1, 2, 3, 0, 1])
    exact = [-np.log(1 - float(logits[row].softmax(0)[label])) for row, label in enumerate(labels)]
    assert surprise(logits, labels).numpy() == pytest.approx(exact, rel=1e-4, abs=1e-5)
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    surprise(sure, torch.tensor([0])).sum().backward()
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_each_picture_is_recoloured_by_its_own_numbers(channels):
    images, numbers = torch.rand(8, channels, 5, 4), rng.uniform(0, "test", 0, np.arange(8), 5)
    numbers[:, 4] = 0.9  # none is grey
    numbers[:4, 3], numbers[4, 3] = 0.1, 0.85  # the fifth stays as it is
    found = recoloured(images, numbers)
    for row in range(4):
        bright, apart, strong = 1 + 0.4 * (2 * numbers[row, :3] - 1)
        exact = images[row].double().numpy() * bright
        exact = exact.mean() + (exact - exact.mean()) * apart
        grey = exact.mean(axis=0)
        assert found[row].numpy() == pytest.approx((grey + (exact - grey) * strong).clip(0, 1), abs=1e-5)
    assert torch.equal(found[4], images[4])
    order = np.array([3, 1, 6, 7, 0, 2, 5, 4])
    assert torch.allclose(recoloured(images[order], numbers[order]), found[order], atol=1e-6)
    numbers[:, 4] = 0.1
    grey = recoloured(images, numbers)
    assert torch.allclose(grey, grey[:, :1].expand_as(grey))
    assert grey.shape == images.shape


def batch(model, examples, labels) -> Batch:
    images = torch.from_numpy(examples.images).float() / 255
    return Batch(
        rows=examples.rows,
        images=images,
        labels=torch.from_numpy(labels),
        epoch=0,
        epochs=1,
        model=model,
        forward=lambda shown: model(shown).float(),
        again=lambda number: images.flip(3) * (1 - 0.1 * number),
    )


def test_labels_of_rows_not_known_to_be_clean_play_no_part_but_those_taken_for_poisoned():
    examples, model = small.pictures(30), build("proxy", 3, (3, 8, 8)).eval()
    parted = Parted(values=np.zeros(30, np.float32), clean=np.arange(0, 10), poison=np.arange(10, 14))

    def loss(changed, **options):
        labels = examples.labels.copy()
        labels[changed] = (labels[changed] + 1) % 3
        return HalfTold(DST(**options), parted, 64, 0).loss(batch(model, examples, labels)).item()

    before = loss([])
    assert loss(np.arange(14, 30)) == before
    assert loss([11]) != before
    assert loss([11], against=0.0) == loss([], against=0.0)
    assert loss([3]) != before


def test_the_loss_is_contrast_and_the_mixed_cross_entropy():
    examples, model = small.pictures(24), build("proxy", 3, (3, 8, 8)).eval()
    parted = Parted(values=np.zeros(24, np.float32), clean=np.arange(0, 9), poison=np.arange(9, 12))
    made = batch(model, examples, examples.labels)

    def loss(**options):
        return HalfTold(DST(**options), parted, 64, 0).loss(made).item()

    views = [
        recoloured(images, rng.uniform(0, f"d-st/colours/{view}", 0, examples.rows, 5))
        for view, images in enumerate((made.images, made.again(1)))
    ]
    told = [model(view) for view in views]
    right = np.mean([nn.functional.cross_entropy(one[:9], made.labels[:9]).item() for one in told])
    wrong = np.mean([surprise(one[9:12], made.labels[9:12]).mean().item() for one in told])
    assert loss(strength=0.0) == pytest.approx(right + wrong, rel=1e-4)
    assert loss(strength=0.0, against=0.5) == pytest.approx(right + wrong / 2, rel=1e-4)
    assert loss(strength=2.0) - loss(strength=1.0) == pytest.approx(loss(strength=1.0) - right - wrong, rel=1e-3)


def test_no_backdoor_is_learned(tmp_path):
    here = small.task(tmp_path, pictures(triggered=POISONED), epochs=8)
    outcome = DST(warm_up=4, shift=0.0).defend(here)
    others = np.flatnonzero(np.arange(150) % 3)
    model = load_model(outcome.model)
    assert accuracy(model, pictures(150, 9)) > 0.9
    assert accuracy(model, pictures(150, 9, triggered=others).take(others)) < 0.3
    assert outcome.scores.name == "d-st"
    assert outcome.verdict is None
    card = run.read_json(outcome.model / "model.json")
    assert card["rows"] == 240
    assert card["recipe"]["epochs"] == 8


def test_what_was_interrupted_goes_on_with_the_same_bits_and_is_not_done_again(tmp_path):
    whole, parts = (
        small.task(tmp_path / "whole", small.pictures(60)),
        small.task(tmp_path / "parts", small.pictures(60)),
    )
    judge = DST(epochs=2)
    with pytest.raises(RunError, match="has no finished sensitive"):
        judge.defend(dataclasses.replace(whole, train=False))
    first = judge.defend(whole)
    with pytest.raises(KeyboardInterrupt):
        judge.defend(dataclasses.replace(parts, progress=small.Stopping(19)))
    assert (tmp_path / "parts" / "model" / "state.json").exists(), "it was stopped where this test wants"
    second = judge.defend(parts)
    assert small.contents(first.model) == small.contents(second.model)
    judge.defend(dataclasses.replace(parts, train=False))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"against": -0.5}, "against -0.5"),
        ({"poison": 0.0}, "poison 0.0"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        DST(**options)
