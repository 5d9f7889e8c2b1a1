"""A trial as a process: `rayward train` or `rayward resume`, in a run directory of its own.

A thread of Ray Tune's cannot be one: a run handles signals and connects to Ray itself.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.processes.interrupts import INTERRUPTED_EXIT_CODE
from learners.sweep.record import TrialState

CLEAN_END_S = 9.5  # after SIGTERM; a run ends its own clean end after 8.5 s
ERROR_PREFIX = "error: "  # of the lines that tell what ended a command
MAX_SAID = 500  # characters of them


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCommand:
    """What a trial's process is given. Produced by `learners.sweep.tuning`, consumed where the trial runs."""

    arguments: tuple[str, ...]  # after `python -m rayward`
    folder: str  # where it runs, so that paths in its configuration mean the same as for the sweep
    log: str  # the file that takes what it prints, after what earlier processes of the trial printed
    variables: Mapping[str, str]  # of its environment, besides what it inherits


class TrialProcess:
    """One process, from construction to its end."""

    def __init__(self, command: TrialCommand) -> None:
        self._log = Path(command.log)
        self._began_s = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            log.write(f"$ rayward {shlex.join(command.arguments)}\n".encode())
            log.flush()
            self._starts_at = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rayward", *command.arguments],
                cwd=command.folder,
                env={**os.environ, **command.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def outcome(self, *, wait_s: float) -> TrialState:
        """How it ended, if it has within `wait_s`."""
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return "running"
        if code == 0:
            return "completed"
        return "interrupted" if code == INTERRUPTED_EXIT_CODE else "failed"

    def said(self) -> str:
        """What ended it, in its own words."""
        with self._log.open("rb") as log:
            log.seek(self._starts_at)
            text = log.read().decode(errors="replace")
        lines = [line.removeprefix(ERROR_PREFIX) for line in text.splitlines() if line.startswith(ERROR_PREFIX)]
        return "; ".join(lines)[:MAX_SAID] or f"exit code {self._process.returncode}; its last words are in {self._log}"

    def stop(self) -> None:
        """A clean end; where that takes too long, an end. Its run can be resumed in either case."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(CLEAN_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
