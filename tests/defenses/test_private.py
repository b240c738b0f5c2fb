"""Private: no picture moves the model further than the clip, and how private that is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import small
from untaint import load_model, run
from untaint.defenses.private import Clipping, Private, clipped_sum, epsilon
from untaint.errors import InputError, RunError, SpecError
from untaint.models.build import build
from untaint.models.group_norm import Grouped
from untaint.training.loop import fit
from untaint.training.objective import Batch

from .test_cbd import task

MODEL = "proxy-narrow+group-norm"


def shown(model, count=6):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(count) % 3
    return Batch(
        rows=np.arange(count),
        images=images,
        labels=labels,
        epoch=0,
        epochs=1,
        model=model,
        forward=model,
        again=lambda number: images,
    )


def one_at_a_time(model, images, labels, clip):
    """What the docstring says, slowly."""
    sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        slopes = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        length = math.sqrt(sum(float(slope.square().sum()) for slope in slopes.values()))
        for name, slope in slopes.items():
            sums[name] += slope * min(1.0, clip / length)
    return sums


@pytest.mark.parametrize("clip", [0.01, 1.5, 1000.0])
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_gradients_of_single_pictures_are_cut_and_added(monkeypatch, clip, at_once):
    model = build(MODEL, 3, (3, 8, 8)).to(memory_format=torch.channels_last)
    batch = shown(model)
    weights = sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr("untaint.defenses.private.NUMBERS", at_once * weights)
    found, losses = clipped_sum(model, batch.images, batch.labels, clip)
    expected = one_at_a_time(model, batch.images, batch.labels, clip)
    for name, values in expected.items():
        assert torch.allclose(found[name], values, atol=1e-3 * float(values.abs().max()), rtol=1e-3)
    told = nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="sum")
    assert float(losses) == pytest.approx(float(told.detach()), rel=1e-5)


def test_the_slope_of_the_loss_is_the_mean_of_what_was_cut():
    model = build(MODEL, 3, (3, 8, 8))
    batch = shown(model)
    expected = one_at_a_time(model, batch.images, batch.labels, 0.5)
    model.zero_grad()
    loss = Clipping(0.5, 0.0).loss(batch)
    loss.backward()
    told = nn.functional.cross_entropy(model(batch.images), batch.labels)
    assert float(loss.detach()) == pytest.approx(float(told.detach()), rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, expected[name] / 6, atol=1e-6)


def test_one_picture_moves_the_sum_by_twice_the_clip_at_most():
    model = build(MODEL, 3, (3, 8, 8))
    batch = shown(model)
    other = batch.images.clone()
    other[0] = 1000.0
    sums = [clipped_sum(model, images, batch.labels, 0.3)[0] for images in (batch.images, other)]
    apart = math.sqrt(sum(float((sums[0][name] - sums[1][name]).square().sum()) for name in sums[0]))
    assert 0.01 < apart <= 0.6 + 1e-5


def test_noise_has_its_size_and_is_drawn_as_the_training_keys_it():
    model = build(MODEL, 3, (3, 8, 8))
    batch, slopes = shown(model), []
    for seed, noise in ((1, 0.0), (1, 2.0), (1, 2.0), (2, 2.0)):
        torch.manual_seed(seed)
        model.zero_grad()
        Clipping(0.5, noise).loss(batch).backward()
        slopes.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    plain, noisy, again, other = slopes
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert float((noisy - plain).std()) == pytest.approx(2.0 * 0.5 / 6, rel=0.02)


@pytest.mark.parametrize(
    ("noise", "share", "steps", "expected"),
    [  # told by opacus 1.6.0, its accountant by Renyi's divergence, at delta 1e-5
        (1.0, 0.02, 100, 1.8434718507827075),
        (0.5, 0.025, 480, 23.596364569632288),
        (2.0, 0.01, 10_000, 2.3529131287817933),
        (1.1, 1.0, 20, 26.50055211793853),
        (0.3, 0.0025, 4_800, 63.8188977669321),
    ],
)
def test_epsilon_is_what_another_library_says(noise, share, steps, expected):
    assert epsilon(noise, share, steps, 1e-5) == pytest.approx(expected, rel=1e-6)


def test_epsilon_falls_with_noise_and_grows_with_steps():
    found = [epsilon(noise, 0.02, 100, 1e-5) for noise in (0.1, 0.5, 1.0, 4.0)]
    assert found == sorted(found, reverse=True)
    assert epsilon(1.0, 0.02, 200, 1e-5) > found[2]
    assert epsilon(1.0, 0.02, 100, 1e-7) > found[2]
    assert epsilon(0.0, 0.02, 100, 1e-5) == math.inf
    for share, steps, delta in ((0.0, 1, 0.1), (1.5, 1, 0.1), (0.5, 0, 0.1), (0.5, 1, 1.0)):
        with pytest.raises(InputError, match=f"share is {share}, steps {steps}, delta {delta}"):
            epsilon(1.0, share, steps, delta)


@pytest.mark.parametrize("after", [3, 9])
def test_interrupted_it_ends_with_the_same_bits(tmp_path, after):
    recipe = replace(small.RECIPE, augment="crop-flip", model=MODEL)
    for out, stops in (("whole", None), ("parts", small.Stopping(after)), ("parts", None)):
        how = {"seed": 1, "objective": Clipping(1.0, 0.5), "progress": stops}
        if stops is None:
            fit(small.pictures(), recipe, tmp_path / out, **how)
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(small.pictures(), recipe, tmp_path / out, **how)
    assert small.contents(tmp_path / "parts") == small.contents(tmp_path / "whole")


def test_the_saved_model_has_no_batch_normalisation_and_says_how_private_it_is(tmp_path):
    told = small.Told()
    here = replace(task(tmp_path), progress=told)
    outcome = Private(noise=1.0, batch=40, epochs=2).defend(here)
    model = load_model(outcome.model)
    assert not any(isinstance(layer, _BatchNorm) for layer in model.modules())
    facts = run.read_json(tmp_path / "privacy.json")
    assert facts["steps"] == 6
    assert facts["epsilon"] == pytest.approx(epsilon(1.0, 1 / 3, 6, 1e-5))
    assert "epsilon is" in told.remarks[-1]
    before = small.contents(tmp_path)
    Private(noise=1.0, batch=40, epochs=2).defend(replace(here, train=False))
    assert small.contents(tmp_path) == before
    with pytest.raises(RunError, match="has no finished model"):
        Private().defend(replace(here, scratch=tmp_path / "other", train=False))


def test_without_noise_it_learns_and_gives_no_epsilon(tmp_path):
    told = small.Told()
    here = replace(task(tmp_path, epochs=6, model="proxy-narrow"), progress=told, examples=small.pictures(240))
    model = load_model(Private(noise=0.0, batch=16).defend(here).model)
    fresh = small.pictures(150, seed=9)
    images = torch.from_numpy(fresh.images).float() / 255
    assert (model(images).argmax(1).numpy() == fresh.labels).mean() > 0.9
    assert run.read_json(tmp_path / "privacy.json")["epsilon"] is None
    assert "no epsilon" in told.remarks[-1]


def test_networks_of_ones_own_with_dropout_and_of_one_channel(tmp_path):
    here = replace(task(tmp_path / "own"), model=small.WithDropout)
    load_model(Private(epochs=1).defend(here).model, Grouped().put_into(small.WithDropout()))
    grey = replace(task(tmp_path / "grey"), examples=small.pictures(120, channels=1))
    assert load_model(Private(epochs=1).defend(grey).model)(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_networks_whose_pictures_have_to_do_with_each_other_are_refused(tmp_path):
    with pytest.raises(SpecError, match="have to do with each other"):
        Private().defend(task(tmp_path, model="proxy+whitening"))

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(192, 3)

        def forward(self, images):
            return self.inner(images.flatten(1) * (2 if images.sum().item() > 0 else 1))

    with pytest.raises(SpecError, match="no gradient of each picture"):
        Private().defend(replace(task(tmp_path / "own"), model=Asks))


@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.0},
        {"noise": -1.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"epochs": -1},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"groups": 0},
    ],
)
def test_options_that_make_no_sense(options):
    name, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=f"{name} (is )?{value}"):
        Private(**options)
