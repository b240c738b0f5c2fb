"""Collider: distances, dimensionality and the choice against slow versions of them, and a training that sees the core alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import load_model
from untaint.defenses.collider import STAGE, Collider, Core, core_of, dimensionality, distances
from untaint.errors import InputError, SpecError
from untaint.training.loop import fit

GENERATOR = np.random.default_rng(0)


def task(scratch, examples=None, **changes):
    return small.task(scratch, small.pictures(120) if examples is None else examples, **changes)


def test_distances_are_those_of_the_outer_products():
    slopes, features = GENERATOR.normal(size=(7, 3)), GENERATOR.normal(size=(7, 5))
    exact = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            exact[i, j] = np.linalg.norm(np.outer(slopes[i], features[i]) - np.outer(slopes[j], features[j]))
    exact /= exact[~np.eye(7, dtype=bool)].mean()
    found = distances(torch.from_numpy(slopes), torch.from_numpy(features))
    assert found.numpy() == pytest.approx(exact, abs=1e-6)
    assert not distances(torch.zeros(4, 3), torch.ones(4, 5)).any(), "and nothing where nothing differs"


def test_a_row_of_a_cloud_has_as_many_dimensions_as_the_cloud():
    for width in (2, 6):
        points = torch.from_numpy(GENERATOR.uniform(size=(2000, width)))
        found = dimensionality(torch.cdist(points, points), 30)
        assert float(found.median()) == pytest.approx(width, rel=0.3)
    points = torch.from_numpy(GENERATOR.normal(size=(12, 3)))
    apart = torch.cdist(points, points).numpy()
    near = np.sort(apart[4])[1:6]
    assert float(dimensionality(torch.from_numpy(apart), 5)[4]) == pytest.approx(-1 / np.mean(np.log(near / near[-1])))
    assert torch.isfinite(dimensionality(torch.zeros(6, 6), 3)).all()


def test_the_choice_is_that_of_trying_every_row_each_time():
    points = GENERATOR.normal(size=(30, 2))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    against = GENERATOR.uniform(0, 0.1, 30)
    expected: list[int] = []
    for _ in range(8):
        best, most = -1, -np.inf
        for row in set(range(30)) - set(expected):
            nearest = np.min([apart[other] for other in [*expected, row]] + [np.full(30, apart.max())], axis=0)
            worth = -nearest.mean() - against[row]
            if worth > most:
                best, most = row, worth
        expected.append(best)
    assert core_of(torch.from_numpy(apart), torch.from_numpy(against), 8).tolist() == expected
    everything = core_of(torch.from_numpy(apart), torch.from_numpy(against), 30)
    assert sorted(everything.tolist()) == list(range(30)), "no row twice"


def test_rows_with_neighbourhoods_of_many_dimensions_are_left_out():
    """Most rows lie in a plane of 40 dimensions; some lie all about one place."""
    plane = np.zeros((160, 40))
    plane[:, :2] = GENERATOR.normal(size=(160, 2))
    others = 0.3 * GENERATOR.normal(size=(40, 40)) + 0.5
    points = torch.from_numpy(np.concatenate([plane, others]))
    apart = torch.cdist(points, points)
    apart /= apart.mean()
    many = dimensionality(apart, 20)
    assert many[160:].min() > many[:160].median()
    shares = []
    for strength in (0.0, 0.3):
        rows = core_of(apart, strength * many / many.mean(), 60)
        shares.append(float((rows >= 160).float().mean()))
    assert shares[1] < 0.05 < shares[0]


def test_after_the_first_epochs_the_model_sees_the_core_alone(tmp_path):
    examples = small.pictures(120)
    seen: dict[int, set[int]] = {}

    class Watched(Core):
        def loss(self, batch):
            loss = super().loss(batch)
            seen.setdefault(batch.epoch, set()).update(batch.rows[self.here[batch.rows]].tolist())
            return loss

    objective = Watched(examples, Collider(share=0.25, every=2), warm=1, where=torch.device("cpu"))
    model = fit(examples, small.preset(epochs=5).retrain, tmp_path, seed=0, objective=objective)
    assert not model.training
    assert len(seen[0]) == 120
    for epoch in (1, 2, 3, 4):
        assert np.bincount(examples.labels[sorted(seen[epoch])]).tolist() == [10, 10, 10]
    assert seen[1] == seen[2] != seen[3] == seen[4]


def test_what_was_interrupted_ends_with_the_same_bits(tmp_path):
    whole = Collider().defend(task(tmp_path / "a", epochs=4))
    for after in (12, 20):
        stopped = dataclasses.replace(task(tmp_path / "b", epochs=4), progress=small.Stopping(after))
        with pytest.raises(KeyboardInterrupt):
            Collider().defend(stopped)
    again = Collider().defend(task(tmp_path / "b", epochs=4))
    one, other = (load_model(outcome.model).state_dict() for outcome in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.scores is None
    assert whole.model == tmp_path / "a" / STAGE


def test_the_model_learns_from_its_cores(tmp_path):
    outcome = Collider(share=0.5).defend(task(tmp_path, epochs=10))
    fresh = small.pictures(90, seed=7)
    with torch.inference_mode():
        told = load_model(outcome.model)(torch.from_numpy(fresh.images).float() / 255).argmax(1).numpy()
    assert (told == fresh.labels).mean() > 0.85


def test_small_classes_are_kept_whole_and_large_ones_are_parted(tmp_path, monkeypatch):
    monkeypatch.setattr("untaint.defenses.collider.MOST", 30)
    examples = small.pictures(160)
    labels = np.zeros(160, dtype=np.int64)
    labels[:5], labels[5:40] = 1, 2
    examples = type(examples).of(examples.images, labels)
    objective = Core(examples, Collider(share=0.2), where=torch.device("cpu"))
    compared = []
    monkeypatch.setattr(objective, "_core", lambda _, rows: compared.append(len(rows)) or np.arange(len(rows) // 5))
    chosen = objective._choose(type("Told", (), {"epoch": 0}))
    assert chosen[:5].all()
    assert max(compared) <= 30
    assert np.bincount(labels[chosen]).tolist() == [24, 5, 6]


def test_a_batch_without_chosen_rows_changes_nothing_but_has_a_loss():
    examples = small.pictures(20)
    objective = Core(examples, Collider(), warm=5, where=torch.device("cpu"))
    objective.chosen[:] = False
    weight = torch.ones(1, requires_grad=True)
    batch = type(
        "Told",
        (),
        {"epoch": 0, "rows": np.arange(4), "images": torch.ones(4, 3, 8, 8), "forward": lambda _, x: x.mean() * weight},
    )()
    loss = objective.loss(batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(weight.grad) == 0


def test_a_model_without_a_head_is_said(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 8)

        def forward(self, images):
            return self.layer(images).flatten(1)

    with pytest.raises(InputError, match="no linear layer"):
        Collider(warm=0.0).defend(dataclasses.replace(task(tmp_path), model=Plain))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.1}, "share is 1.1"),
        ({"warm": 1.0}, "warm 1.0"),
        ({"every": 0}, "every is 0"),
        ({"neighbours": 1}, "neighbours 1"),
        ({"strength": -1.0}, "strength is -1.0"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        Collider(**options)
