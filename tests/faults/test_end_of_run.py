"""A generator that is dead or stands still when nobody needs it any more: the run ends as if nothing had been."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from cluster.storage.run_directory import read_summary
from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import ENGINE, GENERATOR, ORPHANS_GONE_S, FaultyRun, RunStarter, wait_until

END_S = 20.0  # Ray's own end takes most of it
INTERRUPTED_S = 10.0
LAST_GENERATED = "evaluation/after.json"  # written once the last completion is there
BLOWS = [(GENERATOR, signal.SIGKILL), (GENERATOR, signal.SIGSTOP), (ENGINE, signal.SIGKILL), (ENGINE, signal.SIGSTOP)]


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize(("kind", "blow"), BLOWS)
def test_a_run_ends_without_its_generator(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str, blow: signal.Signals
) -> None:
    run = start_run()
    wait_until(lambda: (run.path / LAST_GENERATED).exists() or not run.is_running, LAST_GENERATED)
    processes = run.all_processes
    hurt_s = run.hurt(kind, blow)
    exit_code = run.wait()
    end_s = time.monotonic() - hurt_s
    gone_s = run.seconds_to_its_last_process(processes)
    is_clean = run.is_as(clean_run)
    is_silent = exit_code == 0 and "is lost" not in run.output and "Traceback" not in run.output
    state = read_summary(run.path)["state"]
    measured(
        FaultRow(
            row="1d",
            fault=f"{blow.name} {kind} after the last completion",
            num_injected=1,
            num_survived=int(exit_code == 0),
            losses=run.losses(clean_run),
            measured=f"{state} after {seconds([end_s])}, last process gone after {seconds([gone_s])}; {likeness(is_clean)}",
            bar=f"completed in {END_S:.0f} s, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and is_silent and end_s <= END_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert state == "completed"
    assert is_silent, run.output
    assert is_clean, run.output


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_ctrl_c_ends_a_run_whose_generator_is_gone(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], blow: signal.Signals
) -> None:
    """What ended the run is told, and not what became of the generator."""
    run = start_run()
    run.wait_for_step(5)
    processes = run.all_processes
    run.hurt(GENERATOR, blow)
    sent_s = time.monotonic()
    os.killpg(run.driver.pid, signal.SIGINT)
    exit_code = run.wait()
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(processes)
    last_line = run.output.strip().splitlines()[-1]
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="1d",
            fault=f"Ctrl-C right after {blow.name} {GENERATOR}, then a resume",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"exit {exit_code} after {end_s:.1f} s, last process gone after {seconds([gone_s])}; {likeness(is_clean)}",
            bar=f"130 in {INTERRUPTED_S:.0f} s, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and exit_code == 130 and end_s <= INTERRUPTED_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert exit_code == 130, run.output
    assert "interrupted" in last_line
    assert is_clean, run.output
