"""Any one process of a run may die at any instant: the run ends well, on the trajectories and weights of a clean one."""

import pytest

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


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", [GENERATOR, ENGINE, SCORER, RANK, MAILBOX, CONTROLLER, TRAIN_TASK])
def test_a_run_outlives_its_processes(clean_run: FaultyRun, start_run: RunStarter, kind: str) -> None:
    run = start_run()
    for instant in range(NUM_INSTANTS):
        run.wait_for_step(1 + 4 * instant)
        at_some_instant(instant)
        run.hurt(kind)
    assert run.wait() == 0, run.output
    audit = run.audit()
    assert audit.problems == ()
    assert audit.digest == clean_run.audit().digest
    assert run.policy() == clean_run.policy()
