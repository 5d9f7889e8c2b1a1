"""A Python process of our own, so that what hangs, crashes or eats memory in it can be ended from outside.

Requests go out pickled, as to any process of ours. Replies come back as JSON: nothing that a child sends can run here.
"""

import ctypes
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
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil

from cluster.errors import RaywardError

SAFE_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
START_TIMEOUT_S = 120.0  # the interpreter and what the handler imports
EXIT_TIMEOUT_S = 5.0  # of a process that was killed or has hung up; the kernel may be busy with its memory
LOOK_S = 0.5  # between two looks at how many processes and threads a child has
PR_SET_DUMPABLE = 4  # linux/prctl.h
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


class ChildFailedError(ChildError):
    """The handler raised; the process lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What a child may take. Produced by whoever starts one, consumed by `child_main`; None is no limit."""

    max_memory_bytes: int | None = None  # of address space
    max_file_bytes: int | None = None  # of any file that it writes
    max_processes: int | None = None  # that it starts, threads among them; looked at every LOOK_S while a call runs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    process: subprocess.Popen[bytes]
    connection: Connection
    folder: str  # its working folder, empty at the start


class _TooManyError(Exception):
    """A child has started more than it may."""


class ChildProcess:
    """Runs a handler in a process that starts with the first call, and again with the call after its end.

    `builder` ("module:function") is called in the child with `settings` and returns the handler; the handler takes a request
    and returns an iterable of JSON values. Calls from several threads wait for each other.

    The child sees of our environment what Python needs, and the variables named in `environment`: no secrets by accident.
    It works in an empty folder of its own.
    """

    def __init__(
        self,
        builder: str,
        settings: Mapping[str, Any],
        *,
        limits: ChildLimits = ChildLimits(),
        environment: Collection[str] = (),
    ) -> None:
        self._builder = builder
        self._settings = dict(settings)
        self._limits = limits
        self._environment = {*SAFE_ENVIRONMENT, *environment}
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
                self._exchange(self._running, (self._builder, self._settings, asdict(self._limits)), START_TIMEOUT_S)
            except ChildError as error:
                self._kill()
                raise ChildStartError(f"could not start: {error}") from error
        return self._running

    def _exchange(self, child: _Running, request: Any, timeout_s: float) -> list[Any]:
        results: list[Any] = []
        try:
            child.connection.send(request)
            while "end" not in (reply := self._reply(child, timeout_s, self._limits.max_processes)):
                results.append(reply["result"])
                self.num_replies += 1
        except TimeoutError as error:
            self._kill()
            raise ChildTimeoutError(f"no reply within {timeout_s:g} s", results) from error
        except (EOFError, OSError) as error:
            raise ChildLostError(f"its process {self._how_it_ended(child)}", results) from error
        except _TooManyError as error:
            self._kill()
            raise ChildLostError(f"its process {error}", results) from error
        except BaseException:
            self._kill()  # it may still reply, and the next call would take that for its own
            raise
        if reply["end"] is not None:
            raise ChildFailedError(reply["end"], results)
        return results

    def _started(self) -> _Running:
        _hide_own_environment()
        ours, theirs = Pipe()
        folder = tempfile.mkdtemp(prefix="rayward-child-")
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
                start_new_session=True,  # a group of its own: killed with all that it started, spared by Ctrl-C
            )
        return _Running(process=process, connection=ours, folder=folder)

    @staticmethod
    def _reply(child: _Running, timeout_s: float, max_processes: int | None) -> dict[str, Any]:
        ends_s = time.monotonic() + timeout_s
        while not child.connection.poll(max(0.0, min(LOOK_S, ends_s - time.monotonic()))):
            if time.monotonic() >= ends_s:
                raise TimeoutError
            if max_processes is not None and _num_started(child.process.pid) > max_processes:
                raise _TooManyError(f"started more than {max_processes} processes and threads, and was ended")
        return json.loads(child.connection.recv_bytes())

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
        with suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait(EXIT_TIMEOUT_S)
        shutil.rmtree(child.folder, ignore_errors=True)


def _hide_own_environment() -> None:
    """Take /proc/PID/environ of this process, with its keys and tokens, from other processes of the same user.

    Root reads it all the same. The price: a debugger of the same user, and py-spy, cannot look into this process either.
    """
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _num_started(pid: int) -> int:
    """Processes and threads of a child, but for the one that it began with."""
    try:
        child = psutil.Process(pid)
        family = [child, *child.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    num_threads = 0
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            num_threads += process.num_threads()
    return num_threads - 1
