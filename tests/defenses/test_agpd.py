"""AGPD: the directions and the transition as their formulas are written, targets that are found however many there are, and what it does with few probes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import known
from untaint.defenses._inside import inner_layers, places, spread
from untaint.defenses.agpd import AGPD, basis, indices, scatters, transitions, way
from untaint.errors import InputError, SpecError
from untaint.models.build import build
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 5), POISONED)
RULE = parse_rule(AGPD.usual_rule)


class Reasons(nn.Module):
    """Says the class in whose place a picture is bright; and each class in ``targets``, too, where there is that class's own red place at the border."""

    def __init__(self, targets: int = 1) -> None:
        super().__init__()
        filters = torch.zeros(2 * known.CLASSES, 3, known.SIDE, known.SIDE)
        for label in range(known.CLASSES):
            filters[label, :, label * 2 : label * 2 + 2, 2:] = 1 / 36
            if label < targets:
                filters[known.CLASSES + label, 0, label * 2 : label * 2 + 2, :2] = 1 / 6
                filters[known.CLASSES + label, 1, label * 2 : label * 2 + 2, :2] = -1 / 6
        self.seen = nn.Conv2d(3, 2 * known.CLASSES, known.SIDE)
        self.seen.weight.data, self.seen.bias.data = filters, torch.full((2 * known.CLASSES,), -0.2)
        self.head = nn.Linear(2 * known.CLASSES, known.CLASSES)
        self.head.weight.data = torch.cat([torch.eye(known.CLASSES), torch.eye(known.CLASSES) * 3], dim=1)
        self.head.bias.data[:] = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.seen(images)).flatten(1))


def cornered(targets: int = 1, count: int = 240, poisoned: np.ndarray = POISONED):
    """Pictures of four classes; those poisoned have the red place and the label of one of the targets, in turns."""
    plain = known.pictures(count)
    images, labels = plain.images.copy(), plain.labels.copy()
    for turn, row in enumerate(poisoned):
        label = turn % targets
        images[row, :, label * 2 : label * 2 + 2, :2] = np.array([255, 0, 0])[:, None, None]
        labels[row] = label
    return known.Examples.of(images, labels)


def noisy(rows: int, width: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, width)) + 1
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(sum(x * x for x in vector))


@given(st.integers(10, 60), st.integers(0, 5), st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_two_directions_are_found_as_described(rows, clean, width, seed):
    found, known_ones = noisy(rows, width, seed), noisy(clean, width, seed + 1)
    start = unit(np.mean(known_ones if clean else found, axis=0, dtype=float))
    furthest = sorted(range(rows), key=lambda row: found[row] @ start)[: max(10, round(0.05 * rows))]
    strange, plain, before = unit(np.mean([found[row] for row in furthest], axis=0, dtype=float)), start, None
    for _ in range(20):
        nearer = [row for row in range(rows) if found[row] @ strange > found[row] @ plain]
        if nearer == before or len(nearer) < 5 or rows - len(nearer) < 5:
            break
        strange = unit(np.mean([found[row] for row in nearer], axis=0, dtype=float))
        plain = unit(np.mean([found[row] for row in range(rows) if row not in nearer], axis=0, dtype=float))
        before = nearer
    one, other = basis(found, known_ones)
    assert one == pytest.approx(plain, abs=1e-5)
    assert other == pytest.approx(strange, abs=1e-5)


@pytest.mark.parametrize("grid", [1, 2])
def test_transitions_are_cosines_of_the_gradients_one_by_one(tmp_path, grid):
    network = build("proxy-narrow", 4, (3, 8, 8), seed=1)
    here = known.task(tmp_path, known.pictures(80), np.arange(0, 80, 6), network)
    found = transitions(here, AGPD(grid=grid, layers=2))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)][1:]
    assert found.shape == (80, 2)
    for column, layer in ((0, layers[0]), (1, layers[-1])):
        directions = []
        for row in range(80):
            inputs = []
            handle = layer.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))
            image = torch.tensor(here.examples.images[row : row + 1] / 255, dtype=torch.float32, requires_grad=True)
            logit = network.eval()(image)[0, here.examples.labels[row]]
            handle.remove()
            gradient = torch.autograd.grad(logit, inputs)[0][0]
            side = gradient.shape[1]
            step = max(side // grid, 1)
            cells = [
                [float(channel[top : top + step, left : left + step].mean()) for top in range(0, side, step) for left in range(0, side, step)]
                for channel in gradient
            ]  # fmt: skip
            directions.append(unit(np.array(cells).ravel()))
        directions = np.array(directions, dtype=np.float32)
        for label in range(4):
            own = np.flatnonzero(here.examples.labels == label)
            unknown, clean = np.setdiff1d(own, here.probes), np.intersect1d(own, here.probes)
            plain, strange = basis(directions[unknown], directions[clean])
            assert found[own, column] == pytest.approx(directions[own] @ (strange - plain), abs=2e-3)


def test_rows_of_large_classes_are_measured_by_directions_of_some(tmp_path, monkeypatch):
    here = known.task(tmp_path, cornered(), PROBES, Reasons())
    whole = transitions(here, AGPD())
    monkeypatch.setattr("untaint.defenses.agpd.MOST", 40)
    some = transitions(here, AGPD())
    assert np.isfinite(some).all()
    clean = np.setdiff1d(np.flatnonzero(here.examples.labels == 0), POISONED)
    for steps in (whole, some):
        assert steps[POISONED].min() > 0 > steps[clean].max()


@pytest.mark.parametrize("against", ["probes", "classes"])
def test_poison_is_found_and_nothing_else(tmp_path, against):
    here = dataclasses.replace(known.task(tmp_path, cornered(), PROBES), rule=RULE)
    object.__setattr__(here, "network", Reasons())
    object.__setattr__(here, "loaded", 0)
    judge = AGPD(against=against)
    scores = judge.score(here)
    verdict = judge.decide(scores, here)
    assert set(verdict.rows) == set(POISONED)
    assert scores.values[POISONED].min() > 1 > np.delete(scores.values, POISONED).max()
    assert "others than" in judge.explain(scores, POISONED[:1])[0]
    assert scores.parts["index"][here.examples.labels == 0].min() > judge.index
    assert scores.parts["index"][here.examples.labels != 0].max() <= judge.index


@pytest.mark.parametrize("targets", [1, 3])
def test_nothing_is_found_where_nothing_is_poisoned(tmp_path, targets):
    here = known.task(tmp_path, cornered(poisoned=POISONED[:0]), PROBES, Reasons(targets))
    scores = AGPD().score(here)
    assert not AGPD().decide(scores, dataclasses.replace(here, rule=RULE)).rejected.any()
    assert np.isfinite(scores.values).all()


def test_targets_are_found_where_most_classes_are(tmp_path):
    poisoned = np.setdiff1d(np.arange(1, 400, 7), np.arange(0, 400, 5))
    here = known.task(tmp_path, cornered(3, 400, poisoned), np.arange(0, 400, 5), Reasons(3))
    scores = AGPD().score(here)
    rejected = AGPD().decide(scores, dataclasses.replace(here, rule=RULE)).rejected
    for target in range(3):
        assert rejected[poisoned[target::3]].mean() > 0.9
    clean = np.setdiff1d(np.arange(400), poisoned)
    assert rejected[clean].mean() < 0.02
    paper = AGPD(against="classes").score(here).parts["index"]
    assert paper[poisoned].max() < math.e**2, "the median class is a target itself"


def test_indices_are_those_of_the_formula():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40)
    steps = generator.normal(-1, 0.1, (200, 3)).astype(np.float32)
    steps[:10, 1] += 1
    steps[labels == 4] = np.nan  # not looked at
    probes, members = np.arange(0, 200, 4), np.arange(200)
    scatter = scatters(steps, labels, probes)
    freedom, squares = 4 * 9, np.zeros(3)
    for label in range(4):
        own = steps[probes[labels[probes] == label]].astype(float)
        squares += 9 * own.var(axis=0, ddof=1)
    for label in range(4):
        own = steps[probes[labels[probes] == label]].astype(float)
        expected = (9 * own.var(axis=0, ddof=1) + 12 * squares / freedom) / 21
        assert scatter[label] == pytest.approx(np.sqrt(expected))
    assert scatter[4] == pytest.approx(np.sqrt(squares / freedom))
    found = indices(steps, labels, members, probes, scatter, "probes")
    assert set(found) == {0, 1, 2, 3}
    ratios = {
        label: steps[np.setdiff1d(np.flatnonzero(labels == label), probes)].astype(float).std(axis=0) / scatter[label]
        for label in range(4)
    }
    less = [1 - ratio for each in ratios.values() for ratio in each if ratio < 1]
    unit_of = max(0.1, 1.4826 * np.median(less))
    for label in range(4):
        assert found[label] == pytest.approx((ratios[label] - 1) / unit_of, rel=1e-4)
    assert np.argmax(found[0]) == 1
    by_class = indices(steps, labels, members, probes, scatter, "classes")
    sizes = np.array([np.abs(steps[labels == label].astype(float)).mean(axis=0) for label in range(4)])
    middle = np.median(sizes, axis=0)
    assert by_class[2] == pytest.approx((sizes[2] - middle) / (1.4826 * np.median(abs(sizes - middle), axis=0)))
    flat = np.zeros((200, 1), np.float32)
    for against in ("probes", "classes"):
        assert not np.any(
            list(indices(flat, labels, members, probes, scatters(flat, labels, probes), against).values())
        )


@given(st.floats(-2, 2), st.floats(-2, 0), st.floats(0, 1))
def test_the_way_is_one_half_way_in_targets_and_below_one_elsewhere(step, middle, deviation):
    steps = np.array([middle, step, step + 0.1, 0.0])
    inside, outside = (way(steps, middle, deviation, target=target) for target in (True, False))
    assert inside[0] == outside[0] == 0
    assert outside.max() < 1
    assert (np.diff(inside[1:3]) > 0).all()
    assert (np.diff(outside[1:3]) >= 0).all()
    if -middle > deviation > 1e-5:
        assert inside[3] == pytest.approx(1)
    three = way(np.array([middle + 3 * max(deviation, 1e-5)]), middle, deviation, target=False)
    assert three == pytest.approx(0.5)


def test_a_second_score_asks_nobody_and_judges_by_other_options_at_once(tmp_path):
    here = known.task(tmp_path, cornered(), PROBES, Reasons())
    first = AGPD().score(here)
    asked = here.loaded
    assert np.array_equal(AGPD().score(here).values, first.values)
    assert AGPD(index=1e9).score(here).values.max() < 1
    assert here.loaded == asked
    AGPD(grid=1).score(here)
    assert here.loaded == asked + 1


def test_classes_without_probes_and_with_few_rows(tmp_path):
    whole = cornered()
    few = whole.take(np.r_[np.flatnonzero(whole.labels != 3), np.flatnonzero(whole.labels == 3)[:5]])
    probes = np.intersect1d(PROBES, np.flatnonzero(whole.labels == 0))  # of the target alone
    scores = AGPD().score(known.task(tmp_path, few, probes, Reasons()))
    assert np.isfinite(scores.values[few.rows]).all()
    assert np.isnan(np.delete(scores.values, few.rows)).all()
    assert not scores.values[few.rows[few.labels[few.rows] == 3]].any()
    assert scores.values[POISONED].min() > 1


def test_one_channel_and_five_pixels(tmp_path):
    grey = known.Examples.of(known.pictures(90).images[:, :1, :5, :5], np.arange(90) % 3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3))
    values = AGPD().score(known.task(tmp_path, grey, np.arange(0, 90, 5), network)).values
    assert np.isfinite(values).all()


@pytest.mark.parametrize("count", [0, 9])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count), Reasons())
    with pytest.raises(SpecError, match=f"at least 10 pictures .* has {count}.*--probes"):
        AGPD().score(here)
    assert here.loaded == 0


def test_gradients_that_are_no_numbers_or_that_reach_nothing(tmp_path):
    broken = Reasons()
    broken.seen.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        AGPD().score(known.task(tmp_path / "a", known.pictures(60), np.arange(12), broken))

    class Held(Reasons):
        def forward(self, images):
            return super().forward(images).detach()

    with pytest.raises(InputError, match="no gradient"):
        AGPD().score(known.task(tmp_path / "b", known.pictures(60), np.arange(12), Held()))


@pytest.mark.parametrize("options", [{"grid": 0}, {"layers": 0}, {"against": "all"}, {"index": 0.0}, {"index": math.inf}])  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        AGPD(**options)


def test_layers_are_those_that_see_something_else_than_the_picture_each_once():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)  # the last to be called, the first to be made
            self.short = nn.Conv2d(4, 4, 1)
            self.long = nn.Conv2d(4, 4, 3, padding=1)
            self.first = nn.Conv2d(3, 4, 3)
            self.unused = nn.Conv2d(4, 4, 3)

        def forward(self, images):
            inside = torch.relu(self.first(images))
            return self.head((self.short(inside) + self.long(inside)).mean((2, 3)))

    block = Block()
    assert inner_layers(block, torch.zeros(1, 3, 8, 8)) == [block.short]
    small = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert inner_layers(small, torch.zeros(2, 3, 2, 2)) == [small[1]], "there is no other"
    with pytest.raises(InputError, match="no linear"):
        inner_layers(nn.Flatten(), torch.zeros(1, 3, 2, 2))
    assert len(inner_layers(build("proxy", 3, (3, 8, 8)).eval(), torch.zeros(1, 3, 8, 8))) == 5
    layers = [nn.Identity() for _ in range(30)]
    chosen = spread(layers, 4)
    assert [layers.index(layer) for layer in chosen] == [0, 10, 19, 29]
    assert spread(layers[:3], 16) == layers[:3]


def test_places_come_last_whatever_the_network():
    assert places(torch.zeros(2, 5, 3, 4)).shape == (2, 5, 12)
    assert places(torch.zeros(2, 7, 5)).shape == (2, 5, 7), "tokens are places"
    assert places(torch.zeros(2, 5)).shape == (2, 5, 1)
