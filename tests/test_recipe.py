from __future__ import annotations

from dataclasses import asdict
from math import cos, pi

import pytest
import torch

from untaint.errors import SpecError
from untaint.recipe import PRESETS, Preset, Recipe, preset, preset_of


def test_the_preset_paper_is_the_papers():
    """METHODS of the paper: ResNet-50, AdamW, cosine over 100 epochs of which 30 are watched, no augmentation."""
    paper = preset("paper")
    watch = paper.watch
    assert (watch.model, watch.epochs, watch.horizon, watch.batch) == ("resnet50", 30, 100, 128)
    assert (watch.optimizer, watch.learning_rate, watch.weight_decay) == ("adamw", 1e-3, 1e-4)
    assert (watch.schedule, watch.augment, watch.pixels, watch.clamp) == ("cosine", "none", "plain", 100.0)
    assert paper.record == "eval"
    assert (paper.detector, paper.reject) == ("badloss", "fraction:share=0.4")
    from untaint.defenses.badloss import BaDLoss

    detector = BaDLoss()
    assert (detector.k, detector.observable, detector.epochs) == (50, "ce", "stable")
    assert (detector.centre, detector.standardise) == ("none", "none")
    retrain = paper.retrain
    assert (retrain.augment, retrain.epochs, retrain.horizon) == ("crop-flip", 100, 100)
    assert (retrain.optimizer, retrain.learning_rate, retrain.schedule) == ("adamw", 1e-3, "cosine")


def test_the_preset_fast_watches_without_augmentation_and_trains_with_it():
    fast = preset("fast")
    assert (fast.watch.optimizer, fast.watch.pixels) == ("muon", "normalised")
    assert (fast.watch.model, fast.watch.augment, fast.record) == ("proxy", "none", "eval")
    assert (fast.witness.augment, fast.retrain.augment) == ("crop-flip", "crop-flip")
    assert fast.detector == "cross-examination"


# --- learning rates


@pytest.mark.parametrize(("epochs", "horizon"), [(5, None), (30, 100)])
def test_cosine_is_torchs_stepped_once_an_epoch(epochs, horizon):
    recipe = Recipe(epochs=epochs, horizon=horizon, schedule="cosine", learning_rate=0.3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon or epochs)
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        for step in range(7):
            assert recipe.learning_rate_at(7 * epoch + step, 7) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()


def test_the_papers_rate_is_still_high_where_its_watching_ends():
    rate = preset("paper").watch.learning_rate_at(30 * 390, 390)
    assert rate == pytest.approx(1e-3 * 0.5 * (1 + cos(pi * 0.3)))
    assert rate > 0.75e-3


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 10), (3, 7), (20, 400)])
def test_one_cycle_rises_over_a_fifth_and_ends_near_zero(epochs, steps):
    recipe = Recipe(epochs=epochs, learning_rate=0.2)
    rates = [recipe.learning_rate_at(step, steps) for step in range(epochs * steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.2)
    top = rates.index(max(rates))
    assert top + 1 == pytest.approx(0.2 * len(rates), abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if len(rates) > 1:
        assert rates[-1] <= 0.2 / (0.8 * len(rates) - 1)


def test_a_horizon_leaves_the_schedule_unfinished():
    short, long = Recipe(epochs=10), Recipe(epochs=5, horizon=10)
    assert [short.learning_rate_at(step, 3) for step in range(15)] == [
        long.learning_rate_at(step, 3) for step in range(15)
    ]


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; give a number above zero"),
        ({"batch": -1}, "batch is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"epochs": 30, "horizon": 20}, "horizon is 20, less than the 30 epochs"),
        ({"optimizer": "adam"}, "no optimizer 'adam'. Did you mean 'adamw'"),
        ({"schedule": "cosin"}, "no schedule 'cosin'. Did you mean 'cosine'"),
        ({"augment": "crop-flop"}, "no augment 'crop-flop'. Did you mean 'crop-flip'"),
        ({"precision": "bf16"}, "no precision 'bf16'"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        Recipe(**settings)


def test_unknown_presets_are_answered_with_the_nearest():
    with pytest.raises(SpecError, match=r"no preset 'pape'. Did you mean 'paper'"):
        preset("pape")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_being_written_down(name):
    import json

    assert preset_of(json.loads(json.dumps(asdict(preset(name))))) == preset(name)


def test_changes_reach_the_recipes_they_are_meant_for():
    changed = preset("paper").changed(model="resnet18", epochs=120, precision="float32", record="train")
    assert {changed.watch.model, changed.witness.model, changed.retrain.model} == {"resnet18"}
    assert (changed.watch.epochs, changed.watch.horizon) == (120, 120)
    assert {changed.watch.precision, changed.retrain.precision} == {"float32"}
    assert changed.record == "train"
    crop = preset("fast").changed(augment="crop")
    assert (crop.watch.augment, crop.witness.augment, crop.retrain.augment) == ("none", "crop", "crop")
    assert preset("fast").changed() == preset("fast")
    assert isinstance(changed, Preset)
