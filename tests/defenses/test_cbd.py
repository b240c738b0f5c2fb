"""CBD: what a first model learned counts little in a second one, whose features are kept apart from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import accuracy, load_model
from untaint.defenses.cbd import CBD, Critic, Deconfounding, seen_by_head, weights
from untaint.errors import InputError, RunError, SpecError
from untaint.training.loop import fit
from untaint.training.objective import Batch

from .test_unlearning import STAMP, stamped


class Trigger(nn.Module):
    """Knows nothing but the trigger of ``stamped``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.head = nn.Conv2d(3, 64, 8), nn.Linear(64, 3)
        for values in self.parameters():
            values.data.zero_()
        self.seen.weight.data[0, :, 6:8, 6:8] = (torch.from_numpy(STAMP).float() / 127.5 - 1) / 6
        self.head.weight.data[0, 0] = 8

    def forward(self, images):
        return self.head(((torch.relu(self.seen(images)) - 0.6) * 2.5).clamp(0, 1).flatten(1))


def task(scratch, **changes):
    return small.task(scratch, small.pictures(120), np.arange(0, 120, 4), **changes)


def poisoned():
    clean, dirty = small.pictures(360), stamped(360, 0)
    rows = np.flatnonzero(clean.labels)[::6]
    images, labels = clean.images.copy(), clean.labels.copy()
    images[rows], labels[rows] = dirty.images[rows], 0
    return type(clean).of(images, labels)


def batch(model, count=12):
    examples = small.pictures(count)
    images = torch.from_numpy(examples.images).float() / 255
    labels = torch.from_numpy(examples.labels)
    return Batch(
        rows=examples.rows,
        images=images,
        labels=labels,
        epoch=0,
        epochs=1,
        model=model,
        forward=lambda pictures: model(pictures).float(),
        again=lambda number: images,
    )


def test_what_only_a_trigger_explains_is_not_learned(tmp_path):
    recipe, examples = small.preset(epochs=12).watch, poisoned()
    fresh, triggered = small.pictures(150, seed=9), stamped(150, 9)
    plain = fit(examples, recipe, tmp_path / "plain", seed=1)
    apart = fit(examples, recipe, tmp_path / "apart", seed=1, objective=Deconfounding(Trigger(), strength=0))
    assert accuracy(plain, triggered) > 0.9
    assert accuracy(apart, triggered) < 0.3
    assert accuracy(apart, fresh) > 0.95


def test_the_loss_is_that_of_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 3))
    first = Trigger()
    shown = batch(model)
    objective = Deconfounding(first, strength=0.7, bottleneck=0.3, critic_rate=0.01)
    found = objective.loss(shown)
    with torch.no_grad():
        features, known = (
            model[:3](shown.images),
            ((first.seen(shown.images).relu() - 0.6) * 2.5).clamp(0, 1).flatten(1),
        )
        expected = 0.0
        for row in range(12):
            own, theirs = (
                -float(logits[row].log_softmax(0)[shown.labels[row]])
                for logits in (model(shown.images), first(shown.images))
            )
            expected += theirs / (theirs + own) * own / 12
            expected += 0.3 * float((features[row] ** 2).sum()) / 12
            expected += 0.7 / 12 * float(rating(objective.critic, features[row], known[row]))
            expected -= 0.7 / 12 * float(rating(objective.critic, features[row], known[row - 1]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad is None for weight in first.parameters())


def rating(critic, one, other):
    along = critic.along
    across = critic.inner.T @ along
    largest = along @ critic.inner @ (across / across.norm())
    hidden = (critic.inner / largest) @ torch.cat([one, other]) + critic.bias
    return (critic.outer[0] / critic.outer.norm()) @ torch.where(hidden > 0, hidden, 0.2 * hidden)


def test_a_row_counts_by_the_share_of_the_first_models_loss():
    found = weights(torch.tensor([0.0, 1.0, 3.0, 0.0]), torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert found.tolist() == [0, 0.5, 1, 0]


def test_the_critic_learns_by_adam_to_tell_what_belongs_together():
    one = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    other = one + 0.1
    critic = Critic(10, 0.05, seed=3)
    asked = [layer.clone().requires_grad_() for layer in (critic.inner, critic.bias, critic.outer)]
    adam = torch.optim.Adam(asked, lr=0.05, maximize=True)
    for _ in range(30):
        critic.learn(one, other)  # turns first: the same direction serves both
        adam.zero_grad()
        critic._apart(asked, one, other).backward()
        adam.step()
        for own, expected in zip((critic.inner, critic.bias, critic.outer), asked, strict=True):
            assert torch.allclose(own, expected, atol=1e-4)
    largest = critic.along @ critic.inner @ nn.functional.normalize(critic.inner.T @ critic.along, dim=0)
    assert float(largest) == pytest.approx(float(torch.linalg.matrix_norm(critic.inner, 2)), rel=0.02)
    apart = float(critic(one, other))
    assert apart > 0.1
    assert abs(float(critic(one, torch.randn(64, 5, generator=torch.Generator().manual_seed(1))))) < 0.5 * apart


@pytest.mark.parametrize("after", [3, 9])
def test_interrupted_it_ends_with_the_same_bits(tmp_path, after):
    def run(out, **how):
        first = load_model(tmp_path / "first")
        fit(small.pictures(), recipe, tmp_path / out, seed=1, objective=Deconfounding(first, seed=1), **how)

    recipe = replace(small.RECIPE, augment="crop-flip")
    fit(small.pictures(), replace(recipe, epochs=1), tmp_path / "first", seed=1)
    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", progress=small.Stopping(after))
    run("parts")
    assert small.contents(tmp_path / "parts") == small.contents(tmp_path / "whole")


def test_the_first_model_is_neither_trained_nor_kept_with_the_second():
    objective = Deconfounding(Trigger())
    assert not list(objective.parameters())
    assert all(name.startswith("critic.") for name in objective.state_dict())


def test_it_is_resumed_from_what_is_there_and_trains_nothing_where_that_is_forbidden(tmp_path):
    outcome = CBD().defend(task(tmp_path))
    before = small.contents(tmp_path)
    assert CBD().defend(task(tmp_path, train=False)).model == outcome.model
    assert small.contents(tmp_path) == before
    with pytest.raises(RunError, match="has no finished confounder"):
        CBD().defend(task(tmp_path / "other", train=False))


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(InputError, match="no linear layer"):
        Deconfounding(nn.Conv2d(3, 3, 8))


def test_what_the_head_sees_keeps_its_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 3))
    with seen_by_head(model) as seen:
        model(torch.rand(2, 3, 8, 8))
    seen[0].sum().backward()
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("options", [{"epochs": 0}, {"strength": -1.0}, {"bottleneck": -0.5}, {"critic_rate": 0.0}])
def test_options_that_make_no_sense(options):
    name, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=f"{name} is {value}"):
        CBD(**options)
