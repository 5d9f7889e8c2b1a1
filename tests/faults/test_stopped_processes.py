"""A process that lives and does nothing: named, with the stacks of all; and replaced where it has a deadline."""

import re
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.fault_table import FaultRow, seconds
from tests.faults.faulty_run import CONTROLLER, ENGINE, GENERATOR, MAILBOX, RANK, SCORER, TRAIN_TASK, FaultyRun, RunStarter

DEADLINE_S, STALL_S, MARGIN_S = 10.0, 5.0, 2.0
LOST = {
    GENERATOR: "generator 0 is lost",
    ENGINE: "generator 0 is lost",
    SCORER: "scorer length 0 is lost",
    RANK: "back from step",
}


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", LOST)
def test_what_stands_still_is_named_and_replaced(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    run = start_run(
        f"supervision.deadline_s={DEADLINE_S}", f"stall_s={STALL_S}", RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=f"{DEADLINE_S:.0f}"
    )
    run.wait_for_step(2)
    before = run.output.count("nothing has moved")  # the start of the roles takes longer than the deadline of this test
    stopped_s = run.hurt(kind, signal.SIGSTOP)
    named_s = run.wait_for_output("nothing has moved", count=before + 1) - stopped_s
    lost_s = run.wait_for_output(LOST[kind]) - stopped_s
    is_clean = run.ends_as(clean_run)
    stacks = run.path / "logs" / f"stacks-{before + 1}.txt"
    # A rank's end is seen by Ray Train, which starts the others before anything is told.
    bar_s = DEADLINE_S + MARGIN_S if kind != RANK else 60.0
    measured(
        FaultRow(
            row="1b",
            fault=f"SIGSTOP {kind}",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=f"named after {seconds([named_s])}, replaced after {seconds([lost_s])}",
            bar=f"{STALL_S + MARGIN_S:.0f} s, {bar_s:.0f} s",
            holds=is_clean and named_s <= STALL_S + MARGIN_S and lost_s <= bar_s,
        )
    )
    assert is_clean, run.output
    assert "stopped" in stacks.read_text()


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_stall_that_nobody_mends_is_told(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    """Processes beside the ranks have no deadline: the run says what it waits for, and goes on when they do."""
    run = start_run(f"stall_s={STALL_S}")
    named_s = []
    run.wait_for_step(2)
    for kind in (MAILBOX, CONTROLLER, TRAIN_TASK):
        before = run.output.count("nothing has moved")
        run.hurt(kind, signal.SIGSTOP)
        time.sleep(STALL_S + MARGIN_S)
        if kind == MAILBOX:  # without the other two, ranks and driver go on
            named_s.append(STALL_S + MARGIN_S if run.output.count("nothing has moved") > before else float("inf"))
        run.hurt(kind, signal.SIGCONT)
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="19",
            fault="SIGSTOP the mailbox, the controller, Ray Train's task",
            num_injected=3,
            num_survived=3 if is_clean else 0,
            losses=run.losses(clean_run),
            measured=f"the mailbox named within {seconds(named_s)}; without the others ranks and driver go on",
            bar=f"{STALL_S + MARGIN_S:.0f} s",
            holds=is_clean and max(named_s) <= STALL_S + MARGIN_S,
        )
    )
    assert is_clean, run.output
    assert re.search(r"waiting for the learner's ranks \(\w+\)", run.output)
