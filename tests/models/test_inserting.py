"""EigenGuard in networks as people have them: in, trained, out again."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import small
from untaint import load_model
from untaint.errors import InputError, SpecError
from untaint.models.build import build, require
from untaint.models.eigenguard import EigenGuard
from untaint.models.inserting import Behind, insert_eigenguard, layer_named, remove_eigenguard
from untaint.training.loop import fit, predict

NETWORKS = ["proxy", "resnet18", "resnet34", "resnet50", "vgg16_bn", "mobilenet_v2", "vit_tiny_patch16_224"]
BEHIND = {"resnet18": "1.layer4", "resnet34": "1.layer4", "resnet50": "1.layer4", "proxy": "1.body", "vit_tiny_patch16_224": "1.blocks"}  # fmt: skip


def pictures(count, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def network(name):
    if name.startswith("vit"):
        pytest.importorskip("timm")
    return build(name, 4, (3, 32, 32))


def depends_on_others(model, seen):
    """By how much guarded features of a picture differ alone and in a batch, as a part of the largest."""
    (guarded,) = [module for module in model.modules() if isinstance(module, Behind)]
    features = []
    guarded.register_forward_hook(lambda _, given, result: features.append(result[0]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one picture has one singular value
        model(seen[:1]), model(seen)
    alone, together = features[-2:]
    return float((alone - together).abs().max() / together.abs().max())


def test_a_guard_that_is_made_already_is_copied_into_the_network():
    guard = EigenGuard.recommended(batch=10, steps=3)
    guarded = insert_eigenguard(network("proxy"), guard=guard)
    (own,) = [module for module in guarded.modules() if isinstance(module, EigenGuard)]
    assert own is not guard
    assert (own.k, own.steps, own.layer, guard.layer) == (4, 3, "1.body", "")
    with pytest.raises(SpecError, match="an EigenGuard was given, and k, remainder beside it"):
        insert_eigenguard(network("proxy"), guard=guard, k=3, remainder=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_goes_before_the_pooling_of_any_network_trains_and_comes_out_again(name):
    model, seen = network(name), pictures(8)
    before = copy.deepcopy(model.state_dict())
    guarded = insert_eigenguard(model, k=3).train()
    (found,) = [place for place, module in guarded.named_modules() if isinstance(module, Behind)]
    assert found == BEHIND.get(name, "1.features")
    for module in guarded.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # else untrained features hardly differ from picture to picture
    optimizer = torch.optim.SGD(guarded.parameters(), 0.01)
    nn.functional.cross_entropy(guarded(seen), torch.arange(8) % 4).backward()
    assert all(own.grad is not None and own.grad.isfinite().all() for own in guarded.parameters())
    optimizer.step()
    assert depends_on_others(guarded.eval(), seen) < 1e-4
    guarded.get_submodule(found).added.evaluating = "batch"
    assert depends_on_others(guarded, seen) > 0.1
    plain = remove_eigenguard(guarded)
    assert list(plain.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items()), "the model given stays"
    assert not any(isinstance(module, EigenGuard) for module in plain.modules())
    assert sum(own.numel() for own in plain.parameters()) == sum(own.numel() for own in model.parameters())


def test_behind_several_layers_by_name():
    guarded = insert_eigenguard(insert_eigenguard(network("resnet18"), at="1.layer2", k=3), at="1.layer4.1", k=2)
    places = {module.layer: module.k for module in guarded.modules() if isinstance(module, EigenGuard)}
    assert places == {"1.layer2": 3, "1.layer4.1": 2}
    assert guarded(pictures(6)).shape == (6, 4)
    assert not any(isinstance(module, (EigenGuard, Behind)) for module in remove_eigenguard(guarded).modules())


def test_one_put_by_hand_is_taken_out_too():
    own = nn.Sequential(nn.Linear(5, 4), EigenGuard(2), nn.Linear(4, 3))
    assert remove_eigenguard(own)(torch.ones(2, 5)).shape == (2, 3)
    assert isinstance(remove_eigenguard(EigenGuard(2)), nn.Identity)


def test_before_anything_else_outputs_are_those_of_the_formula():
    model, seen = network("proxy"), pictures(8)
    guarded = insert_eigenguard(model, at="1.body", k=3)
    features = model[1].body(model[0](seen))
    expected = model[1].head(EigenGuard(3)(features).mean((2, 3)))
    torch.testing.assert_close(guarded(seen), expected)


def test_errors_of_a_guarded_model_name_the_layer():
    guarded = insert_eigenguard(network("proxy"), k=3)
    with pytest.raises(SpecError, match=r"EigenGuard at 1\.body has seen no batch"):
        guarded.eval()(pictures(2))


class Pair(nn.Module):
    def forward(self, features):
        return features, features


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("layer5", "no layer 'layer5'. There are .*layer"),
        ("1.layr3", "1.layer3"),
        ("before-pool", "Name the layer before, one of 0, 1"),
    ],
)
def test_a_layer_that_there_is_not_is_refused_with_the_nearest_names(at, said):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) if at == "before-pool" else network("resnet18")
    with pytest.raises(SpecError, match=said):
        insert_eigenguard(model, at=at)


def test_a_layer_that_gives_no_single_tensor_is_refused():
    with pytest.raises(SpecError, match="layer 0 gives a tuple"):
        insert_eigenguard(nn.Sequential(Pair()), at="0", k=2)(torch.ones(3, 3))


def test_twice_at_one_place_and_out_of_a_model_without_is_refused():
    guarded = insert_eigenguard(network("proxy"), k=3)
    for at in ("before-pool", "1.body", "1.body.inside"):
        with pytest.raises(InputError, match=r"an EigenGuard at 1\.body.* already"):
            insert_eigenguard(guarded, at=at)
    with pytest.raises(InputError, match="has no EigenGuard"):
        remove_eigenguard(network("proxy"))


# --- a guarded network by its name


def test_a_name_with_a_plus_is_the_network_with_the_layer_in_it_and_the_same_weights():
    plain, guarded = (build(name, 4, (3, 32, 32), seed=3) for name in ("proxy", "proxy+eigenguard:k=5,remainder=0.01"))
    guard = next(module for module in guarded.modules() if isinstance(module, EigenGuard))
    assert (guard.k, guard.remainder, guard.layer) == (5, 0.01, "1.body")
    for one, other in zip(plain.parameters(), guarded.parameters(), strict=True):
        assert torch.equal(one, other)
    elsewhere = build("resnet18+eigenguard:at=layer2,k=3,eval=batch", 4, (3, 32, 32))
    guard = next(module for module in elsewhere.modules() if isinstance(module, EigenGuard))
    assert (guard.layer, guard.evaluating) == ("1.layer2", "batch")


def test_the_end_of_a_name_is_enough_where_one_layer_alone_is_meant():
    model = network("resnet18")
    assert layer_named(model, "layer3")[0] == layer_named(model, "1.layer3")[0] == "1.layer3"
    assert layer_named(model, "layer1.0.conv1")[1] is model.get_submodule("1.layer1.0.conv1")
    assert layer_named(model, "conv1")[0] == "1.conv1", "the outermost"
    with pytest.raises(SpecError, match="no layer 'conv2', or several"):
        layer_named(model, "conv2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proxy+eigengard:k=5", "puts 'eigengard' into proxy"),
        ("proxy+eigenguard:k=0", "k is 0"),
        ("proxy+eigenguard:top=5", "'eigenguard' has no option 'top'"),
        ("proxi+eigenguard", "Did you mean 'proxy'"),
    ],
)
def test_a_name_that_says_nothing_usable_is_refused(name, message):
    with pytest.raises(SpecError, match=message):
        require(name)


def test_a_guarded_network_by_name_is_trained_kept_and_loaded(tmp_path):
    examples = small.pictures(60)
    recipe = replace(small.RECIPE, model="proxy+eigenguard:k=4", batch=20)
    trained = fit(examples, recipe, tmp_path, seed=0)
    loaded = load_model(tmp_path)
    assert isinstance(next(module for module in loaded.modules() if isinstance(module, EigenGuard)), EigenGuard)
    assert np.array_equal(predict(loaded, examples), predict(trained, examples))
    alone = predict(loaded, examples.take(np.arange(3)))
    assert alone == pytest.approx(predict(loaded, examples)[:3], abs=1e-5)


def test_a_layer_inside_of_a_guarded_one_is_found_by_the_name_that_it_had():
    model = build("proxy", 3, (3, 16, 16))
    images = torch.rand(8, 3, 16, 16)
    outer = insert_eigenguard(model, at="before-pool", k=2)
    both = insert_eigenguard(outer, at="1.body.3", k=2)
    other_way = insert_eigenguard(insert_eigenguard(model, at="1.body.3", k=2), at="before-pool", k=2)
    assert sum(isinstance(module, EigenGuard) for module in both.modules()) == 2
    assert torch.allclose(both.train()(images), other_way.train()(images), atol=1e-5)
    with pytest.raises(SpecError, match=r"no layer '1.body.99'"):
        insert_eigenguard(outer, at="1.body.99", k=2)
