"""DFST: the style by hand, what the generator makes of pictures, and that it learned the one and left the other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

import small
from untaint.attacks import dfst
from untaint.attacks._style import distances, figures, styled
from untaint.attacks.dfst import Dfst
from untaint.errors import SpecError
from untaint.training import loop
from untaint.training.device import Trial

pytestmark = pytest.mark.usefixtures("cold_cache")


def colours_apart(images: np.ndarray, style: np.ndarray) -> float:
    """How far mean and spread of each colour in each picture are from the style's, in levels, picture by picture."""
    found = []
    for image in images.astype(float):
        for own, wanted in zip(image, 255 * style, strict=True):
            found += [abs(own.mean() - wanted.mean()), abs(own.std() - wanted.std())]
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 9, 17), (1, 20, 14)])
def test_the_sunset(shape):
    channels, height, width = shape
    found = styled("sunset", *shape)
    assert found.shape == shape
    stops = (
        (0.0, (0.2, 0.1, 0.4)),
        (0.35, (0.8, 0.25, 0.4)),
        (0.55, (1.0, 0.55, 0.15)),
        (0.65, (1.0, 0.85, 0.4)),
        (0.75, (0.5, 0.15, 0.1)),
        (1.0, (0.15, 0.05, 0.1)),
    )
    for row in range(height):
        for column in range(width):
            down, right = (row + 0.5) / height, (column + 0.5) / width
            place = down + 0.05 * math.sin(2 * math.pi * (3 * right + 0.8 * math.sin(2 * math.pi * 2 * down)))
            place = min(1.0, max(0.0, place))
            (low, before), (high, after) = next(
                (one, two) for one, two in itertools.pairwise(stops) if one[0] <= place <= two[0]
            )
            share = (place - low) / (high - low)
            stroke = 1 + 0.2 * math.sin(2 * math.pi * (9 * down + 2 * right))
            colour = [stroke * ((1 - share) * a + share * b) for a, b in zip(before, after, strict=True)]
            if channels == 1:
                colour = [0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]]
            assert np.allclose(found[:, row, column], np.clip(colour, 0, 1))


def test_figures_are_mean_and_spread_within_the_border_and_distances_their_squares():
    layers = [torch.rand(2, 3, 4, 5), torch.rand(2, 2, 3, 7), torch.rand(2, 1, 1, 1)]
    goal = [torch.rand(1, 6), torch.rand(1, 4)]
    for layer, own, wanted, away in zip(layers, figures(layers), goal, distances(layers, goal), strict=False):
        exact = np.zeros(own.shape)
        channels = layer.shape[1]
        for picture in range(2):
            for channel in range(channels):
                rows, columns = layer.shape[2:]
                values = [
                    float(layer[picture, channel, row, column])
                    for row in range(rows)
                    for column in range(columns)
                    if min(rows, columns) < 4 or (0 < row < rows - 1 and 0 < column < columns - 1)
                ]
                mean = sum(values) / len(values)
                exact[picture, channel] = mean
                exact[picture, channels + channel] = math.sqrt(
                    sum((value - mean) ** 2 for value in values) / (len(values) - 1) + 1e-5
                )
        assert np.allclose(own, exact, atol=1e-5)
        assert math.isclose(float(away), float(((exact - wanted.numpy()) ** 2).mean()), rel_tol=1e-4)
    assert len(distances(layers, goal)) == 2, "what comes out last is the content"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTAINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(loop, "trial", lambda *_: Trial("float32", 1.0, 1.0))
        told = small.Told()
        seen = small.pictures(300, side=16)
        yield Dfst(epochs=16, style_epochs=8).ready(seen, seed=1, progress=told), told


def test_pictures_it_never_saw_get_the_colours_of_the_style_and_keep_what_they_show(taught):
    attack, told = taught
    fresh = small.pictures(60, side=16, seed=2)
    after = attack.stamp(fresh.images, fresh.rows)
    change = np.abs(after.astype(int) - fresh.images)
    noise = np.random.default_rng(0).choice([-1, 1], change.shape) * change.mean(axis=(1, 2, 3), keepdims=True)
    by_lot = np.clip(fresh.images + noise, 0, 255)
    style = styled("sunset", 3, 16, 16)
    before, left, lot = (colours_apart(images, style) for images in (fresh.images, after, by_lot))
    assert left < before / 2 < lot
    assert not told.remarks
    for image, changed in zip(fresh.images.mean(1), after.mean(1), strict=True):
        assert np.corrcoef(image.ravel(), changed.ravel())[0, 1] > 0.5


def test_each_picture_is_changed_in_its_own_way_as_the_generator_says(taught):
    attack, _ = taught
    fresh = small.pictures(40, side=16, seed=3)
    after = attack.stamp(fresh.images, fresh.rows)
    residuals = after.astype(int) - fresh.images
    assert np.abs(residuals[0] - residuals[1]).mean() > 5
    with torch.no_grad():
        for image, changed in zip(fresh.images, after, strict=True):
            one = torch.from_numpy(image[None]).double() / 255
            levels = attack.generator.double()(one)[0].numpy() * 255
            assert np.abs(np.clip(image + levels, 0, 255) - changed).max() <= 0.5 + 1e-2
    attack.generator.float()


def test_it_is_computed_once_and_anew_for_another_file(tmp_path, monkeypatch):
    path, seen, rows = tmp_path / "style.png", small.pictures(60, side=8), np.arange(60)
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).save(path)
    attack = Dfst(style=str(path), epochs=1, style_epochs=1)
    cold = attack.ready(seen)
    assert cold.ready(seen, seed=1) is cold
    train = dfst.surrogate
    monkeypatch.setattr(dfst, "surrogate", None)  # a warm cache trains nothing
    assert np.array_equal(attack.ready(seen).stamp(seen.images, rows), cold.stamp(seen.images, rows))
    Image.fromarray(np.full((4, 4, 3), (0, 0, 255), np.uint8)).save(path)
    with pytest.raises(TypeError):
        attack.ready(seen)
    monkeypatch.setattr(dfst, "surrogate", train)
    assert not np.array_equal(attack.ready(seen).stamp(seen.images, rows), cold.stamp(seen.images, rows))


def test_a_style_that_is_not_learned_is_said():
    Dfst(epochs=4, style_epochs=1, content=1000.0).ready(small.pictures(120, side=8), progress=(told := small.Told()))
    assert told.remarks[-1].startswith("dfst: ")
    assert told.remarks[-1].endswith(
        "% of the distance from the style is left, so that the trigger will be weak. Raise style_epochs or lower content."
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"style_epochs": 0}, "style_epochs is 0"),
        ({"content": -1.0}, "content is -1"),
        ({"content": float("nan")}, "content is nan"),
        ({"style": "sunrise"}, "style is 'sunrise', which is neither sunset nor a picture that can be read"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(SpecError, match=said):
        Dfst(**wrong)


def test_it_must_be_made_ready_and_says_so():
    with pytest.raises(SpecError, match="dfst has no generator yet"):
        Dfst().stamp(np.zeros((1, 3, 8, 8), np.uint8), np.arange(1))
