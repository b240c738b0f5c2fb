from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from untaint import run
from untaint.errors import InputError, RunError
from untaint.trajectories import OBSERVABLES, Trajectories, derive

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-90, 80, width=32))
TINY = np.finfo(np.float32).tiny


@pytest.fixture
def tables():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4)).astype(np.float32) * 5
    margin = generator.normal(size=(50, 4)).astype(np.float32)
    predicted = generator.integers(0, 9, (50, 4)).astype(np.int32)
    logits[7, 2] = margin[7, 2] = np.nan
    predicted[7, 2] = -1
    return {"scaled-logit": logits, "margin": margin, "predicted": predicted}


@pytest.fixture
def recorded(tmp_path, tables):
    for name, table in tables.items():
        for epoch in range(4):
            run.save_array(tmp_path / name / f"epoch_{epoch:03d}.npy", table[:, epoch])
    return Trajectories(tmp_path)


def test_the_thousandth_epoch_comes_after_the_others(tmp_path):
    for name in ("scaled-logit", "margin", "predicted"):
        for epoch in (998, 999, 1000):
            run.save_array(tmp_path / name / f"epoch_{epoch:03d}.npy", np.full(2, epoch, dtype=np.float32))
    assert Trajectories(tmp_path).read("margin").tolist() == [[998, 999, 1000]] * 2


@given(LOGITS)
def test_losses_follow_from_the_scaled_logit_to_float32_accuracy(logits):
    exact = np.logaddexp(0, -logits.astype(np.float64))
    assert derive(logits, "ce") == pytest.approx(exact, rel=1e-6)
    assert derive(logits, "log-ce") == pytest.approx(np.log(exact), rel=2e-6, abs=2e-6)
    assert derive(logits, "probability") == pytest.approx(np.exp(-exact), abs=1e-6)
    assert derive(logits, "scaled-logit") is logits


@given(arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_no_logit_is_too_large_and_the_order_is_kept(logits):
    logits = np.sort(logits)
    for observable in ("ce", "log-ce", "probability"):
        found = derive(logits, observable)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        steps = np.diff(found)
        slack = 1e-6 * np.abs(found[1:]) + TINY
        assert (steps >= -slack).all() if observable == "probability" else (steps <= slack).all()


def test_nan_stays_nan_without_a_warning():
    logits = np.array([np.nan, 1], dtype=np.float32)
    for observable in ("ce", "log-ce", "probability", "scaled-logit"):
        assert np.isnan(derive(logits, observable)).tolist() == [True, False]


def test_an_unknown_observable_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"no observable 'lgo-ce'. Did you mean 'log-ce'"):
        derive(np.zeros(1, np.float32), "lgo-ce")


def test_tables_come_back_as_stored(recorded, tables):
    assert (recorded.rows, recorded.epochs) == (50, 4)
    assert np.array_equal(recorded.read("margin"), tables["margin"], equal_nan=True)
    assert np.array_equal(recorded.read("scaled-logit"), tables["scaled-logit"], equal_nan=True)
    assert np.array_equal(recorded.read("ce"), derive(tables["scaled-logit"], "ce"), equal_nan=True)
    assert recorded.predicted().tolist() == tables["predicted"][:, 3].tolist()
    assert recorded.predicted(2)[7] == -1


@pytest.mark.parametrize("observable", OBSERVABLES)
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_blocks_make_up_the_whole(recorded, observable, size):
    parts = list(recorded.blocks(observable, [2, 0], size=size))
    assert [rows.start for rows, _ in parts] == list(range(0, 50, size))
    whole = recorded.read(observable)[:, [2, 0]]
    assert np.array_equal(np.concatenate([table for _, table in parts]), whole, equal_nan=True)
    for rows, table in parts:
        assert table.shape == (len(range(*rows.indices(50))), 2)


def test_blocks_are_taken_by_row_number_and_are_copies(recorded, tables):
    block = recorded.block("margin", np.array([9, 3, 9]), [1])
    assert block[:, 0].tolist() == tables["margin"][[9, 3, 9], 1].tolist()
    block[:] = 0
    assert recorded.block("margin", slice(3, 4), [1])[0, 0] == tables["margin"][3, 1]


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no trajectories"):
        Trajectories(tmp_path)


def test_files_that_do_not_fit_together_are_refused(recorded, tmp_path):
    run.save_array(tmp_path / "margin" / "epoch_001.npy", np.zeros(49, np.float32))
    with pytest.raises(RunError, match="do not fit together"):
        recorded.read("margin")


def test_a_missing_file_is_noticed(recorded, tmp_path):
    (tmp_path / "predicted" / "epoch_002.npy").unlink()
    with pytest.raises(RunError, match="do not fit together"):
        recorded.read("margin")


def test_a_truncated_file_is_refused(recorded, tmp_path):
    path = tmp_path / "margin" / "epoch_001.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunError, match="cannot be read"):
        recorded.read("margin")


def test_unfinished_files_are_not_counted(recorded, tmp_path):
    (tmp_path / "scaled-logit" / "epoch_004.npy.part").write_bytes(b"half")
    assert Trajectories(tmp_path).epochs == 4
