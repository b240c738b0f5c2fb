"""Frequency analysis: the transform against its sum, what is drawn for the copies, and tampered pictures that are found."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
from untaint import Examples
from untaint.defenses._tampered import KINDS, drawn, tampered
from untaint.defenses.frequency_analysis import FrequencyAnalysis, Looker, probabilities, spectrum
from untaint.errors import RunError, SpecError, TrainingError

PROBES = np.arange(0, 240, 4)
POISONED = np.arange(1, 240, 12)


def smooth(count: int = 240, side: int = 16, channels: int = 3, poisoned: np.ndarray | None = None) -> Examples:
    """Pictures of a few slow waves; those poisoned have a chequered corner."""
    generator = np.random.default_rng(0)
    place = np.linspace(0, np.pi, side)
    images = np.full((count, channels, side, side), 120.0)
    for down in range(3):
        for across in range(3):
            wave = np.cos(down * place)[:, None] * np.cos(across * place)
            images += generator.normal(0, 20, (count, channels, 1, 1)) * wave
    images += generator.normal(0, 1, images.shape)
    if poisoned is not None:
        images[poisoned, :, -4:, -4:] = np.kron([[255, 0], [0, 255]], np.ones((2, 2)))
    return Examples.of(images.clip(0, 255).astype(np.uint8), np.arange(count) % 4)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8)])
def test_the_spectrum_is_that_of_the_sum(height, width):
    image = torch.rand(1, 1, height, width)
    found = spectrum(image, "plain")[0, 0]
    levels = image[0, 0].double().numpy() * 255
    for v in range(height):
        for u in range(width):
            total = sum(
                levels[y, x]
                * np.cos(np.pi * (2 * y + 1) * v / (2 * height))
                * np.cos(np.pi * (2 * x + 1) * u / (2 * width))
                for y in range(height)
                for x in range(width)
            )
            scale = np.sqrt((1 if v == 0 else 2) / height) * np.sqrt((1 if u == 0 else 2) / width)
            assert float(found[v, u]) == pytest.approx(total * scale, abs=2e-2)
    assert torch.allclose(spectrum(image)[0, 0], (1 + found.abs()).log(), atol=1e-4)


def test_of_large_pictures_each_cell_of_the_spectrum_is_a_root_of_a_mean_square():
    image = torch.rand(2, 1, 64, 96)
    small = spectrum(image, "plain")
    assert small.shape == (2, 1, 32, 32)
    assert float(small.square().sum() * 6) == pytest.approx(float((image * 255).square().sum()), rel=1e-4), (
        "no energy is lost"
    )
    assert spectrum(torch.rand(1, 1, 40, 20)).shape == (1, 1, 32, 20)


def of_kind(name: str, numbers: torch.Tensor) -> torch.Tensor:
    numbers = numbers.clone()
    numbers[:, 0] = (KINDS.index(name) + 0.5) / len(KINDS)
    return numbers


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_tampered_with_in_the_way_that_was_drawn(channels):
    images, others = torch.full((200, channels, 16, 16), 0.4), torch.full((200, channels, 16, 16), 0.8)
    numbers = drawn(0, "test", 0, np.arange(200))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def made(name):
        return tampered(images, others, of_kind(name, numbers), noise)

    for name in ("white", "coloured"):
        changed = (made(name) != images[0, 0, 0, 0]).any(1)
        for mask in changed[:20]:
            down, across = torch.where(mask)
            if not len(down):
                continue
            assert mask[down.min() : down.max() + 1, across.min() : across.max() + 1].all(), "a rectangle"
            assert max(down.max() - down.min(), across.max() - across.min()) < 4
    white = made("white")
    assert ((white == 1) | (white == 0.4)).all()
    assert (white == 1).any(dim=(1, 2, 3)).all()
    spread = (made("noise") - images).std(dim=(1, 2, 3)) * 255
    assert 2.5 < float(spread.min()) < float(spread.max()) < 9.5
    shadow = made("shadow")
    assert ((shadow == 0.4) | ((shadow < 0.33) & (shadow > 0.15))).all()
    assert (shadow != 0.4).any(dim=(1, 2, 3)).float().mean() > 0.9
    blend = made("blend")
    assert 0.43 < float(blend.min()) < float(blend.max()) < 0.53
    for name in KINDS:
        levels = made(name) * 255
        assert torch.allclose(levels, levels.round(), atol=1e-3), "no picture is given away by fractions of a level"


def test_all_kinds_are_drawn_and_each_row_has_its_own():
    numbers = drawn(0, "test", 3, np.arange(1000))
    counts = torch.bincount((numbers[:, 0] * len(KINDS)).long(), minlength=len(KINDS))
    assert counts.min() > 150
    assert torch.equal(numbers[5:8], drawn(0, "test", 3, np.arange(5, 8)))
    assert not torch.equal(numbers, drawn(0, "test", 4, np.arange(1000)))


def test_pictures_with_a_patch_are_found_and_few_others(tmp_path):
    here = known.task(tmp_path, smooth(side=8, poisoned=POISONED), PROBES)
    scores = FrequencyAnalysis(epochs=8, batch=16).score(here)
    clean = np.setdiff1d(np.arange(240), np.union1d(POISONED, PROBES))
    assert (scores.values[POISONED] > 0.5).mean() > 0.9
    assert (scores.values[clean] > 0.5).mean() < 0.2
    assert (scores.values[PROBES] > 0.5).mean() < 0.2
    assert scores.values[POISONED].mean() > scores.values[clean].max()
    assert "probability" in FrequencyAnalysis().explain(scores, POISONED[:1])[0]


def test_probes_are_looked_at_by_networks_that_never_saw_them(tmp_path, monkeypatch):
    told = []

    def stub(store, probes, options, seed, step):
        told.append(probes)
        looker = Looker((3, 16, 16), "log")
        torch.nn.init.zeros_(looker.head.weight)
        torch.nn.init.constant_(looker.head.bias, float(len(told)))
        return looker

    monkeypatch.setattr("untaint.defenses.frequency_analysis.trained", stub)
    values = probabilities(known.task(tmp_path, smooth(60), np.arange(0, 60, 2)), FrequencyAnalysis())
    by = np.rint(np.log(values / (1 - values))).astype(int)  # which network looked at a row
    assert np.array_equal(told[0], np.arange(0, 60, 2))
    assert (by[1::2] == 1).all()
    assert set(by[::2]) == {2, 3}
    for row in range(0, 60, 2):
        assert row not in told[by[row] - 1]


def test_what_is_said_of_a_row_does_not_depend_on_the_others(tmp_path):
    whole = smooth(100)
    probes = np.arange(30)
    one = probabilities(known.task(tmp_path / "a", whole, probes), FrequencyAnalysis(epochs=1))
    part = whole.take(np.r_[:30, 80:95])
    other = probabilities(known.task(tmp_path / "b", part, probes), FrequencyAnalysis(epochs=1))
    assert other[part.rows] == pytest.approx(one[part.rows], abs=1e-5)
    assert np.isnan(other[30:80]).all()


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (40, 1), (96, 3)])
def test_pictures_of_other_sizes_are_taken(tmp_path, side, channels):
    here = known.task(tmp_path, smooth(44, side, channels), np.arange(20))
    assert np.isfinite(probabilities(here, FrequencyAnalysis(epochs=1, scale="plain"))).all()


@pytest.mark.parametrize("size", [(3, 3, 3), (1, 5, 40), (3, 224, 224)])
def test_the_network_takes_pictures_of_any_size(size):
    assert Looker(size, "log").eval()(torch.rand(2, *size)).shape == (2,)


def test_a_second_score_is_read_and_other_settings_or_probes_are_not(tmp_path):
    here = known.task(tmp_path, smooth(60), np.arange(20))
    judge = FrequencyAnalysis(epochs=1)
    first = judge.score(here)
    again = judge.score(dataclasses.replace(here, train=False))
    assert np.array_equal(first.values, again.values)
    with pytest.raises(RunError, match="has no finished spectra-"):
        FrequencyAnalysis(epochs=2).score(dataclasses.replace(here, train=False))
    with pytest.raises(RunError, match="has no finished spectra-"):
        judge.score(dataclasses.replace(here, train=False, probes=np.arange(21)))


def test_too_few_probes_and_a_rate_too_high_are_said(tmp_path):
    with pytest.raises(
        SpecError, match="frequency-analysis needs at least 20 pictures that are known to be clean, and has 19"
    ):
        FrequencyAnalysis().score(known.task(tmp_path, smooth(60), np.arange(19)))
    with pytest.raises(TrainingError, match="Give a lower learning_rate"):
        FrequencyAnalysis(epochs=2, learning_rate=1e30).score(known.task(tmp_path, smooth(60), np.arange(20)))
    assert not list(tmp_path.glob("spectra-*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 1}, "batch 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay -1.0"),
        ({"scale": "square"}, "scale is 'square'"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        FrequencyAnalysis(**options)
