"""The watchdog: a stall is told once, with what is waited for, and the stacks of every process, stopped ones too."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RaySystemError

from cluster.processes.watchdog import Pending, waiting_for, watched

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
    pending, notes = list(STALLED), list[str]()
    with watched(lambda: pending, deadline_s=DEADLINE_S, note=notes.append, stacks=tmp_path):
        for moved in range(8):  # a new one, with the same words, before the deadline each time
            pending[:] = [Pending(whom="generator 0", what="reviews/1", since_s=float(moved))]
            time.sleep(DEADLINE_S / 4)
        assert notes == []
        until(notes, 1)
        time.sleep(2 * DEADLINE_S)
        assert len(notes) == 1
        pending[:] = [Pending(whom="the learner's ranks", what="update", since_s=9.0)]
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
    notes: list[str] = []
    with watched(list, deadline_s=0.05, note=notes.append, stacks=tmp_path):
        time.sleep(0.5)
    assert notes == []


def test_many_things_are_counted_and_a_few_named() -> None:
    pending = [Pending(whom="generator 0", what=f"reviews/{number}", since_s=float(number)) for number in range(12)]
    pending.append(Pending(whom="the learner's ranks", what="update", since_s=1.0))
    assert waiting_for(pending) == (
        "generator 0 (reviews/0, reviews/1, reviews/2, reviews/3, ... 12 in all) and the learner's ranks (update)"
    )
