"""A driver killed at any instant leaves nothing behind, and its run resumes to the bits of a clean one."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import CHECKPOINT_EVERY, ORPHANS_GONE_S, FaultyRun, RunStarter, at_some_instant

STEPS = (0, 3, 9, 17, 23)  # done when the driver is killed; 0: while the roles start


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_killed_driver_is_a_resume(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    run = start_run()
    gone_s: list[float] = []
    num_steps_again = 0
    for step in STEPS:
        run.wait_for_output("start running", count=len(gone_s) + 1)  # before that there is nothing to resume
        run.wait_for_step(step)
        at_some_instant(step)
        processes, num_done = run.all_processes, run.num_steps_done
        run.kill()
        gone_s.append(run.seconds_to_its_last_process(processes))
        num_steps_again += num_done % CHECKPOINT_EVERY
        run.resume()
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="4",
            fault="SIGKILL driver, then `rayward resume`, five times in one run",
            num_injected=len(STEPS),
            num_survived=len(STEPS) if is_clean else 0,
            losses=replace(run.losses(clean_run), num_steps_again=num_steps_again),
            measured=f"last process gone after {seconds(gone_s)}; {likeness(is_clean)}",
            bar=f"{ORPHANS_GONE_S:.0f} s",
            holds=is_clean and max(gone_s) <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output
    assert max(gone_s) <= ORPHANS_GONE_S
