"""PSBD: what dropout does on average, which rate is taken, where it is put, and the trigger of many neurons that outlasts it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, vgg11_bn, vit_b_16

import known
from untaint.defenses._dropping import Dropout, dropped_layers, dropping
from untaint.defenses.psbd import RATES, Psbd, chosen_rate, shifts
from untaint.errors import InputError, SpecError
from untaint.models.build import build
from untaint.scores import parse_rule

POISONED = np.arange(1, 240, 16)
PROBES = np.setdiff1d(np.arange(0, 240, 3), POISONED)


class Many(nn.Module):
    """What ``Backdoored`` sees: a few neurons for each class, and many for the trigger."""

    def __init__(self, few: int, many: int) -> None:
        super().__init__()
        self.inner, self.few, self.many = known.Backdoored(), few, many

    def forward(self, images):
        seen = torch.relu(self.inner.norm(self.inner.seen(images))).flatten(1)
        there = ((seen[:, -1:] - 0.1) * 10).clamp(0, 1)
        return torch.cat([(seen[:, :-1] * (1 - there)).repeat(1, self.few), there.expand(-1, self.many)], dim=1)


def network(few: int = 6, many: int = 100, sure: float = 16.0) -> nn.Module:
    head = nn.Linear(known.CLASSES * few + many, known.CLASSES)
    head.weight.data[:, : known.CLASSES * few] = torch.eye(known.CLASSES).repeat(1, few) * sure / few
    head.weight.data[:, known.CLASSES * few :] = torch.tensor([[20 / many], [0], [0], [0]])
    head.bias.data[:] = 0
    return nn.Sequential(nn.Sequential(Many(few, many), nn.Identity()), head)


def test_a_trigger_of_many_neurons_outlasts_dropout(tmp_path):
    here = known.task(tmp_path, known.pictures(poisoned=POISONED), PROBES, network())
    judge = Psbd()
    scores = judge.score(here)
    clean = np.setdiff1d(np.arange(240), POISONED)
    assert (scores.values[POISONED][:, None] > scores.values[clean]).mean() > 0.85
    verdict = judge.decide(scores, dataclasses.replace(here, rule=parse_rule(judge.usual_rule)))
    assert set(POISONED) <= set(verdict.rows)
    assert np.isin(verdict.rows, clean).sum() < 0.35 * len(clean)
    assert "under dropout" in judge.explain(scores, POISONED[:1])[0]


def test_shares_and_falls_are_what_dropout_gives_on_average(tmp_path):
    passes = 2000
    here = known.task(tmp_path, known.pictures(8), [], network(few=1, many=2, sure=8.0))
    found = shifts(here, passes)
    here.network.eval()
    seen = here.network[0](torch.tensor(here.examples.images / 255, dtype=torch.float32)).detach()
    plain = here.network[1](seen).softmax(1).detach()
    for place in (0, 4, 7):
        rate = RATES[place]
        kept = torch.rand(passes, *seen.shape, generator=torch.Generator().manual_seed(1)) >= rate
        dropped = here.network[1](seen * kept / (1 - rate)).softmax(2).detach()
        said = plain.argmax(1)
        shifted = (dropped.argmax(2) != said).float().mean(0)
        fall = plain.max(1).values - dropped.mean(0)[torch.arange(8), said]
        assert found[:, place] == pytest.approx(shifted.numpy(), abs=0.06)
        assert found[:, len(RATES) + place] == pytest.approx(fall.numpy(), abs=0.06)


@pytest.mark.parametrize("shape", [(400, 7), (400, 6, 3, 5)])
def test_dropout_sets_a_share_to_zero_for_each_row_by_itself(shape):
    dropout = Dropout(0)
    dropout.rate, dropout.begin = 0.7, torch.arange(400) * 150
    out = dropout.drop(0, torch.ones(shape))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.3])
    assert float((out == 0).float().mean()) == pytest.approx(0.7, abs=0.03)
    assert len({tuple(row.flatten().tolist()) for row in out}) > 50
    dropout.begin = torch.arange(400).flip(0) * 150
    assert torch.equal(dropout.drop(0, torch.ones(shape)), out.flip(0))
    assert not torch.equal(dropout.drop(1, torch.ones(shape)), out.flip(0))


def test_which_rate_is_taken():
    assert chosen_rate(np.array([0.1, 0.5, 0.85, 0.9]), np.array([0.0, 0.1, 0.8, 0.8])) == 3
    assert chosen_rate(np.array([0.1, 0.5, 0.7, 0.7]), np.array([0.0, 0.1, 0.6, 0.6])) == 1, "none shifts as many"
    assert chosen_rate(np.array([0.9, 0.9]), np.array([1.0, 1.0])) == 0


def test_where_dropout_is_put():
    proxy = build("proxy", 4, (3, 32, 32))
    assert dropped_layers(proxy) == list(proxy[1].body)
    plain = resnet18(num_classes=4)
    blocks = [block for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4) for block in stage]
    assert dropped_layers(nn.Sequential(nn.Identity(), plain)) == blocks
    mobile = mobilenet_v2(num_classes=4)
    assert dropped_layers(mobile) == list(mobile.features)
    assert all(isinstance(layer, nn.BatchNorm2d) for layer in dropped_layers(vgg11_bn(num_classes=4)))
    with torch.device("meta"):
        vit = vit_b_16(num_classes=4)
    assert dropped_layers(vit) == list(vit.encoder.layers)


def test_a_model_is_left_as_it_was():
    model = build("proxy", 4, (3, 16, 16)).eval()
    images = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        before = model(images)
        with dropping(model, 0) as dropout:
            assert torch.equal(model(images), before)
            dropout.rate, dropout.begin = 0.5, torch.arange(5)
            assert not torch.allclose(model(images), before)
        assert torch.equal(model(images), before)


def test_what_is_said_of_a_row_does_not_depend_on_which_others_are_asked_about(tmp_path):
    whole = known.task(tmp_path / "a", known.pictures(60), np.arange(20), network())
    part = known.task(tmp_path / "b", whole.examples.take(np.arange(7, 60, 3)), np.arange(7, 20, 3), network())
    one, other = shifts(whole, 3), shifts(part, 3)
    assert other[part.examples.rows] == pytest.approx(one[part.examples.rows], abs=1e-5)
    assert np.isnan(other[0]).all()


def test_a_second_score_asks_nobody(tmp_path):
    here = known.task(tmp_path, known.pictures(60), np.arange(20), network())
    first = Psbd().score(here)
    asked = here.loaded
    assert np.array_equal(Psbd().score(here).values, first.values)
    assert here.loaded == asked
    assert not np.array_equal(Psbd(passes=2).score(here).values, first.values)


@pytest.mark.parametrize("count", [0, 1])
def test_without_probes_it_says_how_many_it_needs_before_anything_is_trained(tmp_path, count):
    here = known.task(tmp_path, known.pictures(40), np.arange(count))
    with pytest.raises(SpecError, match=f"at least 2 pictures .* has {count}.*--probes"):
        Psbd().score(here)
    assert here.loaded == 0


def test_grey_pictures_two_probes_and_a_model_without_anything_to_drop(tmp_path):
    grey = known.Examples.of(known.pictures(45).images[:, :1, :5], np.arange(45) % 2)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(40, 2))
    values = Psbd().score(known.task(tmp_path, grey, np.arange(2), flat)).values
    assert not values.any(), "nothing is dropped, nothing falls"
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    values = Psbd().score(known.task(tmp_path / "b", grey, np.arange(2), hidden)).values
    assert np.isfinite(values).all()
    assert values.any()


def test_answers_that_are_no_numbers(tmp_path):
    made = network()
    made[1].bias.data[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        Psbd().score(known.task(tmp_path, known.pictures(40), np.arange(10), made))


@pytest.mark.parametrize("options", [{"passes": 0}, {"quantile": 0.0}, {"quantile": 0.5}])
def test_options_that_make_no_sense(options):
    with pytest.raises(SpecError, match=f"{next(iter(options))} is "):
        Psbd(**options)
