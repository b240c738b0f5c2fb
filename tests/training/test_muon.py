from __future__ import annotations

import pytest
import torch
from torch import nn

from untaint.training.muon import COEFFICIENTS, ROUNDS, Muon, orthogonalised


def slowly(matrix: torch.Tensor) -> torch.Tensor:
    """The same polynomial, applied to the singular values themselves."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / torch.linalg.vector_norm(values)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


@pytest.mark.parametrize("shape", [(16, 27), (32, 144), (54, 16), (1, 5), (7, 7)])
def test_the_rounds_change_singular_values_alone(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonalised(matrix).double(), slowly(matrix), atol=1e-4)


def test_singular_values_that_are_not_tiny_become_about_one():
    matrix = torch.randn(32, 144, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(1000 * matrix))
    assert 0.6 < values.min() <= values.max() < 1.3


def test_a_step_without_gradient_momentum_or_decay_is_no_step():
    weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], [], lr=0.1, momentum=0.9, weight_decay=0).step()
    assert torch.equal(weight.detach(), torch.ones(4, 2, 3, 3))


def test_weights_outside_the_convolutions_move_as_with_sgd():
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    muon = Muon([], [ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    sgd = torch.optim.SGD([theirs], lr=0.2, momentum=0.9, nesterov=True)
    for step in range(4):
        ours.grad = theirs.grad = torch.arange(5.0) - step
        muon.step()
        sgd.step()
    assert torch.allclose(ours, theirs)


def test_the_weights_of_convolutions_shrink_by_rate_times_decay():
    weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], [], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    assert torch.allclose(weight.detach(), torch.full((4, 2, 3, 3), 0.95))
