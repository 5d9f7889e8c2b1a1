"""Any one process of a run may die at any instant: the run ends well, on the trajectories and weights of a clean one."""

import time
from collections.abc import Callable

import pytest

from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import (
    CONTROLLER,
    ENGINE,
    GENERATOR,
    MAILBOX,
    RANK,
    SCORER,
    TRAIN_TASK,
    FaultyRun,
    RunStarter,
    at_some_instant,
)

NUM_INSTANTS = 5
STEPS_BETWEEN = 4


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", [GENERATOR, ENGINE, SCORER, RANK, MAILBOX, CONTROLLER, TRAIN_TASK])
def test_a_run_outlives_its_processes(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    run = start_run()
    recovery_s = []
    for instant in range(NUM_INSTANTS):
        run.wait_for_step(1 + STEPS_BETWEEN * instant)
        at_some_instant(instant)
        num_done = run.num_steps_done
        run.hurt(kind)
        hurt_s = time.monotonic()
        run.wait_for_step(num_done + 1)
        recovery_s.append(time.monotonic() - hurt_s)
    exit_code = run.wait()
    audit, clean = run.audit(), clean_run.audit()
    row = FaultRow(
        fault=f"SIGKILL {kind}",
        num_injected=NUM_INSTANTS,
        num_survived=NUM_INSTANTS if exit_code == 0 else len(recovery_s) - 1,
        num_lost=len(clean_run.trained() - run.trained()),
        num_doubled=sum("twice" in problem for problem in audit.problems),
        num_steps_again=run.num_steps_again,
        recovery_s=tuple(recovery_s),
        is_clean=exit_code == 0 and audit.digest == clean.digest and run.policy() == clean_run.policy(),
    )
    measured(row)
    assert exit_code == 0, run.output
    assert audit.problems == ()
    assert row.is_clean
