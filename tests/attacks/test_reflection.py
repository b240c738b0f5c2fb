"""Reflection: the light of two pictures added up, against versions that go from pixel to pixel."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from PIL import Image

import small
from untaint import rng
from untaint.attacks.reflection import Reflection
from untaint.errors import SpecError
from untaint.examples import Examples

ROWS = np.array([5, 2, 9])


def pictures(height: int, width: int, channels: int = 3, count: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def examples(height: int = 12, width: int = 12, channels: int = 3, count: int = 40) -> Examples:
    return Examples.of(pictures(height, width, channels, count), np.arange(count) % 4)


def reflected(attack: Reflection, row: int, seed: int) -> int:
    return int(rng.uniform(seed, "attacks/reflection/which", 0, np.array([row]))[0, 0] * len(attack.drawn))


def drawn_how(number: int, seed: int) -> list[float]:
    return rng.uniform(seed, "attacks/reflection/how", 0, np.array([number]), draws=6)[0].tolist()


def light(levels: np.ndarray) -> np.ndarray:
    return (levels / 255) ** 2.2


def assert_mixed(picture, stamped, reflection, strength) -> None:
    """Compare with what the light of both, ``reflection`` given as light, is in levels."""
    for (channel, row, column), value in np.ndenumerate(picture):
        both = (1 - strength) * (value / 255) ** 2.2 + strength * reflection[channel, row, column]
        assert abs(stamped[channel, row, column] - 255 * both ** (1 / 2.2)) <= 0.5 + 0.02, (channel, row, column)


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in picture]
    return np.stack([np.asarray(plane) for plane in planes])


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_in_focus_the_light_of_a_training_picture_is_added(strength):
    attack = Reflection(kind="in-focus", strength=strength, count=5).ready(examples(), seed=3)
    images = pictures(12, 12)
    for picture, stamped, row in zip(images, attack.stamp(images, ROWS), ROWS.tolist(), strict=True):
        assert_mixed(picture, stamped, light(attack.drawn[reflected(attack, row, 3)]), strength)


def test_out_of_focus_it_is_blurred():
    attack = Reflection(kind="out-of-focus", count=5).ready(examples(), seed=3)
    images, size = pictures(12, 12), 12
    for picture, stamped, row in zip(images, attack.stamp(images, ROWS), ROWS.tolist(), strict=True):
        number = reflected(attack, row, 3)
        blur = (1 + 4 * drawn_how(number, 3)[1]) * size / 32
        source, blurred, reach = light(attack.drawn[number]), np.zeros((3, size, size)), math.floor(4 * blur + 0.5)
        weights = [math.exp(-((step / blur) ** 2) / 2) for step in range(-reach, reach + 1)]
        there_and_back = [*range(size), *range(size - 2, 0, -1)]  # beyond its border the picture is mirrored
        mirror = [there_and_back[place % len(there_and_back)] for place in range(-reach, size + reach)]
        for y in range(size):
            for x in range(size):
                for i, down in enumerate(weights):
                    for j, across in enumerate(weights):
                        blurred[:, y, x] += down * across * source[:, mirror[y + i], mirror[x + j]]
        assert_mixed(picture, stamped, blurred / sum(weights) ** 2, 0.6)


@pytest.mark.parametrize("size", [(12, 12), (40, 33)])
def test_a_ghost_is_seen_twice_a_little_apart(size):
    attack = Reflection(kind="ghost", count=5).ready(examples(*size), seed=3)
    images, scale = pictures(*size), min(1, min(size) / 32)
    for picture, stamped, row in zip(images, attack.stamp(images, ROWS), ROWS.tolist(), strict=True):
        number = reflected(attack, row, 3)
        _, _, *apart, nearer, which = drawn_how(number, 3)
        down, right = (max(1, round(scale * (3 + math.floor(6 * draw)))) for draw in apart)
        assert 1 <= down <= 8
        share = 0.15 + 0.35 * nearer
        if which >= 0.5:
            share = 1 - share
        whole = light(resized(attack.drawn[number], size[0] + down, size[1] + right))
        twice = np.empty(picture.shape)
        for y in range(size[0]):
            for x in range(size[1]):
                twice[:, y, x] = share * whole[:, y + down, x + right] + (1 - share) * whole[:, y, x]
        assert_mixed(picture, stamped, twice, 0.6)


def test_of_mixed_ones_about_half_are_ghosts_and_the_rest_out_of_focus():
    clean, images, rows = examples(count=400), pictures(12, 12, count=400), np.arange(400)
    kinds = {}
    for kind in ("mixed", "ghost", "out-of-focus"):
        kinds[kind] = Reflection(kind=kind, count=300).ready(clean).stamp(images, rows)
    ghost, blurred = ((kinds["mixed"] == kinds[kind]).all((1, 2, 3)) for kind in ("ghost", "out-of-focus"))
    assert (ghost ^ blurred).all()
    assert 0.4 < ghost.mean() < 0.6
    for rate, kind in ((0.0, "out-of-focus"), (1.0, "ghost")):
        stamped = Reflection(ghost_rate=rate, count=300).ready(clean).stamp(images, rows)
        assert np.array_equal(stamped, kinds[kind])


def test_a_row_draws_its_reflection_and_all_are_used():
    attack = Reflection(kind="in-focus", strength=1.0, count=10).ready(examples())
    images, rows = np.zeros((500, 3, 12, 12), np.uint8), np.arange(1000, 1500)
    stamped = attack.stamp(images, rows)
    assert np.array_equal(attack.stamp(images[:7], rows[::-1][:7]), stamped[::-1][:7])
    found, counts = np.unique(stamped.reshape(500, -1), axis=0, return_counts=True)
    assert len(found) == 10
    assert counts.min() > 25
    assert sorted(map(bytes, found)) == sorted(map(bytes, attack.drawn)), "alone it is the picture itself"


def test_reflections_are_pictures_of_other_classes_drawn_by_the_seed():
    clean = examples()
    white = np.array(clean.images)
    white[clean.labels == 2] = 255
    clean = Examples.of(white, clean.labels)
    first, second = (Reflection(target=2, count=25).ready(clean, seed=seed) for seed in (0, 1))
    assert len(first.drawn) == 25
    assert not (first.drawn == 255).all((1, 2, 3)).any()
    assert not np.array_equal(first.drawn, second.drawn)
    assert first.ready(clean, seed=1) is first
    few = Reflection(target=2, count=50).ready(clean.take(range(8)))
    assert len(few.drawn) == 6, "as many as there are"
    assert (Reflection(target=2).ready(clean.take(clean.labels == 2)).drawn == 255).all(), "if there is none else"


@pytest.mark.parametrize(("made", "shown"), [(3, 1), (1, 3)])
def test_grey_pictures_have_grey_reflections_and_reflections_may_be_grey(made, shown):
    attack = Reflection(kind="in-focus", count=5).ready(examples(channels=made), seed=3)
    images = pictures(12, 12, shown)
    for picture, stamped, row in zip(images, attack.stamp(images, ROWS), ROWS.tolist(), strict=True):
        grey = light(attack.drawn[reflected(attack, row, 3)]).mean(0)
        assert_mixed(picture, stamped, np.stack([grey] * shown), 0.6)


def test_a_folder_of_pictures_of_any_size_is_reflected_instead(tmp_path):
    levels = {"red.png": (200, 0, 0), "deeper/green.jpg": (0, 200, 0), "blue.bmp": (0, 0, 200)}
    for name, colour in levels.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30 + len(name), 500), colour).save(tmp_path / name, quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    attack = Reflection(folder=str(tmp_path), strength=1.0).ready(examples())
    assert len(attack.drawn) == 3
    stamped = attack.stamp(np.zeros((60, 3, 20, 31), np.uint8), np.arange(60))
    assert np.ptp(stamped.astype(int), axis=(2, 3)).max() <= 1, "blurred or doubled, one colour stays one"
    for colour in levels.values():
        assert (np.abs(stamped[:, :, 0, 0].astype(int) - colour).max(1) <= 2).any()
    assert len(Reflection(folder=str(tmp_path), count=2).ready(examples()).drawn) == 2


def test_a_folder_without_pictures_or_with_damaged_ones_is_refused(tmp_path):
    with pytest.raises(SpecError, match="which is no folder"):
        Reflection(folder=str(tmp_path / "missing"))
    with pytest.raises(SpecError, match=r"no picture can be read \(there is none\)"):
        Reflection(folder=str(tmp_path)).ready(examples())
    (tmp_path / "damaged.png").write_text("no picture")
    with pytest.raises(SpecError, match=r"no picture can be read \('damaged.png': it is no picture"):
        Reflection(folder=str(tmp_path)).ready(examples())


def test_damaged_pictures_among_others_are_named_and_not_used(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_text("no picture")
        Image.new("RGB", (9, 9), (200, 10 * number, 0)).save(tmp_path / f"good{number}.png")
    made = [Reflection(folder=str(tmp_path), count=5).ready(examples(), progress=(told := small.Told())) for _ in "ab"]
    assert len(made[0].drawn) == 5
    assert made[0].drawn[:, 0].min() == 200
    assert np.array_equal(made[0].drawn, made[1].drawn)
    assert len(told.remarks) == 1
    assert re.match(
        r"reflection: \d pictures in .* cannot be read and are not used, first '\d.png': it is no", told.remarks[0]
    )


def test_it_must_be_made_ready_and_says_what_is_wrong():
    with pytest.raises(SpecError, match=r"has no reflections yet\. Compute it first"):
        Reflection().stamp(pictures(12, 12), ROWS)
    for wrong, said in (
        ({"kind": "sharp"}, "kind is 'sharp'; give mixed, in-focus, out-of-focus or ghost"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"ghost_rate": -0.1}, "ghost_rate is -0.1"),
        ({"count": 0}, "count is 0"),
    ):
        with pytest.raises(SpecError, match=said):
            Reflection(**wrong)
