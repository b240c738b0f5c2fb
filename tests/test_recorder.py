from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import untaint as ut
from untaint import Recorder, Trajectories
from untaint.errors import InputError, RunError, TrainingError
from untaint.recorder import WIDEST, observe
from untaint.trajectories import derive

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_loop.py"


def slow(logits, label):
    """Scaled logit and margin of one row, one class at a time, in float64."""
    logits = [float(value) for value in logits]
    others = logits[:label] + logits[label + 1 :]
    top = max(others)
    sum_of_others = top + np.log(sum(np.exp(value - top) for value in others))
    return logits[label] - sum_of_others, logits[label] - top


def recorded(folder, logits, labels):
    recorder = Recorder(labels, folder)
    recorder.record(np.arange(len(labels)), torch.as_tensor(logits))
    recorder.end_epoch()
    return Trajectories(folder / "trajectories")


# --- what is observed


@given(st.integers(0, 2**31), st.integers(2, 12), st.sampled_from([1, 30, 1000]))
@settings(max_examples=40, deadline=None)
def test_observables_are_those_of_the_obvious_program(seed, classes, spread):
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=(9, classes)) * spread).astype(np.float32)
    labels = generator.integers(0, classes, 9)
    scaled, margin, predicted = observe(torch.from_numpy(logits), torch.from_numpy(labels))
    expected = np.array([slow(row, label) for row, label in zip(logits, labels, strict=True)])
    assert scaled.dtype == margin.dtype == torch.float32
    assert scaled.numpy() == pytest.approx(expected[:, 0], rel=1e-5, abs=2e-6 * spread)
    assert margin.numpy() == pytest.approx(expected[:, 1], rel=1e-5, abs=2e-6 * spread)
    assert predicted.tolist() == [max(range(classes), key=lambda k: row[k]) for row in logits.tolist()]


@pytest.mark.parametrize("lead", [-1e4, -150, -20, 0, 20, 150, 1e4])
def test_losses_do_not_underflow_at_extreme_logits(tmp_path, lead):
    """At a lead of 150 a float32 softmax says probability 1 and loss 0; the log of the loss is -149.3."""
    found = recorded(tmp_path, torch.tensor([[lead, 0.0, 0.0]]), [0])
    difference = lead - np.log(2)
    loss = np.logaddexp(0, -difference)
    log_loss = -difference if difference > 30 else np.log(loss)
    assert found.read("scaled-logit")[0, 0] == pytest.approx(difference, rel=1e-6)
    assert found.read("margin")[0, 0] == lead
    assert found.read("log-ce")[0, 0] == pytest.approx(log_loss, rel=1e-5)
    assert found.read("ce")[0, 0] == pytest.approx(loss, rel=1e-5, abs=1e-37)
    assert found.read("probability")[0, 0] == pytest.approx(np.exp(-loss), rel=1e-4, abs=1e-7)


def test_cross_entropy_is_torchs(tmp_path):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 4
    labels = np.arange(50) % 7
    exact = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(labels), reduction="none")
    assert recorded(tmp_path, logits, labels).read("ce")[:, 0] == pytest.approx(exact.numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_are_observed_in_float32(kind):
    logits = torch.tensor([[3.0, 1.0, -2.0]], dtype=kind, requires_grad=True)
    scaled, margin, _ = observe(logits, torch.tensor([1]))
    assert (scaled.dtype, margin.dtype) == (torch.float32, torch.float32)
    assert not scaled.requires_grad
    assert margin.item() == -2


# --- rows


def test_a_row_seen_twice_is_averaged_and_one_not_seen_is_nan(tmp_path):
    recorder = Recorder([0, 1, 0, 1], tmp_path)
    recorder.record(torch.tensor([2, 0]), torch.tensor([[4.0, 0.0], [1.0, 0.0]]))
    recorder.record(np.array([2, 1, 2]), torch.tensor([[1.0, 0.0], [0.0, 7.0], [1.0, 0.0]]))
    recorder.end_epoch()
    found = Trajectories(tmp_path / "trajectories")
    assert np.array_equal(found.read("margin")[:, 0], np.array([1, 7, 2, np.nan], np.float32), equal_nan=True)
    assert np.isnan(found.read("scaled-logit")[:, 0]).tolist() == [False, False, False, True]
    assert found.predicted().tolist() == [0, 1, 0, -1]
    assert np.load(tmp_path / "labels.npy").tolist() == [0, 1, 0, 1]


@given(st.integers(0, 2**31), st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_batches_and_order_do_not_matter(tmp_path_factory, seed, size):
    generator = np.random.default_rng(seed)
    labels, logits = generator.integers(0, 4, 40), generator.normal(size=(40, 4)).astype(np.float32)
    whole = recorded(tmp_path_factory.mktemp("whole"), logits, labels)
    folder = tmp_path_factory.mktemp("parts")
    recorder = Recorder(labels, folder)
    order = generator.permutation(40)
    for start in range(0, 40, size):
        rows = order[start : start + size]
        recorder.record(rows, torch.from_numpy(logits[rows]))
    recorder.end_epoch()
    parts = Trajectories(folder / "trajectories")
    for observable in ("margin", "scaled-logit"):
        assert np.array_equal(parts.read(observable), whole.read(observable))


def test_recording_may_begin_in_inference_mode_and_go_on_outside(tmp_path):
    recorder = Recorder([0, 1], tmp_path)
    with torch.inference_mode():
        recorder.record([0], torch.zeros(1, 2))
    recorder.record([1], torch.zeros(1, 2, requires_grad=True))
    assert len(recorder.end_epoch()) == 3


def test_nothing_given_is_changed(tmp_path):
    labels, rows, logits = np.array([1, 0]), np.array([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    features = torch.tensor([[1.0], [2.0]])
    recorder = Recorder(labels, tmp_path)
    recorder.record(rows, logits, features)
    labels[:] = 7
    recorder.end_epoch()
    assert Trajectories(tmp_path / "trajectories").read("margin")[:, 0].tolist() == [1, -1]
    assert logits.tolist() == [[1, 2], [3, 4]]
    assert features.tolist() == [[1], [2]]
    assert rows.tolist() == [1, 0]


# --- features


def test_features_are_kept_in_half_precision_for_the_epochs_they_are_given_in(tmp_path):
    recorder = Recorder([0, 1, 0], tmp_path)
    recorder.record([0, 2], torch.zeros(2, 2))
    recorder.end_epoch()
    recorder.record([2, 0], torch.zeros(2, 2), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    paths = recorder.end_epoch()
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["epoch_001.npy"]
    kept = np.load(tmp_path / "features" / "epoch_001.npy")
    assert kept.dtype == np.float16
    assert np.array_equal(kept, np.array([[3, 4], [np.nan, np.nan], [1, 2]], np.float16), equal_nan=True)
    assert paths[-1].parent.name == "scaled-logit"  # written last: an epoch counts by this file


def test_wide_features_are_projected_and_keep_their_distances(tmp_path):
    features = torch.randn(40, 3000, generator=torch.Generator().manual_seed(1))
    for name, order in (("a", np.arange(40)), ("b", np.arange(40)[::-1].copy())):
        recorder = Recorder([0, 1] * 20, tmp_path / name)
        for rows in np.array_split(order, 3):
            recorder.record(rows, torch.zeros(len(rows), 2), features[torch.from_numpy(rows)])
        recorder.end_epoch()
    kept = np.load(tmp_path / "a" / "features" / "epoch_000.npy")
    assert kept.shape == (40, WIDEST)
    assert np.allclose(kept, np.load(tmp_path / "b" / "features" / "epoch_000.npy"), atol=0.05)
    before = torch.pdist(features).numpy()
    assert torch.pdist(torch.from_numpy(kept.astype(np.float32))).numpy() == pytest.approx(before, rel=0.25)


# --- what is refused


def test_logits_that_are_not_finite_name_the_epoch_and_leave_nothing(tmp_path):
    recorder = Recorder([0, 1], tmp_path)
    recorder.record([0, 1], torch.zeros(2, 2))
    recorder.end_epoch()
    recorder.record([0, 1], torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
    with pytest.raises(TrainingError, match="epoch 1 are not finite for 1 of 2 rows"):
        recorder.end_epoch()
    assert Trajectories(tmp_path / "trajectories").epochs == 1


def test_a_folder_that_holds_epochs_is_refused_or_continued(tmp_path):
    recorded(tmp_path / "a", np.zeros((2, 2), np.float32), [0, 1])
    with pytest.raises(RunError, match=r"already holds 1 epochs\. Give epoch=1 to go on"):
        Recorder([0, 1], tmp_path / "a")
    with pytest.raises(RunError, match="holds 1 epochs, fewer than the 3"):
        Recorder([0, 1], tmp_path / "a", epoch=3)
    with pytest.raises(RunError, match="holds other labels"):
        Recorder([1, 1], tmp_path / "a", epoch=1)
    recorder = Recorder([0, 1], tmp_path / "a", epoch=1)
    recorder.record([0, 1], torch.ones(2, 2))
    recorder.end_epoch()
    assert Trajectories(tmp_path / "a" / "trajectories").epochs == 2
    Recorder([0, 1], tmp_path / "a", epoch=1)
    assert Trajectories(tmp_path / "a" / "trajectories").epochs == 1  # what is to be recorded anew is gone


def test_recordings_in_folders_below_are_left_alone(tmp_path):
    recorded(tmp_path / "mine" / "first", np.zeros((2, 2), np.float32), [0, 1])
    recorded(tmp_path, np.zeros((2, 2), np.float32), [0, 1])
    assert Trajectories(tmp_path / "mine" / "first" / "trajectories").epochs == 1


@pytest.mark.parametrize(
    ("rows", "logits", "message"),
    [
        ([0], torch.zeros(2, 3), "1 rows were given with 2 logits"),
        ([0, 5], torch.zeros(2, 3), "rows from 0 to 5 were given, but there are 3 labels"),
        ([0, -1], torch.zeros(2, 3), "rows from -1"),
        ([0, 1], torch.zeros(2, 2), "the labels go up to 2"),
        ([0, 1], torch.zeros(2), "Give logits of"),
    ],
)
def test_batches_that_do_not_fit_are_refused(tmp_path, rows, logits, message):
    with pytest.raises(InputError, match=message):
        Recorder([0, 1, 2], tmp_path).record(rows, logits)


@pytest.mark.parametrize("labels", [[], [0, -1], [[0, 1]]])
def test_labels_that_are_none_are_refused(tmp_path, labels):
    with pytest.raises(InputError, match="the labels are"):
        Recorder(labels, tmp_path)


def test_an_epoch_without_a_batch_is_refused(tmp_path):
    with pytest.raises(InputError, match="epoch 0 ends with nothing recorded"):
        Recorder([0, 1], tmp_path).end_epoch()


# --- in a loop of one's own


def test_a_recording_is_scored_by_what_it_shows(tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    recorder = Recorder(labels, tmp_path / "mine")
    for epoch in range(4):
        logits = generator.normal(size=(300, 3)).astype(np.float32)
        logits[np.arange(300), labels] += epoch
        logits[:15] = 0
        logits[:15, 0] = -9 * epoch  # fifteen rows that are learned quite otherwise
        logits[np.arange(15), labels[:15]] = 12.0
        recorder.record(np.arange(300), torch.from_numpy(logits))
        recorder.end_epoch()
    result = ut.score(tmp_path / "mine", probes=np.arange(200, 300), reject="fraction:share=0.05")
    assert result.rejected.tolist() == list(range(15))
    assert derive(np.zeros(1, np.float32), "ce")[0] == pytest.approx(np.log(2))
    assert (tmp_path / "mine" / "report.html").exists()
    assert len(result.kept) == 285


def test_the_example_of_an_own_loop_runs(tmp_path):
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith(("import", '"""'))]
    assert len(lines) <= 25
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLE, tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "of 600 pictures set aside" in done.stdout
    rejected = [int(key) for key in (tmp_path / "run" / "rejected.txt").read_text().split()]
    wrong = [row for row in rejected if 100 <= row < 130]
    assert len(wrong) >= 20
    assert len(rejected) - len(wrong) <= 10
