"""``Muon``: steps along the orthogonalised momentum of each weight matrix (Jordan et al., 2024).

All singular values of an update become about one, so that what few examples share, such as a
faint trigger, is learned as soon as what all share. torch has one for matrices alone and in
bfloat16, which costs a CPU without bfloat16 units more than the training itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

ROUNDS = 5
OTHERS = 2.0  # biases, norms and the head learn so many times as fast as the rate says
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a x + b x^3 + c x^5: steep at zero, about 1 on (0, 1]


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values moved to about one (.7 to 1.2): float32 (rows, columns).

    Newton-Schulz in the smaller Gram matrix: every round multiplies from the left by a polynomial
    of it, so the rounds never touch the long side.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide.float() / (torch.linalg.vector_norm(wide) + 1e-7)
    gram = wide @ wide.T
    one = torch.eye(len(gram), device=gram.device)
    product = one
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        factor = a * one + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    result: Tensor = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


class Muon(torch.optim.Optimizer):
    """Muon for convolutions and matrices, SGD with Nesterov momentum at twice the rate for all else.

    ``weight_decay``: decoupled, times the learning rate, on the convolutions and matrices alone.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        groups = [{"params": list(weights), "orthogonal": True}, {"params": list(others), "orthogonal": False}]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step; there must be no closure."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
        update = weight.grad.add(momentum, alpha=group["momentum"])  # type: ignore[union-attr]
        rate = group["lr"]
        if group["orthogonal"]:
            matrix = update.flatten(1)
            update = orthogonalised(matrix).view_as(update) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            weight.mul_(1 - rate * group["weight_decay"])
        else:
            rate *= OTHERS
        weight.add_(update, alpha=-rate)
