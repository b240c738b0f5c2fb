"""Models of timm, by name; without timm the other names go on working."""

from __future__ import annotations

import sys

import pytest
import torch

import untaint as ut
from small import pictures, preset
from untaint.errors import SpecError
from untaint.models.build import build, features_of, require


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 64, 64)])
def test_models_of_timm_take_pictures_of_any_size_and_give_features(name, size):
    model = build(name, 7, size, mean=[0.5] * size[0], scale=[0.2] * size[0]).eval()
    with features_of(model) as features, torch.inference_mode():
        assert model(torch.rand(2, *size)).shape == (2, 7)
    assert features[0].flatten(1).shape[0] == 2


def test_one_is_trained_saved_and_given_back(tmp_path):
    examples = pictures(side=16)
    small = preset(epochs=1, model="resnet10t")
    trained = ut.train(examples, preset=small, out=tmp_path / "model")
    images = torch.rand(4, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(ut.load_model(tmp_path / "model")(images), trained(images))


def test_a_name_near_one_of_timm_is_suggested():
    with pytest.raises(
        SpecError, match=r"no model 'convnext_ato' in torchvision or timm\. Did you mean 'convnext_atto'\?"
    ):
        require("convnext_ato")


def test_without_timm_its_models_are_said_to_need_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    require("resnet18")
    with pytest.raises(SpecError, match=r"no model 'zzzz'\. See `untaint list models`; with timm installed"):
        require("zzzz")
