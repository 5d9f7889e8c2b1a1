"""Ctrl-C and SIGTERM: a clean end in seconds, nothing left behind, and a resumed run repeats nothing."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import CHECKPOINT_EVERY, ORPHANS_GONE_S, FaultyRun, RunStarter, at_some_instant

ONCE_S, TWICE_S = 10.0, 2.0
SECOND_AFTER_S = 0.3


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_ctrl_c_and_sigterm(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    """A terminal sends Ctrl-C to the whole group; `ray job stop` sends SIGTERM, and Ray's daemons are not among its own."""
    run = start_run()
    ends_s, gone_s, num_steps_again = [], [], 0
    for step, number in ((2, signal.SIGINT), (7, signal.SIGTERM), (14, signal.SIGINT)):
        run.wait_for_step(step)
        at_some_instant(step)
        processes = run.all_processes
        sent_s = time.monotonic()
        (os.killpg if number == signal.SIGINT else os.kill)(run.driver.pid, number)
        assert run.wait() == 130, run.output
        ends_s.append(time.monotonic() - sent_s)
        gone_s.append(run.seconds_to_its_last_process(processes))
        num_done = run.num_steps_done
        (newest,) = sorted((run.path / "checkpoints").glob("step-*"))[-1:]
        num_steps_again += num_done - int(newest.name.removeprefix("step-"))
        run.resume()
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="16",
            fault="Ctrl-C, SIGTERM, Ctrl-C, each with a resume",
            num_injected=3,
            num_survived=3 if is_clean else 0,
            losses=replace(run.losses(clean_run), num_steps_again=num_steps_again),
            measured=f"ended after {seconds(ends_s)}, exit 130; {likeness(is_clean)}",
            bar=f"{ONCE_S:.0f} s",
            holds=is_clean and max(ends_s) <= ONCE_S and max(gone_s) <= ORPHANS_GONE_S and num_steps_again == 0,
        )
    )
    assert is_clean, run.output
    assert num_steps_again == 0


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_ctrl_c_twice(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    run = start_run()
    run.wait_for_step(CHECKPOINT_EVERY + 1)
    processes = run.all_processes
    os.killpg(run.driver.pid, signal.SIGINT)
    time.sleep(SECOND_AFTER_S)
    sent_s = time.monotonic()
    os.killpg(run.driver.pid, signal.SIGINT)
    assert run.wait() == 130, run.output
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(processes)
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="16",
            fault="Ctrl-C twice, then a resume",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"ended after {end_s:.1f} s, last process gone after {gone_s:.0f} s",
            bar=f"{TWICE_S:.0f} s, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and end_s <= TWICE_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_sigterm_to_every_process(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    """As systemd stops a service: Ray's daemons end at once, so no checkpoint can be counted on."""
    run = start_run()
    run.wait_for_step(CHECKPOINT_EVERY + 1)
    processes = run.all_processes
    sent_s = time.monotonic()
    os.killpg(run.driver.pid, signal.SIGTERM)
    assert run.wait() == 130, run.output
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(processes)
    is_clean = run.resume().ends_as(clean_run)
    losses = run.losses(clean_run)
    measured(
        FaultRow(
            row="16",
            fault="SIGTERM to every process of the run, then a resume",
            num_injected=1,
            num_survived=int(is_clean),
            losses=losses,
            measured=f"ended after {end_s:.1f} s, last process gone after {gone_s:.0f} s; {likeness(is_clean)}",
            bar=f"{ONCE_S:.0f} s, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and end_s <= ONCE_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output
