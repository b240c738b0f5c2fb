from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from untaint.errors import InputError, SpecError
from untaint.models.build import build, parted, require
from untaint.models.eigenguard import EigenGuard
from untaint.models.gate import Gate, TriggerGate
from untaint.models.inserting import Behind, insert_eigenguard, remove_eigenguard

SIZE = (3, 16, 16)


def gate_of(width: int, components: int, seed: int = 0) -> TriggerGate:
    generator, gate = torch.Generator().manual_seed(seed), TriggerGate()
    for _ in range(components):
        reading, change = torch.randn(2, width, generator=generator)
        gate.add(reading, 0.3, -0.2, 0.5, change)
    return gate


def one_picture_at_a_time(gate: TriggerGate, features: np.ndarray) -> np.ndarray:
    """What the docstring says, slowly."""
    out = []
    for picture in features.reshape(len(features), -1).astype(np.float64):
        left = picture.copy()
        for number in range(len(gate)):
            score = gate.reading[number].double().numpy() @ left - float(gate.level[number])
            if score > float(gate.cut[number]):
                left = left - (score - float(gate.rest[number])) * gate.change[number].double().numpy()
        out.append(left)
    return np.array(out).reshape(features.shape)


def test_an_empty_gate_changes_nothing():
    features = torch.randn(4, 3, 2, 2)
    assert torch.equal(TriggerGate()(features), features)
    assert len(TriggerGate()) == 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    components=st.integers(1, 4),
    shape=st.sampled_from([(6,), (3, 2), (2, 3, 2)]),
    rows=st.integers(1, 9),
)
def test_it_does_what_it_says_to_each_picture_by_itself(seed, components, shape, rows):
    gate = gate_of(int(np.prod(shape)), components, seed)
    features = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed + 1))
    given_before = features.clone()
    whole = gate(features)
    exact = one_picture_at_a_time(gate, features.numpy())
    scale = max(1.0, float(np.abs(exact).max()))
    assert whole.numpy() == pytest.approx(exact, abs=1e-3 * scale)
    assert torch.equal(features, given_before)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(gate(features[order]), whole[order], atol=1e-4 * scale)
    assert torch.allclose(gate(features[:1]), whole[:1], atol=1e-4 * scale)


def test_pictures_without_the_component_stay_as_they_are_to_the_bit():
    gate = TriggerGate()
    gate.add(torch.tensor([1.0, 0.0]), 0.0, 0.0, 2.0, torch.tensor([0.5, 4.0]))
    found = gate(torch.tensor([[1.9, 7.0], [-30.0, 1.0], [4.0, 16.0]]))
    assert found.tolist() == [pytest.approx([1.9, 7.0]), [-30.0, 1.0], [2.0, 0.0]]


def test_type_and_training_mode_make_no_difference():
    gate, features = gate_of(4, 2), torch.randn(5, 4)
    assert torch.equal(gate.train()(features), gate.eval()(features))
    assert gate(features.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(gate(features), gate(features.clone()))
        assert gate(features).dtype == torch.float32


def test_other_features_than_it_knows_are_refused():
    with pytest.raises(SpecError, match=r"components of 4 features, but was given 6"):
        gate_of(4, 1)(torch.randn(2, 6))


def test_it_survives_copies_and_state_dicts_and_takes_gradients():
    network = Gate(at="1").put_into(nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)))
    network.get_submodule("1").added.add(torch.ones(4), 0.0, 0.0, -9.0, torch.ones(4))
    again = Gate(at="1").put_into(nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)))
    again.load_state_dict(network.state_dict())
    pictures = torch.randn(3, 2, 2, 2)
    assert torch.equal(network(pictures), again(pictures))
    assert torch.equal(copy.deepcopy(network)(pictures), network(pictures))
    network(pictures).sum().backward()
    assert network.get_submodule("1").inside.weight.grad is not None


def test_it_is_exported():
    network = Gate(at="1").put_into(nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))).eval()
    network.get_submodule("1").added.add(torch.ones(4), 0.0, 0.0, 0.1, torch.ones(4))
    pictures = torch.randn(3, 2, 2, 2)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(network, (pictures,), dynamic_shapes=({0: batch},)).module()
    more = torch.randn(7, 2, 2, 2)
    assert torch.allclose(exported(more), network(more), atol=1e-6)


def test_put_into_leaves_the_network_given_alone_and_keeps_a_gate_that_is_there():
    network = build("proxy", 4, SIZE)
    gated = Gate().put_into(network)
    assert not any(isinstance(module, Behind) for module in network.modules())
    assert isinstance(gated.get_submodule("1.body").added, TriggerGate)
    pictures = torch.rand(3, *SIZE)
    assert torch.equal(gated.eval()(pictures), network.eval()(pictures))
    gated.get_submodule("1.body").added.add(torch.ones(256), 0.0, 0.0, 0.0, torch.ones(256))
    assert len(Gate().put_into(gated).get_submodule("1.body").added) == 1


def test_a_layer_that_gives_no_tensor_is_named():
    class Two(nn.Module):
        def forward(self, images):
            return images, images

    with pytest.raises(SpecError, match="the layer 1 gives a tuple, not one tensor"):
        Gate(at="1").put_into(nn.Sequential(nn.Flatten(), Two()))(torch.rand(2, *SIZE))


def test_networks_with_a_gate_have_a_name():
    require("proxy+gate:at=1.body")
    both = build("proxy+eigenguard:k=3+gate", 4, SIZE)
    assert isinstance(both.get_submodule("1.body").added, TriggerGate)
    assert isinstance(both.get_submodule("1.body").inside.added, EigenGuard)
    assert not any(isinstance(module, EigenGuard) for module in remove_eigenguard(both).modules())
    with pytest.raises(InputError, match=r"an EigenGuard at 1\.body already"):
        insert_eigenguard(both, k=3)
    assert [type(one).__name__ for one in parted("proxy+eigenguard:k=3+gate")[1]] == ["Guard", "Gate"]
    with pytest.raises(
        SpecError, match=r"puts 'filter' into proxy\. Only eigenguard, gate, group-norm, stamp, whitening can"
    ):
        require("proxy+filter")
    with pytest.raises(SpecError, match="no layer 'nowhere'"):
        build("proxy+gate:at=nowhere", 4, SIZE)
