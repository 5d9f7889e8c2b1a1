"""`ray job stop` of a training job: SIGTERM to its driver, and half a minute for a clean end."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    REPOSITORY,
    SCORER,
    FaultyRun,
    wait_until,
)

STOPPED_S = 10.0
STOP_WAIT_S = 30  # Ray's default of 3 s is shorter than a checkpoint may take
NUM_ROLES = 5  # of the tiny run: a generator and its engine, a scorer, a rank and its mailbox
RAY = Path(sys.executable).with_name("ray")


class RayJobs:
    """`ray job ...` on a cluster of its own."""

    def __init__(self, head: "subprocess.Popen[bytes]", dashboard_port: int, environment: Mapping[str, str]) -> None:
        self._head = head
        self._address = f"--address=http://127.0.0.1:{dashboard_port}"
        self._environment = environment

    def __call__(self, verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [RAY, "job", verb, self._address, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def submit(self, name: str, command: Sequence[str], *options: str) -> "subprocess.CompletedProcess[str]":
        entrypoint = f"cd {shlex.quote(str(REPOSITORY))} && exec {shlex.join(command)}"
        return self("submit", f"--submission-id={name}", *options, "--", "bash", "-c", entrypoint)

    @property
    def processes(self) -> list[psutil.Process]:
        """Of the whole cluster."""
        return [process for process in psutil.Process(self._head.pid).children(recursive=True) if process.is_running()]


@pytest.fixture
def ray_jobs() -> Iterator[RayJobs]:
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
    try:
        wait_until(lambda: _listens(dashboard_port), "Ray's dashboard", timeout_s=120)
        yield RayJobs(head, dashboard_port, environment)
    finally:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:  # told to end, a head drains its node for half a minute
            process.kill()
        head.wait()
        shutil.rmtree(folder)


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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
