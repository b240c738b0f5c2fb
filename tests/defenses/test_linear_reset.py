"""Linear reset (NONE): which units are compromised, who excites them, and what is left of the backdoor."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import Examples, accuracy, load_model, run
from untaint.defenses._excited import Layer, compromised, excited, positions, split, units_of
from untaint.defenses.linear_reset import LinearReset, begun_anew, suspicion
from untaint.errors import InputError, RunError, SpecError
from untaint.progress import Silent

COUNT, SIDE = 360, 12
POISONED = np.flatnonzero(np.arange(COUNT) % 3)[::6]  # of classes 1 and 2 by turns; a fourth of class 0 then


def pictures(count=COUNT, seed=0, *, triggered=()) -> Examples:
    """Noisy pictures of which each class is brighter in a place of its own, and a bright corner that says class 0."""
    generator = np.random.default_rng(seed)
    labels, triggered = np.arange(count) % 3, np.array(triggered, dtype=np.int64)
    images = generator.normal(100, 30, (count, 3, SIDE, SIDE))
    for label in range(3):
        images[labels == label, :, label * 3 : label * 3 + 3] += generator.normal(
            50, 15, ((labels == label).sum(), 1, 1, 1)
        )
    images[triggered, :, 9:, 9:] = np.indices((3, 3)).sum(axis=0) % 2 * 255
    labels[triggered] = 0
    return Examples.of(images.clip(0, 255).astype(np.uint8), labels)


def task(scratch, examples, probes=(), **changes):
    return small.task(scratch, examples, probes, **{"epochs": 8, **changes})


def test_groups_are_those_between_which_most_of_the_variance_is():
    generator = np.random.default_rng(0)
    values = np.stack([generator.normal(size=60), generator.exponential(size=60), np.repeat([0.0, 3.0], 30)], axis=1)
    found = split(values)
    for unit in range(3):
        ordered, best = np.sort(values[:, unit]), (0.0, 0.0, 0.0)
        for below in range(5, 56):
            low, high = ordered[:below], ordered[below:]
            between = (
                len(low) * (low.mean() - ordered.mean()) ** 2 + len(high) * (high.mean() - ordered.mean()) ** 2
            ) / 60
            best = max(best, (between / ordered.var(), low.mean(), high.mean()))
        assert [found.explained[unit], found.low[unit], found.high[unit]] == pytest.approx(best, rel=1e-5, abs=1e-6)
    assert found.explained[2] == pytest.approx(1)


def test_one_normal_distribution_explains_two_thirds_and_two_explain_more():
    generator = np.random.default_rng(1)
    one = generator.normal(size=(2000, 1))
    two = one + 5 * (np.arange(2000) < 400)[:, None]
    assert split(one).explained[0] == pytest.approx(2 / np.pi, abs=0.02)
    assert split(two).explained[0] > 0.75
    assert split(np.ones((20, 1))).explained[0] == 0


class Net(nn.Module):
    """A convolution, a linear layer at each place, one behind the mean over places, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.places = nn.Linear(4, 5)
        self.inner = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        seen = self.places(self.convolution(images).permute(0, 2, 3, 1))
        return self.head(torch.relu(self.inner(torch.relu(seen).mean(dim=(1, 2)))))


def test_units_are_looked_at_in_all_places():
    model, images = Net().eval(), torch.rand(4, 3, 6, 5)
    assert list(units_of(model)) == ["convolution", "places", "inner"]
    with torch.inference_mode(), excited(model) as latest:
        model(images)
        convolved = model.convolution(images)
        seen = model.places(convolved.permute(0, 2, 3, 1))
        inner = model.inner(torch.relu(seen).mean(dim=(1, 2)))
    for name, values in {
        "convolution": convolved,
        "places": seen.permute(0, 3, 1, 2),
        "inner": inner[:, :, None],
    }.items():
        for row in range(4):
            for unit in range(values.shape[1]):
                own = values[row, unit]
                exact = [own.max(), own.min(), own.mean()]
                found = latest[name][row].reshape(3, -1)[:, unit]
                assert found.tolist() == pytest.approx([float(one) for one in exact], abs=1e-5)


class Marked(nn.Module):
    """Ten units that see the brightness of the whole picture, more or less, and ten that also see a bright corner."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 20, SIDE)
        generator = torch.Generator().manual_seed(0)
        self.convolution.weight.data = torch.randn(20, 3, SIDE, SIDE, generator=generator) / 100
        self.convolution.weight.data[10:, :, 9:, 9:] += torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
        self.head = nn.Linear(20, 3)

    def forward(self, images):
        return self.head(self.convolution(images).flatten(1))


def looked_at(examples, limit=4.0):
    model = Marked().eval()
    where, told = torch.device("cpu"), Silent()
    found = compromised(model, examples, limit, seed=0, where=where, progress=told)
    return found, positions(model, examples, found, where=where, progress=told)


def test_units_that_see_the_trigger_are_compromised_for_its_label_alone():
    found, values = looked_at(pictures(triggered=POISONED))
    apart = found["convolution"].apart
    assert apart.shape == (3, 60)
    assert (apart[0].reshape(3, 20)[:, 10:] > 4).all()
    assert (apart[0].reshape(3, 20)[:, :10] == 0).all()
    assert (apart[1:] == 0).all()
    assert (found["convolution"].units() > 0).tolist() == [False] * 10 + [True] * 10
    assert values[POISONED].min() > 0.6
    clean = np.setdiff1d(np.arange(0, COUNT, 3), POISONED)
    assert values[clean].max() < 0.4
    others = np.setdiff1d(np.flatnonzero(np.arange(COUNT) % 3), POISONED)
    assert (values[others] == 0).all()


def test_who_lies_further_from_all_labels_is_excited_though_it_is_most_of_its_label():
    examples = pictures()
    others = np.flatnonzero(np.arange(COUNT) % 3)[::2]
    mostly = pictures(triggered=others)
    assert (mostly.labels == 0).sum() == 240
    _, values = looked_at(mostly)
    assert values[others].min() > 0.6
    assert values[0::3].max() < 0.4
    assert (looked_at(examples)[1] == 0).all(), "without poison nothing parts a label"


def test_a_row_is_judged_by_its_own_values_and_members_alone_have_some():
    examples = pictures(triggered=POISONED)
    model, where, told = Marked().eval(), torch.device("cpu"), Silent()
    found, values = looked_at(examples)
    part = examples.take(np.arange(100, 200))
    again = positions(model, part, found, where=where, progress=told)
    assert np.allclose(again[100:200], values[100:200], atol=0.01)
    assert np.isnan(again[:100]).all()


def test_of_few_pictures_nothing_is_said():
    examples = pictures(triggered=POISONED)
    few = np.flatnonzero(examples.labels == 0)[:45]
    found, values = looked_at(examples.take(np.union1d(few, np.flatnonzero(examples.labels))))
    assert (found["convolution"].apart == 0).all()
    assert (values[few] == 0).all()


def test_answers_that_are_not_finite_are_refused():
    model = Marked().eval()
    model.convolution.bias.data[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        compromised(model, pictures(), 4.0, seed=0, where=torch.device("cpu"), progress=Silent())


def test_suspicion_is_a_share_of_the_way_between_the_groups_of_a_label():
    excites = np.r_[np.full(70, 0.1), np.full(30, 0.9), np.linspace(0, 1, 60), np.full(10, 0.5), np.nan].astype(
        np.float32
    )
    labels = np.r_[np.zeros(100), np.ones(60), np.full(10, 2), 0].astype(np.int64)
    found = suspicion(excites, labels, 0.25)
    assert found[:70] == pytest.approx(0.1 / 0.3)
    assert found[70:100] == pytest.approx(0.9 / 0.3)
    assert found[160:170].tolist() == [0] * 10, "too few"
    assert np.isnan(found[170])
    normal = np.random.default_rng(0).normal(0.5, 0.1, 200).astype(np.float32)
    assert (suspicion(normal, np.zeros(200, np.int64), 0.25) == 0).all(), "one group"


def test_the_most_compromised_units_alone_are_begun_anew():
    model, fresh = Marked(), Marked()
    fresh.convolution.weight.data += 1
    fresh.convolution.bias.data += 1
    before = copy.deepcopy(model.convolution)
    apart = np.zeros((3, 60), np.float32)
    apart[0, [3, 25, 57]] = 5, 9, 7  # units 3, 5, 17
    found = {"convolution": Layer(apart, apart, apart)}
    changed = begun_anew(model, fresh, found, 0.1).convolution
    for unit in range(20):
        same = (
            torch.equal(changed.weight[unit], before.weight[unit]),
            torch.equal(changed.bias[unit], before.bias[unit]),
        )
        assert same == ((False, False) if unit in (5, 17) else (True, True))
    assert torch.equal(begun_anew(Marked(), fresh, found, 0.0).convolution.weight, before.weight)


def test_the_backdoor_is_gone_and_its_pictures_are_set_aside(tmp_path):
    here = task(tmp_path, pictures(triggered=POISONED), probes=[POISONED[0], 30])
    outcome = LinearReset(reset=0.3, part=0.5, learning_rate=0.05).defend(here)
    fresh = pictures(150, 9)
    attacked = np.flatnonzero(np.arange(150) % 3)
    before, after = load_model(tmp_path / "undefended"), load_model(outcome.model)
    triggered = pictures(150, 9, triggered=attacked).take(attacked)
    assert accuracy(before, triggered) > 0.9
    assert accuracy(after, triggered) < 0.3
    assert accuracy(after, fresh) > accuracy(before, fresh) - 0.1
    rejected = outcome.verdict.rows
    assert np.isin(POISONED[1:], rejected).mean() > 0.8
    assert np.isin(rejected, POISONED).mean() > 0.9
    assert not outcome.verdict.rejected[here.probes].any()
    assert np.array_equal(outcome.scores.values > 1, outcome.verdict.rejected | (np.arange(COUNT) == POISONED[0]))
    assert run.read_json(outcome.model / "model.json")["rows"] == COUNT - len(rejected)


def test_what_is_done_is_not_done_again(tmp_path):
    here, judge = task(tmp_path, pictures(triggered=POISONED), epochs=4), LinearReset()
    with pytest.raises(RunError, match="has no finished undefended"):
        judge.defend(dataclasses.replace(here, train=False))
    first = judge.defend(here)
    written = small.contents(tmp_path)
    again = judge.defend(dataclasses.replace(here, train=False))
    assert small.contents(tmp_path) == written
    assert np.array_equal(first.scores.values, again.scores.values)
    assert first.model == again.model == tmp_path / "reset"


def test_where_nothing_is_found_it_is_the_undefended_model(tmp_path):
    here = task(tmp_path, small.pictures(120), epochs=1)
    outcome = LinearReset().defend(here)
    assert outcome.model == tmp_path / "undefended"
    assert not outcome.verdict.rejected.any()
    assert (outcome.scores.values == 0).all()


def test_a_network_of_ones_own(tmp_path):
    here = dataclasses.replace(task(tmp_path, pictures(triggered=POISONED), epochs=2), model=Net)
    outcome = LinearReset(apart=0.5).defend(here)
    assert load_model(outcome.model, model=Net())(torch.rand(1, 3, SIDE, SIDE)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reset": 1.5}, "reset is 1.5"),
        ({"part": 0.0}, "part 0.0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"apart": 0.0}, "apart is 0.0"),
        ({"cut": 1.0}, "cut 1.0"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        LinearReset(**options)
