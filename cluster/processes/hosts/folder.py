"""A run's folder on each host, in shared memory, and in it one folder a node: several nodes of Ray may share a machine."""

import fcntl
import functools
import os
from io import BufferedWriter
from pathlib import Path

import ray

from cluster.processes.hosts.folder_guard import USERS, start_folder_guard


def this_node() -> str:
    """Ray's id of the node that this process runs on; empty where it is connected to none."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def host_folder(run_folder: Path) -> Path:
    """The folder of this node, which stays until this process ends, and then goes with the last process that has asked for it.

    `run_folder`: the same on all hosts. On its own host the driver has made it, and removes it.
    """
    _held(run_folder)
    folder = run_folder / this_node()
    folder.mkdir(exist_ok=True)
    return folder


@functools.cache
def _held(run_folder: Path) -> BufferedWriter:
    """The file whose lock keeps the folder. Another guard may be removing the folder at this moment: then it is made anew."""
    while True:
        is_new = _make(run_folder)
        path = run_folder / USERS
        try:
            users = path.open("ab")
        except FileNotFoundError:
            continue
        fcntl.flock(users, fcntl.LOCK_SH)
        if not _is_at(users, path):
            users.close()
            continue
        if is_new:
            start_folder_guard(run_folder)
        return users


def _make(folder: Path) -> bool:
    """Whether it was not there."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _is_at(file: BufferedWriter, path: Path) -> bool:
    """Whether the path still leads to this file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
