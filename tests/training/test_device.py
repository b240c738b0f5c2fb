"""Which precision is taken, on machines whose times are given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from untaint.recipe import Recipe
from untaint.training import device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        ([1.0], [10.0], "float32"),
        ([1.0], [0.95], "float32"),
        ([1.0], [0.5], "bfloat16"),
        ([20.0, 1.0], [10.0, 10.0], "float32"),  # held up while it was timed first
        ([1.0, 20.0], [0.5, 0.5], "bfloat16"),
        ([1.0], [0.5, 0.5, 20.0], "bfloat16"),
        ([1.0], [1.0, 0.5], "bfloat16"),  # as fast on few pictures, faster on a batch
        ([1.0], [1.0, 1.0], "float32"),
    ],
)
def test_a_precision_is_taken_for_the_faster_one_only_if_it_stays_so(monkeypatch, float32, bfloat16, chosen):
    times = {"float32": iter(float32 + float32[-1:] * 9), "bfloat16": iter(bfloat16 + bfloat16[-1:] * 9)}

    def timed(model, precision, *rest):
        return device.Trial(precision, next(times[precision]), 0.0)

    monkeypatch.setattr(device, "_timed", timed)
    found = device.trial(nn.Linear(3, 2), Recipe(precision="auto"), (3, 8, 8), CPU)
    assert found.precision == chosen


def test_a_precision_that_was_asked_for_is_not_asked_again():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    found = device.trial(model, replace(Recipe(), precision="bfloat16"), (3, 4, 4), CPU)
    assert found.precision == "bfloat16"
    assert found.train > 0
    assert found.evaluate > 0
