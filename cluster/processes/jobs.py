"""Jobs on a Ray cluster that runs already: the code uploaded, the log followed, a stop that leaves time for a clean end."""

import asyncio
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.errors import ConfigError, RaywardError, RunInterruptedError
from cluster.processes.interrupts import INTERRUPTED_EXIT_CODE
from cluster.processes.losses import first_line

logger = logging.getLogger("rayward")

LEFT_OUT: Final = (  # of the upload, as .gitignore writes it; what .gitignore and .rayignore name is left out as well
    ".git", ".venv*", "/runs", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".env*", "*.pem", "*.key",
)  # fmt: skip
STOP_WAIT_S = 30  # for a clean end; Ray kills a job after 3 s by default
RETRY_S, NUM_RETRIES = 1.0, 60  # of a connection that is lost while a job runs
NOT_REACHED: Final = (OSError, RuntimeError, ClientError)  # what Ray's client raises where the cluster does not answer
RUN_DIRECTORY: Final = re.compile(r"^run directory (.+)$", re.MULTILINE)  # what a run says first
TAIL_FOLLOWS: Final = ", last available logs (truncated to 20,000 chars):"  # in Ray's message; the log has been written already
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class JobFailedError(RaywardError):
    """A job ended with an error, which its log tells. The exit code is the job's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """A job that has been submitted. Produced by `RayJob`, consumed by `rayward submit`."""

    job_id: str
    address: str
    status: str  # Ray's: PENDING, RUNNING, SUCCEEDED, ...
    run: str  # directory on the cluster; empty until the run has said it


class RayJob:
    """One job of a cluster."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client = client
        self.job_id = job_id
        self._num_written = 0  # characters of the log
        self._run = ""

    def report(self) -> JobReport:
        """Where the job stands."""
        status = self._client.get_job_status(self.job_id)
        return JobReport(job_id=self.job_id, address=self._client.get_address(), status=str(status), run=self._run)

    def follow(self, write: Callable[[str], object]) -> JobReport:
        """Write the log as it grows, until the job has ended well. Ctrl-C stops the job; a second one leaves it stopping.

        Raises `RunInterruptedError` where it was stopped, `JobFailedError` where it failed, `RaywardError` where the cluster is
        lost.
        """
        try:
            return self._follow(write)
        except NOT_REACHED as error:
            address = self._client.get_address()
            raise RaywardError(
                f"{address} does not answer any more ({first_line(error)}); {self.job_id} may still run: "
                f"ray job logs --follow {self.job_id} --address {address}"
            ) from error

    def _follow(self, write: Callable[[str], object]) -> JobReport:
        try:
            self._write_log(write)
        except KeyboardInterrupt:
            logger.info("stopping %s; the run saves what it has done, which may take %d s", self.job_id, STOP_WAIT_S)
            self._client.stop_job(self.job_id)
            self._write_log(write)
        details = self._client.get_job_info(self.job_id)
        if details.status == JobStatus.SUCCEEDED:
            return self.report()
        if details.status == JobStatus.STOPPED or details.driver_exit_code == INTERRUPTED_EXIT_CODE:
            raise RunInterruptedError(f"{self.job_id} was stopped; {self._how_to_resume()}")
        reason = (details.message or "Ray gives no reason").partition("\n")[0].removesuffix(TAIL_FOLLOWS)
        exit_code = details.driver_exit_code or RaywardError.exit_code
        raise JobFailedError(f"{self.job_id} failed: {reason}; {self._how_to_resume()}", exit_code)

    def _write_log(self, write: Callable[[str], object]) -> None:
        """Until the job has ended. A connection that is lost is made anew; what was written is not written again."""
        num_failures = 0  # since the log last grew
        while True:
            num_before = self._num_written
            try:
                asyncio.run(self._tail(write))
                if self._client.get_job_status(self.job_id).is_terminal():
                    return
            except NOT_REACHED:
                num_failures = 1 if self._num_written > num_before else num_failures + 1
                if num_failures > NUM_RETRIES:
                    raise
            time.sleep(RETRY_S)

    async def _tail(self, write: Callable[[str], object]) -> None:
        num_seen = 0
        async with aclosing(self._client.tail_job_logs(self.job_id)) as log:  # Ctrl-C closes the connection, too
            async for text in log:
                num_seen += len(text)
                if num_seen > self._num_written:
                    new = text[self._num_written - num_seen :]
                    self._num_written = num_seen
                    if said := RUN_DIRECTORY.search(new):
                        self._run = said.group(1)
                    write(new)

    def _how_to_resume(self) -> str:
        if not self._run:
            return "its log says more"
        return f"go on with: rayward submit --resume {shlex.quote(self._run)} --address {self._client.get_address()}"


def connect_to_jobs(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`. Raises `ConfigError`."""
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: give the URL of Ray's dashboard, such as http://127.0.0.1:8265")
    for name in ADDRESS_VARIABLES:  # Ray prefers them to what it is given
        os.environ.pop(name, None)
    _silence_ray()
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"--address {address}: the cluster asks for its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file "
            "that holds it"
        ) from error
    except NOT_REACHED as error:
        raise ConfigError(f"--address {address}: {first_line(error)}") from error


def submit_job(client: JobSubmissionClient, arguments: Sequence[str], *, name: str, working_dir: Path) -> RayJob:
    """Upload `working_dir`, and run `arguments` in it on the cluster's head node. Raises `RaywardError`."""
    runtime_env = {
        "working_dir": str(working_dir),
        "excludes": list(LEFT_OUT),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    try:
        job_id = client.submit_job(
            entrypoint=f"exec {shlex.join(arguments)}",  # exec: signals reach the run, and not a shell before it
            submission_id=f"{name}-{secrets.token_hex(3)}",
            runtime_env=runtime_env,
        )
    except (*NOT_REACHED, ValueError) as error:
        raise RaywardError(f"the job was not submitted: {first_line(error)}") from error
    return RayJob(client, job_id)


def _silence_ray() -> None:
    """Its client tells of each step of an upload, and sets levels of its own for that."""
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
