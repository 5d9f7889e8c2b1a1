"""`ray job stop` of a training job: SIGTERM to its driver, and half a minute for a clean end."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.storage.run_directory import read_summary
from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import (
    CHECKPOINT_EVERY,
    ENGINE,
    GENERATOR,
    MAILBOX,
    ORPHANS_GONE_S,
    RANK,
    SCORER,
    FaultyRun,
    wait_until,
)
from tests.faults.job_cluster import STOP_WAIT_S, RayJobs

STOPPED_S = 10.0
NUM_ROLES = 5  # of the tiny run: a generator and its engine, a scorer, a rank and its mailbox


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_stopped_job_goes_on_where_it_was(
    clean_run: FaultyRun,
    ray_jobs: RayJobs,
    tmp_path: Path,
    measured: Callable[[FaultRow], None],
) -> None:
    """Both jobs use the cluster's processes, as the driver of a job finds it in RAY_ADDRESS."""
    run = FaultyRun(tmp_path, "job")
    wait_until(lambda: ray_jobs.submit("training", run.command, "--no-wait").returncode == 0, "an agent that takes jobs")
    wait_until(lambda: run.num_steps_done > CHECKPOINT_EVERY, "a step after a checkpoint")
    (driver,) = (process for process in psutil.process_iter() if _cmdline(process) == run.command)
    roles = [process for process in ray_jobs.processes if _is_role(process)]
    assert len(roles) >= NUM_ROLES, roles
    assert not set(roles) & set(driver.children(recursive=True))
    sent_s = time.monotonic()
    stop = ray_jobs("stop", "--no-wait", "training")
    psutil.wait_procs([driver], timeout=STOP_WAIT_S)
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(roles)
    state = read_summary(run.path)["state"]
    num_done = run.num_steps_done
    (newest,) = sorted((run.path / "checkpoints").glob("step-*"))[-1:]
    num_steps_again = num_done - int(newest.name.removeprefix("step-"))
    resumed = ray_jobs.submit("resumed", run.resume_command)  # returns at its end
    is_clean = resumed.returncode == 0 and run.is_as(clean_run)
    measured(
        FaultRow(
            row="16",
            fault="`ray job stop`, then a resume as a job",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_steps_again),
            measured=f"ended after {end_s:.0f} s, run {state}, last process gone after {gone_s:.0f} s; {likeness(is_clean)}",
            bar=f"{STOPPED_S:.0f} s, interrupted, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and state == "interrupted" and end_s <= STOPPED_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert state == "interrupted", stop.stdout + ray_jobs("logs", "training").stdout
    assert num_steps_again == 0
    assert is_clean, resumed.stdout


def _is_role(process: psutil.Process) -> bool:
    return any(part.startswith((GENERATOR, ENGINE, SCORER, RANK, MAILBOX)) for part in _cmdline(process)[:1])


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
