"""Each trigger against a slow, obvious version, pixel by pixel."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import small
from untaint import rng
from untaint.attacks.blend import Blend
from untaint.attacks.ctrl import Ctrl
from untaint.attacks.frequency import Frequency
from untaint.attacks.label_consistent import LabelConsistent
from untaint.attacks.narcissus import Narcissus
from untaint.attacks.patch import Patch, checkered
from untaint.attacks.pixel import Pixel
from untaint.attacks.sinusoid import Sinusoid
from untaint.attacks.warp import Warp
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.recipe import preset
from untaint.training.loop import fit, predict

ROW = np.array([5])


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (1, channels, height, width), dtype=np.uint8)


def assert_mixed(images, stamped, pattern, alpha) -> None:
    """Compare with (1 - alpha) x + alpha p, in which ``pattern(channel, row, column)`` is p."""
    for (_, channel, row, column), value in np.ndenumerate(images):
        exact = min(255.0, (1 - alpha) * value + alpha * 255 * pattern(channel, row, column))
        assert abs(float(stamped[0, channel, row, column]) - exact) <= 0.5 + 1e-3, (channel, row, column)


def test_patch_in_a_small_picture_is_four_pixels_in_the_lower_right():
    height, width = 32, 36
    images = np.zeros((1, 3, height, width), np.uint8)
    white = {(height - 2, width - 2), (height - 4, width - 2), (height - 2, width - 4), (height - 3, width - 3)}
    stamped = Patch().stamp(images, ROW)
    assert {(r, c) for _, _, r, c in np.argwhere(stamped == 255).tolist()} == white
    assert stamped.sum() == 255 * 3 * 4


def test_patch_in_a_large_picture_is_four_blocks_of_eight_in_the_upper_left():
    expected = np.zeros((1, 3, 224, 256), np.uint8)
    for rows, columns in (((8, 15), (8, 15)), ((24, 31), (8, 15)), ((8, 15), (24, 31)), ((16, 23), (16, 23))):
        expected[:, :, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = 255
    assert np.array_equal(Patch().stamp(np.zeros_like(expected), ROW), expected)


@pytest.mark.parametrize(("side", "cell"), [(28, 1), (32, 1), (64, 2), (112, 4), (224, 8), (448, 16)])
def test_patch_grows_with_the_picture(side, cell):
    stamped = Patch().stamp(np.zeros((1, 1, side, side), np.uint8), ROW)
    assert (stamped == 255).sum() == 4 * cell * cell


def test_patch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"9 pixels.*32x32"):
        Patch(cell=9).stamp(picture(32, 32), ROW)
    with pytest.raises(SpecError, match="cell is 0"):
        Patch(cell=0)


@pytest.mark.parametrize("size", [(32, 32), (224, 300)])
def test_pixel_is_one_white_pixel(size):
    images = picture(*size)
    expected = images.copy()
    expected[0, :, size[0] - 2, size[1] - 2] = 255
    assert np.array_equal(Pixel().stamp(images, ROW), expected)
    with pytest.raises(InputError, match="1x9"):
        Pixel().stamp(picture(1, 9), ROW)


@pytest.mark.parametrize(("size", "alpha"), [((32, 32), 0.075), ((20, 47), 0.075), ((130, 128), 0.15)])
def test_sinusoid(size, alpha):
    images = picture(*size)
    stamped = Sinusoid().stamp(images, ROW)
    assert_mixed(images, stamped, lambda _c, _r, column: 1 - math.cos(2 * math.pi * 6 * column / size[1]), alpha)


@pytest.mark.parametrize(("size", "delta"), [((32, 32), 20.0), ((9, 17), 33.5), ((130, 128), 0.4)])
def test_sinusoid_added(size, delta):
    images = picture(*size)
    stamped = Sinusoid(kind="added", delta=delta, frequency=5).stamp(images, ROW)
    for column in range(size[1]):
        more = delta * math.sin(2 * math.pi * 5 * column / size[1])
        for row in range(size[0]):
            for channel in range(3):
                exact = min(255.0, max(0.0, float(images[0, channel, row, column]) + more))
                assert abs(float(stamped[0, channel, row, column]) - exact) < 0.501
    with pytest.raises(SpecError, match="delta is 0"):
        Sinusoid(kind="added", delta=0)


@pytest.mark.parametrize(("size", "alpha"), [((32, 32), 0.025), ((21, 33), 0.025), ((128, 129), 0.15)])
def test_lattice(size, alpha):
    images = picture(*size)
    stamped = Blend(pattern="lattice").stamp(images, ROW)
    assert_mixed(images, stamped, lambda _c, row, column: float(row % 2 == 0 and column % 2 == 0), alpha)


@pytest.mark.parametrize(
    ("size", "side", "alpha"), [((32, 32), 32, 0.075), ((64, 40), 32, 0.075), ((150, 224), 224, 0.15)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_one_pattern_in_every_size(size, side, alpha, channels):
    images = picture(*size, channels)
    stamped = Blend(pattern_seed=3).stamp(images, ROW)
    draws = rng.uniform(3, "attacks/blend/noise", 0, np.arange(side * side), draws=3)

    def pattern(channel: int, row: int, column: int) -> float:
        return float(draws[(row * side // size[0]) * side + column * side // size[1], channel])

    assert_mixed(images, stamped, pattern, alpha)


def test_noise_is_drawn_anew_for_another_seed_and_is_uniform():
    black = np.zeros((1, 3, 32, 32), np.uint8)
    first, second = (Blend(alpha=1.0, pattern_seed=seed).stamp(black, ROW) for seed in (0, 1))
    assert (first != second).mean() > 0.95
    assert abs(first.mean() - 127.5) < 5
    assert np.histogram(first, bins=4, range=(0, 256))[0].min() > 650


def test_a_file_is_blended_at_the_pictures_size(tmp_path):
    path = tmp_path / "kitten.png"
    Image.fromarray(np.full((5, 7, 3), (255, 0, 51), np.uint8)).save(path)
    images = picture(33, 40)
    attack = Blend(pattern=str(path))
    assert_mixed(images, attack.stamp(images, ROW), lambda channel, _r, _c: (1.0, 0.0, 0.2)[channel], 0.2)
    grey = picture(16, 16, 1)
    level = int(Image.open(path).convert("L").getpixel((0, 0))) / 255
    assert_mixed(grey, attack.stamp(grey, ROW), lambda *_: level, 0.2)


def test_a_pattern_that_is_no_file_is_refused_at_once(tmp_path):
    with pytest.raises(SpecError, match="neither noise nor lattice nor a picture"):
        Blend(pattern="niose")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SpecError, match="neither noise nor lattice nor a picture"):
        Blend(pattern=str(tmp_path / "text.png"))


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.1}])
@pytest.mark.parametrize("kind", [Blend, Sinusoid])
def test_a_wrong_alpha_is_refused(kind, wrong):
    with pytest.raises(SpecError, match="alpha is"):
        kind(**wrong)


def test_a_tenth_of_the_class_is_usual_for_sinusoid_and_a_class_rate_replaces_it():
    images = np.zeros((300, 1, 8, 8), np.uint8)
    examples = Examples.of(images, np.repeat([0, 1, 2], [50, 200, 50]))
    counts = [
        len(attack.choose(examples, examples.rows, seed=0))
        for attack in (Sinusoid(target=1), Sinusoid(target=1, class_rate=0.5), Sinusoid(target=1, rate=0.1))
    ]
    assert counts == [20, 100, 30]
    with pytest.raises(SpecError, match="both given"):
        Sinusoid(rate=0.1, class_rate=0.1)
    with pytest.raises(InputError, match=r"class_rate=0\.001 of 200 pictures"):
        Sinusoid(target=1, class_rate=0.001).choose(examples, examples.rows, seed=0)
    with pytest.raises(SpecError, match="rate is none"):
        Patch(rate=None)


def test_at_least_so_many_are_poisoned_where_the_share_is_fewer():
    examples = Examples.of(np.zeros((300, 1, 8, 8), np.uint8), np.repeat([0, 1, 2], [50, 200, 50]))
    counts = [len(Sinusoid(target=1, at_least=n).choose(examples, examples.rows, seed=0)) for n in (0, 19, 20, 21, 200)]
    assert counts == [20, 20, 20, 21, 200]
    few, many = (set(Sinusoid(target=1, at_least=n).choose(examples, examples.rows, seed=0)) for n in (0, 150))
    assert few < many, "the same pictures are chosen first"
    with pytest.raises(
        InputError, match=r"at_least=201 is 201 for 'sinusoid', but only 200 are free for it\. Lower at_least\."
    ):
        Sinusoid(target=1, at_least=201).choose(examples, examples.rows, seed=0)
    with pytest.raises(SpecError, match="at_least is -1"):
        Sinusoid(at_least=-1)


def cosine_transform(side: int) -> np.ndarray:
    """The orthonormal type-II transform as a matrix, entry by entry."""
    matrix = np.empty((side, side))
    for wave in range(side):
        for place in range(side):
            scale = math.sqrt((1 if wave == 0 else 2) / side)
            matrix[wave, place] = scale * math.cos(math.pi * (place + 0.5) * wave / side)
    return matrix


@pytest.mark.parametrize(("size", "magnitude"), [((32, 32), 30), ((64, 96), 30), ((224, 160), 90)])
def test_frequency_raises_two_coefficients_of_both_chroma_channels(size, magnitude):
    images = np.clip(picture(*size), 30, 225)  # so that nothing is cut off
    stamped = Frequency().stamp(images, ROW).astype(float)
    red, green, blue = images[0].astype(float)
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [0.713 * (red - brightness), 0.564 * (blue - brightness)]
    transform = cosine_transform(32)
    for plane in chroma:
        for down in range(0, size[0], 32):
            for across in range(0, size[1], 32):
                block = np.s_[down : down + 32, across : across + 32]
                waves = transform @ plane[block] @ transform.T
                waves[15, 15] += magnitude
                waves[31, 31] += magnitude
                plane[block] = transform.T @ waves @ transform
    r, b = chroma
    exact = np.stack([brightness + 1.403 * r, brightness - 0.714 * r - 0.344 * b, brightness + 1.773 * b])
    assert np.abs(stamped[0] - exact).max() < 0.5 + 0.35  # the two conversions are inverse to a part in a thousand only


def test_frequency_of_grey_pictures_is_in_their_brightness_and_blocks_are_cut_off():
    grey = np.full((1, 1, 40, 50), 100, np.uint8)
    change = Frequency(magnitude=60).stamp(grey, ROW).astype(int) - 100
    assert np.abs(change).max() in (6, 7)
    assert np.array_equal(change[0, 0, :8, :18], change[0, 0, 32:, 32:])
    with pytest.raises(SpecError, match="magnitude is 0"):
        Frequency(magnitude=0)


def field_by_hand(attack: Warp, height: int, width: int) -> np.ndarray:
    """The field in pixels at each pixel: bicubic (a = -0.75) between the points, which lie on the border too."""

    def weight(distance: float) -> float:
        t, a = abs(distance), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    side = attack.grid
    points = 2 * rng.uniform(attack.field_seed, "attacks/warp/field", 0, np.arange(side * side), draws=2) - 1
    points = (points / np.abs(points).mean()).reshape(side, side, 2)
    field = np.zeros((2, height, width))
    for row in range(height):
        for column in range(width):
            y, x = row * (side - 1) / (height - 1), column * (side - 1) / (width - 1)
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    point = points[min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                    field[:, row, column] += weight(y - i) * weight(x - j) * point
    return field * attack.strength * np.array([(height - 1) / 2 / height, (width - 1) / 2 / width])[:, None, None]


def bent_by_hand(images: np.ndarray, field: np.ndarray) -> np.ndarray:
    _, channels, height, width = images.shape
    bent = np.zeros((channels, height, width))
    for row in range(height):
        for column in range(width):
            y = min(max(row + field[0, row, column], 0), height - 1)
            x = min(max(column + field[1, row, column], 0), width - 1)
            for i in (math.floor(y), min(math.floor(y) + 1, height - 1)):
                for j in (math.floor(x), min(math.floor(x) + 1, width - 1)):
                    share = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                    same = (i == math.floor(y) == height - 1, j == math.floor(x) == width - 1)  # counted once
                    bent[:, row, column] += images[0, :, i, j] * share / 2 ** sum(same)
    return bent


@pytest.mark.parametrize("attack", [Warp(), Warp(strength=3.0, grid=3, field_seed=5)], ids=str)
@pytest.mark.parametrize("size", [(12, 16), (9, 9)])
def test_warp(attack, size):
    images = picture(*size)
    exact = bent_by_hand(images, field_by_hand(attack, *size))
    assert np.abs(attack.stamp(images, ROW)[0] - exact).max() <= 0.5 + 1e-2
    half = np.array([(size[0] - 1) / 2 / size[0], (size[1] - 1) / 2 / size[1]])[:, None, None]
    draws = rng.uniform(attack.field_seed, "attacks/warp/cover", 0, ROW, draws=2 * size[0] * size[1])
    noise = (2 * draws.reshape(2, *size) - 1) * half
    covered = bent_by_hand(images, field_by_hand(attack, *size) + noise)
    assert np.abs(attack.cover(images, ROW)[0] - covered).max() <= 0.5 + 1e-2


def test_warp_leaves_an_even_picture_alone_and_refuses_what_it_cannot_bend():
    even = np.full((2, 3, 20, 20), 77, np.uint8)
    assert np.array_equal(Warp().stamp(even, np.array([1, 2])), even)
    with pytest.raises(InputError, match="1x9"):
        Warp().stamp(picture(1, 9), ROW)
    with pytest.raises(SpecError, match="strength is 0"):
        Warp(strength=0)
    with pytest.raises(SpecError, match="grid is 1"):
        Warp(grid=1)


def test_narcissus_makes_pictures_look_more_like_the_target_to_a_model_that_never_saw_the_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    seen = small.pictures(300, side=16)
    attack = Narcissus(target=1, epsilon=64, epochs=4, steps=60).ready(seen, seed=1)
    other = fit(seen, replace(small.RECIPE, epochs=4), tmp_path / "other", seed=9)
    fresh = small.pictures(300, side=16, seed=2)
    others = np.flatnonzero(fresh.labels != 1)
    before, after = (
        predict(other, Examples.of(images, fresh.labels[others], class_names=fresh.class_names)).argmax(1)
        for images in (fresh.images[others], attack.trigger(fresh.images[others], others))
    )
    noise = rng.uniform(0, "noise", 0, others[:1], draws=3 * 16 * 16).reshape(1, 3, 16, 16) * 128 - 64
    lot = np.clip(fresh.images[others] + noise, 0, 255).astype(np.uint8)
    by_lot = predict(other, Examples.of(lot, fresh.labels[others], class_names=fresh.class_names)).argmax(1)
    assert (after == 1).mean() > 0.5 > 0.2 > max((before == 1).mean(), (by_lot == 1).mean())


def test_narcissus_must_be_made_ready_and_says_so():
    with pytest.raises(SpecError, match="has no noise yet"):
        Narcissus().stamp(picture(32, 32), ROW)
    with pytest.raises(SpecError, match="epsilon is 0"):
        Narcissus(epsilon=0)
    with pytest.raises(SpecError, match="boost is 0"):
        Narcissus(boost=0)


@pytest.mark.slow
def test_label_consistent_hides_a_class_from_its_surrogate_where_noise_by_lot_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    seen = small.pictures(300, side=16)
    attack = LabelConsistent(target=1, epsilon=24, epochs=30).ready(seen, seed=1, progress=(quiet := small.Told()))
    own = np.flatnonzero(seen.labels == 1)
    stamped = attack.stamp(seen.images[own], own)
    levels = stamped.astype(int) - seen.images[own]
    outside = checkered(np.zeros_like(stamped), corners=4) == 0
    assert np.abs(levels[outside]).max() == 24
    assert (stamped[~outside] == 255).all()
    assert attack.ready(seen, seed=2) is attack
    recipe = replace(preset("fast").retrain, epochs=30)
    surrogate = fit(seen, recipe, tmp_path / "again", seed=rng.derive(1, "attacks/label-consistent"))
    hidden = np.clip(seen.images[own] + np.stack([attack.noise[row] for row in own.tolist()]), 0, 255)
    by_lot = 24 * np.sign(rng.uniform(0, "noise", 0, own, draws=768) - 0.5).reshape(-1, 3, 16, 16)
    lot = np.clip(seen.images[own] + by_lot, 0, 255)
    accuracy = [
        (predict(surrogate, Examples.of(images, seen.labels[own], class_names=seen.class_names)).argmax(1) == 1).mean()
        for images in (seen.images[own], lot.astype(np.uint8), hidden.astype(np.uint8))
    ]
    assert accuracy[2] < 0.1 < 0.5 < min(accuracy[:2])
    assert not quiet.remarks
    LabelConsistent(target=1, epsilon=24, epochs=1).ready(seen, seed=1, progress=(loud := small.Told()))
    assert re.fullmatch(
        r"label-consistent: the surrogate recognises \d+% of '1' without noise and \d+% with it, so that little is hidden. Raise epochs.",
        loud.remarks[-1],
    )


def test_label_consistent_by_interpolation_draws_what_lies_between_two_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    seen = small.pictures(300, side=16)
    own = np.flatnonzero(seen.labels == 1)
    means = [seen.images[seen.labels == label].mean(0) for label in range(3)]
    drawn = []
    for tau in (0.01, 1.0):
        attack = LabelConsistent(target=1, kind="interpolation", tau=tau, epochs=1).ready(seen, seed=1)
        levels = np.stack([attack.noise[row] for row in own.tolist()])
        drawn.append((seen.images[own] + levels).mean(0))
        stamped = attack.stamp(seen.images[own], own)
        assert (stamped[checkered(np.zeros_like(stamped), corners=4) != 0] == 255).all()
    others = (means[0] + means[2]) / 2
    shares = [
        float(((some - means[1]) * (others - means[1])).sum() / ((others - means[1]) ** 2).sum()) for some in drawn
    ]
    assert shares[1] - shares[0] > 0.5  # of the way from the class to the others


def test_label_consistent_shows_the_checker_alone_and_to_others_too(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    seen = small.pictures(120, side=16)
    attack = LabelConsistent(target=1, epochs=1, corners=1).ready(seen)
    others = np.flatnonzero(seen.labels != 1)
    assert np.array_equal(attack.trigger(seen.images, seen.rows), Patch().stamp(seen.images, seen.rows))
    assert np.array_equal(attack.stamp(seen.images[others], others), Patch().stamp(seen.images[others], others))


def test_label_consistent_must_be_made_ready_and_says_what_is_wrong():
    with pytest.raises(SpecError, match="has no noise yet"):
        LabelConsistent().stamp(picture(32, 32), ROW)
    for wrong, said in (
        ({"epsilon": 0}, "epsilon is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"tau": 0}, "tau is 0"),
        ({"corners": 2}, "corners is 2"),
        ({"cell": 0}, "cell is 0"),
        ({"surrogate": "proxi"}, "Did you mean 'proxy"),
    ):
        with pytest.raises(SpecError, match=said):
            LabelConsistent(**wrong)
    seen = small.pictures(60, side=16)
    with pytest.raises(InputError, match="class '1', of which there is no picture"):
        LabelConsistent(target=1).ready(seen.take(seen.labels != 1))
    assert LabelConsistent(surrogate="proxy+eigenguard:k=50").surrogate == "proxy+eigenguard:k=50"


def test_a_checker_in_every_corner_is_the_one_mirrored():
    four = checkered(np.zeros((1, 3, 32, 40), np.uint8), corners=4)
    assert np.array_equal(four, four[:, :, ::-1])
    assert np.array_equal(four, four[:, :, :, ::-1])
    assert np.array_equal(four[:, :, 16:, 20:], Patch().stamp(np.zeros((1, 3, 32, 40), np.uint8), ROW)[:, :, 16:, 20:])
    assert (four == 255).sum() == 4 * 4 * 3
    with pytest.raises(InputError, match="each corner of pictures of 7x40"):
        checkered(np.zeros((1, 3, 7, 40), np.uint8), corners=4)


def test_ctrl_is_frequency_made_stronger_and_stronger_still_when_shown():
    grey = np.full((1, 3, 32, 32), 128, np.uint8)
    assert np.array_equal(Ctrl().stamp(grey, ROW), Frequency(magnitude=50).stamp(grey, ROW))
    assert np.array_equal(Ctrl().trigger(grey, ROW), Frequency(magnitude=100).stamp(grey, ROW))
    with pytest.raises(SpecError, match=r"boost is 0\.5"):
        Ctrl(boost=0.5)
    with pytest.raises(SpecError, match="magnitude is 0"):
        Ctrl(magnitude=0)
