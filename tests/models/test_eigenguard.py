"""The layer against the paper's formula written out with an SVD, what its predictions depend on, and where it can be put."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from untaint.errors import SpecError, TrainingError
from untaint.models.eigenguard import EigenGuard
from untaint.models.inserting import remove_eigenguard

SHAPES = [(12, 40), (40, 12), (9, 9)]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def decaying(rows, columns, seed=0):
    """A matrix whose singular values are 1, 1/2, 1/3, ..."""
    left, _, right = torch.linalg.svd(drawn(rows, columns, seed=seed), full_matrices=False)
    return (left / torch.arange(1, min(rows, columns) + 1)) @ right


def written_out(matrix, k, remainder, common, *, held=False):
    """The formula, with autograd's own derivative of the SVD; ``held``: the top left singular vectors are constants."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if held:
        left = left[:, :k].detach()
        along = left.T @ matrix
        values = torch.stack([row.norm() for row in along])
        value = values.mean() if common == "mean" else values[k - 1]
        top = sum(torch.outer(left[:, i], value * along[i] / values[i] - remainder * along[i]) for i in range(k))
        return remainder * matrix + top
    value = values[:k].mean() if common == "mean" else values[k - 1]
    return (left * torch.cat([value.expand(k), remainder * values[k:]])) @ right


# --- the mathematics


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("common", ["kth", "mean"])
@pytest.mark.parametrize("gradient", ["held", "exact"])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_values_and_gradients_are_those_of_the_formula(shape, common, gradient, k):
    matrix = decaying(*shape).requires_grad_()
    asked = drawn(*shape, seed=1)
    expected = written_out(matrix, k, 0.01, common, held=gradient == "held")
    slow = torch.autograd.grad((expected * asked).sum(), matrix)[0]
    found = EigenGuard(k, remainder=0.01, common=common, gradient=gradient)(matrix)
    fast = torch.autograd.grad((found * asked).sum(), matrix)[0]
    torch.testing.assert_close(found, written_out(matrix, k, 0.01, common))
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6 * float(slow.abs().max()))


@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from(["kth", "mean"])
)
@settings(max_examples=50, deadline=None)
def test_top_singular_values_become_equal_and_the_others_small(rows, columns, k, seed, common):
    matrix = drawn(rows, columns, seed=seed)
    before = torch.linalg.svdvals(matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        after = torch.linalg.svdvals(EigenGuard(k, common=common)(matrix))
    top = min(k, rows, columns)
    value = before[:top].mean() if common == "mean" else before[top - 1]
    expected = torch.cat([value.expand(top), 1e-3 * before[top:]]).sort(descending=True).values
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6 * float(before[0]))


@pytest.mark.parametrize("gradient", ["held", "exact"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(6, 9), torch.ones(6, 9), drawn(1, 9, dtype=torch.float32), torch.eye(6, 9), torch.outer(torch.arange(6.0), torch.ones(9))],
    ids=["zeros", "all alike", "one picture", "all equally strong", "rank one"],
)  # fmt: skip
def test_degenerate_spectra_give_finite_output_and_gradient(matrix, gradient, training):
    layer = EigenGuard(4, gradient=gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        layer(matrix)
        features = matrix.clone().requires_grad_()
        guarded = layer.train(training)(features)
    (guarded * drawn(*matrix.shape, dtype=torch.float32)).sum().backward()
    assert guarded.isfinite().all()
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() < 1e3


def test_what_has_one_direction_only_stays_as_it_is():
    alike = drawn(1, 9).expand(6, 9)
    torch.testing.assert_close(EigenGuard(4)(alike), alike)


@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 5), (8, 5, 2, 3)])
@pytest.mark.parametrize("matrix", ["flat", "channel"])
def test_the_matrix_has_a_row_for_each_picture_or_for_each_place(shape, matrix):
    features = drawn(*shape)
    if matrix == "flat":
        expected = written_out(features.flatten(1), 3, 1e-3, "kth").view(shape)
    else:
        last = features.movedim(1, -1) if len(shape) == 4 else features
        expected = written_out(last.flatten(0, -2), 3, 1e-3, "kth").view(last.shape)
        expected = expected.movedim(-1, 1) if len(shape) == 4 else expected
    torch.testing.assert_close(EigenGuard(3, matrix=matrix)(features), expected)


# --- what a prediction depends on


@pytest.mark.parametrize("shape", [(24, 15), (24, 5, 2, 2)])
@pytest.mark.parametrize("matrix", ["flat", "channel"])
def test_in_eval_mode_a_picture_is_the_same_alone_in_any_batch_in_any_order(shape, matrix):
    layer = EigenGuard(4, matrix=matrix)
    for seed in range(3):
        layer(drawn(*shape, seed=seed))
    layer.eval()
    features = drawn(*shape, seed=9)
    together, order = layer(features), torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(features[order]), together[order])
    for picture in range(3):
        torch.testing.assert_close(layer(features[picture : picture + 1])[0], together[picture])
    torch.testing.assert_close(layer(2 * features - features[:1]), 2 * together - together[:1])  # linear
    layer.evaluating = "batch"
    assert not torch.allclose(layer(features[:12]), layer(features)[:12], rtol=1e-2)


@pytest.mark.parametrize("matrix", ["flat", "channel"])
def test_after_one_batch_eval_does_to_it_what_training_did(matrix):
    layer, features = EigenGuard(4, matrix=matrix), decaying(20, 30).view(20, 5, 2, 3)
    trained = layer(features)
    torch.testing.assert_close(layer.eval()(features), trained)


def test_running_directions_are_those_of_the_mean_of_second_moments():
    """Slow oracle: means of whole covariance matrices. Directions that every batch has are kept exactly."""
    mixing, layer, mean = decaying(6, 30), EigenGuard(6, momentum=0.25), torch.zeros(30, 30, dtype=torch.float64)
    for seed in range(12):
        batch = drawn(50, 6, seed=seed) @ mixing
        layer(batch)
        weight = max(0.25, 1 / (seed + 1))
        mean = (1 - weight) * mean + weight * batch.T @ batch / 50
    values, vectors = torch.linalg.eigh(mean)
    torch.testing.assert_close(layer.lengths, values.flip(0)[:6].sqrt())
    projector = vectors[:, -6:] @ vectors[:, -6:].T
    torch.testing.assert_close(layer.basis.T @ layer.basis, projector)


# --- at work for a part of training


@pytest.mark.parametrize("evaluating", ["running", "batch"])
@pytest.mark.parametrize("matrix", ["flat", "channel"])
def test_after_its_steps_features_and_their_gradient_pass_as_they_are(evaluating, matrix):
    limited, always = (EigenGuard(3, matrix=matrix, remainder=0.1, eval=evaluating, steps=steps) for steps in (2, None))
    for step in range(4):
        features, asked = decaying(12, 40, seed=step).view(12, 10, 2, 2), drawn(12, 10, 2, 2, seed=9)
        found = []
        for layer in (limited, always):
            given = features.clone().requires_grad_()
            guarded = layer(given)
            found.append((guarded.detach(), *torch.autograd.grad((guarded * asked).sum(), given)))
        (guarded, slope), (expected, wanted) = found
        if step >= 2:
            expected, wanted = features, asked
        assert torch.equal(guarded, expected)
        assert torch.equal(slope, wanted)
        seen = features[:5]
        assert torch.equal(limited.eval()(seen), seen if step >= 1 else always.eval()(seen))
        limited.train(), always.train()


def test_once_its_steps_are_done_taking_it_out_changes_nothing_even_after_loading():
    model, pictures = network(steps=1), drawn(16, 3, 8, 8, dtype=torch.float32)
    model(pictures)
    loaded = network(steps=1)
    loaded.load_state_dict(model.state_dict())
    for own in (model.eval(), loaded.eval()):
        assert torch.equal(remove_eigenguard(own)(pictures), own(pictures))


def test_the_recommended_one_follows_the_batch_and_options_come_before_it():
    layer = EigenGuard.recommended(batch=128)
    assert (layer.k, layer.remainder, layer.steps) == (51, 1e-3, None)
    layer = EigenGuard.recommended(batch=1, remainder=0.5, common="mean")
    assert (layer.k, layer.remainder, layer.common) == (1, 0.5, "mean")
    with pytest.raises(SpecError, match="batch is 0"):
        EigenGuard.recommended(batch=0)


# --- inside models


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), EigenGuard(5, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_type_and_layout_of_features_stay(memory, kind):
    features = drawn(12, 4, 3, 3).to(kind).contiguous(memory_format=memory)
    guarded = EigenGuard(5)(features)
    assert (guarded.shape, guarded.dtype) == (features.shape, kind)
    assert guarded.is_contiguous(memory_format=memory)


def test_under_autocast_it_computes_in_float32():
    model, pictures = network(), drawn(16, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model[1](model[0](pictures))
        guarded = model[2](features)
    assert features.dtype == guarded.dtype == torch.bfloat16
    torch.testing.assert_close(guarded, EigenGuard(5)(features.float()).to(torch.bfloat16))
    assert model[2].basis.dtype == torch.float32


def test_a_trained_layer_is_copied_saved_and_loaded_whole(tmp_path):
    model, pictures = network(), drawn(16, 3, 8, 8, dtype=torch.float32)
    model(pictures)
    expected = model.eval()(pictures)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = network()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for other in (fresh.eval(), copy.deepcopy(model)):
        torch.testing.assert_close(other(pictures), expected)
    untrained = network()
    untrained.load_state_dict(network().state_dict())
    untrained.train()(pictures)


def test_statistics_of_other_shapes_are_refused():
    model = network()
    model(drawn(16, 3, 8, 8, dtype=torch.float32))
    other = network()
    other(drawn(16, 3, 10, 10, dtype=torch.float32))
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.basis"):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize("steps", [None, 3])
def test_it_compiles_without_a_graph_break_and_exports(steps):
    model, pictures = network(steps=steps), drawn(16, 3, 8, 8, dtype=torch.float32)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(pictures), model(pictures))
        compiled(pictures).sum().backward()
        model(pictures)
    model.eval()
    exported = torch.export.export(model, (pictures,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(exported.module()(pictures[:5]), model(pictures[:5]))


@pytest.mark.parametrize(("matrix", "common"), [("flat", "kth"), ("flat", "mean"), ("channel", "kth")])
def test_in_eval_mode_it_exports_to_onnx_and_says_the_same_there(matrix, common, tmp_path):
    import onnxruntime

    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), EigenGuard(4, matrix=matrix, common=common), nn.Flatten(), nn.Linear(216, 2)
    )
    pictures = drawn(16, 3, 8, 8, dtype=torch.float32)
    model(pictures)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.onnx.export(model.eval(), (pictures[:3],), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for some in (pictures, pictures[:1]):
        (said,) = session.run(None, {session.get_inputs()[0].name: some.numpy()})
        torch.testing.assert_close(torch.from_numpy(said), model(some).detach(), rtol=1e-4, atol=1e-5)


def four_directions(seed):
    return drawn(16, 4, seed=seed) @ decaying(4, 9)


def one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = EigenGuard(4)
    for step in range(3):
        layer(four_directions(2 * step + rank))
    torch.save(layer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # torch's own threads may abort while an interpreter ends


def test_several_processes_remember_the_batches_of_all(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    mean = sum(four_directions(seed).T @ four_directions(seed) for seed in range(6)) / (6 * 16)
    values, vectors = torch.linalg.eigh(mean)
    torch.testing.assert_close(one["lengths"], values.flip(0)[:4].sqrt())
    torch.testing.assert_close(one["basis"].T @ one["basis"], vectors[:, -4:] @ vectors[:, -4:].T)


SIZES = (16, 11)  # batches of two processes need not be alike


def as_one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = EigenGuard.convert_sync(nn.Sequential(EigenGuard(4, remainder=0.1)))
    own = torch.split(drawn(sum(SIZES), 40), SIZES)[rank].clone().requires_grad_()
    guarded = layer(own)
    (guarded * torch.split(drawn(sum(SIZES), 40, seed=1), SIZES)[rank]).sum().backward()
    torch.save({"guarded": guarded.detach(), "grad": own.grad, **layer[0].state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # torch's own threads may abort while an interpreter ends


def test_converted_several_processes_equalise_their_batches_as_one(tmp_path):
    torch.multiprocessing.spawn(as_one_of_two, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    layer, whole = EigenGuard(4, remainder=0.1), drawn(sum(SIZES), 40).requires_grad_()
    guarded = layer(whole)
    (guarded * drawn(sum(SIZES), 40, seed=1)).sum().backward()
    torch.testing.assert_close(torch.cat([part["guarded"] for part in parts]), guarded.detach())
    torch.testing.assert_close(torch.cat([part["grad"] for part in parts]), whole.grad)
    for part in parts:
        torch.testing.assert_close(part["lengths"], layer.lengths)
        torch.testing.assert_close(part["basis"].T @ part["basis"], layer.basis.T @ layer.basis)


def test_a_converted_one_does_as_before_in_one_process_and_needs_directions_held():
    features = drawn(16, 40)
    converted = EigenGuard.convert_sync(EigenGuard(4))
    assert torch.equal(converted(features), EigenGuard(4)(features))
    with pytest.raises(SpecError, match="gradient 'exact', which needs the whole batch"):
        EigenGuard.convert_sync(nn.Sequential(EigenGuard(4, gradient="exact")))


def test_gradients_of_batches_in_parts_add_up_and_each_part_is_remembered():
    """Gradient accumulation: each part is a batch of its own, as for BatchNorm."""
    model = nn.Sequential(nn.Linear(40, 40, bias=False), EigenGuard(4)).double()
    parts = [drawn(16, 40), drawn(16, 40, seed=1)]
    for part in parts:
        model(part).square().mean().backward()
    together = model[0].weight.grad.clone()
    assert int(model[1].batches) == 2
    alone = []
    for part in parts:
        model.zero_grad()
        model(part).square().mean().backward()
        alone.append(model[0].weight.grad.clone())
    torch.testing.assert_close(together, alone[0] + alone[1])


def test_with_it_a_network_learns():
    model, labels = network(), torch.arange(64) % 2
    pictures = drawn(64, 3, 8, 8, dtype=torch.float32) + labels.view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures), labels).backward()
        optimizer.step()
    assert (model.eval()(pictures).argmax(1) == labels).float().mean() > 0.9


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5"),
        ({"k": True}, "k is True"),
        ({"remainder": 2}, "remainder is 2"),
        ({"momentum": 0}, "momentum is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, r"steps is 2\.5"),
        ({"common": "median"}, "'kth' or 'mean'"),
        ({"matrix": "rows"}, "'flat' or 'channel'"),
        ({"eval": "ema"}, "'running' or 'batch'"),
        ({"gradient": "none"}, "'held' or 'exact'"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(SpecError, match=said):
        EigenGuard(**options)


@pytest.mark.parametrize("features", [torch.zeros(3), torch.zeros(2, 2, 2, 2, 2), torch.zeros(4, 4, dtype=torch.int64)])
def test_features_of_another_kind_are_refused(features):
    with pytest.raises(SpecError, match="floating-point features"):
        EigenGuard(2)(features)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_by_the_name_of_the_layer(value):
    layer, features = EigenGuard(2), torch.ones(6, 4)
    layer.layer = "layer3"
    features[[1, 4], 2] = value
    with pytest.raises(TrainingError, match=r"EigenGuard at layer3 .* 2 of 6 rows"):
        layer(features)


def test_large_features_that_are_finite_are_not_refused():
    assert EigenGuard(2)(torch.full((6, 4), 1e30, dtype=torch.float64)).isfinite().all()


def test_more_than_there_are_is_capped_with_one_warning_or_refused():
    layer = EigenGuard(9)
    with pytest.warns(UserWarning, match="k=9 .* 6 x 40 has only 6"):
        layer(drawn(6, 40))
    layer(drawn(6, 40))  # warnings are errors: none is given
    with pytest.raises(SpecError, match="smaller k, larger batches"):
        EigenGuard(9, strict=True)(drawn(6, 40))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_the_same_few_pictures_again_and_again_stay_finite(scale):
    """Eight pictures and k=50: most directions are not there, and many eigenvalues equal."""
    layer, features = EigenGuard(50), scale * torch.relu(drawn(8, 1024).float())
    layer.tried()  # the cap is not what is asked here
    for _ in range(30):
        assert layer(features).isfinite().all()
    exact = torch.linalg.svdvals(features.double()) / 8**0.5
    assert layer.lengths[:8] == pytest.approx(exact.float(), rel=1e-3)
    assert layer.lengths[8:].abs().max() <= 1e-2 * exact[0]
    assert layer.eval()(features).isfinite().all()


def test_one_whose_speed_is_tried_takes_any_batch_without_a_word():
    layer = EigenGuard(9, strict=True)
    layer.tried()
    layer(drawn(6, 40))


def test_eval_before_any_batch_and_on_other_sizes_is_refused():
    layer = EigenGuard(3).eval()
    with pytest.raises(SpecError, match="has seen no batch"):
        layer(drawn(6, 40))
    layer.train()(drawn(6, 40))
    with pytest.raises(SpecError, match="40 features, but was given 41"):
        layer.eval()(drawn(6, 41))
