"""A real run of the tiny model in a process of its own, for tests that hurt it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from cluster.storage.ledger import LedgerAudit, audit_ledger, read_ledger
from tests.faults.fault_table import Losses

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT_EVERY = 4
SETTINGS = (
    "learner.num_steps=24",
    "learner.minibatch_size=8",  # two optimizer steps a step
    f"checkpoint.every_num_steps={CHECKPOINT_EVERY}",
    "learner.workers.max_restarts=20",
    "supervision.max_losses=20",
)
END_TIMEOUT_S = 600.0
POLL_S = 0.05
NUM_INSTANTS, STEPS_BETWEEN = 5, 4  # of `hurt_five_times`
ORPHANS_GONE_S = 15.0  # what a run may leave behind for, at most
BACK = re.compile(r"back from step (\d+) to (\d+)")

# What the processes of each kind are called.
GENERATOR, ENGINE, SCORER = "ray::VLLMGenerator", "VLLM::EngineCore", "ray::RewardFunctionScorer"
RANK, MAILBOX, CONTROLLER, TRAIN_TASK = "ray::RayTrainWorker", "ray::Mailbox", "ray::TrainController", "ray::ray train: learner"
KINDS = (GENERATOR, ENGINE, SCORER, RANK, MAILBOX, CONTROLLER, TRAIN_TASK)


class FaultyRun:
    """`rayward train configs/train/tiny.yaml` under test. Started by `start`, or by `resume` after its end."""

    def __init__(self, folder: Path, name: str, *overrides: str, **environment: str) -> None:
        self.path = folder / name
        self._log = folder / f"{name}.log"
        self._environment = {**os.environ, "COLUMNS": "200", **environment}
        config = REPOSITORY / "configs" / "train" / "tiny.yaml"
        self._arguments = ["train", str(config), f"name={name}", f"runs_dir={folder}", *SETTINGS, *overrides]
        self._process: subprocess.Popen[bytes] | None = None
        self._processes: set[psutil.Process] = set()

    @property
    def command(self) -> list[str]:
        """What `start` runs, from the repository."""
        return [sys.executable, "-m", "rayward", *self._arguments]

    @property
    def resume_command(self) -> list[str]:
        return [sys.executable, "-m", "rayward", "resume", str(self.path)]

    def start(self) -> "FaultyRun":
        self._process = self._running(self.command)
        return self

    def resume(self, *options: str) -> "FaultyRun":
        self._process = self._running([*self.resume_command, *options])
        return self

    @property
    def driver(self) -> psutil.Process:
        assert self._process is not None, "the test starts the run first"
        return psutil.Process(self._process.pid)

    @property
    def output(self) -> str:
        """Of all its processes so far; of a job's, Ray keeps it."""
        return self._log.read_text() if self._log.exists() else ""

    def processes(self, kind: str) -> list[psutil.Process]:
        """Living processes of a kind, newest first."""
        self._processes.update(self._others())
        found = [process for process in self._processes if _title(process).startswith(kind)]
        return sorted(found, key=lambda process: process.create_time(), reverse=True)

    def hurt(self, kind: str, blow: signal.Signals = signal.SIGKILL) -> float:
        """Waits for a process of the kind, sends it the signal; returns when."""
        wait_until(lambda: bool(self.processes(kind)), f"a process {kind}")
        self.processes(kind)[0].send_signal(blow)
        return time.monotonic()

    def wait_for_step(self, step: int) -> None:
        """Until so many steps are done."""
        wait_until(lambda: self.num_steps_done >= step or not self.is_running, f"step {step}")

    @property
    def num_steps_done(self) -> int:
        return max((line["step"] + 1 for line in self.metrics()), default=0)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Lines of the training steps."""
        path = self.path / "metrics.jsonl"
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if line.endswith("\n") and "stage" not in (values := json.loads(line)):
                yield values

    def wait_for_output(self, text: str, *, count: int = 1) -> float:
        """Until the run has said it so often; returns when."""
        wait_until(lambda: self.output.count(text) >= count or not self.is_running, repr(text))
        assert self.output.count(text) >= count, self.output
        return time.monotonic()

    def wait(self) -> int:
        """The exit code, at the end."""
        assert self._process is not None, "the test starts the run first"
        return self._process.wait(END_TIMEOUT_S)

    def kill(self) -> None:
        """The driver, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def seconds_to_its_last_process(self, processes: Collection[psutil.Process]) -> float:
        """From now until none of them lives."""
        started_s = time.monotonic()
        wait_until(lambda: not any(map(_lives, processes)), "the end of every process", timeout_s=2 * ORPHANS_GONE_S)
        return time.monotonic() - started_s

    @property
    def all_processes(self) -> list[psutil.Process]:
        """The driver and all that it has started so far and still lives."""
        return [self.driver, *self._others()]

    def audit(self, *, max_staleness: int = 0) -> LedgerAudit:
        return audit_ledger(self.path / "trajectories", max_staleness=max_staleness)

    def losses(self, clean: "FaultyRun") -> Losses:
        """Beside a run that was left alone."""
        return Losses(
            num_lost=len(clean.trained() - self.trained()),
            num_doubled=sum("twice" in problem for problem in self.audit().problems),
            num_steps_again=self.num_steps_again,
        )

    @property
    def num_steps_again(self) -> int:
        """Those that came back with the ranks of a learner."""
        return sum(int(lost) - int(back) for lost, back in BACK.findall(self.output))

    def ends_as(self, clean: "FaultyRun") -> bool:
        """Whether it ends well, with the ledger and the weights of a run that was left alone, to the last bit."""
        return self.wait() == 0 and self.is_as(clean)

    def is_as(self, clean: "FaultyRun") -> bool:
        """Whether ledger and weights are those of a run that was left alone, to the last bit."""
        audit = self.audit()
        return not audit.problems and audit.digest == clean.audit().digest and self.policy() == clean.policy()

    def trained(self) -> set[tuple[int, str, int, str]]:
        """(step, task, sample, completion) of everything that was trained on."""
        entries = read_ledger(self.path / "trajectories")
        return {
            (entry.step, entry.task_id, entry.sample_index, entry.completion) for entry in entries if entry.outcome == "trained"
        }

    def policy(self) -> bytes:
        """The bytes of the exported weights."""
        (folder,) = (self.path / "policies").iterdir()
        return (folder / "model.safetensors").read_bytes()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def cold_start_s(self) -> float:
        """From the start of all roles to the first tokens, once it has ended."""
        return float(json.loads((self.path / "summary.json").read_text())["wall_s"]["start"])

    def _others(self) -> list[psutil.Process]:
        """What descends from the driver now."""
        return self.driver.children(recursive=True)

    def _running(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )


def wait_until(holds: Callable[[], bool], what: str, *, timeout_s: float = END_TIMEOUT_S) -> None:
    """Raises `TimeoutError` naming what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(POLL_S)


def at_some_instant(seed: int) -> None:
    """Somewhere within a step of the tiny run, which takes about a second."""
    time.sleep(random.Random(seed).random())


def hurt_five_times(run: FaultyRun, kind: str) -> list[float]:
    """Seconds from each kill to the end of the step that it hit."""
    recovery_s = []
    for instant in range(NUM_INSTANTS):
        run.wait_for_step(1 + STEPS_BETWEEN * instant)
        at_some_instant(instant)
        num_done = run.num_steps_done
        hurt_s = run.hurt(kind)
        run.wait_for_step(num_done + 1)
        recovery_s.append(time.monotonic() - hurt_s)
    return recovery_s


def seconds_after_each_kill(run: FaultyRun, steps: Sequence[int]) -> list[float]:
    """Kill the driver at some instant after each of `steps`, and resume; until the last process of each was gone."""
    gone_s = []
    for step in steps:
        run.wait_for_step(step)
        at_some_instant(step)
        processes = run.all_processes
        run.kill()
        gone_s.append(run.seconds_to_its_last_process(processes))
        run.resume()
    return gone_s


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) if process.is_running() else ""
    except psutil.Error:
        return ""


RunStarter = Callable[..., FaultyRun]
