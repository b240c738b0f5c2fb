from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import small
import untaint as ut
from untaint import spectra
from untaint.attacks import ATTACKS
from untaint.errors import InputError, SpecError
from untaint.poisoning import fixed

SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 30))


def table(shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


# --- against numpy's own singular value decomposition


@given(SHAPES, st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_singular_values_are_those_of_the_decomposition(shape, seed, centred):
    features = table(shape, seed)
    exact = np.linalg.svd(features - features.mean(0) * centred, compute_uv=False)
    assert spectra.singular_values(features, centred) == pytest.approx(exact, abs=1e-6 * max(1.0, exact[0]))


@given(SHAPES, st.integers(0, 2**31), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_directions_are_orthonormal_and_hold_as_much_as_the_singular_values_say(shape, seed, k):
    features = table(shape, seed)
    along = spectra.top_directions(features, k)
    exact = np.linalg.svd(features, compute_uv=False)
    assert len(along) == min(k, *shape)
    assert along @ along.T == pytest.approx(np.eye(len(along)), abs=1e-6)
    shares = spectra.energy_along(features, along)
    assert shares == pytest.approx((exact**2 / (exact**2).sum())[: len(along)], abs=1e-8)
    assert shares.sum() <= 1 + 1e-9


def test_a_matrix_of_low_rank_has_no_more_directions():
    features = np.outer(np.arange(1, 8), np.arange(1, 5)).astype(float)
    assert spectra.top_directions(features, 3).shape == (1, 4)
    assert spectra.top_directions(np.zeros((5, 3)), 3).shape == (0, 3)
    assert spectra.energy_along(np.zeros((5, 3)), np.eye(3)).tolist() == [0, 0, 0]


@given(st.integers(1, 50), st.floats(0.01, 100))
def test_equal_values_have_their_number_as_effective_rank_whatever_they_are(count, value):
    assert spectra.effective_rank(np.full(count, value)) == pytest.approx(count)
    assert spectra.effective_rank(np.append(np.full(count, value), np.zeros(5))) == pytest.approx(count)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_the_effective_rank_is_between_one_and_the_rank(values):
    found = spectra.effective_rank(np.array(values))
    rank = np.count_nonzero(values)
    assert found <= rank + 1e-6
    assert found >= (1 - 1e-9 if rank else 0)


@pytest.mark.parametrize("method", ["pca", "t-sne"])
def test_two_kinds_that_differ_in_one_direction_come_apart_in_it_and_not_outside(method):
    features = table((60, 12), 0)
    features[:30, 3] += 25
    along = np.eye(12)[[3]]

    def apart(inside):
        flat = spectra.projected(features, along, inside=inside, method=method)
        assert flat.shape == (60, 2)
        nearest = ((flat[:, None] - flat[None]) ** 2).sum(2) + np.diag(np.full(60, np.inf))
        return float(((nearest.argmin(1) < 30) == (np.arange(60) < 30)).mean())

    assert apart(True) == 1
    assert 0.25 < apart(False) < 0.8


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: spectra.singular_values(np.zeros((2, 2, 2))), InputError, r"shape \(2, 2, 2\)"),
        (lambda: spectra.singular_values(np.zeros((0, 4))), InputError, r"shape \(0, 4\)"),
        (lambda: spectra.singular_values(np.array([[1.0, np.nan]])), InputError, "1 of 2 features are not finite"),
        (lambda: spectra.top_directions(np.ones((2, 2)), 0), InputError, "k is 0"),
        (lambda: spectra.projected(np.ones((4, 2)), np.eye(2), method="umap"), SpecError, "method is 'umap'"),
    ],
)
def test_what_cannot_be_used_is_refused(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


# --- layers of a network


class Brightness(nn.Module):
    """Two hidden features, the mean of all pixels and the first pixel; the picture is of class 1 if the first pixel is bright, else of class 0."""

    def __init__(self):
        super().__init__()
        self.look = nn.Identity()
        self.seen = nn.Identity()

    def forward(self, images):
        two = torch.stack([self.look(images).mean((1, 2, 3)), images[:, 0, 0, 0]], 1)
        seen = self.seen(two)
        return torch.stack([torch.full_like(seen[:, 1], 0.5), seen[:, 1]], 1)


def bright(rows=120):
    clean = small.pictures(rows)
    images = clean.images.copy()
    images[:, 0, 0, 0] = 0
    clean = ut.Examples.of(images, np.zeros(rows, np.int64), class_names=["a", "b"])
    stamped = images.copy()
    stamped[:, 0, 0, 0] = 255
    return clean, ut.Examples.of(stamped, np.ones(rows, np.int64), class_names=["a", "b"])


def test_features_are_what_comes_out_of_the_layer_in_the_order_of_members():
    clean, _ = bright()
    part = clean.take(np.arange(7, 90, 3))
    found = spectra.layer_features(Brightness(), part, "seen")
    assert found[:, 0] == pytest.approx(part.images[part.rows].mean((1, 2, 3)) / 255, abs=1e-5)
    whole = spectra.layer_features(Brightness(), part, "look")
    assert np.array_equal(whole, (part.images[part.rows] / np.float32(255)).reshape(len(part), -1).astype(np.float32))


def test_a_direction_that_is_taken_out_is_gone_for_the_time_of_the_context():
    _, shown = bright()
    model = Brightness().eval()
    images = torch.tensor(shown.images[:5]) / 255
    with spectra.removing(model, np.array([[0.0, 1.0]]), "seen") as without, torch.no_grad():
        assert without(images).argmax(1).tolist() == [0] * 5
    assert model(images).argmax(1).tolist() == [1] * 5
    with spectra.removing(model, np.eye(3), "seen"), pytest.raises(InputError, match="directions have 3 entries"):
        model(images)
    assert model(images).argmax(1).tolist() == [1] * 5


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2", "proxy"])
def test_common_networks_are_looked_at_before_their_pooling(name):
    from untaint.models.build import build

    clean = small.pictures(6, side=32)
    found = spectra.layer_features(build(name, 4, (3, 32, 32)), clean)
    assert found.shape[0] == 6
    assert found.shape[1] >= 512
    assert np.isfinite(found).all()


def test_a_layer_that_there_is_not_and_one_that_gives_no_tensor_are_refused():
    class Two(nn.Module):
        def forward(self, images):
            return images, images

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, images):
            return self.two(images)[0].flatten(1)[:, :2]

    clean, _ = bright(8)
    with pytest.raises(SpecError, match=r"no layer 'seeing'.*seen"):
        spectra.layer_features(Brightness(), clean, "seeing")
    with pytest.raises(SpecError, match="the layer two gives a tuple"):
        spectra.layer_features(Holder(), clean, "two")


# --- all of it


def test_a_trigger_that_is_one_pixel_lies_in_the_direction_of_that_pixel():
    clean, shown = bright()
    found = spectra.look(Brightness(), clean, {"pixel": shown}, "seen", k=1, removed=(0, 1), share=0.5)
    one = found.shown["pixel"]
    assert (found.layer, found.pictures, found.width, found.removed) == ("seen", 120, 2, (0, 1))
    assert one.success[0] == 1
    assert one.accuracy[0] == 1
    assert one.energy.sum() == pytest.approx(1)
    features = spectra.layer_features(Brightness(), clean, "seen")
    assert found.values == pytest.approx(np.linalg.svd(features.astype(float), compute_uv=False), abs=1e-4)
    assert found.rank == pytest.approx(spectra.effective_rank(found.values))
    assert one.clean_rank == pytest.approx(found.rank)
    triggered = spectra.layer_features(Brightness(), shown, "seen")
    assert one.values == pytest.approx(np.linalg.svd(triggered.astype(float), compute_uv=False), abs=1e-4)
    assert one.scatter.shape == (2, 240, 2)
    assert one.is_triggered.sum() == 120
    alone = spectra.look(Brightness(), clean, {"pixel": shown}, "seen", k=1, removed=(0, 2), share=0.99).shown["pixel"]
    assert alone.success.tolist() == [1, 0], "without both directions nothing is bright"


def test_the_same_rows_are_compared_whoever_else_is_a_member():
    clean, shown = bright()
    some = shown.take(np.arange(50, 120))
    found = spectra.look(Brightness(), clean, {"pixel": some}, "seen", most=60, removed=(0,))
    assert found.pictures == 60
    one = found.shown["pixel"]
    assert len(one.scatter[0]) == 2 * one.is_triggered.sum() <= 120
    assert one.energy.sum() == pytest.approx(1)
    with pytest.raises(InputError, match="no triggered picture is one of the clean ones"):
        spectra.look(Brightness(), clean.take(np.arange(50)), {"pixel": some}, "seen")


def test_no_more_directions_are_said_to_be_taken_out_than_there_are():
    clean, shown = bright(30)
    found = spectra.look(Brightness(), clean, {"pixel": shown}, "look", most=12, removed=(0, 5, 12, 50))
    assert found.removed == (0, 5, 12)
    assert len(found.shown["pixel"].success) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"k": 0}, "k is 0 and most 1000"),
        ({"most": 0}, "k is 10 and most 0"),
        ({"removed": (3, 5)}, r"removed is \[3, 5\]"),
    ],
)
def test_unusable_settings_are_refused(options, message):
    clean, shown = bright(20)
    with pytest.raises(InputError, match=message):
        spectra.look(Brightness(), clean, {"pixel": shown}, "seen", **options)


def test_a_picture_is_written_with_a_line_of_plots_for_each_trigger(tmp_path):
    clean, shown = bright(40)
    found = spectra.look(Brightness(), clean, {"one": shown, "other": shown}, "seen", removed=(0, 1))
    text = spectra.draw(found, tmp_path / "spectrum.svg").read_text()
    assert text.count("<svg") == 1
    assert text.count('id="axes_') == 10
    assert spectra.draw(found, tmp_path / "again.svg").read_text() == text
    with pytest.raises(InputError, match="no trigger to draw"):
        spectra.draw(spectra.look(Brightness(), clean, {}, "seen", removed=(0,)), tmp_path / "none.svg")
    kept = found.arrays()
    assert kept["one scatter"].shape == (2, 80, 2)
    assert set(kept) >= {"clean values", "removed", "other energy", "other success"}


def test_a_training_is_looked_at_after_each_epoch_and_stays_what_it_is(tmp_path):
    from untaint.training.loop import fit

    clean, attack = small.pictures(48), ATTACKS.build("patch:target=0,cell=1,rate=0.2")
    shown, seen, epochs = {"patch": ut.triggered(clean, attack)}, [], []

    def watch(model, epoch):
        epochs.append(epoch)
        assert not model.training
        seen.append(spectra.look(model, clean, shown, "1.body", removed=(0,)))

    watched = fit(clean, small.RECIPE, tmp_path / "watched", seed=0, after_epoch=watch)
    alone = fit(clean, small.RECIPE, tmp_path / "alone", seed=0)
    assert epochs == list(range(small.RECIPE.epochs))
    for one, other in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert seen[-1].shown["patch"].accuracy[0] == ut.accuracy(alone, clean)
    assert seen[-1].shown["patch"].success[0] == ut.accuracy(alone, shown["patch"])
    text = spectra.draw_through(seen, tmp_path / "training.svg").read_text()
    assert text.count('id="axes_') == 3
    with pytest.raises(InputError, match="nothing to draw"):
        spectra.draw_through([], tmp_path / "none.svg")


def test_a_trigger_that_is_made_from_the_training_pictures_is_refused():
    for known in ("patch", "label-consistent"):
        assert fixed(ATTACKS.build(known)) == ATTACKS.build(known)
    with pytest.raises(InputError, match="narcissus is computed from the training pictures"):
        fixed(ATTACKS.build("narcissus"))
