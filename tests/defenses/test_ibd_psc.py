"""IBD-PSC: the mean probability written out, where amplifying begins, and what stays sure when the rest is lost."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import known
import small
from untaint.defenses._perturbed import scaling_layers
from untaint.defenses.ibd_psc import IbdPsc
from untaint.errors import InputError, SpecError
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 5), POISONED)


class Fragile(known.Backdoored):
    """Says 1 of whatever is brighter than pictures are, unless the corner is chequered."""

    def forward(self, images):
        seen = torch.relu(self.norm(self.seen(images))).flatten(1)
        there = ((seen[:, -1:] - 0.1) * 10).clamp(0, 1)
        seen = seen[:, :-1] * (1 - there)
        logits = self.head(torch.cat([seen, there], dim=1))
        return logits + torch.eye(known.CLASSES)[1] * 100 * torch.relu(seen.sum(1, keepdim=True) - 2)


def deep(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    stages = [nn.Sequential(nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6), nn.ReLU()) for width in (3, 6, 6)]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.uniform_(-2, 2)
    return network.eval()


def amplified(network: nn.Module, count: int, scale: float) -> nn.Module:
    """The last so many layers amplified; beyond their number from the last one again."""
    network = copy.deepcopy(network)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for place in range(count):
        layer = layers[len(layers) - 1 - place % len(layers)]
        layer.weight.data *= scale
        layer.bias.data *= scale
    return network.eval()


@pytest.mark.parametrize("error", [0.2, 0.5, 0.7])
def test_the_confidence_is_that_of_the_formula(tmp_path, error):
    network, examples = deep(), known.pictures(60)
    pixels = torch.tensor(examples.images / 255, dtype=torch.float32)
    labels = network(pixels).argmax(1).numpy()
    examples = known.Examples.of(examples.images, labels, class_names=list("abcd"))
    found = IbdPsc(scale=2.5, copies=3, error=error).score(known.task(tmp_path, examples, np.arange(0, 60, 2), network))
    wrong = [(amplified(network, k, 2.5)(pixels[::2]).argmax(1).numpy() != labels[::2]).mean() for k in range(19)]
    begin = next((k for k in range(1, 19) if wrong[k] > error), None)
    if begin is None:
        assert not found.values.any()
        return
    sure = [amplified(network, k, 2.5)(pixels).softmax(1).detach().numpy() for k in range(begin, begin + 3)]
    assert found.values == pytest.approx(np.mean(sure, axis=0)[np.arange(60), labels], abs=1e-4)


def test_a_trigger_that_stays_when_the_rest_is_lost_is_found_and_hardly_another(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES, Fragile())
    judge = IbdPsc()
    scores = judge.score(here)
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    others = np.setdiff1d(verdict.rows, POISONED)
    assert (here.examples.labels[others] == 1).all(), "the class that is said of everything"
    assert "stay sure" in judge.explain(scores, POISONED[:1])[0]
    alone = judge.score(known.task(tmp_path / "b", here.examples, [], Fragile())).values
    assert (alone[POISONED] > 0.9).all(), "others stand in for the probes"


def test_where_the_probes_are_never_lost_nothing_is_said(tmp_path):
    told = small.Told()
    values = IbdPsc().score(known.task(tmp_path, known.pictures(40), np.arange(10), progress=told)).values
    assert not values.any()
    assert "finds nothing" in told.remarks[0]
    only_a_head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert not IbdPsc().score(known.task(tmp_path / "b", known.pictures(40), [0], only_a_head)).values.any()


def test_a_second_score_asks_nobody(tmp_path):
    here = known.task(tmp_path, known.pictures(60), np.arange(20), Fragile())
    first = IbdPsc().score(here)
    asked = here.loaded
    assert np.array_equal(IbdPsc().score(here).values, first.values)
    assert here.loaded == asked
    assert not np.array_equal(IbdPsc(scale=3.0).score(here).values, first.values)


def test_which_layers_are_amplified():
    with_batch = deep()
    assert [type(layer) for layer in scaling_layers(with_batch)] == [nn.BatchNorm2d] * 3
    with_others = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    assert scaling_layers(with_others) == [with_others[1]]
    with_none = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    assert scaling_layers(with_none) == [with_none[0], with_none[2]]


def test_answers_that_are_no_numbers(tmp_path):
    network = known.Backdoored()
    network.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        IbdPsc().score(known.task(tmp_path, known.pictures(40), np.arange(10), network))


@pytest.mark.parametrize("options", [{"scale": 1.0}, {"scale": 11.0}, {"copies": 0}, {"error": 0.0}, {"error": 1.0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        IbdPsc(**options)
