"""The guard ends what a killed driver leaves behind, also what no longer descends from it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.processes import orphan_guard

ORPHANING_DRIVER = """
import subprocess, sys, time
from cluster.processes.orphan_guard import SessionGuard
guard = SessionGuard()
orphaning = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
print(subprocess.run([sys.executable, "-c", orphaning], stdout=subprocess.PIPE, text=True).stdout, flush=True)
time.sleep(600)
"""
GONE_S = 15.0
START_S = 60.0  # for a new guard


@pytest.mark.parametrize("is_told_to_end", [False, True])
def test_a_process_whose_parent_is_gone_is_ended(*, is_told_to_end: bool) -> None:
    """Also by a guard that got a SIGTERM before, as `ray job stop` sends it to all that descends from a job."""
    root = Path(orphan_guard.__file__).parents[2]
    driver = subprocess.Popen([sys.executable, "-c", ORPHANING_DRIVER], stdout=subprocess.PIPE, cwd=root)
    assert driver.stdout is not None
    orphan = psutil.Process(int(driver.stdout.readline()))
    assert orphan not in psutil.Process(driver.pid).children(recursive=True)
    (guard,) = psutil.Process(driver.pid).children()
    if is_told_to_end:
        wait_until_ignored(guard, signal.SIGTERM)
        guard.terminate()
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs([orphan], timeout=GONE_S)
    assert left == []


def wait_until_ignored(process: psutil.Process, number: signal.Signals) -> None:
    """As a guard that has started does."""
    deadline = time.monotonic() + START_S
    while number not in ignored_signals(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ignored_signals(process: psutil.Process) -> set[int]:
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}
