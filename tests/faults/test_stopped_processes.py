"""A process that lives and does nothing: named, with the stacks of all; and replaced where it has a deadline."""

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.fault_table import FaultRow, seconds
from tests.faults.faulty_run import CONTROLLER, ENGINE, GENERATOR, MAILBOX, RANK, SCORER, TRAIN_TASK, FaultyRun, RunStarter

DEADLINE_S, STALL_S, MARGIN_S = 10.0, 5.0, 2.0
SETTINGS = (
    f"supervision.deadline_s={DEADLINE_S}",
    f"supervision.publish_deadline_s={DEADLINE_S}",  # the stop may come while new weights do
    f"stall_s={STALL_S}",
)
RANK_SETTING = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{DEADLINE_S:.0f}"}  # of Ray Train, by the environment
LOST = {
    GENERATOR: "generator 0 is lost",
    ENGINE: "generator 0 is lost",
    SCORER: "scorer length 0 is lost",
    RANK: "back from step",
}
# A rank's end is seen by Ray Train, which starts the others before anything is told.
BARS_S = {kind: DEADLINE_S + MARGIN_S if kind != RANK else 60.0 for kind in LOST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What became of a process that was stopped; seconds after that."""

    named_s: float
    lost_s: float
    stacks: str  # what the run wrote of all its processes

    @property
    def measured(self) -> str:
        return f"named after {seconds([self.named_s])}, replaced after {seconds([self.lost_s])}"

    def is_in_time(self, kind: str) -> bool:
        return self.named_s <= STALL_S + MARGIN_S and self.lost_s <= BARS_S[kind]


def stop(run: FaultyRun, kind: str) -> Stall:
    """One process of `kind`, after two steps; returns once it has been named and lost. The run has `SETTINGS`."""
    run.wait_for_step(2)
    before = run.output.count("nothing has moved")  # the start of the roles takes longer than the deadline of this test
    stopped_s = run.hurt(kind, signal.SIGSTOP)
    named_s = run.wait_for_output("nothing has moved", count=before + 1) - stopped_s
    lost_s = run.wait_for_output(LOST[kind]) - stopped_s
    return Stall(named_s=named_s, lost_s=lost_s, stacks=(run.path / "logs" / f"stacks-{before + 1}.txt").read_text())


def bar(kind: str) -> str:
    return f"{STALL_S + MARGIN_S:.0f} s, {BARS_S[kind]:.0f} s"


@pytest.mark.timeout(1800)
@pytest.mark.faults
@pytest.mark.parametrize("kind", LOST)
def test_what_stands_still_is_named_and_replaced(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None], kind: str
) -> None:
    run = start_run(*SETTINGS, **RANK_SETTING)
    stall = stop(run, kind)
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="1b",
            fault=f"SIGSTOP {kind}",
            num_injected=1,
            num_survived=int(is_clean),
            losses=run.losses(clean_run),
            measured=stall.measured,
            bar=bar(kind),
            holds=is_clean and stall.is_in_time(kind),
        )
    )
    assert is_clean, run.output
    assert "stopped" in stall.stacks


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
