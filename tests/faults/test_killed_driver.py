"""A driver killed at any instant leaves nothing behind, and its run resumes to the bits of a clean one."""

import time
from collections.abc import Callable

import psutil
import pytest

from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import CHECKPOINT_EVERY, FaultyRun, RunStarter, at_some_instant, wait_until

STEPS = (0, 3, 9, 17, 23)
ORPHANS_GONE_S = 15.0


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_driver_is_a_resume(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], step: int
) -> None:
    run = start_run()
    run.wait_for_step(step)
    at_some_instant(step)
    processes = run.driver.children(recursive=True)
    num_done = run.num_steps_done
    run.kill()
    wait_until(lambda: not any(map(_lives, processes)), "the end of every process", timeout_s=ORPHANS_GONE_S)
    resumed_s = time.monotonic()
    run.resume()
    run.wait_for_step(num_done + 1)
    recovery_s = time.monotonic() - resumed_s
    exit_code = run.wait()
    audit = run.audit()
    row = FaultRow(
        fault=f"SIGKILL driver after {num_done} steps, resume",
        num_injected=1,
        num_survived=int(exit_code == 0),
        num_lost=len(clean_run.trained() - run.trained()),
        num_doubled=sum("twice" in problem for problem in audit.problems),
        num_steps_again=num_done % CHECKPOINT_EVERY,
        recovery_s=(recovery_s,),
        is_clean=exit_code == 0 and audit == clean_run.audit() and run.policy() == clean_run.policy(),
    )
    measured(row)
    assert exit_code == 0, run.output
    assert row.is_clean


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
