"""A network that stamps what it is asked about."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from untaint.errors import SpecError
from untaint.models.build import build, features_of, parted, require
from untaint.models.stamp import Stamp, Stamped

SIZE = (3, 16, 16)


@pytest.mark.parametrize(
    ("corner", "down", "across"),
    [
        ("upper-left", slice(0, 3), slice(0, 3)),
        ("upper-right", slice(0, 3), slice(13, 16)),
        ("lower-left", slice(13, 16), slice(0, 3)),
        ("lower-right", slice(13, 16), slice(13, 16)),
    ],
)
def test_the_square_is_in_its_corner_and_nowhere_else(corner, down, across):
    images = torch.rand(2, *SIZE).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    stamped = Stamp(side=3, value=0.5, corner=corner).on(images)
    assert torch.equal(images, before)
    assert torch.all(stamped[:, :, down, across] == 0.5)
    expected = images.clone()
    expected[:, :, down, across] = 0.5
    assert torch.equal(stamped, expected)
    assert stamped.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("pixels", "side"), [(8, 2), (32, 2), (48, 3), (128, 8)])
def test_its_side_is_a_sixteenth_of_the_picture_and_two_pixels_at_least(pixels, side):
    stamped = Stamp(value=1).on(torch.zeros(1, 1, pixels, pixels + 5))
    assert int(stamped.sum()) == side**2


def test_pictures_are_stamped_in_eval_mode_only_and_names_of_weights_stay():
    plain, network = build("proxy", 4, SIZE), build("proxy+stamp:value=1", 4, SIZE)
    assert list(network.state_dict()) == list(plain.state_dict())
    assert isinstance(network, Stamped)
    images = torch.rand(3, *SIZE)
    assert torch.equal(network.train()(images), plain.train()(images))
    assert torch.equal(network.eval()(images), plain.eval()(Stamp(value=1).on(images)))
    again = copy.deepcopy(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images), network(images))
    with features_of(network) as features:
        network(images)
    assert features[0].shape == (3, 64)


def test_pictures_whose_answer_the_stamp_changes_are_doubtful():
    dark = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    dark[1].weight.data[:] = torch.stack([torch.zeros(768), torch.eye(768)[0]])
    dark[1].bias.data[:] = torch.tensor([0.5, 0.0])
    network = Stamp(value=0).put_into(dark).train()
    images = torch.zeros(2, *SIZE)
    images[1, 0, 0, 0] = 1  # what the stamp hides
    assert network.doubtful(images).tolist() == [False, True]
    assert network.training
    assert torch.equal(dark(images).argmax(1), torch.tensor([0, 1]))


def test_a_network_of_another_kind_is_stamped_as_a_whole():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(768, 2)

        def forward(self, images):
            return self.inner(images.flatten(1))

    own = Own().eval()
    network = Stamp(value=1).put_into(own)
    images = torch.rand(2, *SIZE)
    assert torch.equal(network(images), own(Stamp(value=1).on(images)))
    assert list(network.state_dict()) == ["0.inner.weight", "0.inner.bias"]


def test_it_is_exported():
    network = build("proxy+stamp", 4, SIZE).eval()
    images = torch.rand(3, *SIZE)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: batch},)).module()
    assert torch.allclose(exported(images), network(images), atol=1e-6)


def test_networks_with_a_stamp_have_a_name_and_options_are_checked():
    require("resnet18+stamp:side=3,corner=lower-left")
    assert parted("proxy+stamp:value=0.25")[1] == (Stamp(value=0.25),)
    build("proxy+stamp+gate:at=1.body", 4, SIZE)
    with pytest.raises(SpecError, match="a stamp already"):
        build("proxy+stamp+stamp", 4, SIZE)
    for options, what in (({"side": -1}, "side is -1"), ({"value": 2.0}, "value is 2"), ({"corner": "up"}, "'up'")):
        with pytest.raises(SpecError, match=what):
            Stamp(**options)
