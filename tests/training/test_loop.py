from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from small import RECIPE, Stopping, WithDropout, contents, pictures
from untaint import EigenGuard, Recorder, Trajectories, accuracy, evaluate, insert_eigenguard, rng
from untaint.errors import InputError, RunError, TrainingError
from untaint.models.build import build, head_of
from untaint.training.loop import Watch, _matrices, _Training, fit, predict
from untaint.training.pixels import first_layer


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def training(examples, recipe, out, seed=0) -> _Training:
    return _Training(examples, recipe, out, seed=seed, watch=None, model=None, where=None)


# --- batches


@pytest.mark.parametrize("batch", [1, 7, 16, 60, 1000])
def test_every_member_is_seen_once_an_epoch_in_one_order_for_any_batch_size(tmp_path, batch):
    examples = pictures().take(np.arange(3, 58, 2))
    work = training(examples, replace(RECIPE, batch=batch), tmp_path, seed=4)
    for epoch in range(2):
        work.epoch = epoch
        parts = list(work.batches())
        assert sorted(np.concatenate(parts)) == examples.rows.tolist()
        assert np.array_equal(np.concatenate(parts), rng.order(4, "shuffle", epoch, examples.rows))
        assert max(map(len, parts)) <= batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts) == work.steps


def test_epochs_are_shuffled_anew(tmp_path):
    work = training(pictures(), RECIPE, tmp_path)
    first = np.concatenate(list(work.batches()))
    work.epoch = 1
    assert not np.array_equal(first, np.concatenate(list(work.batches())))


def test_a_network_with_eigenguard_is_trained_by_the_loop_and_goes_on_with_the_same_bits(tmp_path):
    """The speed is tried with 8 pictures, fewer than k: neither that nor an interruption is to be seen in the result."""

    def guarded():
        plain = build("proxy", 3, (3, 8, 8), **first_layer(pictures(), whitened=False))
        return insert_eigenguard(plain, k=12, strict=True)

    recipe = replace(RECIPE, model="custom", batch=20, epochs=3, precision="float32")
    whole = fit(pictures(), recipe, tmp_path / "whole", seed=1, model=guarded)
    with pytest.raises(KeyboardInterrupt):
        fit(pictures(), recipe, tmp_path / "halting", seed=1, model=guarded, progress=Stopping(5))
    resumed = fit(pictures(), recipe, tmp_path / "halting", seed=1, model=guarded)
    assert equal(whole, resumed)
    guard = next(module for module in resumed.modules() if isinstance(module, EigenGuard))
    assert int(guard.batches) == 9
    again = fit(pictures(), recipe, tmp_path / "whole", seed=1, model=guarded)
    assert np.array_equal(predict(again, pictures()), predict(whole, pictures()))
    fit(pictures(), replace(recipe, precision="auto"), tmp_path / "tried", seed=1, model=guarded)


# --- the same as a plain loop


def plain_loop(examples, recipe, out, seed, when, rows):
    """What fit does, as somebody would write it with PyTorch alone and a Recorder."""
    first = first_layer(examples, whitened=False)
    model = build(recipe.model, 3, (3, 8, 8), seed=seed, **first)
    model = model.to(memory_format=torch.channels_last)  # sums in the same order, so that no bit differs
    images, labels = torch.from_numpy(examples.images).float() / 255, torch.from_numpy(examples.labels)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    recorder = Recorder(examples.labels, out)
    steps = -(-len(examples) // recipe.batch)
    for epoch in range(recipe.epochs):
        model.train()
        for step, batch in enumerate(np.array_split(rng.order(seed, "shuffle", epoch, examples.rows), steps)):
            optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(epoch * steps + step, steps)
            logits = model(images[batch].contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if when == "train":
                recorder.record(batch, logits)
        if when == "eval":
            model.eval()
            with torch.no_grad():
                for batch in torch.from_numpy(rows).split(17):
                    recorder.record(batch, model(images[batch].contiguous(memory_format=torch.channels_last)))
        recorder.end_epoch()
    return Trajectories(out / "trajectories"), model


@pytest.mark.parametrize("when", ["eval", "train"])
def test_a_plain_loop_with_a_recorder_gives_the_same_trajectories(tmp_path, when):
    examples = pictures().take(np.arange(0, 60, 2) if when == "eval" else np.arange(60))
    rows = np.arange(60)
    watch = Watch(rows=rows, when=when)
    model = fit(examples, RECIPE, tmp_path / "fit", seed=2, watch=watch)
    plain, own = plain_loop(examples, RECIPE, tmp_path / "plain", 2, when, rows)
    found = Trajectories(tmp_path / "fit" / "trajectories")
    assert found.epochs == plain.epochs == 3
    for observable in ("scaled-logit", "margin"):
        assert not np.isnan(found.read(observable)).any()
        assert found.read(observable) == pytest.approx(plain.read(observable), rel=2e-4, abs=2e-4)
    agreeing = np.mean([np.mean(found.predicted(epoch) == plain.predicted(epoch)) for epoch in range(3)])
    assert agreeing > 0.98
    for one, other in zip(weights(model), weights(own), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_recording_does_not_change_what_is_learned(tmp_path):
    examples = pictures()
    bare = fit(examples, RECIPE, tmp_path / "bare", seed=0)
    for when in ("eval", "train"):
        watch = Watch(rows=examples.rows, when=when, features={1})
        assert equal(bare, fit(examples, RECIPE, tmp_path / when, seed=0, watch=watch))


def test_only_what_is_watched_is_recorded(tmp_path):
    examples = pictures().take(np.arange(30))
    watch = Watch(rows=np.arange(20, 50), epochs=[0, 2], features=[2])
    fit(examples, RECIPE, tmp_path, seed=0, watch=watch)
    found = Trajectories(tmp_path / "trajectories")
    assert found.epochs == 2
    assert np.flatnonzero(~np.isnan(found.read("margin")[:, 0])).tolist() == list(range(20, 50))
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["epoch_001.npy"]
    in_step = Watch(rows=examples.rows, when="train")
    fit(examples, RECIPE, tmp_path / "step", seed=0, watch=in_step)
    seen = ~np.isnan(Trajectories(tmp_path / "step" / "trajectories").read("margin"))
    assert np.flatnonzero(seen.all(axis=1)).tolist() == examples.rows.tolist()
    assert np.array_equal(seen.any(axis=1), seen.all(axis=1))


# --- reproducible and of no side effects


def test_the_seed_decides_and_nothing_else(tmp_path):
    examples = pictures()
    recipe = replace(RECIPE, augment="crop-flip")
    torch.manual_seed(1)
    one = fit(examples, recipe, tmp_path / "a", seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = fit(examples, recipe, tmp_path / "b", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(one, two)
    assert not equal(one, fit(examples, recipe, tmp_path / "c", seed=4))


def test_layers_that_draw_at_random_draw_by_the_seed(tmp_path):
    examples = pictures()
    for name, state in (("a", 1), ("b", 2)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        fit(examples, RECIPE, tmp_path / name, seed=3, model=WithDropout)
        fit(
            examples, replace(RECIPE, epochs=1, precision="auto"), tmp_path / f"trial-{name}", seed=3, model=WithDropout
        )
        assert torch.equal(torch.get_rng_state(), before)
    one, two = (contents(tmp_path / name)["model.safetensors"] for name in "ab")
    assert one == two


def test_the_examples_are_not_changed(tmp_path):
    examples = pictures()
    before = examples.fingerprint
    images = examples.images.copy()
    fit(examples, replace(RECIPE, augment="crop-flip"), tmp_path, seed=0)
    assert np.array_equal(examples.images, images)
    assert replace(examples).fingerprint == before


def test_a_model_learns(tmp_path):
    examples = pictures(120)
    model = fit(examples, replace(RECIPE, epochs=6), tmp_path, seed=0)
    assert accuracy(model, pictures(60, seed=1)) > 0.9
    assert not model.training
    found = evaluate(model, pictures(60, seed=1).take([0, 1, 3]))
    assert found["pictures"] == 3
    assert found["per_class"]["2"] is None
    assert predict(model, examples.take([5, 7])).shape == (2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "learning_rate": 0.01},
        {"clamp": 0.5},
        {"pixels": "plain"},
        {"pixels": "whitened", "optimizer": "muon"},
    ],
)
def test_other_recipes_learn_other_weights(tmp_path, changes):
    usual = fit(pictures(), RECIPE, tmp_path / "usual", seed=0)
    assert not equal(usual, fit(pictures(), replace(RECIPE, **changes), tmp_path / "other", seed=0))


@pytest.mark.parametrize("name", ["proxy", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_muon_trains_other_networks_too(tmp_path, name):
    recipe = replace(RECIPE, model=name, epochs=4, optimizer="muon", learning_rate=0.05, weight_decay=0.5)
    examples = pictures(120)
    assert accuracy(fit(examples, recipe, tmp_path, seed=0), examples) > 0.5


def test_the_head_and_convolutions_by_channel_are_no_matrices_to_muon():
    network = build("mobilenet_v2", 3, (3, 16, 16))
    hidden, others = _matrices(network)
    assert len(hidden) + len(others) == len(list(network.parameters()))
    assert any(weight is head_of(network).weight for weight in others)
    assert all(weight.shape[1] > 1 for weight in hidden)
    assert any(weight.dim() == 4 and weight.shape[1] == 1 for weight in others)


def test_bfloat16_is_near_float32(tmp_path):
    exact = fit(pictures(), RECIPE, tmp_path / "a", seed=0)
    half = fit(pictures(), replace(RECIPE, precision="bfloat16"), tmp_path / "b", seed=0)
    assert not equal(exact, half)
    assert accuracy(half, pictures(seed=1)) == pytest.approx(accuracy(exact, pictures(seed=1)), abs=0.2)


# --- interrupted


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, optimizer="adamw", augment="crop-flip", schedule="cosine"),
        replace(RECIPE, optimizer="muon", learning_rate=0.05, pixels="whitened"),
    ],
)
@pytest.mark.parametrize("after", [1, 3, 5, 9, 14])
def test_training_that_was_interrupted_ends_with_the_same_bits(tmp_path, recipe, after):
    """Ctrl-C in the first epoch, in the recording pass, in later epochs; with the momentum of both optimizers."""
    examples = pictures()
    watch = Watch(rows=examples.rows, features={0, 2})
    fit(examples, recipe, tmp_path / "whole", seed=1, watch=watch, model=WithDropout)
    stopping = Stopping(after)
    with pytest.raises(KeyboardInterrupt):
        fit(examples, recipe, tmp_path / "parts", seed=1, watch=watch, model=WithDropout, progress=stopping)
    going_on = Stopping(10**9)
    fit(examples, recipe, tmp_path / "parts", seed=1, watch=watch, model=WithDropout, progress=going_on)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    _, total, done = going_on.steps[0]
    assert done + going_on.advanced == total == 3 * 75
    assert done == 75 * (
        (after - 1) // 5
    )  # four batches and a pass of recording, which counts a quarter, make an epoch


def test_a_finished_model_is_loaded_and_not_trained_again(tmp_path):
    first = fit(pictures(), RECIPE, tmp_path, seed=0)
    progress = Stopping(1)
    assert equal(first, fit(pictures(), RECIPE, tmp_path, seed=0, progress=progress))
    assert progress.steps == []
    own = fit(pictures(), RECIPE, tmp_path / "own", seed=0, model=WithDropout)
    assert equal(own, fit(pictures(), RECIPE, tmp_path / "own", seed=0, model=WithDropout))


def interrupted(folder):
    examples = pictures()
    watch = Watch(rows=examples.rows)
    with pytest.raises(KeyboardInterrupt):
        fit(examples, RECIPE, folder, seed=0, watch=watch, progress=Stopping(12))
    return examples, watch


def damage(path, how):
    data = path.read_bytes()
    if how == "shortened":
        path.write_bytes(data[:-9])
    elif how == "one bit":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "another epoch":
        path.write_bytes(data.replace(b'"epoch": 2', b'"epoch": 1'))
    elif how == "emptied":
        path.write_bytes(b"{}")
    else:
        path.unlink()
    assert not path.exists() or path.read_bytes() != data


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("checkpoint_002.safetensors", "one bit"),
        ("checkpoint_002.safetensors", "shortened"),
        ("checkpoint_002.safetensors", "removed"),
        ("state.json", "another epoch"),
        ("state.json", "shortened"),
        ("state.json", "emptied"),
        ("trajectories/margin/epoch_001.npy", "one bit"),
        ("trajectories/scaled-logit/epoch_000.npy", "removed"),
    ],
)
def test_what_was_altered_is_refused_in_one_sentence(tmp_path, name, how):
    examples, watch = interrupted(tmp_path)
    damage(tmp_path / name, how)
    with pytest.raises(RunError, match=name.rpartition("/")[2]) as refused:
        fit(examples, RECIPE, tmp_path, seed=0, watch=watch)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("done.json", "emptied"),
        ("done.json", "one bit"),
        ("done.json", "shortened"),
        ("model.safetensors", "one bit"),
        ("model.json", "shortened"),
        ("trajectories/predicted/epoch_002.npy", "one bit"),
        ("trajectories/margin/epoch_002.npy", "removed"),
    ],
)
def test_what_was_altered_after_the_end_is_refused_too(tmp_path, name, how):
    examples = pictures()
    watch = Watch(rows=examples.rows)
    fit(examples, RECIPE, tmp_path, seed=0, watch=watch)
    damage(tmp_path / name, how)
    with pytest.raises(RunError, match=name.rpartition("/")[2]):
        fit(examples, RECIPE, tmp_path, seed=0, watch=watch)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(pictures(), RECIPE, tmp_path, seed=0, model=WithDropout, progress=Stopping(6))
    with pytest.raises(RunError, match="does not fit the model"):
        fit(pictures(), RECIPE, tmp_path, seed=0, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


# --- what cannot be trained


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_not_finite_names_the_epoch(tmp_path, precision):
    recipe = replace(RECIPE, learning_rate=1e6, epochs=20, precision=precision)
    with pytest.raises(TrainingError, match=r"epoch \d+ .*learning rate 1e\+06"):
        fit(pictures(), recipe, tmp_path, seed=0)
    assert not (tmp_path / "done.json").exists()


def test_one_picture_is_too_few(tmp_path):
    with pytest.raises(InputError, match="there are 1 pictures to train on"):
        fit(pictures().take([3]), RECIPE, tmp_path, seed=0)
    with pytest.raises(InputError, match="no picture to evaluate"):
        evaluate(WithDropout(), pictures().take([]))
