"""What EigenGuard costs: a training step and a prediction of ResNet-18 with it and without, and the layer beside the singular value decomposition it does without.

    python benchmarks/eigenguard.py [--rounds 20]

Batches of 128 pictures of 32x32 pixels, k=50 before the pooling. Turns alternate in an order that changes from round to round. Writes the
median of the ratios of the same round with its 95 % bootstrap interval. Memory: how far a fresh process grows in three training steps.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from keeping import interval, keep
from scoring import Peak
from torch import Tensor, nn

import untaint as ut
from untaint.models.build import build

BATCH, K, REMAINDER = 128, 50, 1e-3


class Decomposed(nn.Module):
    """The layer as the paper has it: singular values by decomposition of the batch, gradients through it."""

    def forward(self, features: Tensor) -> Tensor:
        left, values, right = torch.linalg.svd(features.flatten(1), full_matrices=False)
        top = torch.arange(len(values)) < K
        changed = torch.where(top, values[K - 1], REMAINDER * values)
        return (left @ (changed[:, None] * right)).reshape(features.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    plain = build("resnet18", 10, (3, 32, 32))
    models = {"plain": plain, "guarded": ut.insert_eigenguard(plain, at="before-pool", k=K)}
    size = shape_of(models["guarded"], images)
    layers = {"layer": ut.EigenGuard(K), "decomposed": Decomposed()}
    features = torch.randn(BATCH, *size).relu()

    def look(model: nn.Module) -> Callable[[], object]:
        def predict() -> Tensor:
            with torch.inference_mode():
                return model.eval()(images)

        return predict

    def alone(layer: nn.Module) -> Callable[[], object]:
        def both_ways() -> None:
            given = features.clone().requires_grad_()
            layer(given).square().sum().backward()

        return both_ways

    training = {name: train(model, images, labels) for name, model in models.items()}
    grown = {}
    for name in models:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            grown[name] = fresh.submit(memory, name == "guarded").result() / 2**20
    steps = ratio(training["guarded"], training["plain"], rounds)
    looks = ratio(look(models["guarded"]), look(models["plain"]), rounds)
    svds = ratio(alone(layers["decomposed"]), alone(layers["layer"]), rounds)
    width = f"{BATCH} x {features[0].numel():,}"
    keep(
        "eigenguard",
        [
            ("a training step of ResNet-18 with EigenGuard over one without", said(steps), "<= 1.10"),
            ("a prediction of ResNet-18 with EigenGuard's fixed map over one without", said(looks), "<= 1.03"),
            (f"the decomposition, forward and backward, over EigenGuard ({width})", said(svds), ">= 10"),
            (
                "growth of a process while it trains ResNet-18, with EigenGuard over without",
                f"x{grown['guarded'] / grown['plain']:.2f} of {grown['plain']:,.0f} MiB",
                "<= 1.05",
            ),
        ],
    )


def train(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a training step; at a rate of 0 every step does the same work on the same figures."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()

    return step


def memory(guarded: bool) -> int:
    """Return by how many bytes this process grows while it trains for three steps."""
    model = build("resnet18", 10, (3, 32, 32))
    model = ut.insert_eigenguard(model, at="before-pool", k=K) if guarded else model
    step = train(model, torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH) % 10)
    with Peak() as peak:
        for _ in range(3):
            step()
    return peak.bytes


def shape_of(model: nn.Module, images: Tensor) -> tuple[int, ...]:
    """Return the shape of the features that are equalised, of one picture."""
    found: list[tuple[int, ...]] = []
    guard = next(module for module in model.modules() if isinstance(module, ut.EigenGuard))
    handle = guard.register_forward_hook(lambda _, given, __: found.append(tuple(given[0].shape[1:])))
    model(images)
    handle.remove()
    return found[0]


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> list[float]:
    """Return how many times as long one takes as the other, round by round, the first not counted."""
    found, shuffled = [], random.Random(0)
    for _ in range(rounds + 1):
        taken = {}
        for name, call in shuffled.sample([("one", one), ("other", other)], 2):
            begin = time.perf_counter()
            call()
            taken[name] = time.perf_counter() - begin
        found.append(taken["one"] / taken["other"])
    return found[1:]


def said(ratios: list[float]) -> str:
    middle, low, high = interval(ratios)
    return f"x{middle:.2f} ({low:.2f} to {high:.2f}; {len(ratios)} rounds)"


if __name__ == "__main__":
    main()
