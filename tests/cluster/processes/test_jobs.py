"""A job on a cluster: its log written once, its end told, its stop clean. The cluster is a fake; tests/faults has a real one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, RaywardError, RunInterruptedError
from cluster.processes import jobs
from cluster.processes.jobs import JobFailedError, RayJob, connect_to_jobs, submit_job

ADDRESS = "http://127.0.0.1:8265"
LOG = "run directory /mnt/runs/tiny-2\nstep 1\n"


@dataclass
class Details:
    status: Any
    message: str = ""
    driver_exit_code: int | None = None


class FakeCluster:
    """Plays one list of events for each time that the log is followed: text, or what is raised. Then the job has `end`."""

    def __init__(self, *tails: Sequence[str | BaseException], end: Details) -> None:
        self.tails = list(tails)
        self.end = end
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []

    def submit_job(self, **request: Any) -> str:
        self.submitted.append(request)
        return str(request["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for event in self.tails.pop(0):
            await asyncio.sleep(0)
            if isinstance(event, BaseException):
                raise event
            yield event

    def get_job_status(self, job_id: str) -> Any:
        return jobs.JobStatus.RUNNING if self.tails else self.end.status

    def get_job_info(self, job_id: str) -> Details:
        return self.end

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return True

    def get_address(self) -> str:
        return ADDRESS


SUCCEEDED = Details(jobs.JobStatus.SUCCEEDED)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)


def followed(cluster: FakeCluster) -> tuple[jobs.JobReport, str]:
    written: list[str] = []
    report = RayJob(cluster, "tiny-1").follow(written.append)
    return report, "".join(written)


def test_the_log_is_written_as_it_grows_and_names_the_run() -> None:
    report, log = followed(FakeCluster([LOG, "step 2\n"], end=SUCCEEDED))
    assert log == LOG + "step 2\n"
    assert (report.status, report.run, report.address, report.job_id) == ("SUCCEEDED", "/mnt/runs/tiny-2", ADDRESS, "tiny-1")


@pytest.mark.parametrize("loss", [RuntimeError("closed"), ConnectionError("reset"), jobs.ClientError("gone")])
def test_after_a_lost_connection_nothing_is_written_twice(loss: Exception) -> None:
    _, log = followed(FakeCluster([LOG[:30], loss], [LOG], [LOG + "step", " 2\n"], end=SUCCEEDED))
    assert log == LOG + "step 2\n"


def test_a_log_that_grows_between_losses_is_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "NUM_RETRIES", 1)
    losses: list[list[str | BaseException]] = [[LOG[:end], ConnectionError("reset")] for end in (5, 10, 15, 20)]
    _, log = followed(FakeCluster(*losses, [LOG], end=SUCCEEDED))
    assert log == LOG


def test_a_cluster_that_does_not_come_back_ends_the_command_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "NUM_RETRIES", 2)
    cluster = FakeCluster(*[[ConnectionError("refused")]] * 3, [LOG], end=SUCCEEDED)
    with pytest.raises(RaywardError, match=f"refused.*may still run: ray job logs --follow tiny-1 --address {ADDRESS}"):
        followed(cluster)
    assert cluster.stopped == []


def test_ctrl_c_stops_the_job_and_follows_it_to_its_end() -> None:
    cluster = FakeCluster([LOG, KeyboardInterrupt()], [LOG, "saved\n"], end=Details(jobs.JobStatus.STOPPED))
    written: list[str] = []
    with pytest.raises(RunInterruptedError) as caught:
        RayJob(cluster, "tiny-1").follow(written.append)
    assert cluster.stopped == ["tiny-1"]
    assert "".join(written) == LOG + "saved\n"
    assert str(caught.value) == (f"tiny-1 was stopped; go on with: rayward submit --resume /mnt/runs/tiny-2 --address {ADDRESS}")
    assert caught.value.exit_code == 130


def test_a_cluster_that_is_lost_before_the_stop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job_id: str) -> bool:
        raise RuntimeError("Request failed with status code 500")

    cluster = FakeCluster([LOG, KeyboardInterrupt()], end=SUCCEEDED)
    monkeypatch.setattr(cluster, "stop_job", fail)
    with pytest.raises(RaywardError, match=r"does not answer any more \(Request failed.*tiny-1 may still run"):
        followed(cluster)


def test_a_run_that_was_interrupted_otherwise_counts_as_stopped() -> None:
    with pytest.raises(RunInterruptedError):
        followed(FakeCluster([LOG], end=Details(jobs.JobStatus.FAILED, "exit code 130", 130)))


@pytest.mark.parametrize(("exit_code", "expected"), [(3, 3), (None, 1)])
def test_a_job_that_fails_ends_the_command_with_its_own_exit_code(exit_code: int | None, expected: int) -> None:
    message = f"Job entrypoint command failed with exit code 3{jobs.TAIL_FOLLOWS}\nTraceback"
    with pytest.raises(JobFailedError) as caught:
        followed(FakeCluster(["error\n"], end=Details(jobs.JobStatus.FAILED, message, exit_code)))
    assert str(caught.value) == "tiny-1 failed: Job entrypoint command failed with exit code 3; its log says more"
    assert caught.value.exit_code == expected


def test_what_is_submitted(tmp_path: Path) -> None:
    cluster = FakeCluster(end=SUCCEEDED)
    job = submit_job(cluster, ["python", "-m", "rayward", "train", "my file.yaml"], name="tiny", working_dir=tmp_path)
    (request,) = cluster.submitted
    assert job.job_id == request["submission_id"]
    assert request["submission_id"].startswith("tiny-")
    assert request["entrypoint"] == "exec python -m rayward train 'my file.yaml'"
    runtime_env = request["runtime_env"]
    assert runtime_env["working_dir"] == str(tmp_path)
    assert runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "30"}


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="give the URL of Ray's dashboard"):
        connect_to_jobs(address)


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")  # which Ray would ask instead
    with pytest.raises(ConfigError) as caught:
        connect_to_jobs("http://127.0.0.1:1")
    assert str(caught.value) == "--address http://127.0.0.1:1: Failed to connect to Ray at address: http://127.0.0.1:1."
