"""FLARE: extremes as their formula is written, clusters that come apart and those that do not, and models of other kinds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import known
from untaint import load, rng, samples
from untaint.attacks import ATTACKS
from untaint.defenses import Task, _extremes, flare
from untaint.defenses._extremes import extremes
from untaint.defenses.flare import Flare, _unvouched, nearer, split
from untaint.errors import InputError, SpecError
from untaint.poisoning import poison
from untaint.progress import Silent
from untaint.recipe import preset
from untaint.scores import parse_rule

POISONED = np.arange(1, 480, 12)  # 40
PROBES = np.setdiff1d(np.arange(0, 480, 9), POISONED)


class Two(nn.Module):
    """Two layers of batch normalisation, of 3 and 5 maps, with statistics and weights of their own; or of another kind."""

    def __init__(self, first: nn.Module, second: nn.Module, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(channels, 3, 3, stride=2), first, nn.ReLU(), nn.Conv2d(3, 5, 2), second)
            self.head = nn.Linear(5, known.CLASSES)
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.01, 2)
                    layer.weight.data.normal_()

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


def by_hand(model: Two, images: np.ndarray) -> list[np.ndarray]:
    """The scaled extremes of each map, (rows, twice the maps), a layer."""
    found = []
    entering = torch.from_numpy(images.astype(np.float32) / 255)
    with torch.no_grad():
        for layer in model.eval().body:
            if isinstance(layer, nn.BatchNorm2d):
                table = []
                for picture in entering.numpy():
                    scaled = [
                        (values - float(mean)) / np.sqrt(float(variance) + layer.eps)
                        for values, mean, variance in zip(picture, layer.running_mean, layer.running_var, strict=True)
                    ]
                    table.append([values.max() for values in scaled] + [values.min() for values in scaled])
                found.append(np.array(table))
            entering = layer(entering)
    return found


def test_extremes_of_layers_are_those_of_the_formula(tmp_path):
    here = known.task(tmp_path, known.pictures(40), [0, 1], Two(nn.BatchNorm2d(3), nn.BatchNorm2d(5)))
    found = extremes(here, "layer")
    assert found.shape == (40, 2, 1)
    for number, ends in enumerate(by_hand(here.network, here.examples.images)):
        assert found[:, number, 0] == pytest.approx(np.log(1 + np.abs(ends).max(axis=1)), rel=1e-4)


def test_extremes_of_maps_keep_their_distances_where_there_are_few_maps(tmp_path):
    here = known.task(tmp_path, known.pictures(40), [0, 1], Two(nn.BatchNorm2d(3), nn.BatchNorm2d(5)))
    found = extremes(here, "map")
    assert found.shape == (40, 2, 10)
    for number, ends in enumerate(by_hand(here.network, here.examples.images)):
        ends = np.sign(ends) * np.log(1 + np.abs(ends))
        apart = np.linalg.norm(ends[:, None] - ends[None], axis=2)
        assert np.linalg.norm(found[:, None, number] - found[None, :, number], axis=2) == pytest.approx(apart, abs=1e-3)


def test_of_many_maps_the_directions_stay_in_which_they_vary(tmp_path, monkeypatch):
    here = known.task(tmp_path, known.pictures(60), [0, 1], Two(nn.BatchNorm2d(3), nn.BatchNorm2d(5)))
    whole = extremes(here, "map")
    monkeypatch.setattr(_extremes, "KEPT", 2)
    monkeypatch.setattr(_extremes, "SAMPLE", 30)
    main = extremes(here, "map")
    assert main.shape == (60, 2, 2)
    for number in range(2):
        assert main[:, number].var(axis=0).sum() > 0.7 * np.sort(whole[:, number].var(axis=0))[-2:].sum()


@pytest.mark.parametrize(
    ("first", "second", "layers"),
    [
        (nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(5, track_running_stats=False), 2),
        (nn.GroupNorm(1, 3), nn.Identity(), 1),
        (nn.Identity(), nn.Identity(), 2),
    ],
)
@pytest.mark.parametrize("pool", ["map", "layer"])
def test_models_that_have_no_statistics(first, second, layers, pool, tmp_path):
    here = known.task(tmp_path, known.pictures(60), [0, 1], Two(first, second))
    found = extremes(here, pool)
    assert found.shape[:2] == (60, layers)
    assert np.isfinite(found).all()
    assert (found.std(axis=0).max(axis=1) > 0).all()


def test_normalisation_of_tokens_and_layers_that_are_not_used(tmp_path):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.LayerNorm(7)
            self.norm = nn.LayerNorm(24)
            self.head = nn.Linear(24, known.CLASSES)

        def forward(self, images):
            return self.head(self.norm(images.permute(0, 2, 1, 3).flatten(2)).mean(dim=1))

    here = known.task(tmp_path, known.pictures(30), [0, 1], Tokens())
    found = extremes(here, "layer")
    entering = here.examples.images.transpose(0, 2, 1, 3).reshape(30, 8, 24) / 255.0
    scaled = (entering - entering.mean(axis=(0, 1))) / entering.std(axis=(0, 1))
    assert found[:, 0, 0] == pytest.approx(np.log(1 + np.abs(scaled).max(axis=(1, 2))), rel=1e-3)


def blobs(*, apart: float = 8.0, small: int = 60, wide: float = 0.3, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    aside = generator.normal(size=(small, 4)) * wide + [apart, 0, 0, 0]
    return np.concatenate([generator.normal(size=(940, 4)), aside])


def test_a_small_cluster_comes_apart_from_the_largest():
    found = split(blobs(), 25, 0.1)
    assert (found[940:] == 1).mean() > 0.9
    assert (found[940:] != 0).all()
    assert (found[:940] == 0).mean() > 0.7
    assert (found[:940] != 1).all()


def test_two_small_clusters_come_apart_together():
    found = split(np.concatenate([blobs(), blobs(apart=-8.0, small=100)[940:]]), 25, 0.1)
    assert (found[940:1000] == 2).mean() > 0.8, "the smaller one"
    assert (found[1000:] == 1).mean() > 0.8


@pytest.mark.parametrize(
    "points", [blobs(apart=0), blobs(small=10), blobs()[:49], np.ones((200, 3)), np.zeros((200, 1))]
)
def test_nothing_comes_apart(points):
    assert (split(points, 25, 0.1) == -1).all()


def test_the_scale_does_not_matter_and_the_gap_does():
    assert np.array_equal(split(blobs(), 25, 0.1), split(blobs() * 1000, 25, 0.1))
    assert (split(blobs(), 25, 5.0) == -1).all()


def test_clusters_of_which_none_is_larger_than_all_others_are_not_told_apart():
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.normal(size=(200, 2)) + place for place in ([0, 0], [30, 0], [0, 30])])
    assert (split(points, 25, 0.1) == -1).all()


@pytest.mark.parametrize(("vouched", "poison"), [(0, True), (1, True), (3, False), (10, False)])
def test_a_cluster_with_as_many_probes_as_others_have_is_clean(vouched, poison):
    clusters = np.repeat([0, 1, -1], [800, 100, 100])
    probes = np.arange(1000) % 20 == 0
    probes[800:900] = np.arange(100) < vouched
    assert np.array_equal(_unvouched(clusters, probes), (clusters == 1) & poison)
    assert np.array_equal(_unvouched(clusters, np.zeros(1000, dtype=bool)), clusters == 1), "without probes all are"


def test_the_score_is_the_ratio_of_distances():
    points = blobs()
    small, large = points[940:], points[:940]
    found = nearer(points, small, large)
    for row in (0, 500, 950):
        away = [np.sort(np.linalg.norm(cluster - points[row], axis=1))[4] for cluster in (large, small)]
        assert found[row] == pytest.approx(np.log(away[0] / away[1]), abs=1e-6)


class Cornered(nn.Module):
    """Sees edges, wherever they are, and chequers; its statistics are those of some pictures."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 2, bias=False)
        filters = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        self.seen.weight.data = filters[:, None].expand(-1, 3, -1, -1).contiguous()
        self.norm = nn.BatchNorm2d(3, momentum=None)
        self.head = nn.Linear(3, known.CLASSES)
        with torch.no_grad():
            self.train()(torch.from_numpy(images.astype(np.float32) / 255))

    def forward(self, images):
        return self.head(self.norm(self.seen(images)).amax(dim=(2, 3)))


def cornered(scratch, poisoned: np.ndarray):
    examples = known.pictures(480, poisoned)
    return known.task(scratch, examples, PROBES, Cornered(examples.images))


@pytest.mark.parametrize("pool", ["map", "layer"])
def test_a_trigger_that_makes_what_no_clean_picture_makes_is_found(pool, tmp_path):
    here, judge = cornered(tmp_path, POISONED), Flare(pool=pool)
    scores = judge.score(here)
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert np.array_equal(verdict.rows, POISONED)
    assert "times as near" in judge.explain(scores, POISONED[:1])[0]


def test_nothing_is_set_aside_where_there_is_no_poison(tmp_path):
    assert not Flare().score(cornered(tmp_path, POISONED[:0])).values.any()


def test_last_layers_that_hide_it_are_left_out(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    seen = np.zeros((480, 3, 4), dtype=np.float32)
    seen[:, 0] = generator.normal(size=(480, 4))
    seen[POISONED, 0] += 12
    seen[:, 1:] = generator.normal(size=(480, 2, 4)) * 300
    monkeypatch.setattr(flare, "extremes", lambda task, pool: seen)
    values = Flare().score(known.task(tmp_path, known.pictures(480, POISONED), PROBES)).values
    assert np.array_equal(np.flatnonzero(values > 0), POISONED)


def test_rows_beyond_those_that_are_clustered_are_held_against_them(tmp_path, monkeypatch):
    monkeypatch.setattr(flare, "CLUSTERED", 400)
    assert np.array_equal(np.flatnonzero(Flare().score(cornered(tmp_path, POISONED)).values > 0), POISONED)


def test_a_second_score_asks_nobody_and_is_the_same(tmp_path):
    here = cornered(tmp_path, POISONED)
    first = Flare().score(here)
    asked = here.loaded
    assert np.array_equal(Flare().score(here).values, first.values)
    assert Flare(gap=9.0).score(here).values.max() == 0, "another gap is another judgement, of the same extremes"
    assert here.loaded == asked


def test_answers_that_are_no_numbers_and_models_without_hidden_layers(tmp_path):
    network = Two(nn.BatchNorm2d(3), nn.BatchNorm2d(5))
    network.body[0].weight.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Flare().score(known.task(tmp_path / "a", known.pictures(60), [0, 1], network))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, known.CLASSES))
    with pytest.raises(InputError, match="no hidden layer"):
        Flare().score(known.task(tmp_path / "b", known.pictures(60), [0, 1], flat))


@pytest.mark.slow
def test_a_patch_in_photos_comes_apart(tmp_path):
    clean = load(samples.path())
    probes = rng.choose(0, "probes", clean.rows, 250)
    examples, ledger = poison(clean, [ATTACKS.build("patch:rate=0.05")], seed=0, spare=probes)
    here = Task(
        examples=examples,
        probes=probes,
        preset=preset("fast").changed(precision="float32"),
        rule=parse_rule("above:score=0"),
        scratch=tmp_path,
        seed=0,
        progress=Silent(),
    )
    rejected = Flare().examine(here).verdict.rejected
    assert rejected[ledger.poisoned()].mean() > 0.6, "a white corner does not show in bright pictures"
    assert rejected[ledger.clean()].mean() < 0.01


@pytest.mark.parametrize(
    "options",
    [{"pool": "all"}, {"dimensions": 0}, {"smallest": 0.0}, {"smallest": 0.5}, {"gap": 0.001}, {"gap": float("nan")}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Flare(**options)
