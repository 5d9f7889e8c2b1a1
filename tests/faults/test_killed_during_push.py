"""A generator killed while it takes new weights: nothing is sampled from a mixture, and the next one holds the newest."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import GENERATOR, FaultyRun, RunStarter, wait_until

NUM_KILLS = 3
UPDATES_A_STEP = 2  # 16 trajectories in minibatches of 8
SHARED_MEMORY = Path("/dev/shm")


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_generator_killed_while_it_takes_weights(
    clean_run: FaultyRun, start_run: RunStarter, measured: Callable[[FaultRow], None]
) -> None:
    earlier = folders_of_runs()
    run = start_run()
    kill_generators_that_take_weights(run, earlier)
    is_clean = run.ends_as(clean_run)
    measured(
        FaultRow(
            row="1c",
            fault="SIGKILL generator when new weights were just published",
            num_injected=NUM_KILLS,
            num_survived=NUM_KILLS if is_clean else 0,
            losses=run.losses(clean_run),
            measured=f"one policy version a step; {likeness(is_clean)}",
            bar="one version",
            holds=is_clean,
        )
    )
    assert is_clean, run.output


def kill_generators_that_take_weights(run: FaultyRun, earlier: set[Path]) -> None:
    """`NUM_KILLS` times; `earlier`: the folders that were there before the run began."""
    for kill in range(NUM_KILLS):
        step = 2 + 4 * kill
        file = f"policy-v{UPDATES_A_STEP * step:06d}.safetensors"
        wait_until(partial(is_published, file, earlier), file)
        run.hurt(GENERATOR)
        run.wait_for_step(step + 1)


def folders_of_runs() -> set[Path]:
    return set(SHARED_MEMORY.glob("rayward-*"))


def is_published(file: str, earlier: set[Path]) -> bool:
    """Whether a run has published the file into a folder that was not there earlier."""
    return any(any(folder.glob(f"*/{file}")) for folder in folders_of_runs() - earlier)
