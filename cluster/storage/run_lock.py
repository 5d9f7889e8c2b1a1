"""One owner for a run directory.

The owner holds `flock` on `run.lock` for as long as its process lives, so a killed owner frees the lock at once and no pid
can be mistaken for another. The file's text (pid, host, start) names the owner to people. Some file systems do not carry
`flock` between hosts: there, a living owner shows in the file's time, which it renews every few seconds. So a run whose pod was
killed can be resumed under a new host name.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import ConfigError, RunDirectoryInUseError

logger = logging.getLogger(__name__)

LOCK_NAME = "run.lock"
RENEW_S = 3.0  # from one sign of life to the next
SILENCE_S = 12.0  # of an owner on another host, after which its free lock is taken
NO_FLOCK_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system without locks


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """Who holds a lock. Produced by `RunLock`, read by people."""

    pid: int
    host: str
    started_at: str  # ISO 8601, UTC


class RunLock:
    """Holds `directory/run.lock` from construction to `release`."""

    def __init__(self, directory: Path) -> None:
        """Take the lock, also from an owner that died. Raises `RunDirectoryInUseError` naming a live owner.

        Where the last owner was on another host, whether it lives shows after `SILENCE_S`.
        """
        self._released = threading.Event()
        self._descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(directory)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._renewal = threading.Thread(target=self._renew, name="run lock", daemon=True)
        self._renewal.start()

    def release(self) -> None:
        """Empty the file and let go. It is not unlinked: a waiting process could then lock a file without a name."""
        self._released.set()
        self._renewal.join()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            with suppress(OSError):  # a network file system that is away for a moment; the next one tells
                os.utime(self._descriptor)

    def _acquire(self, directory: Path) -> None:
        host = socket.gethostname()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirectoryInUseError(_in_use(directory, self._read_owner())) from None
        except OSError as error:
            if error.errno not in NO_FLOCK_ERRORS:
                raise
            raise ConfigError(f"{directory}: its file system has no locks; set runs_dir to a folder on another one") from error
        previous = self._read_owner()
        if previous is not None and previous.host != host:
            if _shows_life(directory / LOCK_NAME):
                raise RunDirectoryInUseError(_in_use(directory, previous))
            logger.info("%s: took the free lock of pid %d on %s, which is gone", directory, previous.pid, previous.host)
        owner = LockOwner(pid=os.getpid(), host=host, started_at=datetime.now(UTC).isoformat(timespec="seconds"))
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(owner)).encode(), 0)
        os.fsync(self._descriptor)

    def _read_owner(self) -> LockOwner | None:
        """None for a released lock, and for the instant in which its owner writes its name."""
        try:
            return LockOwner(**json.loads(os.pread(self._descriptor, 4096, 0)))
        except (ValueError, TypeError):
            return None


def _shows_life(file: Path) -> bool:
    """Whether somebody renews the file's time while we look. Clocks of hosts differ, so only a change counts."""
    seen = _time_of(file)
    for _ in range(int(SILENCE_S / RENEW_S)):
        threading.Event().wait(RENEW_S)
        if _time_of(file) != seen:
            return True
    return False


def _time_of(file: Path) -> int:
    """Nanoseconds. Opened anew, because NFS keeps attributes of a file that it has open."""
    with file.open("rb") as opened:
        return os.fstat(opened.fileno()).st_mtime_ns


def _in_use(directory: Path, owner: LockOwner | None) -> str:
    if owner is None:
        return f"{directory} is in use by another process; wait for it, or choose another name"
    return (
        f"{directory} is in use by pid {owner.pid} on {owner.host} since {owner.started_at}; "
        "wait for it, stop it, or choose another name"
    )
