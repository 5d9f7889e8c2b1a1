"""A run's folder on a host goes when the last process that holds it has ended, however it ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.processes.hosts.folder import host_folder
from cluster.processes.hosts.folder_guard import USERS

REPOSITORY = Path(__file__).parents[4]
HOLD = """
import pathlib, sys
from cluster.processes.hosts.folder import host_folder
print(host_folder(pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has asked for the folder, and gets killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert process.stdout.readline() == os.fsencode(folder) + b"\n"
    yield process
    process.send_signal(signal.SIGKILL)
    process.communicate()


def guards_of(folder: Path) -> list[psutil.Process]:
    commands = {process: " ".join(_arguments(process)) for process in psutil.process_iter()}
    return [process for process, command in commands.items() if "folder_guard" in command and str(folder) in command]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_last_of_several_killed_processes_takes_the_folder_along(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holding(folder):
        (guard,) = guards_of(folder)
        (folder / "weights").write_text("large")
        with holding(folder):
            assert guards_of(folder) == [guard]  # one, by the process that made the folder
        assert (folder / "weights").exists()
    guard.wait(timeout=60)
    assert not folder.exists()


def test_a_folder_that_the_driver_has_made_is_the_drivers_to_remove(tmp_path: Path) -> None:
    with holding(tmp_path):
        assert guards_of(tmp_path) == []
    assert (tmp_path / USERS).exists()


def test_outside_ray_the_folder_is_the_runs_own(tmp_path: Path) -> None:
    assert host_folder(tmp_path) == tmp_path


def test_a_folder_that_a_guard_removes_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.processes.hosts import folder as module

    run_folder, flock = tmp_path / "run", module.fcntl.flock
    locked: list[int] = []

    def removed_before_the_first_lock(file: int, operation: int) -> None:
        if not locked:
            (run_folder / USERS).unlink()
            run_folder.rmdir()
        locked.append(operation)
        flock(file, operation)

    monkeypatch.setattr(module.fcntl, "flock", removed_before_the_first_lock)
    guarded: list[Path] = []
    monkeypatch.setattr(module, "start_folder_guard", guarded.append)
    assert host_folder(run_folder) == run_folder
    assert (run_folder / USERS).exists()
    assert (len(locked), guarded) == (2, [run_folder])
