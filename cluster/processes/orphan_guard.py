"""Ends what a killed driver leaves behind: a small process which waits for its parent's end.

Ray's daemons end with their driver, but the node's agents first try for a minute to report to a server that is gone (seen with
ray 2.60: `report_raylet_error_logs`). The guard looks now and then who descends from the driver, for a process without parents
tells nothing any more; one that was born since the last look carries a mark in its environment. Started as
`python -m cluster.processes.orphan_guard PID`, with a pipe from the driver as its standard input, through which come folders
that are to be removed, one a line.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

LOOK_S = 1.0  # between two looks, 5 ms each
GRACE_S = 4.0  # for those that end by themselves
END_S = 6.0  # for the rest, which is killed
POLL_S = 0.1
MAX_SAID_BYTES = 1 << 16
END = None
MARK = "RAYWARD_DRIVER_PID"


class SessionGuard:
    """Ends everything that descends from this process, should it be killed, and removes its folders in shared memory."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.processes.orphan_guard", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # spared by Ctrl-C, and by what is sent to the driver's group
        )
        os.environ[MARK] = str(os.getpid())

    def remove(self, folder: Path) -> None:
        """Should this process be killed."""
        assert self._process.stdin is not None, "it was asked for"
        self._process.stdin.write(os.fsencode(folder) + b"\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """The session has ended in order."""
        os.environ.pop(MARK, None)
        self._process.kill()
        self._process.communicate()


def main(driver_pid: int) -> None:
    """Wait for the driver's end, then for that of its descendants."""
    for number in (signal.SIGINT, signal.SIGTERM):  # `ray job stop` sends it to every descendant of a job
        signal.signal(number, signal.SIG_IGN)
    descendants: set[psutil.Process] = set()
    folders = b""
    while (said := _said(sys.stdin.fileno())) != END:
        folders += said
        descendants = set(filter(_lives, descendants))
        with suppress(psutil.Error):  # killed while this process started
            descendants.update(psutil.Process(driver_pid).children(recursive=True))
    descendants.discard(psutil.Process())
    wait_for_end(descendants | _marked(driver_pid))
    wait_for_end(_marked(driver_pid))  # started by those while they ended
    for folder in folders.splitlines():
        shutil.rmtree(os.fsdecode(folder), ignore_errors=True)


def wait_for_end(processes: Collection[psutil.Process]) -> None:
    """Return when all have ended; whoever has not done so by itself in time is killed."""
    deadline = time.monotonic() + GRACE_S
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < deadline + END_S:
        if time.monotonic() > deadline:
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
        time.sleep(POLL_S)


def _marked(driver_pid: int) -> set[psutil.Process]:
    """Living processes that inherited the driver's environment; Ray's workers lose it seconds later, with their titles."""
    return {process for process in psutil.process_iter() if _mark_of(process) == str(driver_pid)}


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK, "")
    except psutil.Error:
        return ""


def _said(pipe: int) -> bytes | None:
    """What came through the pipe in a while, `END` where its other end has gone."""
    readable, _, _ = select.select([pipe], [], [], LOOK_S)
    return (os.read(pipe, MAX_SAID_BYTES) or END) if readable else b""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
