"""The environment of workers, and a Ray that comes and goes."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import cluster.processes.runtime as runtime
from cluster.processes.orphan_guard import SessionGuard
from cluster.processes.runtime import WORKER_ENVIRONMENT, RaySession, ray_session, start_ray

JOB_OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"


class _StopHere(Exception):
    """Stands for everything that follows `ray.init`."""


def _environment_at_init(
    monkeypatch: pytest.MonkeyPatch, home: Path, *, address: str | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """What `start_ray` has set when it calls `ray.init`, and the arguments of the call."""
    seen: tuple[dict[str, str], dict[str, Any]] = ({}, {})

    def init(**arguments: object) -> None:
        seen[0].update(os.environ)
        seen[1].update(arguments)
        raise _StopHere

    for name in (*WORKER_ENVIRONMENT, "PYTHONPATH", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", JOB_OVERRIDE):
        # Set and delete: monkeypatch then removes again what start_ray adds.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setattr(runtime.ray, "init", init)
    with pytest.raises(_StopHere):
        start_ray(num_cpus=2, address=address)
    return seen


def test_environment_is_set_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment, arguments = _environment_at_init(monkeypatch, tmp_path)
    assert environment["RAY_process_group_cleanup_enabled"] == "1"
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"  # the user's choice stays
    assert str(Path(runtime.__file__).parents[2]) in environment["PYTHONPATH"].split(os.pathsep)
    assert arguments["log_to_driver"] is False
    assert arguments["dashboard_host"] == "127.0.0.1"


def test_workers_of_a_running_cluster_get_our_environment_with_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment, arguments = _environment_at_init(monkeypatch, tmp_path, address="10.0.0.1:6379")
    assert arguments["address"] == "10.0.0.1:6379"
    passed = arguments["runtime_env"]["env_vars"]
    assert set(passed) == {*WORKER_ENVIRONMENT, "PYTHONPATH"}
    assert passed["VLLM_LOGGING_LEVEL"] == "DEBUG"  # the user's choice goes along
    assert environment[JOB_OVERRIDE] == "1"  # a job may have been submitted with some of the same
    assert not (tmp_path / ".ray").exists()  # the token is the cluster's


def test_token_file_belongs_to_the_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token_file = tmp_path / ".ray" / "auth_token"
    _environment_at_init(monkeypatch, tmp_path)
    token = token_file.read_text()
    assert len(token) == 64  # 256 bits in hex, as Ray writes it
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token_file.chmod(0o644)
    _environment_at_init(monkeypatch, tmp_path)
    assert token_file.read_text() == token
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


DRIVER = """
import time, ray
from cluster.processes.runtime import start_ray
session = start_ray(num_cpus=1, include_dashboard=False)
ray.get(ray.remote(lambda: None).remote())
(session.shared_folder() / "weights").write_text("large")
session.shared_folder()
print(*session.shared_folders, flush=True)
time.sleep(600)
"""
ORPHANS_GONE_S = 15.0


@pytest.mark.cold_start
def test_a_killed_driver_leaves_no_process_and_no_shared_memory() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, cwd=Path(runtime.__file__).parents[2])
    assert driver.stdout is not None
    folders = [Path(folder) for folder in driver.stdout.readline().decode().split()]
    assert [folder.is_dir() for folder in folders] == [True, True]
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 4  # Ray's daemons, a worker, the guard
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(started, timeout=ORPHANS_GONE_S)
    assert [process.pid for process in left] == []
    assert [folder.exists() for folder in folders] == [False, False]


DRIVER_WITH_A_THREAD = """
import threading, ray
from cluster.processes.runtime import start_ray, stop_ray
session = start_ray(num_cpus=1, include_dashboard=False)
refs = [ray.put(number) for number in range(20_000)]

def drop_in_cycles():  # which Python's collector comes upon, in this thread
    while refs:
        cycle = [refs.pop()]
        cycle.append(cycle)
        del cycle
        [[[] for _ in range(20)] for _ in range(40)]

thread = threading.Thread(target=drop_in_cycles)
thread.start()
stop_ray(session)
thread.join()
print("the end")
"""


@pytest.mark.cold_start
def test_a_thread_that_drops_references_does_not_end_the_process_while_ray_stops() -> None:
    command = [sys.executable, "-c", DRIVER_WITH_A_THREAD]
    driver = subprocess.run(command, capture_output=True, text=True, cwd=Path(runtime.__file__).parents[2], check=False)
    assert (driver.returncode, driver.stdout) == (0, "the end\n"), driver.stderr


@pytest.mark.cold_start
@pytest.mark.usefixtures("no_ray")
def test_a_session_leaves_logs_and_no_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with ray_session(num_cpus=1, log_dir=tmp_path / "logs", include_dashboard=False) as session:
        started = set(psutil.Process().children(recursive=True)) - before
        assert (tmp_path / "logs" / "ray").is_symlink()
        shared = session.shared_folder()
        assert shared.is_dir()
    assert not shared.exists()
    assert started
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert session.dashboard_url == ""
    assert not (tmp_path / "logs" / "ray").is_symlink()
    assert (tmp_path / "logs" / "ray" / "raylet.out").is_file()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[RaySession]:
    """Of a Ray whose logs are one file."""
    logs = tmp_path / "session" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("new")
    guard = SessionGuard()
    yield RaySession(dashboard_url="", session_logs=logs, run_logs=tmp_path / "run" / "ray", is_local=True, guard=guard)
    guard.dismiss()


def test_a_failed_copy_of_logs_is_told_and_fails_nothing(
    session: RaySession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def disk_full(*arguments: object, **options: object) -> None:
        raise shutil.Error([("raylet.out", "ray/raylet.out", "No space left on device")])

    runtime._link_logs(session)
    monkeypatch.setattr(runtime.shutil, "copytree", disk_full)
    runtime._keep_logs(session)
    assert "No space left on device" in caplog.text


def test_logs_of_a_crash_stay_beside_those_of_the_resumed_run(session: RaySession, tmp_path: Path) -> None:
    runs = tmp_path / "run"
    (runs / "ray").mkdir(parents=True)
    (runs / "ray" / "raylet.out").write_text("crash")
    (runs / "ray-1").symlink_to(tmp_path / "gone")  # of a killed driver, whose machine is gone
    runtime._link_logs(session)
    runtime._keep_logs(session)
    assert (runs / "ray-2" / "raylet.out").read_text() == "crash"
    assert (runs / "ray-1").is_symlink()
    assert (runs / "ray" / "raylet.out").read_text() == "new"


JOINING_DRIVER = """
import os, sys, ray
from cluster.processes.runtime import start_ray, stop_ray
os.environ["JUDGE_KEY"] = "s3cret"
session = start_ray(address=sys.argv[1], variables=["JUDGE_KEY", "NOT_SET"])
value = ray.get(ray.remote(lambda: __import__("os").environ["JUDGE_KEY"]).remote())
print(value, "s3cret" in str(ray.get_runtime_context().runtime_env))
stop_ray(session)
"""


@pytest.mark.cold_start
@pytest.mark.usefixtures("no_ray")
def test_named_variables_reach_workers_of_a_joined_cluster_and_no_listing(tmp_path: Path) -> None:
    with ray_session(num_cpus=1, log_dir=tmp_path / "logs", include_dashboard=False):
        address = runtime.ray.get_runtime_context().gcs_address
        driver = subprocess.run(
            [sys.executable, "-c", JOINING_DRIVER, address],
            capture_output=True,
            text=True,
            cwd=Path(runtime.__file__).parents[2],
            timeout=120,
            check=False,
        )
    assert driver.stdout.split() == ["s3cret", "False"], driver.stderr
