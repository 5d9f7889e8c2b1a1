"""A test that starts Ray and does not say so is told, here or in a process that it starts."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

MARK = "mark_this_test_as_cold_start"


@pytest.mark.usefixtures("no_ray")
def test_ray_does_not_start_in_a_test_without_the_mark() -> None:
    with pytest.raises(NotADirectoryError, match=MARK):
        ray.init(address="local")
    with pytest.raises(NotADirectoryError, match=MARK):
        ray.put("a value")  # which would start one, too


def test_nor_does_it_in_a_process_of_such_a_test() -> None:
    start = "from cluster.processes.runtime import start_ray; start_ray(num_cpus=1)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", start], cwd=root, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert MARK in done.stderr.splitlines()[-1]
