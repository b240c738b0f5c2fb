from __future__ import annotations

import pytest
import torch
from torch import nn

from untaint.errors import SpecError
from untaint.models.build import build, features_of, head_of, names
from untaint.models.proxy import Proxy

SMALL_MODELS = ["proxy", "resnet18", "densenet121", "mobilenet_v2"]


def first_convolution(model: nn.Module) -> nn.Conv2d:
    return next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", SMALL_MODELS)
@pytest.mark.parametrize("size", [(3, 32, 32), (1, 20, 24)])
def test_models_by_name_take_small_pictures_colour_or_grey(name, size):
    model = build(name, 7, size, mean=[0.5] * size[0], scale=[0.2] * size[0])
    logits = model(torch.rand(2, *size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    weight = first_convolution(model).weight
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_transformers_are_built_for_the_size_of_the_pictures():
    with torch.device("meta"):
        model = build("vit_b_32", 7, (3, 64, 64))
    assert model[1].image_size == 64


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "alexnet",
            (3, 32, 32),
            r"alexnet cannot take pictures of 32x32 pixels \(.*too small\)\. Give a larger --size",
        ),
        ("vit_b_32", (3, 40, 40), r"vit_b_32 cannot take pictures of 40 pixels \(.*\)\. Give another --size"),
        ("vit_b_32", (3, 32, 64), r"vit_b_32 cannot take pictures of 64x32 pixels \(.*\)"),
    ],
)
def test_pictures_that_a_model_cannot_take_are_refused_in_one_sentence(name, size, message):
    with pytest.raises(SpecError, match=message):
        build(name, 7, size)


def test_grey_pictures_are_seen_as_colour_ones_without_colour():
    grey, colour = build("resnet18", 4, (1, 16, 16)).eval(), build("resnet18", 4, (3, 16, 16)).eval()
    images = torch.rand(3, 1, 16, 16)
    with torch.inference_mode():
        assert torch.equal(grey(images), colour(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_get_the_papers_stem_for_small_pictures(name):
    """A 3x3 convolution of stride 1, padding 1, and the max-pool is kept."""
    with torch.device("meta"):
        small = build(name, 10, (3, 32, 32))
    stem = first_convolution(small)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert stem.bias is None
    assert isinstance(small[1].maxpool, nn.MaxPool2d)
    assert small[1].fc.out_features == 10


def test_large_pictures_get_the_stem_of_the_publication():
    with torch.device("meta"):
        large = build("resnet18", 10, (3, 128, 96))
    assert first_convolution(large).kernel_size == (7, 7)


def test_vgg_sees_one_place_of_small_pictures_and_large_ones_as_it_is():
    with torch.device("meta"):
        small, large = (build("vgg16_bn", 5, (3, size, size)) for size in (64, 96))
    shapes = [layer.weight.shape for layer in small.modules() if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 512), (512, 512), (5, 512)]
    assert head_of(large).in_features == 4096
    assert small(torch.rand(2, 3, 64, 64, device="meta")).shape == (2, 5)


def test_vgg_keeps_its_first_layer_and_others_lose_their_stride():
    with torch.device("meta"):
        assert first_convolution(build("vgg16_bn", 5, (3, 32, 32))).stride == (1, 1)
        mobile = first_convolution(build("mobilenet_v2", 5, (3, 32, 32)))
        dense = first_convolution(build("densenet121", 5, (3, 32, 32)))
    assert (mobile.kernel_size, mobile.stride) == ((3, 3), (1, 1))
    assert (dense.kernel_size, dense.stride) == ((3, 3), (1, 1))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    one = build("resnet18", 3, (3, 16, 16), seed=5)
    torch.manual_seed(1)
    assert same(one, build("resnet18", 3, (3, 16, 16), seed=5))
    assert not same(one, build("resnet18", 3, (3, 16, 16), seed=6))


@pytest.mark.parametrize("name", ["proxy", "resnet18"])
def test_the_callers_generator_is_left_as_it_was(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build(name, 3, (3, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("resnet5o", "resnet50"), ("proxi", "proxy"), ("vgg16bn", "vgg16_bn")]
)
def test_unknown_names_are_answered_with_the_nearest(name, near):
    with pytest.raises(SpecError, match=rf"no model '{name}'.*Did you mean '{near}'\?"):
        build(name, 3, (3, 16, 16))


def test_names_are_listed():
    assert {"proxy", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2"} <= set(names())


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_penultimate_features_are_what_the_head_takes(name):
    model = build(name, 4, (3, 24, 24)).eval()
    head = head_of(model)
    with torch.inference_mode(), features_of(model) as features:
        logits = model(torch.rand(2, 3, 24, 24))
        assert len(features) == 1
        assert torch.allclose(head(features[0]), logits, atol=1e-5)
        model(torch.rand(5, 3, 24, 24))
        assert len(features[0]) == 5
    with torch.inference_mode():
        model(torch.rand(3, 3, 24, 24))
    assert len(features[0]) == 5  # nothing is kept afterwards


def test_a_network_without_a_linear_layer_has_no_features():
    with features_of(nn.Conv2d(3, 2, 1)) as features:
        assert features == []


@pytest.mark.parametrize("side", [8, 9, 16, 33, 64])
def test_the_proxy_takes_pictures_of_any_side(side):
    model = Proxy(5, width=4)
    assert model(torch.rand(2, 3, side, side + 1)).shape == (2, 5)
    assert model.head.in_features == 16
