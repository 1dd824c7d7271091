"""What the benchmark of growth measures, of work whose time and memory are known."""

import gc
import os
import time

import numpy as np
import pytest

from benchmarks import growth


def holds(megabytes):
    """Work that holds so much memory for a moment, and then none of it."""

    def work():
        held = np.ones(megabytes * 125_000)
        time.sleep(0.1)
        count = float(len(held))
        del held
        time.sleep(0.1)
        return count

    return work


def test_a_point_is_what_the_work_says_and_the_most_memory_it_held():
    before = os.getpid()
    small, large = growth.in_a_process(holds(20)), growth.in_a_process(holds(80))
    assert (small[0], large[0]) == (20 * 125_000, 80 * 125_000)
    assert small[1] == pytest.approx(20, abs=8)
    assert large[1] == pytest.approx(80, abs=8)
    assert os.getpid() == before


def test_garbage_of_the_process_before_counts_for_nothing():
    def work():
        gc.collect()
        return holds(80)()

    gc.disable()
    try:
        garbage = [np.ones(5_000_000)]  # 40 MB
        garbage.append(garbage)
        del garbage
        assert growth.in_a_process(work)[1] == pytest.approx(80, abs=8)
    finally:
        gc.enable()


def test_pages_of_a_mapped_file_are_not_a_process_s_own(tmp_path):
    np.ones(5_000_000).tofile(tmp_path / "numbers")

    def work():
        mapped = np.memmap(tmp_path / "numbers", np.float64, "r")
        total = float(mapped.sum())
        time.sleep(0.1)  # all its pages are there meanwhile
        return total

    total, megabytes = growth.in_a_process(work)
    assert total == 5_000_000
    assert megabytes < 8


def test_waiting_takes_no_time_of_the_processor():
    assert growth.processor_seconds(lambda: time.sleep(0.2)) < 0.1
    assert growth.processor_seconds(lambda: sum(range(5_000_000))) > 0.02
