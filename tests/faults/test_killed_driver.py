"""A driver killed at any instant leaves nothing behind, and its run resumes to the bits of a clean one."""

import psutil
import pytest

from tests.faults.faulty_run import FaultyRun, RunStarter, at_some_instant, wait_until

STEPS = (0, 3, 9, 17, 23)
ORPHANS_GONE_S = 15.0


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_driver_is_a_resume(clean_run: FaultyRun, start_run: RunStarter, step: int) -> None:
    run = start_run()
    run.wait_for_step(step)
    at_some_instant(step)
    processes = run.driver.children(recursive=True)
    run.driver.kill()
    run.wait()
    wait_until(lambda: not any(map(_lives, processes)), "the end of every process", timeout_s=ORPHANS_GONE_S)
    run.resume()
    assert run.wait() == 0, run.output
    assert run.audit() == clean_run.audit()
    assert run.policy() == clean_run.policy()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
