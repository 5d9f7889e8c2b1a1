"""`ray job stop` of a training job: SIGTERM to its driver, and half a minute for a clean end."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults.fault_table import FaultRow, likeness
from tests.faults.faulty_run import CHECKPOINT_EVERY, ORPHANS_GONE_S, REPOSITORY, FaultyRun, wait_until

STOPPED_S = 10.0
STOP_WAIT_S = 30  # Ray's default of 3 s is shorter than a checkpoint may take
JOB = "training"
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def ray_jobs() -> Iterator[Callable[..., "subprocess.CompletedProcess[str]"]]:
    """`ray job ...` on a cluster of its own."""
    gcs_port, dashboard_port, client_port = (_free_port() for _ in range(3))
    # A folder of its own: a dead cluster that is noted in Ray's usual one costs later runs ten seconds at their end (ray 2.60).
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    environment = {
        **os.environ,
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": folder,
    }
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", "--dashboard-host=127.0.0.1",
            f"--port={gcs_port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip

    def run(verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [RAY, "job", verb, f"--address=http://127.0.0.1:{dashboard_port}", *arguments]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    try:
        wait_until(lambda: _listens(dashboard_port), "Ray's dashboard", timeout_s=120)
        yield run
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        head.terminate()
        head.wait()
        for process in psutil.wait_procs(processes, timeout=ORPHANS_GONE_S)[1]:
            process.kill()
        shutil.rmtree(folder)


@pytest.mark.timeout(1800)
@pytest.mark.faults
def test_a_stopped_job_goes_on_where_it_was(
    clean_run: FaultyRun,
    ray_jobs: Callable[..., "subprocess.CompletedProcess[str]"],
    tmp_path: Path,
    measured: Callable[[FaultRow], None],
) -> None:
    run = FaultyRun(tmp_path, "job")
    entrypoint = f"cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join(run.command)}"
    submission = ("submit", f"--submission-id={JOB}", "--no-wait", "--", "bash", "-c", entrypoint)
    wait_until(lambda: ray_jobs(*submission).returncode == 0, "an agent that takes jobs", timeout_s=120)
    wait_until(lambda: run.num_steps_done > CHECKPOINT_EVERY, "a step after a checkpoint")
    (driver,) = (process for process in psutil.process_iter() if _cmdline(process) == run.command)
    processes = [driver, *driver.children(recursive=True)]
    sent_s = time.monotonic()
    stop = ray_jobs("stop", JOB)  # returns at its end
    end_s = time.monotonic() - sent_s
    gone_s = run.seconds_to_its_last_process(processes)
    state = json.loads((run.path / "summary.json").read_text())["state"]
    num_done = run.num_steps_done
    (newest,) = sorted((run.path / "checkpoints").glob("step-*"))[-1:]
    num_steps_again = num_done - int(newest.name.removeprefix("step-"))
    is_clean = run.resume().ends_as(clean_run)
    measured(
        FaultRow(
            row="16",
            fault="`ray job stop`, then a resume",
            num_injected=1,
            num_survived=int(is_clean),
            losses=replace(run.losses(clean_run), num_steps_again=num_steps_again),
            measured=f"ended after {end_s:.0f} s, run {state}, last process gone after {gone_s:.0f} s; {likeness(is_clean)}",
            bar=f"{STOPPED_S:.0f} s, interrupted, {ORPHANS_GONE_S:.0f} s",
            holds=is_clean and state == "interrupted" and end_s <= STOPPED_S and gone_s <= ORPHANS_GONE_S,
        )
    )
    assert state == "interrupted", stop.stdout + ray_jobs("logs", JOB).stdout
    assert is_clean, run.output


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
