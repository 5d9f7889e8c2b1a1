"""Keeps what a child runs away from what its parent holds: keys in the environment, Ray's token, files of root.

Root starts a child as a user that nothing else runs as. Others cannot change users. There the parent makes itself unreadable to
other processes of its user, and what is left is all else of that user: its files, Ray's token among them, and its processes.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger("rayward")

FIRST_USER_ID = 1 << 30  # far above those of people and services
CAPABILITIES = sum(1 << number for number in (0, 5, 6, 7))  # CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID of capability.h
PR_SET_DUMPABLE = 4  # of prctl.h


@lru_cache(maxsize=1)
def separate_user() -> int | None:
    """The user and group id for children of this process; None where we lack the rights, or they could not import anything."""
    if os.geteuid() != 0 or _capabilities() & CAPABILITIES != CAPABILITIES:
        return None
    user = FIRST_USER_ID + os.getpid()
    if not all(_is_mapped(user, Path(f"/proc/self/{kind}_map")) for kind in ("uid", "gid")):
        return None
    needed = [sys.executable, *(entry for entry in sys.path if os.path.exists(entry))]
    unreadable = next((path for path in needed if not _others_may_read(path)), None)
    if unreadable is not None:
        logger.warning("reward functions run as root, not as a user of their own: other users may not read %s", unreadable)
        return None
    return user


def hide_from_own_user() -> None:
    """Make /proc/PID/environ and the memory of this process unreadable to others of its user."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _capabilities() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _is_mapped(user: int, id_map: Path) -> bool:
    ranges = (tuple(map(int, line.split())) for line in id_map.read_text(encoding="ascii").splitlines())
    return any(first <= user < first + count for first, _, count in ranges)


def _others_may_read(path: str) -> bool:
    whole = {Path(path).absolute(), Path(path).resolve()}
    parents: Iterable[Path] = {parent for each in whole for parent in each.parents}
    return all(each.stat().st_mode & 0o4 for each in whole) and all(parent.stat().st_mode & 0o1 for parent in parents)
