"""What mends a trained model with a few clean pictures: each against its formula, and on a model with a backdoor that is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import load_model
from untaint.defenses import DEFENSES, Mender, Task
from untaint.defenses.anp import ANP, masks_of
from untaint.defenses.fine_pruning import FinePruning, pruned
from untaint.defenses.fine_tuning import FineTuning
from untaint.defenses.nad import NAD, attention_distance, stages_of
from untaint.defenses.neural_cleanse import NeuralCleanse, Reversed, outliers, reverse
from untaint.defenses.ngf import NGF, natural_step
from untaint.errors import SpecError, TrainingError
from untaint.models.build import build, head_of
from untaint.progress import Silent
from untaint.scores import Fraction
from untaint.training.loop import fit, predict
from untaint.training.tuning import Clean

TARGET = 0
MENDERS = [name for name in DEFENSES.names() if issubclass(DEFENSES.kind(name), Mender)]


def stamped(examples):
    """The pictures of other classes than the target with the trigger, labelled as the target."""
    images = examples.images.copy()
    images[:, :, 6:8, 6:8] = np.array([[255, 0], [0, 255]], np.uint8)
    return (
        type(examples)
        .of(images, np.full(len(images), TARGET), class_names=examples.class_names)
        .take(np.flatnonzero(examples.labels != TARGET))
    )


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A model that knows three classes and a trigger, and clean pictures."""
    examples = small.pictures(360)
    images, labels = examples.images.copy(), examples.labels.copy()
    chosen = np.flatnonzero(labels != TARGET)[::6]
    images[chosen, :, 6:8, 6:8] = np.array([[255, 0], [0, 255]], np.uint8)
    labels[chosen] = TARGET
    dirty = type(examples).of(images, labels)
    recipe = small.preset(epochs=12).retrain
    model = fit(dirty, recipe, tmp_path_factory.mktemp("run") / "model", seed=0)
    return model.eval(), small.pictures(90, seed=5)


def clean(examples, **changes):
    return Clean(examples=examples, where=torch.device("cpu"), **changes)


def success(model):
    return float((predict(model, stamped(small.pictures(150, seed=9))).argmax(1) == TARGET).mean())


def right(model):
    fresh = small.pictures(150, seed=9)
    return float((predict(model, fresh).argmax(1) == fresh.labels).mean())


def test_the_model_has_a_backdoor(poisoned):
    model, _ = poisoned
    assert success(model) > 0.8  # machines differ by some points: their sums are of another order
    assert right(model) > 0.9


@pytest.mark.parametrize(
    "judge",
    [NAD(teacher_steps=40, steps=80, learning_rate=0.05), ANP(steps=100, batch=45, drop=0.1)],
    ids=lambda judge: type(judge).__name__,
)
def test_the_backdoor_is_weaker_and_the_rest_is_kept(judge, poisoned):
    model, examples = poisoned
    mended = judge.mended(copy.deepcopy(model), clean(examples, augment="crop"))
    assert not mended.training
    assert right(mended) > 0.85
    assert success(mended) < max(0.7, success(model) - 0.05)


def test_fine_tuning_teaches_what_a_model_does_not_know(tmp_path):
    recipe = small.preset(epochs=1).retrain
    model = fit(small.pictures(60), recipe, tmp_path / "model", seed=0)
    before = right(model)
    told = clean(small.pictures(90, seed=5), augment="crop")
    assert right(FineTuning(steps=100, learning_rate=0.05).mended(model, told)) > max(0.9, before + 0.2)


class WithFeature(nn.Module):
    """A network of which one feature sees the trigger and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(
                torch.tensor([[1.0, 0, 0, 0, 50], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])[:, [0, 1, 2, 4]]
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean(dim=1)
        classes = torch.stack([bright[:, 2 * one : 2 * one + 2].mean(dim=(1, 2)) for one in range(3)], dim=1)
        corner = bright[:, 6:8, 6:8]
        trigger = (corner[:, 0, 0] + corner[:, 1, 1] - corner[:, 0, 1] - corner[:, 1, 0] - 1.9).relu()
        return self.head(torch.cat([classes, trigger[:, None]], dim=1))


def test_fine_pruning_cuts_off_what_only_the_trigger_uses():
    examples, model = small.pictures(90, seed=5), WithFeature()
    assert success(model) > 0.9
    mended = FinePruning(steps=0, drop=0.04).mended(model, clean(examples))
    assert success(mended) < 0.2
    assert right(mended) > 0.9
    tuned = FinePruning(steps=20, drop=0.04).mended(WithFeature(), clean(examples))
    assert not head_of(tuned).weight[:, 3].any(), "and it stays cut off"


def test_features_go_in_order_of_their_activity_until_accuracy_falls():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    seen = np.concatenate([0.01 * generator.random((60, 4)), np.eye(3)[labels] * [1, 2, 3]], axis=1).astype(np.float32)
    weight = np.concatenate([generator.normal(size=(3, 4)), np.eye(3)], axis=1)
    least = np.argsort(seen.mean(axis=0))
    assert pruned(seen, weight, 0.0, labels, 0.04).tolist() == least[:4].tolist()
    assert len(pruned(seen, weight, 0.0, labels, 0.4)) == 5, "one class more"
    assert len(pruned(seen, weight, 0.0, labels, 0.99)) == 6, "one feature is left"
    for count in range(5):
        cut = seen.copy()
        cut[:, least[:count]] = 0
        right = ((cut @ weight.T).argmax(1) == labels).mean()
        assert (right >= 0.96) == (count <= 4)


def test_attention_is_the_sum_of_powers_at_each_place():
    one, other = torch.randn(4, 5, 3, 2), torch.randn(4, 6, 3, 2)

    def attention(values):
        maps = np.array(
            [
                [[sum(abs(c) ** 2 for c in picture[:, y, x]) for x in range(2)] for y in range(3)]
                for picture in values.numpy()
            ]
        )
        return maps / np.sqrt((maps**2).sum(axis=(1, 2), keepdims=True))

    exact = ((attention(one) - attention(other)) ** 2).mean()
    assert float(attention_distance(one, other, 2.0)) == pytest.approx(exact, rel=1e-5)
    assert float(attention_distance(one, 3 * one, 2.0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("name", "count"), [("proxy", 3), ("resnet18", 3), ("mobilenet_v2", 3)])
def test_stages_are_the_last_layers_of_the_last_resolutions(name, count):
    model = build(name, 3, (3, 64, 64))
    names = stages_of(model, torch.rand(2, 3, 64, 64))
    assert len(names) == count
    if name == "resnet18":
        assert names == ["1.layer2", "1.layer3", "1.layer4"]
    assert model.training
    with pytest.raises(SpecError, match="no layer with places"):
        stages_of(small.WithDropout(), torch.rand(2, 3, 8, 8))


def test_a_natural_step_is_the_gradient_by_the_inverse_of_the_fisher_matrix():
    generator = np.random.default_rng(0)
    points, labels, weights = generator.normal(size=(40, 3)), np.arange(40) % 2, generator.normal(size=(2, 3))
    odds = np.exp(points @ weights.T)
    odds /= odds.sum(axis=1, keepdims=True)
    slope = sum(np.outer(odds[row] - np.eye(2)[labels[row]], points[row]) for row in range(40)) / 40
    inside = sum(np.outer(point, point) for point in points) / 40
    outside = sum(np.diag(one) - np.outer(one, one) for one in odds) / 40
    factors = [part + 0.01 * np.trace(part) / len(part) * np.eye(len(part)) for part in (outside, inside)]
    exact = (np.linalg.inv(np.kron(*factors)) @ slope.ravel()).reshape(2, 3)
    assert natural_step(points, labels, weights) == pytest.approx(exact, rel=1e-6)


def test_the_last_layer_alone_changes_and_fits_the_clean_pictures(tmp_path):
    recipe = small.preset(epochs=1).retrain
    model = fit(small.pictures(60), recipe, tmp_path / "model", seed=0)
    told = clean(small.pictures(90, seed=5))
    before, known, first = copy.deepcopy(model.state_dict()), told.accuracy(model), predict(model, told.examples)
    mended = NGF().mended(model, told)
    changed = [name for name, tensor in mended.state_dict().items() if not torch.equal(before[name], tensor)]
    assert changed == ["1.head.weight", "1.head.bias"]
    assert told.accuracy(mended) > max(0.9, known)
    model.load_state_dict(before)
    held = NGF(stay=1e6).mended(model, told)
    assert predict(held, told.examples) == pytest.approx(first, abs=0.1)


def test_masks_leave_the_model_alone_and_are_lowest_where_the_adversary_bites(poisoned):
    model, examples = poisoned
    before = copy.deepcopy(model.state_dict())
    masks = masks_of(copy.deepcopy(model), clean(examples), 0.4, 0.2, 40, 45)
    assert list(masks) == [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(((mask >= 0) & (mask <= 1)).all() for mask in masks.values())
    assert min(float(mask.min()) for mask in masks.values()) < 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(SpecError, match="no normalisation"):
        masks_of(small.WithDropout(), clean(examples), 0.4, 0.2, 1, 45)


def test_the_smallest_trigger_of_the_target_is_small_and_works(poisoned):
    model, examples = poisoned
    before = copy.deepcopy(model.state_dict())
    model.zero_grad(set_to_none=True)
    told = clean(examples)
    found = [reverse(model, told, label, steps=100, batch=45, success=0.98) for label in range(3)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert found[TARGET].success >= 0.98
    assert found[TARGET].mask.sum() < 0.85 * min(one.mask.sum() for one in found[1:])
    fresh = small.pictures(150, seed=9)
    others = torch.from_numpy(fresh.images[fresh.labels != TARGET]).float() / 255
    with torch.inference_mode():
        assert (model(found[TARGET].on(others)).argmax(1) == TARGET).float().mean() > 0.9
    again = reverse(model, told, TARGET, steps=100, batch=45, success=0.98)
    assert torch.equal(again.mask, found[TARGET].mask)


def test_a_class_of_which_all_clean_pictures_are_has_no_trigger():
    only = small.pictures(30).take(np.arange(0, 30, 3))
    found = reverse(build("proxy", 3, (3, 8, 8)).eval(), clean(only), 0, steps=3, batch=5, success=0.98)
    assert found.success == 0
    assert found.mask.sum() == 64


def test_what_was_found_is_unlearned_and_nothing_is_changed_where_nothing_was(poisoned):
    model, examples = poisoned
    told = clean(examples, augment="crop", progress=small.Told())
    judge = NeuralCleanse(steps=100, batch=45, index=0.6, tune_steps=40, learning_rate=0.05)
    mended = judge.mended(copy.deepcopy(model), told)
    assert "suspiciously small triggers: 0." in told.progress.remarks
    assert success(mended) < 0.5
    assert right(mended) > 0.85
    same = NeuralCleanse(steps=2, index=1e9).mended(copy.deepcopy(model), told)
    assert told.progress.remarks[-1] == "no class has a suspiciously small trigger."
    assert all(torch.equal(one, other) for one, other in zip(same.parameters(), model.parameters(), strict=True))


def test_deviations_below_the_median():
    assert outliers(np.array([10.0, 12, 14, 16, 2])).round(3).tolist() == [0.674, 0, 0, 0, 3.372]
    assert outliers(np.zeros(4)).tolist() == [0, 0, 0, 0]
    assert outliers(np.array([3.0])).tolist() == [0]


def test_a_found_trigger_is_laid_over_by_its_mask():
    mask, pattern, images = torch.rand(4, 3), torch.rand(2, 4, 3), torch.rand(5, 2, 4, 3)
    found = Reversed(mask, pattern, 1.0).on(images)
    for b, c, y, x in np.ndindex(5, 2, 4, 3):
        exact = (1 - mask[y, x]) * images[b, c, y, x] + mask[y, x] * pattern[c, y, x]
        assert float(found[b, c, y, x]) == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize("name", MENDERS)
def test_nothing_is_mended_without_clean_pictures(name):
    judge = DEFENSES.build(name)
    with pytest.raises(SpecError, match=f"there are 3 pictures known to be clean; this defence needs {judge.needs}"):
        judge.mended(build("proxy", 3, (3, 8, 8)), clean(small.pictures(3)))


def test_a_rate_that_is_too_high_is_said():
    with pytest.raises(TrainingError, match="Give a lower one"):
        FineTuning(steps=30, learning_rate=1e9).mended(build("proxy", 3, (3, 8, 8)), clean(small.pictures(30)))


def test_batches_take_turns_and_depend_on_the_seed_alone():
    told = clean(small.pictures(20).take(np.arange(3, 17)), augment="crop-flip")
    batches = list(told.batches(5, 7))
    assert len(batches) == 5
    assert all(len(images) == 7 for images, _ in batches)
    again = list(told.batches(5, 7))
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(batches, again, strict=True))
    plain = list(told.batches(2, 7, vary=False))
    both = torch.cat([images for images, _ in plain]).flatten(1)
    exact = torch.from_numpy(told.examples.images[3:17]).float().div(255).flatten(1)
    assert torch.equal(both.sum(1).sort().values, exact.sum(1).sort().values)
    other = clean(told.examples, seed=1)
    assert not torch.equal(next(other.batches(1, 7))[1], plain[0][1])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (FineTuning, {"steps": 0}, "steps is 0"),
        (FinePruning, {"drop": 1.0}, "drop is 1.0"),
        (FinePruning, {"batch": 1}, "batch 1"),
        (NAD, {"teacher_steps": 0}, "teacher_steps is 0"),
        (NAD, {"power": 0.0}, "power is 0.0"),
        (NeuralCleanse, {"steps": 0}, "steps is 0"),
        (NeuralCleanse, {"success": 0.0}, "success is 0.0"),
        (NGF, {"stay": -1.0}, "stay -1.0"),
        (ANP, {"epsilon": 0.0}, "epsilon is 0.0"),
        (ANP, {"threshold": 1.5}, "threshold is 1.5"),
    ],
)
def test_options_that_make_no_sense(kind, options, said):
    with pytest.raises(SpecError, match=said):
        kind(**options)


def test_a_mended_model_is_one_like_any_other(tmp_path):
    task = Task(
        examples=small.pictures(60),
        probes=np.arange(0, 60, 4),
        preset=small.preset(epochs=1),
        rule=Fraction(0.1),
        scratch=tmp_path,
        seed=0,
        progress=Silent(),
    )
    outcome = FineTuning(steps=5).defend(task)
    assert outcome.scores is None
    images = torch.rand(4, 3, 8, 8)
    one = load_model(outcome.model)(images)
    assert torch.equal(one, load_model(outcome.model)(images))
    assert not torch.allclose(one, load_model(tmp_path / "undefended")(images))
