"""Keeps together what a child starts: a process above it that the kernel makes the parent of every descendant left without one.

Whatever leaves the child's process group or session, as daemons do, still descends from the guard. Linux only.
"""

import ctypes
import os
import resource
import signal
from contextlib import suppress

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl.h
WATCHED = (signal.SIGCHLD, signal.SIGTERM)


def fork_under_guard(*, file_descriptor: int) -> None:
    """Return in a new process, whose guard this one stays. `file_descriptor` is left to the new one.

    When that has ended, or when SIGTERM comes, the guard ends all that is left under it. Then it ends in the same way.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    child = os.fork()
    if child == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        return
    os.close(file_descriptor)
    status = _status_at_end(child)
    _end_all(group=child)
    _end_like(status)


def _status_at_end(child: int) -> int:
    """As `os.waitpid` gives it; 0 where SIGTERM came first."""
    while signal.sigwait(WATCHED) == signal.SIGCHLD:
        ended = -1
        while ended != 0:
            ended, status = os.waitpid(-1, os.WNOHANG)  # an orphan, or the child itself, which lives until it is met here
            if ended == child:
                return status
    return 0


def _end_all(*, group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)  # at one stroke, so that those who stayed in it start nothing more
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        try:
            os.wait()
        except ChildProcessError:
            return


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has dumped its own
        with suppress(OSError):  # SIGKILL
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
