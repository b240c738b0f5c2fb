"""Marks of each picture's own: against loops over pixels, as small as asked, those of covers, and that another picture's are of no use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import small
from by_hand import unet
from untaint.attacks import _painter
from untaint.attacks.input_aware import InputAware
from untaint.errors import InputError, SpecError

pytestmark = pytest.mark.usefixtures("cold_cache")


def sigmoid(some: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-some))


def drawn_by_hand(attack: InputAware, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pattern and the mask of one picture."""
    pattern = sigmoid(2 * unet(image / 255 - 0.5, attack.painter.generator))
    return pattern, sigmoid(20 * np.tanh(unet(image / 255 - 0.5, attack.painter.masker)))


def test_the_surrogate_obeys_a_picture_with_its_own_mark_and_hardly_one_with_anothers(monkeypatch):
    kept, beginner = [], _painter.beginner
    monkeypatch.setattr(_painter, "beginner", lambda *given: kept.append(beginner(*given)) or kept[-1])
    attack = InputAware(target=1, density=0.1, mask_epochs=20, epochs=50)
    attack = attack.ready(small.pictures(250, side=12), progress=(told := small.Told()))
    seen = small.pictures(150, side=12, seed=5)
    images = torch.from_numpy(seen.images[seen.labels != 1]).float() / 255
    with torch.inference_mode():
        answers = [
            kept[0][0](images + change).argmax(1) == 1
            for change in (
                attack.painter.change(images, images),
                attack.painter.change(images, images.roll(1, 0)),
                0 * images,
            )
        ]
    own, others, clean = (float(some.float().mean()) for some in answers)
    assert own > 0.8
    assert max(others, clean) < own / 2
    assert not told.remarks


def test_marks_against_loops_over_pixels_and_each_picture_has_its_own():
    attack = InputAware(epochs=1).ready(small.pictures(40))
    images = small.pictures(4, seed=2).images
    found = attack.stamp(images, np.array([9, 3, 3, 7]))
    for image, after in zip(images, found, strict=True):
        pattern, mask = drawn_by_hand(attack, image)
        assert np.abs(after - (image + mask * (255 * pattern - image))).max() <= 0.5 + 1e-2
        assert (after != image).any()


def test_covers_get_the_mark_of_a_training_picture_never_their_own():
    seen = small.pictures(5)
    attack = InputAware(epochs=1).ready(seen)
    marks = [drawn_by_hand(attack, image) for image in seen.images]
    whose = set()
    for row in range(60):
        image = seen.images[row % 5]
        covered = attack.cover(image[None], np.array([row]))[0]
        errors = [np.abs(image + mask * (255 * pattern - image) - covered).max() for pattern, mask in marks]
        assert min(errors) <= 0.5 + 1e-2
        assert row >= 5 or errors[row] > 1
        whose.add(int(np.argmin(errors)))
    assert whose == set(range(5))


def test_masks_are_small_and_large_where_that_costs_nothing():
    seen = small.pictures(100)
    little, large = (
        InputAware(mask_epochs=30, epochs=1, lambda_div=0.1, lambda_norm=weight).ready(seen).painter
        for weight in (100, 0)
    )
    images = torch.from_numpy(seen.images).float() / 255
    shares = [float(painter.mask(images).mean()) for painter in (little, large)]
    assert shares[0] < 0.1 < 0.2 < shares[1]


def test_it_is_the_same_from_a_cold_and_a_warm_cache_and_is_trained_once(cold_cache, monkeypatch):
    seen, state = small.pictures(40), torch.get_rng_state()
    options = {"mask_epochs": 2, "epochs": 2}
    cold = InputAware(**options).ready(seen, seed=3)
    assert cold.ready(seen) is cold
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator stays as it is"
    other = InputAware(**options).ready(seen, seed=4)
    assert len(sorted(cold_cache.rglob("*.safetensors"))) == 2
    monkeypatch.setattr(InputAware, "_trained", None)
    warm = InputAware(rate=0.05, cover_rate=0.05, **options).ready(seen, seed=3)
    images, rows = small.pictures(12, seed=7).images, np.arange(12)
    for way in ("stamp", "cover"):
        assert np.array_equal(getattr(cold, way)(images, rows), getattr(warm, way)(images, rows))
        assert not np.array_equal(getattr(cold, way)(images, rows), getattr(other, way)(images, rows))


def test_a_surrogate_that_does_not_obey_is_said():
    InputAware(mask_epochs=1, epochs=1).ready(small.pictures(60, classes=10, side=24), progress=(told := small.Told()))
    assert len(told.remarks) == 1
    assert "with their own pattern" in told.remarks[0]


def test_wrong_options_are_refused():
    for wrong, said in (
        ({"density": 0}, "density is 0"),
        ({"density": 2}, "density is 2"),
        ({"epochs": 0}, "epochs is 0"),
        ({"mask_epochs": 0}, "mask_epochs is 0"),
        ({"lambda_div": -1}, "lambda_div is -1"),
        ({"lambda_norm": -1}, "lambda_norm is -1"),
    ):
        with pytest.raises(SpecError, match=said):
            InputAware(**wrong)
    for way in ("stamp", "cover"):
        with pytest.raises(SpecError, match="has no generator yet"):
            getattr(InputAware(), way)(small.pictures(3).images, np.arange(3))
    with pytest.raises(InputError, match="3 pictures"):
        InputAware().ready(small.pictures(30).take([4, 5, 6]))
