from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from untaint.errors import SpecError
from untaint.models.build import build, require
from untaint.models.whitening import EPSILON, Whiten, Whitening, inverse_root

SHAPES = [(40, 6), (20, 5, 6), (20, 6, 3, 4)]


def features(shape, seed=0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed + 1))
    last = made.movedim(1, -1) if made.ndim == 4 else made
    last = last @ mixing + 3
    return last.movedim(-1, 1).contiguous() if made.ndim == 4 else last


def rows(made):
    return (made.movedim(1, -1) if made.ndim == 4 else made).reshape(-1, 6)


def matrix(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    return (vectors * spread ** torch.rand(5, generator=generator, dtype=torch.float64)) @ vectors.T


@pytest.mark.parametrize("shape", SHAPES)
def test_channels_have_no_correlations_left(shape):
    white = rows(Whitening("zca")(features(shape)))
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(6), atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_alone_is_batch_normalisation(shape):
    given = rows(features(shape))
    expected = nn.BatchNorm1d(6, eps=EPSILON, affine=False)(given)
    torch.testing.assert_close(rows(Whitening("scale")(features(shape))), expected, atol=1e-4, rtol=1e-4)


def test_newtons_iteration_goes_there_and_stops_before():
    given = features((400, 6))
    spread = [
        float(torch.linalg.cond(torch.cov(rows(Whitening(kind)(given)).T))) for kind in ("scale", "iterative", "zca")
    ]
    assert spread[0] > 2 * spread[1] > 4 * spread[2]


@given(st.integers(0, 10**6), st.sampled_from([1.0, 10.0, 1e4]))
@settings(max_examples=30, deadline=None)
def test_the_inverse_root_and_its_gradient(seed, spread):
    whole = matrix(seed, spread)
    root = inverse_root(whole)
    torch.testing.assert_close(root @ whole @ root, torch.eye(5, dtype=torch.float64), atol=1e-8, rtol=1e-8)
    assert torch.autograd.gradcheck(lambda some: inverse_root((some + some.T) / 2), whole.clone().requires_grad_())


@pytest.mark.parametrize("kind", ["scale", "zca", "iterative"])
def test_a_prediction_does_not_depend_on_the_batch_and_survives_being_written(kind):
    network = build(f"proxy+whitening:kind={kind}", 4, (3, 16, 16)).train()
    pictures = torch.rand(12, 3, 16, 16)
    for _ in range(5):
        network(pictures).sum().backward()
    network.eval()
    torch.testing.assert_close(network(pictures)[:1], network(pictures[:1]), atol=1e-4, rtol=1e-4)
    again = build(f"proxy+whitening:kind={kind}", 4, (3, 16, 16)).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(pictures), network(pictures))
    assert torch.equal(copy.deepcopy(network)(pictures), network(pictures))
    assert all(own.grad is None or own.grad.isfinite().all() for own in network.parameters())


@pytest.mark.parametrize("kind", ["scale", "zca", "iterative"])
def test_what_is_constant_gives_finite_features_and_gradients(kind):
    for constant in (torch.zeros(8, 6), torch.ones(1, 6), torch.ones(8, 6) * 1e4):
        constant.requires_grad_()
        white = Whitening(kind)(constant)
        white.square().sum().backward()
        assert white.isfinite().all()
        assert constant.grad.isfinite().all()


def test_what_it_refuses():
    with pytest.raises(SpecError, match="kind is 'pca'"):
        Whitening("pca")
    with pytest.raises(SpecError, match="momentum is 0"):
        Whitening(momentum=0)
    with pytest.raises(SpecError, match="has seen no batch"):
        Whitening().eval()(torch.ones(2, 3))
    with pytest.raises(SpecError, match="'whitening' is 'pca'"):
        require("proxy+whitening:kind=pca")
    with pytest.raises(SpecError, match="no layer 'nowhere'"):
        Whiten(at="nowhere").put_into(build("proxy", 4, (3, 16, 16)))
