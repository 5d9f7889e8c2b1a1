"""A Ray cluster of its own that takes jobs."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.faults.faulty_run import REPOSITORY, wait_until

STOP_WAIT_S = 30  # Ray's default of 3 s is shorter than a checkpoint may take
RAY = Path(sys.executable).with_name("ray")


class RayJobs:
    """`ray job ...` on a cluster of its own."""

    def __init__(self, head: "subprocess.Popen[bytes]", dashboard_port: int, environment: Mapping[str, str]) -> None:
        self._head = head
        self.address = f"http://127.0.0.1:{dashboard_port}"
        self.environment = environment

    def __call__(self, verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [RAY, "job", verb, f"--address={self.address}", *arguments],
            env=self.environment,
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
