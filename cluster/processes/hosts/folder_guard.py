"""Removes a run's folder from a host on which the driver does not run.

Started as `python -m cluster.processes.hosts.folder_guard FOLDER` by the process that made the folder. It waits until no process
holds the folder any more, however they ended, for Ray kills actors whose driver is gone.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

USERS = ".users"  # every process that needs the folder holds a shared lock of this file


def start_folder_guard(folder: Path) -> None:
    """Returns at once. The caller holds the folder."""
    subprocess.run(
        [sys.executable, "-m", "cluster.processes.hosts.folder_guard", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ray ends the process group of an actor that has died
        check=True,
    )


def main(folder: Path) -> None:
    """Wait for the last of the folder's users, in a process that is no child of theirs: an actor takes its children along."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)
    with (folder / USERS).open("rb") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
