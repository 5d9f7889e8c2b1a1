"""`rayward submit` on a real cluster: the uploaded code runs, Ctrl-C is a clean end, and the run goes on as another job."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.storage.run_directory import read_summary
from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import CHECKPOINT_EVERY, REPOSITORY, SETTINGS, FaultyRun, wait_until
from tests.faults.job_cluster import RayJobs

INTERRUPTED = 130
ENDED_S = 20.0  # from Ctrl-C here to the end of the command: the run's own ten, and Ray's polls
READY_LINE = re.compile(r"^submitted (\S+) to", re.MULTILINE)

pytestmark = pytest.mark.usefixtures("ctrl_c_reaches_children")


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_ctrl_c_stops_a_submitted_run_cleanly_and_another_job_goes_on(
    clean_run: FaultyRun, ray_jobs: RayJobs, tmp_path: Path, measured: Callable[[FaultRow], None]
) -> None:
    run = FaultyRun(tmp_path, "submitted")
    log = tmp_path / "submit.log"
    command = [sys.executable, "-m", "rayward", "submit", f"--address={ray_jobs.address}", f"--python={sys.executable}"]
    target = ["configs/train/tiny.yaml", "name=submitted", f"runs_dir={tmp_path}", *SETTINGS]
    wait_until(lambda: ray_jobs("list").returncode == 0, "an agent that takes jobs")
    with log.open("wb") as output:
        submit = subprocess.Popen(
            [*command, *target], cwd=REPOSITORY, env=ray_jobs.environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: run.num_steps_done > CHECKPOINT_EVERY or submit.poll() is not None, "a step after a checkpoint")
        assert submit.poll() is None, log.read_text()
        sent_s = time.monotonic()
        submit.send_signal(signal.SIGINT)
        exit_code = submit.wait(timeout=120)
        end_s = time.monotonic() - sent_s
    finally:
        submit.kill()
    said = log.read_text()
    state = read_summary(run.path)["state"]
    num_done = run.num_steps_done
    (newest,) = sorted((run.path / "checkpoints").glob("step-*"))[-1:]
    resumed = subprocess.run(
        [*command, "--resume", "--json", str(run.path)],
        cwd=REPOSITORY, env=ray_jobs.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    is_clean = resumed.returncode == 0 and run.is_as(clean_run)
    num_steps_again = num_done - int(newest.name.removeprefix("step-"))
    measured(
        FaultRow(
            row="16b",
            fault="Ctrl-C in `rayward submit`, then `rayward submit --resume`",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_steps_again),
            measured=f"ended after {end_s:.0f} s with code {exit_code}, run {state}; {likeness(is_clean)}",
            bar=f"{ENDED_S:.0f} s, interrupted",
            holds=is_clean and state == "interrupted" and end_s <= ENDED_S,
        )
    )
    assert (exit_code, state, num_steps_again) == (INTERRUPTED, "interrupted", 0), said
    assert READY_LINE.search(said), said
    assert said.count("run directory ") == 1, said  # the log is followed, and written once
    assert f"rayward submit --resume {run.path} --address {ray_jobs.address}" in said
    assert is_clean, resumed.stderr
