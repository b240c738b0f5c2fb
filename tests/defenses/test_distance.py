from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import run
from untaint.defenses import _distance
from untaint.defenses._distance import class_medians, distances, epoch_filter, mean_losses
from untaint.errors import InputError, ProbeError
from untaint.trajectories import Trajectories


def recorded(folder, margin, logits=None) -> Trajectories:
    """Store float32 (rows, epochs) tables as a watcher does."""
    margin = np.asarray(margin, dtype=np.float32)
    logits = margin if logits is None else np.asarray(logits, dtype=np.float32)
    for epoch in range(margin.shape[1]):
        name = f"epoch_{epoch:03d}.npy"
        run.save_array(folder / "margin" / name, margin[:, epoch])
        run.save_array(folder / "scaled-logit" / name, logits[:, epoch])
        run.save_array(folder / "predicted" / name, np.zeros(len(margin), dtype=np.int32))
    return Trajectories(folder)


def slow_distances(table, probes, k, labels=None, standardise=False):
    table = np.array(table, dtype=np.float64)
    if labels is not None:
        for label in set(labels.tolist()):
            table[labels == label] -= np.nanmedian(table[labels == label], axis=0)
    probes = [row for row in sorted(set(probes.tolist())) if not np.isnan(table[row]).any()]
    if standardise:
        spread = np.std(table[probes], axis=0)
        table /= [value or 1.0 for value in spread]  # where all probes agree, nothing is scaled
    result = []
    for row, trajectory in enumerate(table):
        others = sorted(np.linalg.norm(trajectory - table[probe]) for probe in probes if probe != row)
        result.append(np.mean(others[: min(k, len(probes) - 1)]))
    return np.array(result)


def random_table(seed, rows=120, epochs=6):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, epochs)) * 3 + generator.normal(size=(rows, 1)), generator


# --- epochs


def slow_filter(losses, factor, window):
    kept = list(range(min(window, len(losses))))
    for epoch in range(window, len(losses)):
        if losses[epoch] < factor * sum(losses[index] for index in kept[-window:]) / window:
            kept.append(epoch)
    return kept


@given(st.lists(st.floats(0.01, 100), max_size=20), st.floats(1, 4), st.integers(1, 4))
def test_epoch_filter_is_the_rule_of_the_paper(losses, factor, window):
    assert epoch_filter(losses, factor, window) == slow_filter(losses, factor, window)


def test_epoch_filter_drops_spikes_and_compares_with_kept_epochs_only():
    assert epoch_filter([1, 1, 1, 5, 1.9, 2.5, 1]) == [0, 1, 2, 4, 5, 6]  # 5 is not part of later means
    assert epoch_filter([9, 1, 1]) == [0, 1, 2]
    assert epoch_filter([1, np.nan, 1, np.inf, 1, 1]) == [0, 2, 4, 5]
    assert epoch_filter([]) == []
    with pytest.raises(InputError, match="window is 0"):
        epoch_filter([1], window=0)


def test_mean_losses_skip_rows_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(_distance, "READ", 7)
    table, _ = random_table(0, 40, 3)
    table[3, 1] = np.nan
    table[:, 2] = np.nan
    means = mean_losses(recorded(tmp_path, table), "margin")
    assert means[:2] == pytest.approx(np.nanmean(table[:, :2], axis=0), rel=1e-6)
    assert np.isnan(means[2])


# --- distances


@given(seed=st.integers(0, 2**31), k=st.integers(1, 30), count=st.integers(2, 25))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("centre", ["none", "class"])
@pytest.mark.parametrize("standardise", ["none", "probes"])
def test_distances_are_those_of_the_obvious_program(tmp_path_factory, centre, standardise, seed, k, count):
    table, generator = random_table(seed)
    table[generator.random(len(table)) < 0.1, 2] = np.nan
    table[: count // 2 + 2] = np.nan_to_num(table[: count // 2 + 2])
    probes, labels = np.arange(count), generator.integers(0, 3, len(table))
    trajectories = recorded(tmp_path_factory.mktemp("run"), table)
    found = distances(
        trajectories, probes, observable="margin", k=k, centre=centre, labels=labels, standardise=standardise
    )
    expected = slow_distances(
        table.astype(np.float32), probes, k, labels if centre == "class" else None, standardise == "probes"
    )
    assert found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(table).any(axis=1))
    assert found == pytest.approx(expected, rel=2e-6, nan_ok=True)


def test_the_paper_in_full_on_cross_entropy_and_chosen_epochs(tmp_path):
    table, _ = random_table(1)
    loss = np.log1p(np.exp(-table))
    probes = np.arange(60, 120)
    found = distances(recorded(tmp_path, table), probes, epochs=[0, 2, 5])
    assert found == pytest.approx(slow_distances(loss[:, [0, 2, 5]], probes, 50), rel=1e-5)


def test_logarithm_scaling_and_ranks_do_not_change_the_order(tmp_path):
    table, _ = random_table(2)
    found = distances(recorded(tmp_path, table), np.arange(60), k=20).astype(np.float64)
    logs = np.log(0.01 + found)
    scaled = (logs - logs.min()) / (logs.max() - logs.min())
    ranks = np.argsort(np.argsort(scaled)) / len(scaled)
    assert np.array_equal(np.argsort(found), np.argsort(ranks))


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_distances_move_with_their_rows(tmp_path_factory, seed):
    table, generator = random_table(seed)
    labels, order = generator.integers(0, 4, len(table)), generator.permutation(len(table))
    place = np.argsort(order)  # row r is found at place[r]
    options = {"observable": "margin", "k": 10, "centre": "class", "standardise": "probes"}
    before = distances(recorded(tmp_path_factory.mktemp("a"), table), np.arange(30), labels=labels, **options)
    moved = recorded(tmp_path_factory.mktemp("b"), table[order])
    after = distances(moved, place[:30], labels=labels[order], **options)
    assert after == pytest.approx(before[order], rel=1e-6)


def test_block_sizes_do_not_matter(tmp_path, monkeypatch):
    table, generator = random_table(3, rows=1_000)
    trajectories, labels = recorded(tmp_path, table), generator.integers(0, 3, 1_000)
    whole = distances(trajectories, np.arange(50), k=20, centre="class", labels=labels)
    monkeypatch.setattr(_distance, "READ", 77)
    monkeypatch.setattr(_distance, "MULTIPLY", 13)
    assert distances(trajectories, np.arange(50), k=20, centre="class", labels=labels) == pytest.approx(whole, rel=1e-6)


def test_a_probe_is_scored_without_itself_and_repeats_count_once(tmp_path):
    table = np.array([[0.0], [1.0], [5.0], [0.0]])
    found = distances(recorded(tmp_path, table), np.array([0, 1, 2, 2]), observable="margin", k=1)
    assert found.tolist() == [1, 1, 4, 0]  # row 3 equals probe 0 but is none


@pytest.mark.parametrize("far", [0.0, 1e3, 1e6])
def test_near_duplicates_keep_their_digits(tmp_path, far):
    """The square of 1e6 has no room in float32 for differences of 1/16; float32 values have."""
    generator = np.random.default_rng(4)
    table = far * np.sign(generator.normal(size=(200, 30))) + generator.integers(-8, 8, (200, 30)) / 16
    table[50:100] = table[:50]
    table[50:100, 0] += 1 / 16
    probes = np.arange(50)
    found = distances(recorded(tmp_path, table), probes, observable="margin", k=1)
    expected = slow_distances(table.astype(np.float32), probes, 1)
    assert expected[50:100] == pytest.approx(1 / 16)
    bound = 3e-8 * far * 30**0.5  # of the trajectory's length: half of float32's own last digit
    assert found == pytest.approx(expected, rel=2e-6, abs=bound)


def test_probes_that_agree_in_an_epoch_leave_it_as_it_is(tmp_path):
    table = np.array([[0, 1], [0, 3], [7, 1]], dtype=np.float64)
    found = distances(recorded(tmp_path, table), np.array([0, 1]), observable="margin", k=1, standardise="probes")
    assert found.tolist() == [2, 2, 7]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"probes": [0]}, ProbeError, "1 of 1 probes were seen in all 6 epochs"),
        ({"probes": []}, ProbeError, "0 of 0 probes"),
        ({"probes": [0, 120]}, ProbeError, "probe row 120 is not among the 120 rows"),
        ({"probes": [-1, 1]}, ProbeError, "probe row -1"),
        ({"epochs": []}, InputError, "no epochs"),
        ({"epochs": [6]}, InputError, "6 were recorded"),
        ({"k": 0}, InputError, "k is 0"),
        ({"centre": "clas"}, InputError, "Did you mean 'class'"),
        ({"standardise": "probe"}, InputError, "Did you mean 'probes'"),
        ({"centre": "class"}, InputError, "needs labels"),
        ({"centre": "class", "labels": np.zeros(3, np.int64)}, InputError, "for 120 rows"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, options, error, message):
    table, _ = random_table(0)
    arguments = {"probes": [0, 1, 2], **options}
    arguments["probes"] = np.array(arguments["probes"], dtype=np.int64)
    with pytest.raises(error, match=message):
        distances(recorded(tmp_path, table), **arguments)


def test_progress_counts_every_row(tmp_path):
    counted = []

    class Bar:
        def advance(self, count, note=""):
            counted.append(count)

    class Watcher:
        @contextmanager
        def step(self, what, total, done=0, unit="images"):
            assert total == 120
            yield Bar()

        def say(self, remark):
            raise AssertionError

    distances(recorded(tmp_path, random_table(0)[0]), np.arange(9), progress=Watcher())
    assert sum(counted) == 120


# --- class medians


def test_class_medians_skip_what_was_not_seen(tmp_path):
    table, generator = random_table(5)
    labels = generator.integers(0, 4, len(table)) + (generator.random(len(table)) < 0.5) * 2  # some class may be empty
    labels[labels == 1] = 2
    table[labels == 3, 4] = np.nan
    table[::7, 0] = np.nan
    medians = class_medians(recorded(tmp_path, table), "margin", [0, 4], labels)
    assert medians.shape == (labels.max() + 1, 2)
    assert np.isnan(medians[1]).all()
    assert np.isnan(medians[3, 1])
    for label in (0, 2, 4):
        assert medians[label] == pytest.approx(np.nanmedian(table[labels == label][:, [0, 4]], axis=0), rel=1e-6)


def test_large_classes_are_sampled_and_small_ones_are_not(tmp_path, monkeypatch):
    generator = np.random.default_rng(6)
    table = generator.normal(size=(20_000, 2))
    labels = (np.arange(20_000) % 200 == 0).astype(np.int64)  # 100 of class 1
    trajectories = recorded(tmp_path, table)
    exact = class_medians(trajectories, "margin", [0, 1], labels)
    monkeypatch.setattr(_distance, "MEDIAN_ROWS", 8_000)
    sampled = class_medians(trajectories, "margin", [0, 1], labels)
    assert np.array_equal(sampled[1], exact[1])
    assert sampled[0] == pytest.approx(exact[0], abs=0.06)  # 3 standard errors of 4,000
    assert not np.array_equal(sampled[0], exact[0])


def test_memory_beyond_the_result_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(_distance, "READ", 1_024)
    peaks = []
    for count in (50_000, 200_000):
        column = np.random.default_rng(0).normal(size=(count, 1)).repeat(4, axis=1)
        trajectories = recorded(tmp_path / str(count), column)
        tracemalloc.start()
        distances(trajectories, np.arange(100), observable="margin", k=10)
        peaks.append(tracemalloc.get_traced_memory()[1] - count * 4)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000
