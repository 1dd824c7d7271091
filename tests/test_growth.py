"""What the benchmark of growth measures, of work whose time and memory are known."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth

ROOT = Path(__file__).parents[1]


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


def looks(path):
    """Work that reads all of a mapped file's pages."""

    def work():
        mapped = np.memmap(path, np.float64, "r")
        total = float(mapped.sum())
        time.sleep(0.1)  # all its pages are there meanwhile
        return total

    return work


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Measured by a process of its own, as the benchmark is: one that ran other tests has freed memory to use again."""
    path = tmp_path_factory.mktemp("growth") / "numbers"
    np.ones(5_000_000).tofile(path)
    code = """
import gc, json, os, sys
import numpy as np
from benchmarks import growth
from tests.test_growth import holds, looks
gc.disable()
garbage = [np.ones(5_000_000)]  # 40 MB
garbage.append(garbage)
del garbage
works = lambda: (gc.collect(), holds(80)())[1], holds(20), holds(80), looks(sys.argv[1])
me = os.getpid()
points = [growth.in_a_process(work) for work in works]
assert os.getpid() == me
print(json.dumps(points))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_point_is_what_the_work_says_and_the_most_memory_it_held(points):
    _, small, large, _ = points
    assert (small[0], large[0]) == (20 * 125_000, 80 * 125_000)
    assert small[1] == pytest.approx(20, abs=8)
    assert large[1] == pytest.approx(80, abs=8)


def test_garbage_of_the_process_before_counts_for_nothing(points):
    assert points[0][1] == pytest.approx(80, abs=8)


def test_pages_of_a_mapped_file_are_not_a_process_s_own(points):
    total, megabytes = points[3]
    assert total == 5_000_000
    assert megabytes < 8


def test_waiting_takes_no_time_of_the_processor():
    assert growth.processor_seconds(lambda: time.sleep(0.2)) < 0.1
    assert growth.processor_seconds(lambda: sum(range(5_000_000))) > 0.02
