"""One owner for a run directory.

The owner holds `flock` on `run.lock` for as long as its process lives, so a killed owner frees the lock at once and no pid
can be mistaken for another. The file's text (pid, host, start) names the owner to people, and guards against owners on
other hosts where the file system does not carry `flock` between hosts.
"""

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import ConfigError, RunDirectoryInUseError

LOCK_NAME = "run.lock"
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
        """Take the lock, also from an owner of this host that died. Raises `RunDirectoryInUseError` naming a live owner."""
        self._descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(directory)
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Empty the file and let go. It is not unlinked: a waiting process could then lock a file without a name."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

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
            raise RunDirectoryInUseError(
                f"{_in_use(directory, previous)}; if nothing runs there any more, delete {directory / LOCK_NAME}"
            )
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


def _in_use(directory: Path, owner: LockOwner | None) -> str:
    if owner is None:
        return f"{directory} is in use by another process; wait for it, or choose another name"
    return (
        f"{directory} is in use by pid {owner.pid} on {owner.host} since {owner.started_at}; "
        "wait for it, stop it, or choose another name"
    )
