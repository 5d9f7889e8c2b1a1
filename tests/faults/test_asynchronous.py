"""Rollouts that do not wait, and the loss of a process: each trajectory is still trained on once, and none is too old."""

import signal
from collections.abc import Callable

import pytest

from cluster.storage.ledger import read_ledger
from tests.faults.fault_table import FaultRow, Losses, likeness, seconds
from tests.faults.faulty_run import GENERATOR, NUM_INSTANTS, RANK, SCORER, FaultyRun, RunStarter, hurt_five_times

MAX_STALENESS = 2
AHEAD = ("learner.algorithm=decoupled_ppo", f"asynchronous.max_staleness={MAX_STALENESS}")
ROWS = {GENERATOR: "1", SCORER: "2", RANK: "3"}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def asked_for(run: FaultyRun) -> list[tuple[int, str, int]]:
    """(step, task, sample) of everything that was trained on, in order."""
    entries = read_ledger(run.path / "trajectories")
    return sorted((entry.step, entry.task_id, entry.sample_index) for entry in entries if entry.outcome == "trained")


def losses(run: FaultyRun, clean: FaultyRun) -> Losses:
    """What is sampled depends on when the weights came, so trajectories are told by what was asked and not by their text."""
    found, expected = asked_for(run), asked_for(clean)
    return Losses(
        num_lost=len(set(expected) - set(found)),
        num_doubled=len(found) - len(set(found)),
        num_steps_again=run.num_steps_again,
    )


def test_without_staleness_a_run_is_the_one_that_waits(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    run = start_run("asynchronous.max_staleness=0")
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="24",
            fault="none: asynchronous.max_staleness=0",
            num_injected=0,
            num_survived=0,
            losses=run.losses(clean_run),
            measured=likeness(is_clean),
            bar="ledger and weights of the synchronous run",
            holds=is_clean,
        )
    )
    assert is_clean, run.output


@pytest.mark.parametrize("kind", ROWS)
def test_a_run_ahead_outlives_its_processes(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    run = start_run(*AHEAD)
    recovery_s = hurt_five_times(run, kind)
    exit_code = run.wait()
    problems, lost = run.audit(max_staleness=MAX_STALENESS).problems, losses(run, clean_run)
    holds = exit_code == 0 and not problems and (lost.num_lost, lost.num_doubled) == (0, 0)
    measured(
        FaultRow(
            row=ROWS[kind],
            fault=f"SIGKILL {kind}, {MAX_STALENESS} steps asked ahead",
            num_injected=NUM_INSTANTS,
            num_survived=NUM_INSTANTS if exit_code == 0 else 0,
            losses=lost,
            measured=f"next step after {seconds(recovery_s)}; {len(problems)} problems in the ledger",
            bar="each trajectory once, none older than the bound",
            holds=holds,
        )
    )
    assert holds, (problems, lost, run.output)


def test_a_killed_driver_that_was_ahead_goes_on(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    run = start_run(*AHEAD)
    for instant in range(3):
        run.wait_for_step(3 + 5 * instant)
        run.driver.send_signal(signal.SIGKILL)
        run.wait()
        run.resume()
    exit_code = run.wait()
    problems, lost = run.audit(max_staleness=MAX_STALENESS).problems, losses(run, clean_run)
    holds = exit_code == 0 and not problems and (lost.num_lost, lost.num_doubled) == (0, 0)
    measured(
        FaultRow(
            row="4",
            fault=f"SIGKILL of the driver, {MAX_STALENESS} steps asked ahead; resumed",
            num_injected=3,
            num_survived=3 if exit_code == 0 else 0,
            losses=lost,
            measured=f"{len(problems)} problems in the ledger",
            bar="each trajectory once, none older than the bound",
            holds=holds,
        )
    )
    assert holds, (problems, lost, run.output)
