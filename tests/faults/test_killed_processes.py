"""Any one process of a run may die at any instant: the run ends well, on the trajectories and weights of a clean one."""

from collections.abc import Callable

import pytest

from tests.faults.fault_table import FaultRow, likeness, seconds
from tests.faults.faulty_run import (
    CONTROLLER,
    ENGINE,
    GENERATOR,
    MAILBOX,
    NUM_INSTANTS,
    RANK,
    SCORER,
    TRAIN_TASK,
    FaultyRun,
    RunStarter,
    hurt_five_times,
)

RANK_BACK_S = 60.0
SURVIVOR_S = 3.0
ROWS = {GENERATOR: "1", ENGINE: "1", SCORER: "2", RANK: "3", MAILBOX: "3", CONTROLLER: "3", TRAIN_TASK: "3"}


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", ROWS)
def test_a_run_outlives_its_processes(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    run = start_run()
    recovery_s = hurt_five_times(run, kind)
    processes = run.all_processes
    is_clean = run.ends_as(clean_run)
    left_s = run.seconds_to_its_last_process(processes)
    bar_s = RANK_BACK_S if ROWS[kind] == "3" else 1.5 * clean_run.cold_start_s + 5.0
    measured(
        FaultRow(
            row=ROWS[kind],
            fault=f"SIGKILL {kind}",
            num_injected=NUM_INSTANTS,
            num_survived=NUM_INSTANTS if is_clean else 0,
            losses=run.losses(clean_run),
            measured=f"next step after {seconds(recovery_s)}; {likeness(is_clean)}",
            bar=f"{bar_s:.0f} s",
            holds=is_clean and max(recovery_s) <= bar_s and left_s <= 15,
        )
    )
    assert is_clean, run.output


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_second_generator_goes_on_at_once(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    run = start_run("generator.num_replicas=2", "generator.num_cpus=0.25")
    recovery_s = hurt_five_times(run, GENERATOR)
    exit_code = run.wait()
    is_whole = exit_code == 0 and run.trained() == clean_run.trained()
    measured(
        FaultRow(
            row="1",
            fault="SIGKILL one of two generators",
            num_injected=NUM_INSTANTS,
            num_survived=NUM_INSTANTS if exit_code == 0 else 0,
            losses=run.losses(clean_run),
            measured=f"next step after {seconds(recovery_s)}; {'trajectories of a clean run' if is_whole else 'others'}",
            bar=f"{SURVIVOR_S:.0f} s",
            holds=is_whole and max(recovery_s) <= SURVIVOR_S,
        )
    )
    assert exit_code == 0, run.output
    assert run.audit().problems == ()
