"""Near-duplicates: the likeness as its formula is written, copies that were changed a little, and what it does with little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
import small
from untaint import Examples, load, samples
from untaint.attacks import ATTACKS
from untaint.defenses import near_duplicates
from untaint.defenses.near_duplicates import NearDuplicates, edges, likest
from untaint.errors import SpecError
from untaint.poisoning import poison
from untaint.scores import parse_rule


def floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.array(load(samples.path()).images[:600])


@pytest.mark.parametrize(
    ("height", "width", "channels", "side"), [(32, 32, 3, 16), (9, 15, 1, 4), (8, 8, 3, 16), (128, 128, 1, 16)]
)
def test_likeness_is_the_correlation_of_steps_between_neighbours(height, width, channels, side):
    images = np.random.default_rng(0).integers(0, 256, (6, channels, height, width)).astype(np.uint8)
    found = edges(floats(images), side)
    down, across = min(side, height), min(side, width)
    assert found.shape == (6, down * across)
    steps = []
    for image in images.astype(np.float64).mean(axis=1):
        if (height, width) == (32, 32):
            image = image.reshape(16, 2, 16, 2).mean(axis=(1, 3))
        elif (height, width) != (8, 8):
            image = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(image)[None], (down, across))[0].numpy()
        own = [image[r + 1, c] - image[r, c] for r in range(down - 1) for c in range(across)]
        own += [image[r, c + 1] - image[r, c] for r in range(down) for c in range(across - 1)]
        steps.append([*own, np.sqrt(down * across)])
    lengths = np.linalg.norm(steps, axis=1)
    expected = np.array(steps) @ np.array(steps).T / lengths[:, None] / lengths
    assert found @ found.T == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("count", [1, 2, 16, 53])
def test_the_likest_is_that_of_all_pairs(count, earlier, monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK", 16)
    generator = np.random.default_rng(count)
    vectors = generator.normal(size=(count, 6)) + 2 * generator.normal(size=(8, 6))[np.arange(count) % 8]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    best, copies, twin = likest(torch.from_numpy(vectors), earlier=earlier)
    for row in range(count):
        others = [other for other in range(count) if (other < row if earlier else other != row)]
        products = {other: float(vectors[row] @ vectors[other]) for other in others}
        assert best[row] == pytest.approx(max(products.values(), default=-1), abs=1e-6)
        assert copies[row] == sum(product > 0.8 for product in products.values())
        assert twin[row] == (max(products, key=products.get) if copies[row] else -1)


def changed(images: np.ndarray) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 6, images.shape)
    patched = images.copy()
    patched[:, :, 1:3, 1:3] = 255
    return {
        "the same": images.copy(),
        "brighter": (images * 0.8 + 20).astype(np.uint8),
        "noise": (images + noise).clip(0, 255).astype(np.uint8),
        "a patch": patched,
    }


def test_copies_that_were_changed_a_little_are_found_and_other_pictures_are_not(photos, tmp_path):
    originals = photos[:40]
    for name, copies in changed(originals).items():
        examples = Examples.of(np.concatenate([photos, copies]), np.arange(640) % 4)
        judge = NearDuplicates()
        here = known.task(tmp_path / name, examples, [0, 1])
        scores = judge.score(here)
        verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
        found = np.isin(np.arange(2, 40), verdict.rows)
        assert found.mean() > (0.7 if name == "a patch" else 0.97), name
        assert np.isin(np.arange(40, 600), verdict.rows).mean() < 0.02
        row = 2 + np.flatnonzero(found)[0]
        assert scores.parts["twin"][row] == 600 + row
        assert f"row {600 + row} " in judge.explain(scores, np.array([row]))[0]
        assert scores.parts["copies"][row] >= 1


def test_of_all_copies_the_first_stays_if_that_is_asked_for(photos, tmp_path):
    examples = Examples.of(np.concatenate([photos[:20]] * 3), np.arange(60) % 4)
    values = NearDuplicates(keep="first").score(known.task(tmp_path, examples, [])).values
    assert values[:20].max() < 0.8
    assert values[20:] == pytest.approx(1.0, abs=1e-5)
    assert NearDuplicates().score(known.task(tmp_path, examples, [])).parts["copies"] == pytest.approx(2)


def test_the_control_of_many_copies_is_found(tmp_path):
    examples, ledger = poison(
        load(samples.path()).take(np.arange(2000)), [ATTACKS.build("duplicate:rate=0.1,originals=3")], seed=0
    )
    judge, here = NearDuplicates(), known.task(tmp_path, examples, [])
    verdict = judge.decide(judge.score(here), dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    copies = ledger.covers()
    assert len(copies) == 200
    assert np.isin(copies, verdict.rows).all()
    assert len(verdict.rows) < 200 + 30 + 40, "the originals, and what is twice in the sample"


def test_pictures_that_are_flat_are_all_alike(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8)).astype(np.uint8)
    images[:3] = np.array([0, 90, 255])[:, None, None, None]
    values = NearDuplicates().score(known.task(tmp_path, Examples.of(images, np.arange(12) % 2), [])).values
    assert values[:3] == pytest.approx(1.0, abs=1e-6)
    assert values[3:].max() < 0.8


@pytest.mark.parametrize("rows", [[], [4], [4, 9]])
def test_few_members(rows, tmp_path):
    examples = small.pictures(12).take(np.array(rows, dtype=np.int64))
    values = NearDuplicates().score(known.task(tmp_path, examples, [])).values
    assert np.isfinite(values[rows]).all()
    assert np.isnan(np.delete(values, rows)).all()
    if len(rows) == 1:
        assert values[4] == -1, "there is no other"


def test_what_is_left_out_does_not_matter_to_the_others(tmp_path):
    whole = small.pictures(60)
    one, other = (
        NearDuplicates().score(known.task(tmp_path / name, examples, []))
        for name, examples in (("a", whole), ("b", whole.without([59])))
    )
    unmoved = np.flatnonzero(one.parts["twin"] != 59)[:-1]
    assert (other.values[unmoved] <= one.values[unmoved] + 1e-6).all()
    assert (np.abs(other.values[:59] - one.values[:59]) < 1e-6).mean() > 0.9


def test_a_second_score_compares_nothing(tmp_path, monkeypatch):
    here = known.task(tmp_path, small.pictures(30), [])
    first = NearDuplicates().score(here)
    monkeypatch.setattr(near_duplicates, "likest", None)
    assert np.array_equal(NearDuplicates().score(here).values, first.values)


@pytest.mark.parametrize("options", [{"side": 3}, {"side": 65}, {"keep": "last"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        NearDuplicates(**options)
