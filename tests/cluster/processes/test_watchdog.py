"""The watchdog: a stall is told once, with what is waited for, and the stacks of every process, stopped ones too."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError

from cluster.processes.watchdog import LOOKS_PER_DEADLINE, Pending, waiting_for, watched

DEADLINE_S = 0.4
STALLED = [Pending(whom="generator 0", what="reviews/1", since_s=0.0)]
SLEEPER = "import time\ndef waits_for_ever():\n    time.sleep(600)\nprint('ready', flush=True)\nwaits_for_ever()\n"


@pytest.fixture
def stopped_child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGSTOP)
    yield child
    child.kill()
    child.communicate()


class Owed:
    """What the watchdog is told at each look: `at_look(0)`, `at_look(1)`, ..."""

    def __init__(self, at_look: Callable[[int], list[Pending]]) -> None:
        self.at_look = at_look
        self._num_looks = 0
        self._looked = threading.Condition()

    def __call__(self) -> list[Pending]:
        with self._looked:
            self._num_looks += 1
            self._looked.notify_all()
            return self.at_look(self._num_looks - 1)

    def wait_for_deadlines(self, count: int) -> None:
        """Return when that many deadlines have gone by for the watchdog."""
        with self._looked:
            enough = self._num_looks + count * LOOKS_PER_DEADLINE
            assert self._looked.wait_for(lambda: self._num_looks > enough, timeout=60)


def until(notes: list[str], count: int) -> None:
    deadline = time.monotonic() + 60
    while len(notes) < count:
        assert time.monotonic() < deadline, notes
        time.sleep(0.01)


def test_a_stall_is_told_with_the_stacks_of_a_process_that_stands_still(
    tmp_path: Path, stopped_child: subprocess.Popen[bytes]
) -> None:
    notes: list[str] = []
    started_s = time.monotonic()
    with watched(lambda: STALLED, deadline_s=DEADLINE_S, note=notes.append, stacks=tmp_path):
        until(notes, 1)
        told_s = time.monotonic() - started_s
        file = tmp_path / "stacks-1.txt"
        deadline = time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert told_s >= DEADLINE_S
    assert notes == [
        f"nothing has moved for 0.4 s; waiting for generator 0 (reviews/1); stacks of all processes: {file}",
    ]
    described = {part.split(",")[0]: part for part in file.read_text().split("== pid ")}
    assert "stopped" in described[str(stopped_child.pid)]
    assert "waits_for_ever" in described[str(stopped_child.pid)]


def test_each_stall_is_told_once_and_none_while_things_move(tmp_path: Path) -> None:
    def moving(look: int) -> list[Pending]:
        """A new one, with the same words, at every second look."""
        return [Pending(whom="generator 0", what="reviews/1", since_s=float(look // 2))]

    owed, notes = Owed(moving), list[str]()
    with watched(owed, deadline_s=DEADLINE_S, note=notes.append, stacks=tmp_path):
        owed.wait_for_deadlines(2)
        assert notes == []
        owed.at_look = lambda look: STALLED
        until(notes, 1)
        owed.wait_for_deadlines(2)
        assert len(notes) == 1
        owed.at_look = lambda look: [Pending(whom="the learner's ranks", what="update", since_s=9.0)]
        until(notes, 2)
    assert "the learner's ranks (update)" in notes[1]


def test_stacks_that_cannot_be_written_do_not_end_the_watch(tmp_path: Path) -> None:
    pending, notes = list(STALLED), list[str]()
    with watched(lambda: pending, deadline_s=DEADLINE_S, note=notes.append, stacks=tmp_path / "gone"):
        until(notes, 2)
        assert "stacks-1.txt could not be written" in notes[1]
        pending[:] = [Pending(whom="the learner's ranks", what="update", since_s=9.0)]
        until(notes, 3)
    assert "the learner's ranks (update)" in notes[2]


def test_stacks_of_an_earlier_stage_stay(tmp_path: Path) -> None:
    (tmp_path / "stacks-1.txt").write_text("earlier")
    notes: list[str] = []
    with watched(lambda: STALLED, deadline_s=0.05, note=notes.append, stacks=tmp_path, gather=lambda over: ""):
        until(notes, 1)
    assert notes[0].endswith(f"stacks of all processes: {tmp_path / 'stacks-2.txt'}")
    assert (tmp_path / "stacks-1.txt").read_text() == "earlier"


def test_a_cluster_that_does_not_answer_does_not_end_the_watch(tmp_path: Path) -> None:
    def no_answer(over: threading.Event) -> str:
        raise RaySystemError("no answer")

    pending, notes = list(STALLED), list[str]()
    with watched(lambda: pending, deadline_s=0.05, note=notes.append, stacks=tmp_path, gather=no_answer):
        until(notes, 2)
        assert notes[1] == "no stacks: System error: no answer"
        pending[:] = [Pending(whom="the learner's ranks", what="update", since_s=9.0)]
        until(notes, 3)
    assert "the learner's ranks (update)" in notes[2]


def test_nothing_pending_is_no_stall(tmp_path: Path) -> None:
    owed, notes = Owed(lambda look: []), list[str]()
    with watched(owed, deadline_s=0.05, note=notes.append, stacks=tmp_path):
        owed.wait_for_deadlines(2)
    assert notes == []


def test_many_things_are_counted_and_a_few_named() -> None:
    pending = [Pending(whom="generator 0", what=f"reviews/{number}", since_s=float(number)) for number in range(12)]
    pending.append(Pending(whom="the learner's ranks", what="update", since_s=1.0))
    assert waiting_for(pending) == (
        "generator 0 (reviews/0, reviews/1, reviews/2, reviews/3, ... 12 in all) and the learner's ranks (update)"
    )
