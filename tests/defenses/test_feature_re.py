"""FeatureRE: a trigger that is known is found within its bounds, in its own class alone, and unlearned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint.defenses._inverted import MOST, Bounds, Change, capped, inverted, tapped
from untaint.defenses.feature_re import FeatureRE
from untaint.errors import InputError, SpecError
from untaint.models.build import build, head_of
from untaint.training.loop import predict
from untaint.training.tuning import Clean

BOUNDS = Bounds(distance=0.08, spread=0.5, mask=0.1)
TARGET = 0


def clean(examples, **changes):
    return Clean(examples=examples, where=torch.device("cpu"), **changes)


def stamped(examples):
    """The pictures of other classes than the target with the trigger, labelled as the target."""
    images = examples.images.copy()
    images[:, :, 6:8, 6:8] = np.array([[255, 0], [0, 255]], np.uint8)
    dirty = type(examples).of(images, np.full(len(images), TARGET), class_names=examples.class_names)
    return dirty.take(np.flatnonzero(examples.labels != TARGET))


def success(model):
    return float((predict(model, stamped(small.pictures(150, seed=9))).argmax(1) == TARGET).mean())


def right(model):
    fresh = small.pictures(150, seed=9)
    return float((predict(model, fresh).argmax(1) == fresh.labels).mean())


@pytest.mark.parametrize("total", [0.5, 3.0, 40.0])
def test_the_nearest_values_whose_sum_is_bounded(total):
    generator = torch.Generator().manual_seed(0)
    values = 2 * torch.rand(20, generator=generator) - 0.5
    found = capped(values, total)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found.sum()) <= total + 1e-4
    best = float((found - values).square().sum())
    for _ in range(2000):
        other = (found + 0.2 * torch.randn(20, generator=generator)).clamp(0, 1)
        if float(other.sum()) <= total:
            assert float((other - values).square().sum()) >= best - 1e-4
    assert torch.equal(capped(torch.full((4,), -1.0), 1.0), torch.zeros(4))


def test_a_change_begins_as_none_and_stays_within_black_and_white():
    images = torch.rand(4, 3, 8, 8)
    change = Change((3, 8, 8))
    assert torch.equal(change(images), images)
    change.pattern.data[:] = 5
    changed = change(images)
    assert torch.allclose(changed, torch.ones(()), atol=1e-5)
    changed.sum().backward()
    assert (change.pattern.grad != 0).all(), "and it can come back"


def test_the_features_of_a_layer_are_seen_and_replaced_and_then_left_alone():
    model, images = build("proxy", 3, (3, 8, 8)).eval(), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        before = model(images)
        with tapped(model, "before-pool") as tap:
            model(images)
            assert tap.latest.shape == (4, 64, 1, 1)
            tap.mix = torch.zeros_like
            assert torch.allclose(model(images), head_of(model).bias.expand(4, -1), atol=1e-5)
        assert torch.equal(model(images), before)
    with tapped(small.WithDropout().eval(), "before-pool") as tap:
        assert not hasattr(tap, "latest")
    with pytest.raises(SpecError, match="no layer 'somewhere'"), tapped(model, "somewhere"):
        pass


class WithFeature(nn.Module):
    """A network of ten features: one for each of three classes, one that sees a chequered corner, and some that matter little."""

    def __init__(self) -> None:
        super().__init__()
        seen = torch.zeros(10, 3, 8, 8)
        for label in range(3):
            seen[label, :, 2 * label : 2 * label + 2] = 1 / 48
        seen[3, :, 6:, 6:] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 12
        seen[4:] = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 192
        self.seen = nn.Conv2d(3, 10, 8, bias=False)
        self.seen.weight.data = seen
        self.head = nn.Linear(10, 3, bias=False)
        self.head.weight.data = torch.cat([10 * torch.eye(3), torch.zeros(3, 7)], dim=1)
        self.head.weight.data[0, 3] = 10

    def features(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.seen(images).flatten(1)
        return torch.cat([seen[:, :3], (8 * seen[:, 3:4]).tanh(), seen[:, 4:]], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def test_a_trigger_that_is_known_is_found_and_other_classes_have_none():
    told, model = clean(small.pictures(120)), WithFeature().eval()
    before = copy.deepcopy(model.state_dict())
    bounds = Bounds(distance=0.04, spread=0.5, mask=0.1)
    found = [inverted(model, told, label, "before-pool", bounds, steps=80, batch=20) for label in range(3)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert found[0].success > 0.9
    assert max(one.success for one in found[1:]) < 0.5
    assert int(found[0].mask.argmax()) == 3, "the feature that sees the trigger"
    for one in found:
        assert float(one.mask.sum()) <= 1 + 1e-4
        assert one.success <= min(one.replaced, one.changed)
    first, again = (inverted(model, told, 0, "before-pool", bounds, steps=5, batch=20) for _ in range(2))
    assert torch.equal(again.mask, first.mask)


def test_how_often_it_works_is_what_the_definition_says():
    examples, model = small.pictures(90, seed=5), WithFeature().eval()
    bounds = Bounds(distance=0.04, spread=0.5, mask=0.1)
    found = inverted(model, clean(examples), TARGET, "before-pool", bounds, steps=40, batch=30)
    images = torch.from_numpy(examples.images[examples.labels != TARGET]).float() / 255
    with torch.no_grad():
        usual, moved = (model.features(shown) for shown in (images, found.change(images)))
        replaced = model.head((1 - found.mask) * usual + found.mask * moved.mean(0)).argmax(1) == TARGET
        changed = model.head(moved).argmax(1) == TARGET
    for share, works in (
        (found.replaced, replaced),
        (found.changed, changed),
        (found.success, replaced & changed),
    ):
        assert share == pytest.approx(float(works.float().mean()), abs=0.02)
    assert 0 < found.success < 1
    assert float((found.change(images) - images).abs().mean()) < 1.2 * bounds.distance


def test_what_was_found_is_unlearned_and_nothing_is_changed_where_nothing_was():
    model = WithFeature()
    assert success(model) > 0.95
    before = right(model)
    told = clean(small.pictures(120, seed=5), augment="crop", progress=small.Told())
    judge = FeatureRE(steps=80, batch=30, distance=0.04, stamped=0.5, tune_steps=150, learning_rate=0.02)
    mended = judge.mended(copy.deepcopy(model), told)
    assert not mended.training
    assert "classes with a trigger: 0 (" in told.progress.remarks[-1]
    assert success(mended) < 0.5
    assert right(mended) > before - 0.05
    same = FeatureRE(steps=2).mended(copy.deepcopy(model), told)
    assert told.progress.remarks[-1] == "no class has a trigger."
    assert all(torch.equal(one, other) for one, other in zip(same.parameters(), model.parameters(), strict=True))


def test_several_triggers_are_unlearned_together():
    judge = FeatureRE(steps=3, batch=45, success=1e-9, tune_steps=2)
    changes = [Change((3, 8, 8)).requires_grad_(False) for _ in range(2)]
    for number, change in enumerate(changes):
        change.pattern.data[:] = number - 0.5
    shown = []
    eye = nn.Linear(1, 3)

    def looking(images):
        shown.append(images)
        return eye(images.mean(dim=(1, 2, 3))[:, None])

    torch.manual_seed(0)
    images = torch.full((200, 3, 8, 8), 0.5)
    judge._loss(looking, changes)(images, torch.zeros(200, dtype=torch.long))
    levels = shown[0].mean(dim=(1, 2, 3))
    counts = [int((levels - level).abs().lt(1e-4).sum()) for level in (0.0, 0.5, 1.0)]
    assert sum(counts) == 200
    assert counts[1] == pytest.approx(160, abs=20)
    assert min(counts) > 8


def test_a_class_of_which_all_clean_pictures_are_has_no_trigger():
    only = small.pictures(30).take(np.arange(0, 30, 3))
    model = build("proxy", 3, (3, 8, 8)).eval()
    for examples in (only, small.pictures(30).take(np.r_[0:30:3, 1])):  # one picture of another class is too few
        found = inverted(model, clean(examples), 0, "before-pool", BOUNDS, steps=3, batch=5)
        assert found.success == 0


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16)])
def test_grey_pictures_many_classes_and_other_models_are_taken(channels, side):
    examples = small.pictures(60, classes=20, side=max(side, 40), channels=channels)
    model = build("proxy", 20, (channels, max(side, 40), max(side, 40))).eval()
    found = inverted(model, clean(examples), 19, "before-pool", BOUNDS, steps=2, batch=16)
    assert 0 <= found.success <= 1
    told = clean(small.pictures(30), progress=small.Told())
    FeatureRE(steps=2, tune_steps=1).mended(small.WithDropout(), told)
    assert told.progress.remarks


def test_only_so_many_pictures_are_looked_at_whatever_there_are(monkeypatch):
    asked = []
    monkeypatch.setattr("untaint.defenses._inverted._judged", lambda *given: asked.append(len(given[3])) or given[-1])
    examples = small.pictures(MOST * 2)
    inverted(build("proxy", 3, (3, 8, 8)).eval(), clean(examples), 0, "before-pool", BOUNDS, steps=1, batch=8)
    assert asked == [MOST]


def test_features_that_are_no_numbers_are_said():
    model = build("proxy", 3, (3, 8, 8)).eval()
    next(iter(model[1].parameters())).data[:] = float("nan")
    with pytest.raises(InputError, match="features are not finite"):
        FeatureRE(steps=1).mended(model, clean(small.pictures(30)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 1}, "batch 1"),
        ({"distance": 0.0}, "distance is 0.0"),
        ({"spread": -1.0}, "spread -1.0"),
        ({"mask": 1.5}, "mask is 1.5"),
        ({"success": 0.0}, "success is 0.0"),
        ({"stamped": 2.0}, "stamped is 2.0"),
        ({"tune_steps": 0}, "tune_steps 0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        FeatureRE(**options)
