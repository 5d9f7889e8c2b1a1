"""Ctrl-C and SIGTERM: a clean end in seconds, nothing left behind, and a resumed run repeats nothing."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster.storage.run_directory import read_summary
from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import CHECKPOINT_EVERY, ORPHANS_GONE_S, FaultyRun, RunStarter, at_some_instant

ONCE_S, TWICE_S = 10.0, 2.0
SECOND_AFTER_S = 0.3


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_ctrl_c_and_sigterm(clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    """A terminal sends Ctrl-C to the whole group; the SIGTERM goes to the driver alone."""
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
@pytest.mark.parametrize(
    ("fault", "numbers", "bar_s"),
    [
        ("Ctrl-C twice", (signal.SIGINT, signal.SIGINT), TWICE_S),
        # As systemd stops a service: Ray's daemons end at once, so no checkpoint can be counted on.
        ("SIGTERM to every process of the run", (signal.SIGTERM,), ONCE_S),
    ],
)
def test_an_end_without_a_last_checkpoint(
    clean_run: FaultyRun,
    start_run: RunStarter,
    measured: Callable[[FaultRow], None],
    fault: str,
    numbers: tuple[signal.Signals, ...],
    bar_s: float,
) -> None:
    run = start_run()
    run.wait_for_step(CHECKPOINT_EVERY + 1)
    processes = run.all_processes
    for count, number in enumerate(numbers):
        time.sleep(SECOND_AFTER_S if count else 0)
        sent_s = time.monotonic()
        os.killpg(run.driver.pid, number)
    assert run.wait() == 130, run.output
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(processes)
    assert read_summary(run.path)["state"] == "interrupted"
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="16",
            fault=f"{fault}, then a resume",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"ended after {end_s:.1f} s, last process gone after {gone_s:.0f} s",
            bar=f"{bar_s:.0f} s, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and end_s <= bar_s and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert is_clean, run.output
