"""A Python process of our own, so that what hangs, crashes or eats memory in it can be ended from outside.

Requests go out pickled, as to any process of ours. Replies come back as JSON: nothing that a child sends can run here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil

from actors.user_code.separate_user import hide_from_own_user, separate_user
from cluster.errors import RaywardError

SAFE_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
START_TIMEOUT_S = 120.0  # the interpreter and what the handler imports
EXIT_TIMEOUT_S = 5.0  # of a process that was killed or has hung up; the kernel may be busy with its memory
CHECK_SIZE_S = 0.25  # how often a child's processes are counted while it works
CHILD_STDERR = 2  # what a child prints goes to our stderr; our stdout may be read by a program


class ChildError(RaywardError):
    """A call did not end well. `results`: what the child had replied before."""

    def __init__(self, problem: str, results: list[Any] | None = None) -> None:
        super().__init__(problem)
        self.results = results or []


class ChildStartError(ChildError):
    """The process did not start, or its handler could not be built."""


class ChildTimeoutError(ChildError):
    """No reply in time; the process was killed."""


class ChildLostError(ChildError):
    """The process ended by itself."""


class _TooManyError(Exception):
    """The child and what it started have more processes and threads than they may."""


class ChildFailedError(ChildError):
    """The handler raised; the process lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What a child may take. Produced by whoever starts one, consumed by `ChildProcess` and `child_main`; None is no limit."""

    max_memory_bytes: int | None = None  # of address space
    max_file_bytes: int | None = None  # of any file that it writes
    max_processes: int | None = None  # its own and those that it started, each thread counted; more, and all are killed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    process: subprocess.Popen[bytes]  # the guard of what runs the handler: see `child_guard`
    connection: Connection
    folder: str  # its working folder, empty at the start


class ChildProcess:
    """Runs a handler in a process that starts with the first call, and again with the call after its end.

    `builder` ("module:function") is called in the child with `settings` and returns the handler; the handler takes a request
    and returns an iterable of JSON values. Calls from several threads wait for each other.

    The child sees of our environment what Python needs, and the variables named in `environment`: no secrets by accident.
    It works in an empty folder of its own. With `separate`, it is a user of its own where we are root; see `separate_user`.
    """

    def __init__(
        self,
        builder: str,
        settings: Mapping[str, Any],
        *,
        limits: ChildLimits = ChildLimits(),
        environment: Collection[str] = (),
        separate: bool = True,
    ) -> None:
        self._builder = builder
        self._settings = dict(settings)
        self._limits = limits
        self._environment = {*SAFE_ENVIRONMENT, *environment}
        self._separate = separate
        self._checked_s = 0.0  # when its processes were last counted
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self.num_replies = 0  # of all processes so far; may be read while a call runs

    def start(self) -> None:
        """Return when the handler is built; raises `ChildStartError`."""
        with self._lock:
            self._child()

    def call(self, request: Any, *, timeout_s: float) -> list[Any]:
        """All results for one request. `timeout_s` bounds the wait for each of them."""
        with self._lock:
            return self._exchange(self._child(), request, timeout_s)

    def close(self) -> None:
        """End the process, if it runs. A later call starts a new one."""
        with self._lock:
            self._kill()

    def _child(self) -> _Running:
        if self._running is None:
            self._running = self._started()
            try:
                self._exchange(self._running, (self._builder, self._settings, self._kernel_limits()), START_TIMEOUT_S)
            except ChildError as error:
                self._kill()
                raise ChildStartError(f"could not start: {error}") from error
        return self._running

    def _exchange(self, child: _Running, request: Any, timeout_s: float) -> list[Any]:
        results: list[Any] = []
        try:
            child.connection.send(request)
            while "end" not in (reply := self._reply(child, timeout_s)):
                results.append(reply["result"])
                self.num_replies += 1
        except TimeoutError as error:
            self._kill()
            raise ChildTimeoutError(f"no reply within {timeout_s:g} s", results) from error
        except _TooManyError as error:
            self._kill()
            raise ChildLostError(f"its process {error}, and was killed", results) from error
        except (EOFError, OSError) as error:
            raise ChildLostError(f"its process {self._how_it_ended(child)}", results) from error
        except BaseException:
            self._kill()  # it may still reply, and the next call would take that for its own
            raise
        if reply["end"] is not None:
            raise ChildFailedError(reply["end"], results)
        return results

    def _started(self) -> _Running:
        ours, theirs = Pipe()
        folder = tempfile.mkdtemp(prefix="rayward-child-")
        user = self._user()
        if user is not None:
            os.chown(folder, user, user)
        environment = {name: value for name, value in os.environ.items() if name in self._environment}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "actors.user_code.child_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=CHILD_STDERR,
                cwd=folder,
                env={
                    **environment,
                    "HOME": folder,
                    "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
                },
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                start_new_session=True,  # spared by Ctrl-C
            )
        return _Running(process=process, connection=ours, folder=folder)

    def _user(self) -> int | None:
        """The user to run as; None is ours, which then hides what it can."""
        user = separate_user() if self._separate else None
        if user is None and os.geteuid() != 0:
            hide_from_own_user()
        return user

    def _kernel_limits(self) -> dict[str, int | None]:
        return {"max_memory_bytes": self._limits.max_memory_bytes, "max_file_bytes": self._limits.max_file_bytes}

    def _reply(self, child: _Running, timeout_s: float) -> dict[str, Any]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._check_size(child)
            left_s = deadline_s - time.monotonic()
            if child.connection.poll(max(0.0, min(left_s, CHECK_SIZE_S))):
                return json.loads(child.connection.recv_bytes())
            if left_s <= CHECK_SIZE_S:
                raise TimeoutError

    def _check_size(self, child: _Running) -> None:
        """The kernel's own limit counts everything that the user runs, such as threads of engines, so it cannot be used."""
        limit = self._limits.max_processes
        if limit is None or time.monotonic() < self._checked_s + CHECK_SIZE_S:
            return
        count = _num_threads_below(child.process.pid)
        self._checked_s = time.monotonic()
        if count > limit:
            raise _TooManyError(f"had {count} processes and threads, more than max_processes={limit}")

    def _how_it_ended(self, child: _Running) -> str:
        try:
            status = child.process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "hung up and was killed"
        finally:
            self._kill()
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    def _kill(self) -> None:
        """End the process and all that it started."""
        if self._running is None:
            return
        child, self._running = self._running, None
        child.connection.close()
        child.process.terminate()
        child.process.send_signal(signal.SIGCONT)  # should it have been stopped
        try:
            child.process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _kill_tree(child.process.pid)
            child.process.wait(EXIT_TIMEOUT_S)
        shutil.rmtree(child.folder, ignore_errors=True)


def _num_threads_below(pid: int) -> int:
    """Threads of all processes that descend from one."""
    count = 0
    with suppress(psutil.NoSuchProcess):  # ended meanwhile
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                count += process.num_threads()
    return count


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        guard = psutil.Process(pid)
        for process in [*guard.children(recursive=True), guard]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
