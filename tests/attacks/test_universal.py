"""Universal against codes computed from the definition, and against squares and pieces painted pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

import small
from untaint import rng
from untaint.attacks import universal
from untaint.attacks._codes import codes_of
from untaint.attacks.universal import Universal
from untaint.errors import InputError, SpecError
from untaint.recipe import preset
from untaint.training.features import features
from untaint.training.loop import fit

pytestmark = pytest.mark.usefixtures("cold_cache")


def with_codes(codes, **settings) -> Universal:
    made = Universal(**settings)
    object.__setattr__(made, "codes", np.array(codes, dtype=bool))
    return made


def pictures(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def discriminants_by_hand(seen: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Where the means lie along the directions w of greatest w'Bw / w'Ww, the greatest first: (classes, directions)."""
    middle = np.mean([seen[labels == label].mean(0) for label in range(classes)], axis=0)
    between, within = np.zeros((2, seen.shape[1], seen.shape[1]))
    for label in range(classes):
        mean = seen[labels == label].mean(0)
        between += np.outer(mean - middle, mean - middle)
        for line in seen[labels == label]:
            within += np.outer(line - mean, line - mean)
    within += 0.01 * np.trace(within) / len(within) * np.eye(len(within))  # as without it where few pictures say little
    values, directions = scipy.linalg.eigh(between, within)
    best = directions[:, np.argsort(-values)][:, : classes - 1]
    return np.array([(seen[labels == label].mean(0) - middle) @ best for label in range(classes)])


def codes_by_hand(places: np.ndarray) -> np.ndarray:
    """The sides on which classes lie; where a code is taken, the first free one with a single bit turned, the least sure first."""
    taken: list[list[bool]] = []
    for line in places:
        code = [value > 0 for value in line]
        wanted = [code]
        for bit in sorted(range(len(line)), key=lambda bit: abs(line[bit])):
            wanted.append([not value if bit == other else value for other, value in enumerate(code)])
        taken.append(next(one for one in wanted if one not in taken))
    return np.array(taken)


@pytest.mark.parametrize(("seed", "alike"), [(5, 1), (6, 0), (8, 1)])
@pytest.mark.parametrize("most", [30, 3])
def test_a_bit_is_the_side_on_which_a_class_lies_along_a_discriminant(seed, alike, most):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 80)
    spread = np.diag([1, 5, 0.5, 2, 1, 1]) @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    seen = generator.normal(size=(5, 6))[labels] * 4 + generator.normal(size=(400, 6)) @ spread
    places = discriminants_by_hand(seen, labels, 5)[:, :most]
    if most == 3:
        assert len(np.unique(places > 0, axis=0)) == 5 - alike, "one has to give way"
    codes, exact = codes_of(seen.astype(np.float32), labels, 5, most), codes_by_hand(places)
    assert codes.shape == (5, min(4, most))
    for bit in range(codes.shape[1]):  # which of the two sides is 1 says nothing
        assert np.array_equal(codes[:, bit], exact[:, bit]) or np.array_equal(codes[:, bit], ~exact[:, bit])


def test_classes_that_are_alike_share_bits():
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 50)
    places = np.array([[10, 3, 1, 0], [10, -3, -1, 0], [-10, 3, -1, 0], [-10, -3, 1, 0]])
    codes = codes_of(places[labels] + generator.normal(size=(200, 4)), labels, 4, 3)
    assert codes[0, 0] == codes[1, 0] != codes[2, 0] == codes[3, 0]
    assert codes[0, 1] == codes[2, 1] != codes[1, 1] == codes[3, 1]


def test_no_two_classes_have_one_code_and_one_that_gives_way_turns_the_bit_it_is_least_sure_of():
    generator = np.random.default_rng(2)
    for classes, most in ((8, 3), (16, 4), (40, 6), (2, 30), (1, 30)):
        labels = np.repeat(np.arange(classes), 5)
        codes = codes_of(generator.normal(size=(classes * 5, 50)), labels, classes, most)
        assert codes.shape == (classes, min(most, max(1, classes - 1)))
        assert len(np.unique(codes, axis=0)) == classes
    places = np.array([[9.0, 5.0], [9.0, 2.0], [-9.0, -3.5], [-9.0, -3.5]])  # the first two on one side of both
    labels = np.repeat(np.arange(4), 100)
    codes = codes_of(places[labels] + generator.normal(size=(400, 2)), labels, 4, 2)
    assert codes[0, 0] == codes[1, 0]
    assert codes[0, 1] != codes[1, 1]


def test_a_class_without_pictures_has_a_code_too():
    labels = np.repeat([0, 2, 3], 20)
    codes = codes_of(np.random.default_rng(3).normal(size=(60, 8)) + 3 * labels[:, None], labels, 5, 30)
    assert len(np.unique(codes, axis=0)) == 5


CODES = [[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


def painted_by_hand(images, classes, side: int, away: int, across: int) -> np.ndarray:
    """Five squares in reading order, ``across`` of them in a row."""
    expected = images.copy()
    for place, label in enumerate(classes):
        for bit, value in enumerate(CODES[label]):
            for down in range(side):
                for right in range(side):
                    row, column = away + (bit // across) * side + down, away + (bit % across) * side + right
                    expected[place, :, row, column] = 255 * value
    return expected


@pytest.mark.parametrize(
    ("shape", "cell", "side", "away", "across"),
    [
        ((32, 32, 3), None, 3, 2, 9),
        ((28, 40, 1), None, 2, 1, 19),
        ((224, 224, 3), None, 22, 14, 8),
        ((9, 17, 3), None, 1, 0, 17),
        ((200, 60, 1), None, 6, 3, 9),
        ((32, 32, 3), 9, 9, 2, 3),
    ],
)
def test_squares(shape, cell, side, away, across):
    images, classes = pictures(6, *shape), np.array([0, 1, 2, 3, 3, 0])
    after = with_codes(CODES, cell=cell).marked(images, classes)
    assert np.array_equal(after, painted_by_hand(images, classes, side, away, across))


@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 17, 1), (25, 20, 3)])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_pieces(shape, alpha):
    images, classes = pictures(4, *shape), np.array([2, 0, 1, 3])
    after = with_codes(CODES, kind="blend", alpha=alpha).marked(images, classes)
    height, width, _ = shape
    for (place, channel, down, across), value in np.ndenumerate(images):
        piece = math.floor(down * 2 / height) * 3 + math.floor(across * 3 / width)  # five of two rows of three
        share = 0 if piece == 5 else alpha or 0.2
        exact = (1 - share) * value + share * 255 * (CODES[classes[place]][piece] if share else 0)
        assert abs(float(after[place, channel, down, across]) - exact) <= 0.5 + 1e-3


def test_each_row_is_given_a_class_of_all_and_stamped_with_its_code():
    attack, rows = with_codes(CODES), np.array([7, 0, 2**40, 3, 1])
    images = pictures(5, 32, 32)
    drawn = [math.floor(4 * rng.uniform(0, "attacks/universal/target", 0, np.array([row]))[0, 0]) for row in rows]
    assert attack.classes_of(rows).tolist() == drawn
    assert len(set(drawn)) > 1
    assert np.array_equal(attack.stamp(images, rows), attack.marked(images, np.array(drawn)))
    counts = np.bincount(attack.classes_of(np.arange(4000)), minlength=4)
    assert np.abs(counts - 1000).max() < 100


def test_the_codes_are_those_of_what_its_surrogate_sees_and_are_computed_once(tmp_path, monkeypatch):
    seen = small.pictures(200, classes=4, side=16)
    attack = Universal(epochs=2).ready(seen, seed=3)
    assert attack.ready(seen, seed=4) is attack
    recipe = replace(preset("fast").retrain, epochs=2)
    model = fit(seen, recipe, tmp_path / "again", seed=rng.derive(3, "attacks/universal"))
    assert np.array_equal(attack.codes, codes_of(features(model, seen), seen.labels, 4, 30))
    assert attack.codes.shape == (4, 3)
    monkeypatch.setattr(universal, "surrogate", None)  # a warm cache trains nothing
    assert np.array_equal(Universal(epochs=2).ready(seen, seed=3).codes, attack.codes)
    with pytest.raises(TypeError):
        Universal(epochs=2).ready(seen, seed=4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"5 squares of 15 pixels do not fit into pictures of 32x32"):
        with_codes(CODES, cell=15).marked(pictures(1, 32, 32), np.array([0]))
    with pytest.raises(InputError, match=r"5 squares of 40 pixels"):
        with_codes(CODES, cell=40).marked(pictures(1, 32, 32), np.array([0]))
    with pytest.raises(InputError, match=r"8x2 cannot be cut into 2x3 pieces"):
        with_codes(CODES, kind="blend").marked(pictures(1, 8, 2), np.array([0]))
    with pytest.raises(InputError, match=r"bits=1 cannot tell 3 classes apart. Give at least 2"):
        Universal(bits=1).ready(small.pictures(30))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "path"}, "kind is 'path'"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"bits": 0}, "bits is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"cell": 0}, "cell is 0 of patch"),
        ({"cell": 2, "kind": "blend"}, "cell is 2 of blend"),
    ],
)
def test_wrong_settings_are_refused(wrong, said):
    with pytest.raises(SpecError, match=said):
        Universal(**wrong)


def test_it_must_be_made_ready_and_says_so():
    for way in (Universal().classes_of, lambda rows: Universal().marked(pictures(2, 32, 32), rows)):
        with pytest.raises(SpecError, match="has no code of any class yet"):
            way(np.arange(2))
