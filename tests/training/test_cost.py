from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from untaint.training.cost import Cost, Meter, cost_of

MIB = 2**20


def test_a_meter_counts_time_on_the_clock_and_of_the_processor():
    meter = Meter()
    time.sleep(0.2)
    slept = meter.cost()
    assert 0.2 <= slept.seconds < 60
    assert slept.core_seconds < slept.seconds
    np.linalg.svd(np.random.default_rng(0).normal(size=(300, 300)))
    assert meter.cost().core_seconds > slept.core_seconds


def test_a_peak_is_of_its_own_time_and_an_outer_meter_keeps_the_inner_ones():
    outer = Meter()
    large = np.ones(200 * MIB, dtype=np.uint8)
    del large
    gc.collect()
    inner = Meter()
    small = np.ones(20 * MIB, dtype=np.uint8)
    assert outer.cost().peak_mib >= inner.cost().peak_mib + 100
    assert inner.cost().peak_mib > len(small) // MIB


def test_costs_add_up_over_calls_and_are_read_back(tmp_path):
    assert cost_of(tmp_path) == Cost()
    both = Cost(seconds=1.0, core_seconds=2.0, peak_mib=30).and_then(Cost(seconds=0.5, core_seconds=1.0, peak_mib=20))
    assert both == Cost(seconds=1.5, core_seconds=3.0, peak_mib=30)
    both.save(tmp_path)
    assert cost_of(tmp_path) == both
    assert both.facts() == {"seconds": 1.5, "core_seconds": 3.0, "peak_mib": 30}


@pytest.mark.parametrize("count", [1, 3])
def test_meters_that_overlap_all_see_the_largest(count):
    meters = [Meter() for _ in range(count)]
    large = np.ones(100 * MIB, dtype=np.uint8)
    peaks = [meter.cost().peak_mib for meter in meters]
    assert len(large)
    assert max(peaks) - min(peaks) < 5
