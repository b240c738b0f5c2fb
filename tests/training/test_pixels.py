from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import Examples
from untaint.training.pixels import PixelStore, augmented, draws, first_layer, whitening

CPU = torch.device("cpu")


def pictures(count=12, channels=3, height=16, width=16, seed=0) -> Examples:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return Examples.of(images, np.arange(count) % 3)


def slowly_augmented(picture, augment, numbers):
    """One picture: padded by reflection, a window cut out, perhaps mirrored; ``numbers`` are its four draws."""
    _, height, width = picture.shape
    pads = [max(1, round(side * 4 / 32)) for side in (height, width)]
    padded = np.pad(picture, ((0, 0), (pads[0], pads[0]), (pads[1], pads[1])), mode="reflect")
    down = int(numbers[1] * (2 * pads[0] + 1))
    across = int(numbers[2] * (2 * pads[1] + 1))
    cut = padded[:, down : down + height, across : across + width]
    if augment == "crop-flip" and numbers[0] < 0.5:
        cut = padded[:, down : down + height, across : across + width][:, :, ::-1]
    assert cut.shape == picture.shape
    return cut


@given(
    st.integers(0, 2**31),
    st.sampled_from(["crop", "crop-flip"]),
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_augmentation_is_that_of_the_obvious_program(seed, augment, height, width, epoch):
    examples = pictures(6, 3, height, width, seed % 1000)
    images, _ = PixelStore(examples, CPU).gather(examples.rows)
    numbers = draws(augment, seed, epoch, examples.total)
    found = augmented(images, augment, numbers).numpy()
    for row in range(6):
        expected = slowly_augmented(examples.images[row].astype(np.float32) / 255, augment, numbers[row])
        assert np.array_equal(found[row], expected), row


@pytest.mark.parametrize("augment", ["crop", "crop-flip", "resized-crop"])
def test_augmentation_depends_on_seed_epoch_and_row_not_on_the_batch(augment):
    examples = pictures(30)
    store = PixelStore(examples, CPU)

    def of(rows, seed=0, epoch=0):
        rows = np.asarray(rows)
        return augmented(store.gather(rows)[0], augment, draws(augment, seed, epoch, 30)[rows])

    whole = of(np.arange(30))
    shuffled = np.random.default_rng(0).permutation(30)
    for rows in np.array_split(shuffled, 7):
        assert torch.allclose(of(rows), whole[rows], atol=1e-6)
    assert not torch.allclose(of(np.arange(30), epoch=1), whole)
    assert not torch.allclose(of(np.arange(30), seed=1), whole)


@pytest.mark.parametrize("augment", ["crop", "crop-flip", "resized-crop"])
def test_augmentation_changes_no_shape_leaves_the_input_alone_and_invents_no_values(augment):
    examples = pictures(20, 1, 20, 13)
    images, _ = PixelStore(examples, CPU).gather(examples.rows)
    before = images.clone()
    found = augmented(images, augment, draws(augment, 0, 0, 20))
    assert torch.equal(images, before)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6


def test_no_augmentation_is_none():
    images = torch.rand(3, 3, 8, 8)
    assert draws("none", 0, 0, 3) is None
    assert augmented(images, "none", None) is images


def test_all_shifts_and_both_sides_occur_about_equally_often():
    numbers = draws("crop-flip", 0, 0, 18_000)
    assert numbers.shape == (18_000, 4)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    counts = np.bincount((numbers[:, 1] * 9).astype(int), minlength=9)
    assert counts == pytest.approx(np.full(9, 2000), rel=0.12)
    assert np.mean(numbers[:, 0] < 0.5) == pytest.approx(0.5, abs=0.02)


def test_a_draw_next_to_one_is_not_rounded_up(monkeypatch):
    from untaint import rng

    monkeypatch.setattr(rng, "uniform", lambda *_: np.full((2, 4), 1 - 2.0**-53))
    assert (draws("crop", 0, 0, 2) < 1).all()


def test_pictures_are_gathered_by_row_as_floats():
    examples = pictures(9).take([1, 4, 8])
    images, labels = PixelStore(examples, CPU).gather(np.array([8, 1, 8]))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [2, 1, 2]
    assert np.array_equal(images.numpy(), examples.images[[8, 1, 8]].astype(np.float32) / 255)


def test_moments_are_those_of_the_members():
    examples = pictures(40, 3).take(np.arange(0, 40, 2))
    found = first_layer(examples, whitened=False)
    values = examples.images[::2].astype(np.float64) / 255
    assert found["mean"] == pytest.approx(values.mean(axis=(0, 2, 3)), rel=1e-5)
    assert found["scale"] == pytest.approx(values.std(axis=(0, 2, 3)), rel=1e-4)
    assert "kernel" not in found
    black = Examples.of(np.zeros((4, 1, 8, 8), np.uint8), [0, 1, 0, 1])
    assert first_layer(black, whitened=False) == {"mean": [0.0], "scale": [pytest.approx(1e-3)]}


def smooth(count: int = 60, channels: int = 3) -> np.ndarray:
    """Pictures as nature makes them: much of what varies slowly, little of what varies fast."""
    noise = np.random.default_rng(0).normal(size=(count, channels, 24, 24))
    across = np.abs(np.fft.fftfreq(24))
    spectrum = 1 / (0.02 + across[:, None] ** 2 + across[None, :] ** 2)
    return np.fft.ifft2(np.fft.fft2(noise) * spectrum).real.astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_pictures_have_neighbours_that_tell_little_of_each_other(channels):
    pixels = smooth(channels=channels)
    pixels = (pixels - pixels.mean()) / pixels.std()
    kernel = whitening([pixels])
    assert kernel.shape == (channels, channels, 5, 5)
    white = torch.nn.functional.conv2d(torch.from_numpy(pixels), kernel).numpy()

    def beside(values: np.ndarray) -> float:
        return float(np.corrcoef(values[..., 1:].ravel(), values[..., :-1].ravel())[0, 1])

    assert beside(pixels) > 0.6
    assert abs(beside(white)) < 0.15
    assert np.square(white).mean() == pytest.approx(1, abs=0.1)


def test_the_filter_does_not_depend_on_how_the_pictures_come():
    pixels = smooth()
    kernel = whitening([pixels])
    assert torch.allclose(whitening([pixels[:7], pixels[7:40], pixels[40:]]), kernel, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whitening([pixels], apart=4), kernel, rtol=0.1, atol=0.1)


def test_a_faint_fast_pattern_is_lifted_by_whitening():
    """What the filter is for: the ratio of a checkerboard to the pictures grows manifold."""
    pixels = smooth()
    pixels = (pixels - pixels.mean()) / pixels.std()
    board = np.broadcast_to((-1.0) ** np.add.outer(np.arange(24), np.arange(24)), (1, 3, 24, 24)).astype(np.float32)
    filtered = torch.nn.functional.conv2d(torch.from_numpy(0.05 * board), whitening([pixels])).numpy()
    assert np.abs(filtered).max() > 4 * 0.05


def test_pictures_of_one_colour_are_whitened_without_harm():
    grey = Examples.of(np.full((6, 3, 8, 8), 90, np.uint8), [0, 1, 0, 1, 0, 1])
    assert torch.isfinite(first_layer(grey, whitened=True)["kernel"]).all()
    assert "kernel" not in first_layer(Examples.of(np.zeros((4, 1, 4, 4), np.uint8), [0, 1, 0, 1]), whitened=True)
