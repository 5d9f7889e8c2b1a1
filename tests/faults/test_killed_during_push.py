"""A generator killed while it takes new weights: nothing is sampled from a mixture, and the next one holds the newest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fault_table import FaultRow
from tests.faults.faulty_run import GENERATOR, FaultyRun, RunStarter, wait_until

NUM_KILLS = 3
SHARED_MEMORY = Path("/dev/shm")


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_generator_killed_while_it_takes_weights(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    others = set(SHARED_MEMORY.glob("rayward-*"))
    run = start_run()
    for kill in range(NUM_KILLS):
        run.wait_for_step(2 + 4 * kill)
        (published,) = set(SHARED_MEMORY.glob("rayward-*")) - others
        before = newest(published)
        wait_until(lambda before=before, folder=published: newest(folder) > before, "new weights")  # type: ignore[misc]
        run.hurt(GENERATOR)
    exit_code = run.wait()
    is_clean = exit_code == 0 and run.is_as(clean_run)
    measured(
        FaultRow(
            row="1c",
            fault="SIGKILL generator when new weights were just published",
            num_injected=NUM_KILLS,
            num_survived=NUM_KILLS if is_clean else 0,
            num_lost=len(clean_run.trained() - run.trained()),
            num_doubled=run.num_doubled(),
            num_steps_again=run.num_steps_again,
            measured="one policy version a step; bits of a clean run" if is_clean else "NOT as a clean run",
            bar="one version",
            holds=is_clean,
        )
    )
    assert exit_code == 0, run.output
    assert is_clean


def newest(folder: Path) -> str:
    """The name of the last file of weights that is whole."""
    return max((file.name for file in folder.glob("policy-*")), default="")
