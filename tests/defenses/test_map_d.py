"""MAP-D: shares among neighbours as they are counted by hand, the defender's own pictures, and poison that is learned like them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import known
import small
from untaint import Examples, Recorder, load, rng, samples
from untaint.attacks import ATTACKS
from untaint.defenses.map_d import MapD, _Joined, shares, triggered
from untaint.errors import InputError, SpecError
from untaint.poisoning import poison
from untaint.recipe import preset
from untaint.scores import parse_rule
from untaint.training.pixels import PixelStore
from untaint.trajectories import Trajectories


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Trajectories:
    """Random trajectories of 60 rows over 4 epochs, of which the last five were never seen."""
    folder = tmp_path_factory.mktemp("recorded")
    generator = torch.Generator().manual_seed(0)
    recorder = Recorder(np.arange(60) % 3, folder)
    for _ in range(4):
        recorder.record(torch.arange(55), 3 * torch.randn(55, 3, generator=generator))
        recorder.end_epoch()
    return Trajectories(folder / "trajectories")


@pytest.mark.parametrize("observable", ["ce", "margin"])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_shares_are_those_that_are_counted(recorded, observable, k, monkeypatch):
    monkeypatch.setattr("untaint.defenses.map_d.BLOCK", 16)
    kinds = [np.array([3, 30, 31, 8]), np.arange(40, 50), np.array([51, 52])]
    found = shares(recorded, kinds, k, observable)
    table = recorded.read(observable).astype(np.float64)
    known = np.concatenate(kinds)
    for row in range(55):
        near = sorted((np.linalg.norm(table[row] - table[other]), other) for other in known if other != row)[
            : min(k, 15)
        ]
        expected = [np.mean([other in kind for _, other in near]) for kind in kinds]
        if row in known and k == 100:
            continue  # then it has 15 others, and there are 16 for the rest, of which 15 are taken
        assert found[row] == pytest.approx(expected)
    assert found[known].sum(axis=1) == pytest.approx(1)
    assert np.isnan(found[55:]).all()


@pytest.mark.parametrize(
    ("channels", "height", "width", "side"), [(3, 32, 32, 4), (1, 8, 8, 2), (3, 128, 96, 12), (1, 1, 1, 1)]
)
def test_the_trigger_is_one_patch_in_one_corner(channels, height, width, side):
    images = np.full((5, channels, height, width), 7, dtype=np.uint8)
    stamped = triggered(images, 3)
    assert (images == 7).all()
    assert (stamped == stamped[:1]).all()
    down, across = np.nonzero((stamped[0] != 7).any(axis=0))
    assert np.ptp(down) < side
    assert np.ptp(across) < side
    assert {down.min() < side or down.max() >= height - side, across.min() < side or across.max() >= width - side} == {
        True
    }
    assert np.array_equal(triggered(images, 3), stamped)
    if height > 1:
        assert not np.array_equal(triggered(images, 4), stamped)


def test_pictures_behind_others_are_read_as_one_array():
    whole = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8)
    joined = _Joined(whole[:13], whole[13:])
    assert np.array_equal(np.array(joined), whole)
    assert joined.shape == whole.shape
    assert joined.nbytes == whole.nbytes
    rows = np.array([19, 0, 12, 13, 0])
    assert np.array_equal(joined[rows], whole[rows])
    store = PixelStore(dataclasses.replace(Examples.of(whole, np.zeros(20)), images=joined), torch.device("cpu"))
    assert np.array_equal(store.gather(rows)[0].numpy(), whole[rows].astype(np.float32) / 255)


def test_what_the_defender_tampers_with(tmp_path):
    examples = small.pictures(300)
    here = small.task(tmp_path, examples.without(np.arange(250, 300)), np.arange(0, 200, 5))
    (clean, stamped, wrong), watched = MapD(probes=20)._tampered(here)
    assert len(clean) == len(stamped) == len(wrong) == 20
    assert np.isin(clean, here.probes).all()
    made = watched.examples
    assert np.array_equal(made.rows, np.r_[np.arange(250), 300:340])
    assert np.array_equal(made.labels[:300], examples.labels)
    assert len(set(made.labels[stamped])) == 1
    copies = np.array(made.images)[..., ::-1]
    sources = [np.flatnonzero((examples.images == copies[row]).all(axis=(1, 2, 3))) for row in wrong]
    assert all(len(source) == 1 for source in sources)
    sources = np.concatenate(sources)
    assert (examples.labels[sources] != made.labels[wrong]).all()
    assert not np.isin(sources, clean).any()
    assert sources.max() < 250
    patched = copies[stamped] == copies[stamped][:1]
    assert patched.all(axis=(0, 1)).sum() == 4, "a patch of two by two pixels"


@pytest.mark.parametrize(("probes", "rows", "count"), [(250, 60, 6), (4, 60, 4), (250, 8, 1)])
def test_there_are_no_more_of_each_kind_than_a_tenth_of_the_rows(probes, rows, count, tmp_path):
    here = small.task(tmp_path, small.pictures(rows), [])
    kinds, _ = MapD(probes=probes)._tampered(here)
    assert [len(kind) for kind in kinds] == [count] * 3
    assert MapD(probes=probes).work(here) == [("watcher-probed", 3 * (rows + 2 * count), 3 * (rows + 2 * count))]
    values = MapD(probes=probes).score(here).values
    assert np.isfinite(values).all()


def test_rows_are_told_by_what_they_are_learned_like(tmp_path):
    """Clean pictures are learned in the middle of training, those with a trigger at once, wrong labels at the end."""
    learned = np.repeat([5, 1, 9, 5, 1, 9], [30, 30, 30, 100, 20, 20])
    generator = np.random.default_rng(0)
    recorder = Recorder(np.zeros(len(learned), dtype=np.int64), tmp_path)
    for epoch in range(12):
        margin = 2.0 * (epoch - learned) + generator.normal(0, 0.5, len(learned))
        recorder.record(torch.arange(len(learned)), torch.tensor(np.stack([margin, 0 * margin], axis=1)))
        recorder.end_epoch()
    kinds = [np.arange(30), np.arange(30, 60), np.arange(60, 90)]
    found = shares(Trajectories(tmp_path / "trajectories"), kinds, 20)
    assert np.array_equal(found.argmax(axis=1), np.repeat([0, 1, 2, 0, 1, 2], [30, 30, 30, 100, 20, 20]))


def test_wrong_labels_are_learned_as_those_that_the_defender_made_wrong(tmp_path):
    examples = known.pictures(400)
    wrong = np.arange(3, 400, 25)
    examples.labels[wrong] = (examples.labels[wrong] + 1) % known.CLASSES
    probes = np.setdiff1d(np.arange(0, 400, 7), wrong)
    here = small.task(tmp_path, examples, probes, preset=small.preset(epochs=6))
    judge = MapD(probes=40)
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(400), np.r_[wrong, probes])
    assert scores.values[wrong].min() > 0.5
    assert scores.values[clean].mean() < 0.5
    assert scores.values == pytest.approx(scores.parts["trigger"] + scores.parts["mislabelled"], abs=1e-6)
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(wrong) <= set(verdict.rows)
    assert "a wrong label" in judge.explain(scores, wrong[:1])[0]
    trained = dataclasses.replace(here, train=False)
    assert np.array_equal(MapD(probes=40, sought="trigger").score(trained).values, scores.parts["trigger"])
    assert not np.array_equal(MapD(probes=40, k=3).score(trained).values, scores.values)


@pytest.mark.slow
def test_a_patch_in_photos_is_learned_as_the_defenders_patch_is(tmp_path):
    clean = load(samples.path())
    probes = rng.choose(0, "probes", clean.rows, 250)
    examples, ledger = poison(clean, [ATTACKS.build("patch:rate=0.05")], seed=0, spare=probes)
    found = MapD().score(small.task(tmp_path, examples, probes, preset=preset("fast").changed(precision="float32")))
    poisoned, others = ledger.poisoned(), np.setdiff1d(ledger.clean(), probes)
    assert (found.parts["trigger"][poisoned] > 0.5).mean() > 0.7
    assert (found.parts["trigger"][others] > 0.5).mean() < 0.05
    assert (found.values[others] > 0.5).mean() < 0.2


def test_its_watcher_is_not_put_where_others_would_take_it_for_theirs(tmp_path):
    here = small.task(tmp_path / "run", small.pictures(60), np.arange(0, 60, 4), store=tmp_path / "store")
    MapD().score(here)
    assert (here.scratch / "watcher-probed" / "model.safetensors").exists()
    assert not (here.scratch / "watcher-probed").is_symlink()
    assert not (tmp_path / "store").exists()


def test_one_class_has_no_wrong_labels(tmp_path):
    examples = Examples.of(small.pictures(30).images, np.zeros(30))
    with pytest.raises(InputError, match="one class"):
        MapD().score(small.task(tmp_path, examples, []))


@pytest.mark.parametrize("options", [{"probes": 0}, {"k": 0}, {"sought": "poison"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        MapD(**options)
