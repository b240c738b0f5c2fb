"""Networks without batch normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from untaint.errors import SpecError
from untaint.models.build import build, parted
from untaint.models.group_norm import Grouped


@pytest.mark.parametrize("name", ["proxy", "resnet18", "mobilenet_v2", "densenet121"])
def test_what_is_said_of_a_picture_does_not_depend_on_the_others(name):
    network = build(f"{name}+group-norm", 5, (3, 32, 32)).train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert not any(isinstance(layer, _BatchNorm) for layer in network.modules())
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-4)


def test_groups_are_as_many_as_divide_both_and_the_network_given_stays():
    plain = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, eps=0.5, affine=False), nn.Flatten()).eval()
    grouped = Grouped(groups=8).put_into(plain)
    assert isinstance(plain[1], nn.BatchNorm2d)
    assert (grouped[1].num_groups, grouped[1].eps, grouped[1].affine, grouped[1].training) == (4, 0.5, False, False)
    assert torch.equal(grouped[0].weight, plain[0].weight)


def test_a_layer_that_also_activates_goes_on_doing_so():
    pytest.importorskip("timm")
    from timm.layers import BatchNormAct2d

    images = torch.randn(4, 8, 3, 3)
    assert Grouped().put_into(nn.Sequential(BatchNormAct2d(8)))(images).min() == 0


def test_they_have_a_name_and_the_option_is_checked():
    assert parted("resnet18+group-norm:groups=16")[1] == (Grouped(groups=16),)
    with pytest.raises(SpecError, match="groups is 0"):
        Grouped(groups=0)
