"""Steps in a time, with one process killed every minute, against a run that is left alone."""

import itertools
import time
from collections.abc import Callable

import pytest

from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import ENGINE, GENERATOR, RANK, SCORER, FaultyRun, RunStarter

KILL_EVERY_S = 60.0
NUM_STEPS = 560  # enough for a kill of each kind
WARM_UP_STEPS = 5
KINDS = (GENERATOR, SCORER, RANK, ENGINE)
BAR = 0.8
SETTINGS = (
    f"learner.num_steps={NUM_STEPS}",
    "generator.num_replicas=2",
    "generator.num_cpus=0.25",
    "scorers=[{kind: function, function: length, weight: -0.1, num_replicas: 2}]",
)


@pytest.mark.timeout(3600)
@pytest.mark.faults
def test_goodput_under_one_kill_a_minute(start_run: RunStarter, measured: Callable[[FaultRow], None]) -> None:
    clean = start_run(*SETTINGS)
    clean_s, _ = seconds_of_steps(clean, kill=False)
    hurt = start_run(*SETTINGS)
    hurt_s, num_kills = seconds_of_steps(hurt, kill=True)
    goodput = clean_s / hurt_s
    losses = hurt.losses(clean)
    is_whole = hurt.audit().problems == () and losses.num_lost == losses.num_doubled == 0
    measured(
        FaultRow(
            row="1 to 3",
            fault=f"one kill every {KILL_EVERY_S:.0f} s: generator, scorer, rank, engine in turn; two generators, two scorers",
            num_injected=num_kills,
            num_survived=num_kills if is_whole else 0,
            losses=losses,
            measured=f"goodput {goodput:.2f} of a clean run ({hurt_s:.0f} s against {clean_s:.0f} s for {NUM_STEPS} steps)",
            bar=f"{BAR}",
            holds=is_whole and goodput >= BAR and num_kills >= len(KINDS),
        )
    )
    assert is_whole, hurt.output


def seconds_of_steps(run: FaultyRun, *, kill: bool) -> tuple[float, int]:
    """(From the end of the warm-up to the last step, kills in it)."""
    run.wait_for_step(WARM_UP_STEPS)
    started_s = time.monotonic()
    kinds = itertools.cycle(KINDS)
    num_kills = 0
    while run.num_steps_done < NUM_STEPS and run.is_running:
        if kill and time.monotonic() - started_s >= KILL_EVERY_S * (num_kills + 1):
            run.hurt(next(kinds))
            num_kills += 1
        time.sleep(0.2)
    seconds = time.monotonic() - started_s
    assert run.wait() == 0, run.output
    return seconds, num_kills
