"""Patterns in pixels: the mathematics against slow versions, and what is found in made-up and in real pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import small
import untaint as ut
from untaint import samples
from untaint.attacks import ATTACKS
from untaint.defenses import _pattern
from untaint.defenses._pattern import Pixels, SharedPattern, _Class, patterns
from untaint.defenses._recovered import alone_in
from untaint.defenses._tails import NEAR, directions_of, measured, once_each, sides_of, tail
from untaint.defenses.pattern import Pattern
from untaint.errors import SpecError
from untaint.examples import Examples
from untaint.poisoning import poison

CPU = torch.device("cpu")
DEVIATIONS = st.floats(-12, 12, width=32).map(lambda value: round(value, 2))


def noisy(count=600, side=8, classes=3, seed=0):
    """Pictures without fine stripes, as float (count, 3, side, side), and labels."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(count, 3, side, side))
    for axis in (2, 3):
        images = (2 * images + np.roll(images, 1, axis) + np.roll(images, -1, axis)) / 4
    return 120 + 60 * images + generator.normal(size=images.shape), np.arange(count) % classes


def striped(images, poisoned):
    """The same as pictures in bytes, with stripes of a few levels on some."""
    images[poisoned] += 6 * np.where(np.arange(images.shape[-1]) % 2, 1, -1)
    return images.clip(0, 255).astype(np.uint8)


@given(
    arrays(np.float32, st.integers(1, 25), elements=DEVIATIONS),
    arrays(np.float32, st.integers(0, 25), elements=DEVIATIONS),
    arrays(np.float32, st.integers(0, 6), elements=DEVIATIONS),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_a_tail_is_counted_as_one_would_by_hand(values, others, probes, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(values)).astype(np.float32)
    total = weights.sum()

    def ratio(cut):
        """How many lie at least as far out as ``cut``, over how many are to be expected."""
        alike = weights[values >= cut].sum()
        expected = max(
            weights[values <= -cut].sum(),
            total * (others >= cut).mean() if len(others) else 0,
            total * (probes >= cut).mean() if len(probes) else 0,
        )
        return math.log((alike + 1) / (expected + 1)) if cut > NEAR else 0.0

    found = tail(values, weights, others, probes)
    best = max(ratio(cut) for cut in values)
    telling = min(cut for cut in values if ratio(cut) >= best - 1e-6)
    assert found.cut <= telling + 1e-6
    assert found.many == pytest.approx(weights[values >= found.cut].sum(), abs=1e-4)
    for value, excess, alike, expected in zip(values, found.excess, found.alike, found.expected, strict=True):
        assert excess == pytest.approx(max(0.0, *(ratio(cut) for cut in values if cut <= value)), abs=1e-4)
        if excess > 0:
            assert excess == pytest.approx(math.log((alike + 1) / (expected + 1)), abs=1e-4)


def test_what_is_less_far_out_has_it_too_where_hardly_any_is_to_be_expected():
    values = np.concatenate([np.linspace(-2, 2, 400), np.linspace(8, 12, 60), np.linspace(5, 6, 8)]).astype(np.float32)
    some = np.linspace(-2, 2, 4_000).astype(np.float32)
    ones, nobody = np.ones(len(values), np.float32), np.empty(0, np.float32)
    assert tail(values, ones, some, nobody).cut == 5
    far_too = np.append(some, [5.5, 7, 7.5]).astype(np.float32)  # of other classes: three in 4,003
    assert tail(values, ones, far_too, nobody).cut == 5, "8 more where a third of one is to be expected"
    assert tail(values, ones, np.append(far_too, np.linspace(5, 7, 10)).astype(np.float32), nobody).cut == 8


def test_rows_of_a_pattern_are_judged_by_the_mean_of_the_others_of_them():
    generator = np.random.default_rng(0)
    examples = Examples.of(generator.integers(0, 255, (60, 1, 4, 4), dtype=np.uint8), np.zeros(60, dtype=np.int64))
    pixels = Pixels(examples, 4, CPU).centred()
    factor, members = pixels.spread(), np.arange(50)
    points = torch.linalg.solve_triangular(factor, pixels.read(members).T, upper=False).T
    one = _Class.of(pixels, factor, members, np.arange(50, 60), members)
    own = np.array([3, 7, 20, 31])
    ((side, *_),) = one.tails(one.means([own]), [own])
    table = points.double().numpy()
    mean = table[own].mean(0)
    by_hand = table @ mean
    for place in own:
        by_hand[place] = table[place] @ table[own[own != place]].mean(0)
    others = (
        torch.linalg.solve_triangular(factor, pixels.read(np.arange(50, 60)).T, upper=False).T.double().numpy() @ mean
    )
    deviation = 1.4826 * np.median(np.abs(others - np.median(others)))
    assert np.allclose(side.deviations, (by_hand - np.median(by_hand)) / deviation, atol=1e-3)


def test_a_class_of_many_is_the_same_whether_its_tables_are_kept_or_made_anew(tmp_path, monkeypatch):
    images, labels = noisy(900)
    images[np.flatnonzero(labels == 0)[:40], :, 1:3, 1:3] += 60
    examples = Examples.of(images.clip(0, 255).astype(np.uint8), labels)
    for name, value in {"MOST": 100, "BLOCK": 64}.items():
        monkeypatch.setattr(_pattern, name, value)
    real, seen = Pixels.read, {}
    for kept in (0, 2**28):
        read = []
        monkeypatch.setattr(_pattern, "KEPT", kept)
        monkeypatch.setattr(Pixels, "read", lambda self, rows, read=read: read.append(len(rows)) or real(self, rows))
        here = small.task(tmp_path, examples, np.arange(300, 420))
        (found,) = patterns(here, [here.probes])
        parts = [*found.figures.values(), *(pattern.change.ravel() for pattern in found.patterns)]
        seen[kept] = np.concatenate(parts), sum(read)
    assert np.array_equal(seen[0][0], seen[2**28][0], equal_nan=True)
    assert len(seen[0][0]) > 4 * len(labels), "a pattern is among them"
    assert seen[2**28][1] < seen[0][1], "less is read"


def test_chance_alone_makes_no_strong_pattern(tmp_path):
    images, labels = noisy(1_500)
    examples = Examples.of(images.clip(0, 255).astype(np.uint8), labels)
    here = small.task(tmp_path, examples, np.arange(300, 420))
    (found,) = patterns(here, [here.probes])
    assert all(pattern.excess < 2.3 for pattern in found.patterns)
    assert (found.figures["excess"] > 2.3).mean() < 0.001


def test_a_pattern_is_told_once_with_all_who_have_it(tmp_path):
    images, labels = noisy(1_500)
    poisoned = np.arange(0, 240, 3)
    examples = Examples.of(striped(images, poisoned), labels)
    here = small.task(tmp_path, examples, np.arange(600, 720))
    (found,) = patterns(here, [here.probes])
    strong = [pattern for pattern in found.patterns if pattern.excess > 2.5]
    assert len(strong) == 1
    assert np.isin(poisoned, strong[0].rows).mean() > 0.95
    assert np.isin(strong[0].rows, poisoned).mean() > 0.98
    assert strong[0].between < 0.25
    assert len(np.intersect1d(strong[0].rows, strong[0].doubtful)) == 0
    assert bool((strong[0].nearly <= 1).all())
    assert bool((strong[0].nearly > 0).all())


@given(st.integers(1, 12), st.integers(2, 8), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_near_duplicates_in_all_but_a_direction_share_one_count(rows, width, seed):
    generator = np.random.default_rng(seed)
    points = torch.from_numpy(generator.normal(size=(rows, width)).astype(np.float32))
    along = torch.linalg.qr(torch.from_numpy(generator.normal(size=(width, 2)).astype(np.float32))).Q
    counts = once_each(points, points, along, rows)
    assert counts.shape == (rows, 2)
    for number in range(2):
        beside = (points - torch.outer(points @ along[:, number], along[:, number])).double()
        hidden = beside.norm(dim=1) ** 2 < 0.011 * points.norm(dim=1) ** 2
        if bool(hidden.any()):  # lies along it, nearly: another test
            return
        for index, one in enumerate(beside):
            squared = [float(one @ other / (one.norm() * other.norm())) ** 2 for other in beside]
            assert float(counts[index, number]) == pytest.approx(1 / max(1, sum(squared)), rel=2e-3)
    twice = torch.cat([points, points])
    assert torch.allclose(once_each(twice, twice, along, 2 * rows)[:rows], counts / 2, rtol=1e-3)
    assert torch.allclose(once_each(points, twice, along, 2 * rows), counts / 2, rtol=1e-3), "a sample stands for all"


def test_what_is_looked_for_makes_no_duplicates_and_a_track_does():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(100, 400)).astype(np.float32)
    along = np.eye(400, dtype=np.float32)[:, :1]
    points[:40, 0] += 60  # a trigger, three times as long as pictures are
    points[60:] = points[60] + 0.2 * points[60:]  # frames of one track
    table = torch.from_numpy(points)
    counts = once_each(table, table, torch.from_numpy(along), len(points))[:, 0].numpy()
    assert counts[:40].min() > 0.7
    assert counts[60:].sum() < 2


def test_a_row_that_lies_along_a_direction_counts_as_a_row_at_most():
    points = torch.zeros(20, 6)
    points[:10, 0] = 3.0
    points[10:15, 1] = 2.0
    counts = once_each(points, points, torch.eye(6)[:, :2], 20)
    assert bool(torch.isfinite(counts).all())
    assert bool(((counts > 0) & (counts <= 1)).all())


def test_directions_are_those_in_which_rows_of_length_one_vary_most():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(200, 30)).astype(np.float32)
    points[:60] += 12 * np.eye(30, dtype=np.float32)[3]
    points[60:100] += 12 * np.eye(30, dtype=np.float32)[7]
    points[150] *= 1e4  # one odd picture
    lengths = np.linalg.norm(points, axis=1)
    _, _, right = np.linalg.svd(points / lengths[:, None])
    found = directions_of(torch.from_numpy(points), torch.randn(30, 6))
    assert np.allclose((found.T @ found).numpy(), np.eye(6), atol=1e-4)
    assert abs(float(found[:, 0] @ torch.from_numpy(right[0]))) > 0.999
    assert abs(float(found[:, 1] @ torch.from_numpy(right[1]))) > 0.99


def test_faint_stripes_on_a_third_of_a_class_are_found_and_nothing_else(tmp_path):
    images, labels = noisy()
    poisoned = np.arange(0, 180, 3)
    examples = Examples.of(striped(images, poisoned), labels)
    probes = np.arange(300, 420)
    found = Pattern().score(small.task(tmp_path, examples, probes))
    clean = np.setdiff1d(examples.rows, poisoned)
    assert (found.values[poisoned] > 2.3).mean() > 0.95
    assert (found.values[clean] > 2.3).mean() < 0.02
    said = Pattern().explain(found, poisoned[:1])
    assert "deviations along a pattern" in said[0]


def test_poison_may_be_most_of_a_class_if_its_probes_are_clean(tmp_path):
    images, labels = noisy()
    poisoned = np.arange(0, 420, 3)  # 140 of the 200 of class 0
    examples = Examples.of(striped(images, poisoned), labels)
    found = Pattern().score(small.task(tmp_path, examples, np.arange(480, 600))).values
    clean = np.setdiff1d(examples.rows, poisoned)
    assert (found[poisoned] > 2.3).mean() > 0.95
    assert (found[clean] > 2.3).mean() < 0.02


@pytest.mark.parametrize("poison", [90, 110, 140, 180])
def test_where_poison_is_most_of_a_class_other_classes_say_which_part_is_natural(tmp_path, poison):
    images, labels = noisy()
    poisoned = np.arange(0, 3 * poison, 3)  # of the 200 of class 0
    examples = Examples.of(striped(images, poisoned), labels)
    (found,) = patterns(small.task(tmp_path, examples, np.arange(0)), [np.empty(0, np.int64)])
    strong = [own for own in found.patterns if own.excess > 2.5]
    assert len(strong) == 1
    assert strong[0].most or poison == 90
    assert np.isin(poisoned, strong[0].rows).mean() > 0.95
    assert np.isin(strong[0].rows, poisoned).mean() > 0.98
    towards = (strong[0].change[:, :, 1::2] - strong[0].change[:, :, ::2]).mean()
    assert towards > 6 / 255, "the stripes, and not what is left without them"
    told = found.figures["excess"]
    assert (np.delete(told, poisoned) > 2.3).mean() < 0.02
    if strong[0].most:
        assert (told > 2.3).mean() < 0.02, "what most of a class have is not said to be a trigger by pixels alone"
        assert not alone_in(replace(found, patterns=[*found.patterns, *natural(30)])).any()


def natural(count):
    """Patterns that come by degrees."""
    excess = 1 + np.random.default_rng(0).exponential(0.3, count)
    blank, nobody = np.zeros((3, 8, 8), np.float32), np.empty(0, np.int64)
    return [SharedPattern(1, value, 5.0, nobody, blank, nobody, np.empty(0, np.float32)) for value in excess]


@pytest.mark.parametrize(("many", "moved"), [(3, False), (10, False), (11, True), (30, True)])
def test_probes_are_the_middle_only_if_chance_does_not_put_so_many_on_one_side(many, moved):
    generator = np.random.default_rng(0)
    members = np.concatenate([generator.normal(0, 1, 40), generator.normal(30, 1, 60)]).astype(np.float32)[:, None]
    others = generator.normal(0, 1, (500, 1)).astype(np.float32)
    probes = generator.normal(0, 1, (many, 1)).astype(np.float32)
    own, _, vouched, home = measured(members, others, probes, np.zeros(1, np.float32))
    middle = own[:40].mean()
    assert bool(abs(middle) < 1) is moved
    assert vouched.mean() == pytest.approx(middle, abs=1), "probes are measured from the same middle"
    assert home[0] == pytest.approx(middle, abs=1)
    near = np.concatenate([generator.normal(0, 1, (2 * many, 1)), np.full((many, 1), 3.0)]).astype(np.float32)
    assert abs(measured(members - members, others, near, np.zeros(1, np.float32))[0]).max() == 0, "too near to matter"


def test_a_tail_towards_other_classes_is_no_pattern():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 1, 60), generator.normal(-30, 1, 40)]).astype(np.float32)[:, None]
    others, nobody = generator.normal(0, 1, (500, 1)).astype(np.float32), np.empty((0, 1), np.float32)
    ones = np.ones_like(values)
    some, most = (False, 40), (True, 60)
    for home, expected in ((0, {some}), (-30, {most}), (30, {some}), (-12, {some, most}), (-3, {some})):
        # other classes lie where the 60 do; where the 40 do; beyond the 60; and between, where either may be what is natural
        (sides,) = sides_of(values, ones, others, nobody, np.array([home], np.float32))
        assert {(side.most, len(side.having())) for side in sides if side.stands_out()} == expected, home
    probes = np.full((3, 1), -33, np.float32)
    for home, expected in (
        (0, set()),
        (-12, {most}),
    ):  # what is vouched for is no pattern, but what is left of the class may be
        (sides,) = sides_of(values, ones, others, probes, np.array([home], np.float32))
        assert {(side.most, len(side.having())) for side in sides if side.stands_out()} == expected, home


def test_what_a_class_has_more_or_less_of_lies_the_other_way_from_the_rest_than_a_trigger(tmp_path):
    for faint, expected in (
        (0, True),
        (3, False),
    ):  # stripes that some have; or that all of the class have, and some boldly
        images, labels = noisy()
        images[::3] += faint * np.where(np.arange(images.shape[-1]) % 2, 1, -1)
        some = np.arange(0, 180, 3)
        examples = Examples.of(striped(images, some), labels)
        (found,) = patterns(small.task(tmp_path, examples, np.arange(0)), [np.empty(0, np.int64)])
        strongest = max((own for own in found.patterns if not own.most), key=lambda own: own.excess)
        assert np.isin(strongest.rows, some).mean() > 0.95
        assert bool(strongest.home > -0.1) is expected
        assert (
            alone_in(replace(found, patterns=[*found.patterns, *natural(30)]))[found.patterns.index(strongest)]
            == expected
        )


def test_classes_of_few_pictures_and_other_rows_have_no_patterns(tmp_path):
    images, labels = noisy(130)
    labels = np.where(np.arange(130) < 19, 1, 0)
    examples = Examples.of(images.clip(0, 255).astype(np.uint8), labels)
    found = Pattern().score(small.task(tmp_path, examples, np.arange(20, 60)))
    assert (found.values[:19] == 0).all()
    assert Pattern().explain(found, np.arange(1)) == ["no pattern stands out"]
    part = examples.without(np.arange(100, 130))
    assert np.isnan(Pattern().score(small.task(tmp_path, part, np.arange(20, 60))).values[100:]).all()


@pytest.mark.parametrize("probes", [0, 1, 8])
def test_few_probes_or_none_are_enough(tmp_path, probes):
    images, labels = noisy()
    poisoned = np.arange(0, 120, 3)
    examples = Examples.of(striped(images, poisoned), labels)
    found = Pattern().score(small.task(tmp_path, examples, np.arange(300, 300 + probes))).values
    assert (found[poisoned] > 2.3).mean() > 0.95
    assert (np.delete(found, poisoned) > 2.3).mean() < 0.02


def test_a_class_alone_can_be_compared_with_nobody(tmp_path):
    examples = Examples.of(striped(noisy()[0], np.arange(100)), np.zeros(600, dtype=np.int64))
    assert np.isfinite(Pattern().score(small.task(tmp_path, examples, np.arange(300, 400))).values).all()


def test_alike_pictures_and_blank_ones_raise_nothing(tmp_path):
    alike = np.repeat(noisy(1)[0], 90, axis=0).clip(0, 255).astype(np.uint8)
    for images in (alike, np.zeros_like(alike)):
        examples = Examples.of(images, np.arange(90) % 3)
        values = Pattern().score(small.task(tmp_path, examples, np.arange(10))).values
        assert np.isfinite(values).all()
        assert (values < 1).all()


def test_large_pictures_are_averaged_down():
    images, labels = noisy(20, side=16)
    examples = Examples.of(images.clip(0, 255).astype(np.uint8), labels)
    table = Pixels(examples, 8, CPU).read(np.arange(5))
    blocks = examples.images[:5].reshape(5, 3, 8, 2, 8, 2).mean(axis=(3, 5)) / 255
    assert np.allclose(table.numpy(), blocks.reshape(5, -1), atol=1e-5)
    assert Pixels(examples, 16, CPU).read(np.arange(5)).shape == (5, 3 * 16 * 16)


def test_a_class_too_large_to_be_looked_at_whole_is_scored_whole(tmp_path, monkeypatch):
    images, labels = noisy(900)
    poisoned = np.arange(0, 300, 3)
    examples = Examples.of(striped(images, poisoned), labels)
    whole = Pattern().score(small.task(tmp_path, examples, np.arange(600, 900))).values
    for name, count in (("MOST", 150), ("BLOCK", 64), ("OTHERS", 250)):
        monkeypatch.setattr(f"untaint.defenses._pattern.{name}", count)
    part = Pattern().score(small.task(tmp_path, examples, np.arange(600, 900))).values
    for values in (whole, part):
        assert (values[poisoned] > 2.3).mean() > 0.9
        assert (np.delete(values, poisoned) > 2.3).mean() < 0.02


def test_options_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match="directions is 0"):
        Pattern(directions=0)


def test_several_attacks_on_real_pictures_are_found_without_a_model(tmp_path):
    """The packaged sample: at one in a hundred clean rows, most of five attacks at once."""
    photos = ut.load(samples.path())
    attacks = [
        ATTACKS.build(text)
        for text in (
            "patch:target=0,rate=0.02",
            "blend:target=1,rate=0.02",
            "blend:pattern=lattice,alpha=0.1,target=2,rate=0.02",
            "sinusoid:target=3,class-rate=0.2",
            "frequency:target=4,rate=0.02",
        )
    ]
    poisoned, ledger = poison(photos, attacks, seed=0)
    found = Pattern().score(small.task(tmp_path, poisoned, ledger.clean()[:: len(ledger.clean()) // 250])).values
    limit = np.quantile(found[ledger.clean()], 0.99)
    for number in range(len(attacks)):
        assert (found[ledger.poisoned(number)] > limit).mean() > 0.8, attacks[number]
